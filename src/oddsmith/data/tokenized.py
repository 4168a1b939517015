"""What becomes of a preference pair: its tokens, or the reason to leave it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DropReason(StrEnum):
    """Why a pair that is well-formed is not trained on. The wording of every report."""

    EMPTY_CHOSEN = "empty chosen answer"
    EMPTY_REJECTED = "empty rejected answer"
    IDENTICAL = "identical answers"
    PROMPT_TOO_LONG = "prompt fills max_length"
    NO_RESPONSE = "no response token left"
    IDENTICAL_AFTER_CUT = "identical answers after truncation"


@dataclass(frozen=True)
class Dropped:
    """A pair that is left out, and why."""

    reason: str


@dataclass(frozen=True)
class TokenizedPair:
    """The tokens of one pair.

    Args:
        chosen_ids, rejected_ids: Prompt and response. Encoder-decoder: the decoder's labels alone.
        chosen_prompt_tokens, rejected_prompt_tokens: Length of the prompt part; may differ by a merge at its end.
            Encoder-decoder: 0.
        chosen_end, rejected_end: One past the last target, which is the end-of-turn token unless it was cut off.
        prompt_cut, chosen_cut, rejected_cut: Whether prompt tokens, chosen or rejected targets were cut off.
        prompt_ids: The encoder's input; empty for other models.
    """

    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_prompt_tokens: int
    rejected_prompt_tokens: int
    chosen_end: int
    rejected_end: int
    prompt_cut: bool = False
    chosen_cut: bool = False
    rejected_cut: bool = False
    prompt_ids: tuple[int, ...] = ()

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sequence that ``max_length`` bounds: prompt + response, or the encoder's prompt."""
        return len(self.prompt_ids) or max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def cut_sides(self) -> list[str]:
        """Which of ``"prompt"``, ``"chosen"``, ``"rejected"`` lost tokens."""
        cut = {"prompt": self.prompt_cut, "chosen": self.chosen_cut, "rejected": self.rejected_cut}
        return [side for side, is_cut in cut.items() if is_cut]
