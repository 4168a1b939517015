"""Hold the tokens of a preference pair, or the reason to drop it, and cut tokens to ``max_length``.

The prompt is cut first, from the left, then the answers, from the right:

max_length 8, max_prompt_length 3       B = BOS, p = prompt, r = response, e = end of turn
before      B p p p p p p r r r r r e
after       B         p p r r r r r     the prompt keeps its BOS and its last tokens; the answer loses its end
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

from ..formats.values import common_prefix_length

GAP_COLUMNS = ("chosen_gaps", "rejected_gaps")
# Under TRL's names, for callbacks and scripts that read the datasets of a trainer; nothing here needs them.
TEXT_COLUMNS = ("prompt", "chosen", "rejected")


# Runs of tokens in a response that are no targets: start and one past the end of the first, of the second, and so on.
Gaps = tuple[int, ...]


def gap_tokens(gaps: Sequence[int]) -> int:
    """Return the number of tokens in gaps."""
    return sum(gaps[1::2]) - sum(gaps[::2])


class DropReason(StrEnum):
    """Why a valid pair is not trained on; reports use this wording."""

    CLOSE_SCORES = "scores closer than min_score_margin"
    EMPTY_CHOSEN = "empty chosen answer"
    EMPTY_REJECTED = "empty rejected answer"
    IDENTICAL = "identical answers"
    LEFT_OUT_CHOSEN = "chosen answer left out by the chat template"
    LEFT_OUT_REJECTED = "rejected answer left out by the chat template"
    IDENTICAL_RENDERED = "identical answers in the chat template"
    PROMPT_TOO_LONG = "prompt fills max_length"
    NO_RESPONSE = "no response token left"
    IDENTICAL_AFTER_CUT = "identical answers after truncation"


class Form(StrEnum):
    """What a pair is made of; plain text without a chat template is all that it can be, and has no form."""

    CONVERSATION = "conversations"
    TRANSCRIPT = "HH transcripts in the chat template"
    TRANSCRIPT_TEXT = "HH transcripts as they are"  # there is no chat template
    TEXT = "plain text as it is"
    TEMPLATED_TEXT = "plain text in the chat template"
    RENDERED_TEXT = "text that was rendered before"  # it holds the marks of the chat template
    RENDERED_ANSWERS = "a raw prompt before answers that were rendered with it"


# What is rendered by the chat template.
IN_TEMPLATE = (Form.CONVERSATION, Form.TRANSCRIPT, Form.TEMPLATED_TEXT)
# Reasons for which the chat template is to blame.
OF_TEMPLATE = (DropReason.LEFT_OUT_CHOSEN, DropReason.LEFT_OUT_REJECTED, DropReason.IDENTICAL_RENDERED)


@dataclass(frozen=True)
class Dropped:
    """A pair that is left out, and why."""

    reason: str
    lengths: Lengths | None = field(default=None, compare=False)  # of a pair that is too long


@dataclass(frozen=True)
class TokenizedPair:
    """The tokens of one pair."""

    chosen_ids: list[int]  # prompt and response; encoder-decoder: the decoder's labels alone
    rejected_ids: list[int]
    chosen_prompt_tokens: int  # length of the prompt; encoder-decoder: 0
    rejected_prompt_tokens: int  # may differ by a merge at the end of the prompt
    chosen_end: int  # one past the last target, which is the end-of-turn token unless it was cut off
    rejected_end: int
    chosen_gaps: Gaps = ()  # turns within the response that are not the assistant's own
    rejected_gaps: Gaps = ()
    prompt_cut: bool = False  # whether prompt tokens were cut off
    chosen_cut: bool = False  # whether targets were cut off
    rejected_cut: bool = False
    prompt_ids: tuple[int, ...] = ()  # the encoder's input; empty for other models
    form: Form | None = None  # None: text that is no transcript, and no chat template
    left_out: tuple[str, ...] = ()  # what the chat template leaves out of the row, such as ``"thoughts in chosen"``
    texts: tuple[str, str, str] = ("", "", "")  # prompt and both responses as rendered, before anything is cut

    @property
    def longest_tokens(self) -> int:
        """Return the length of the longest sequence that ``max_length`` bounds: a side, or the encoder's prompt."""
        return len(self.prompt_ids) or max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def cut_sides(self) -> list[str]:
        """Return which of ``"prompt"``, ``"chosen"``, ``"rejected"`` lost tokens."""
        cut = {"prompt": self.prompt_cut, "chosen": self.chosen_cut, "rejected": self.rejected_cut}
        return [side for side, is_cut in cut.items() if is_cut]

    def side(self, name: str) -> Tokens:
        """Return the tokens of ``"chosen"`` or ``"rejected"``."""
        return Tokens(*(getattr(self, f"{name}_{part}") for part in ("ids", "prompt_tokens", "end", "gaps")))

    def to_row(self, number: int) -> dict[str, Any]:
        """Return the row of a prepared dataset, as the collators read it; ``number`` is the row's number."""
        return {
            "row": number,
            "chosen_input_ids": self.chosen_ids,
            "chosen_prompt_tokens": self.chosen_prompt_tokens,
            "chosen_end": self.chosen_end,
            "chosen_gaps": list(self.chosen_gaps),
            "rejected_input_ids": self.rejected_ids,
            "rejected_prompt_tokens": self.rejected_prompt_tokens,
            "rejected_end": self.rejected_end,
            "rejected_gaps": list(self.rejected_gaps),
            "prompt_input_ids": self.prompt_ids,
            **dict(zip(TEXT_COLUMNS, self.texts, strict=True)),
        }


class Tokens(NamedTuple):
    """One side of a pair: its ids, the length of the prompt part, one past the last target, gaps between targets."""

    ids: list[int]
    prompt_tokens: int
    end: int
    gaps: Gaps = ()  # from after the first target to before the last, in their order

    @property
    def target_tokens(self) -> int:
        """Return the number of targets. The first token of a sequence has no prediction, so it is no target."""
        return self.end - max(self.prompt_tokens, 1) - gap_tokens(self.gaps)

    def segments(self) -> list[tuple[list[int], bool]]:
        """Return the ids after the prompt in pieces that are targets and pieces that are not, and which they are."""
        places = [self.prompt_tokens, *self.gaps, self.end, len(self.ids)]
        pieces = enumerate(pairwise(places))
        return [(self.ids[start:end], number % 2 == 0) for number, (start, end) in pieces if start < end]

    def targets(self) -> list[int]:
        """Return the ids of the targets, the first of all ids included."""
        return [token for ids, is_learned in self.segments() if is_learned for token in ids]

    def without_left(self, cut_tokens: int, *, kept_tokens: int = 0) -> Tokens:
        """Remove ``cut_tokens`` of the prompt, after its first ``kept_tokens``."""
        cut_tokens = max(0, min(cut_tokens, self.prompt_tokens - kept_tokens))
        ids = self.ids[:kept_tokens] + self.ids[kept_tokens + cut_tokens :]
        gaps = tuple(position - cut_tokens for position in self.gaps)
        return Tokens(ids, self.prompt_tokens - cut_tokens, self.end - cut_tokens, gaps)

    def without_right(self, max_length: int) -> Tokens:
        """Keep the first ``max_length`` tokens; targets end before a gap that is cut."""
        end = min(self.end, max_length)
        gaps = self.gaps
        while gaps and gaps[-1] >= end:
            end, gaps = min(end, gaps[-2]), gaps[:-2]
        return Tokens(self.ids[:max_length], self.prompt_tokens, end, gaps)


class Lengths(NamedTuple):
    """How many tokens a pair has before it is cut: of its prompt, shared by both sides, up to the last target."""

    prompt_tokens: int
    shared_tokens: int
    all_tokens: int

    @classmethod
    def of(cls, chosen: Tokens, rejected: Tokens) -> Lengths:
        """Return the lengths of both sides of a pair."""
        shared = common_prefix_length(chosen.ids[: chosen.end], rejected.ids[: rejected.end])
        return cls(max(chosen.prompt_tokens, rejected.prompt_tokens, 1), shared, max(chosen.end, rejected.end))

    def without(self, tokens: int) -> Lengths:
        """Return the lengths after so many tokens of the prompt are cut off."""
        return Lengths(*(length - tokens for length in self))


def cut_pair(
    chosen: Tokens,
    rejected: Tokens,
    *,
    max_length: int | None,
    max_prompt_length: int | None = None,
    bos_token_id: int | None = None,
) -> tuple[Tokens, Tokens]:
    """Cut both sides to ``max_length`` tokens of prompt + response; None: no limit.

    If the targets of either side reach beyond ``max_length``, both prompts lose the same number of tokens, so that they
    still begin alike: as many as bring the longer one down to ``max_prompt_length`` (None: prompts are not cut). A
    leading BOS stays, and counts; a second one right after it is left out. A prompt may still fill ``max_length``: then
    no target is left.
    """
    if max_length is None:
        return chosen, rejected
    if max_prompt_length is not None and max(chosen.end, rejected.end) > max_length:
        cut_tokens = max(chosen.prompt_tokens, rejected.prompt_tokens) - max_prompt_length
        kept_tokens = int(bos_token_id is not None and chosen.ids[:1] == rejected.ids[:1] == [bos_token_id])
        first_left = [side.ids[cut_tokens + 1 : cut_tokens + 2] for side in (chosen, rejected)]
        if kept_tokens and cut_tokens > 0 and first_left == [[bos_token_id]] * 2:
            # What is left begins with that token itself, as SmolLM2's turns do: one is enough.
            kept_tokens, cut_tokens = 0, cut_tokens + 1
        chosen = chosen.without_left(cut_tokens, kept_tokens=kept_tokens)
        rejected = rejected.without_left(cut_tokens, kept_tokens=kept_tokens)
    return chosen.without_right(max_length), rejected.without_right(max_length)


def tokenized_pair(
    whole: tuple[Tokens, Tokens], cut: tuple[Tokens, Tokens], *, prompt_cut: bool, prompt_ids: Sequence[int] = ()
) -> TokenizedPair:
    """Make the pair of two sides that were cut."""
    chosen, rejected = cut
    return TokenizedPair(
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        chosen_prompt_tokens=chosen.prompt_tokens,
        rejected_prompt_tokens=rejected.prompt_tokens,
        chosen_end=chosen.end,
        rejected_end=rejected.end,
        chosen_gaps=chosen.gaps,
        rejected_gaps=rejected.gaps,
        prompt_cut=prompt_cut,
        chosen_cut=chosen.target_tokens < whole[0].target_tokens,
        rejected_cut=rejected.target_tokens < whole[1].target_tokens,
        prompt_ids=tuple(prompt_ids),
    )


def same_targets(chosen: Tokens, rejected: Tokens) -> bool:
    """Return whether both sides are the same up to their last target, so that there is nothing to prefer."""
    return chosen.ids[: chosen.end] == rejected.ids[: rejected.end]
