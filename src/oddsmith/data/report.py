"""Count the rows of a dataset that are kept, dropped (and why) and cut (and where), and report the counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..system.words import counted
from .checks.catalogue import SHOWN_ROWS, TOLD_IN_TRAINING, Hit
from .tokens.tokenized import Dropped, Form, Lengths, TokenizedPair
from .too_long import advice

MANY = 0.01  # a share of rows that are too long from which on a report says what keeps them

QUESTION_TWICE = (
    "a raw prompt before answers that were rendered with their question, so that it stands twice in each text; give"
    " conversations, or render the prompt apart from the answers"
)
FORMS_IN_WORDS: dict[str, str] = {
    Form.TEXT: "plain text, without the chat template; with it: chat_template_on_text: true",
    Form.TEMPLATED_TEXT: "plain text, put into the chat template; without it: chat_template_on_text: false",
    Form.TRANSCRIPT: "Anthropic HH text, rendered anew by the chat template; as it is: chat_template_on_text: false",
    Form.TRANSCRIPT_TEXT: "Anthropic HH text as it is, because the model has no chat template",
    Form.RENDERED_TEXT: "text that was put into the chat template before, and stays as it is",
}


@dataclass
class DataReport:
    """The counts of one dataset: rows read, pairs kept. Row numbers count from 0."""

    source: str
    format: str  # recognised format of its rows; several are joined with ``" + "``
    max_length: int | None = None  # most tokens a sequence may have; None: no limit
    is_stream: bool = False  # whether rows are read while training, so that the numbers grow
    rows: int = 0
    kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)  # numbers of the rows left out, by reason
    # Numbers of the kept rows that lost tokens, by side: ``"prompt"``, ``"chosen"``, ``"rejected"``
    cut: dict[str, list[int]] = field(default_factory=dict)
    # Numbers of the kept rows of which the chat template leaves something out, by what that is
    left_out: dict[str, list[int]] = field(default_factory=dict)
    # Numbers of the kept rows with something odd about them, by the name of the check that finds it and the part
    odd: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)  # how many kept rows are of which ``Form``
    too_long: list[Sequence[int]] = field(default_factory=list)  # ``Lengths`` of those left out for their length
    most_tokens: int | None = None  # what the model can read; None: not known
    longest_tokens: int = 0  # tokens of the longest kept sequence, after cutting (encoder-decoder: of the encoder's)

    def count(self, row: int, outcome: TokenizedPair | Dropped, hits: Iterable[Hit] = ()) -> None:
        """Count one row; ``hits`` are checks of ``TOLD_IN_TRAINING`` that it does not pass."""
        self.rows += 1
        if isinstance(outcome, Dropped):
            self.dropped.setdefault(outcome.reason, []).append(row)
            self.too_long += [outcome.lengths] if outcome.lengths else []
            return
        self.kept += 1
        self.longest_tokens = max(self.longest_tokens, outcome.longest_tokens)
        if outcome.form is not None:
            self.forms[outcome.form] = self.forms.get(outcome.form, 0) + 1
        for lists, names in ((self.cut, outcome.cut_sides), (self.left_out, outcome.left_out)):
            for name in names:
                lists.setdefault(name, []).append(row)

        for check, faulty in hits:
            self.odd.setdefault(check.name, {}).setdefault(faulty, []).append(row)

    def add(self, part: DataReport) -> None:
        """Add the counts of the rows after these."""
        self.rows += part.rows
        self.kept += part.kept
        self.too_long += part.too_long
        self.longest_tokens = max(self.longest_tokens, part.longest_tokens)
        for form, count in part.forms.items():
            self.forms[form] = self.forms.get(form, 0) + count
        pairs = [(self.dropped, part.dropped), (self.cut, part.cut), (self.left_out, part.left_out)]
        pairs += [(self.odd.setdefault(check, {}), parts) for check, parts in part.odd.items()]
        for lists, more in pairs:
            for name, rows in more.items():
                lists.setdefault(name, []).extend(rows)

    @property
    def dropped_rows(self) -> int:
        """Return the number of rows left out."""
        return sum(map(len, self.dropped.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        internal = ("is_stream", "too_long", "most_tokens")
        return {name: value for name, value in asdict(self).items() if name not in internal}

    def lines(self) -> list[str]:
        """Return the counts in sentences: what is kept, each reason to drop with its rows, what was cut."""
        read = " read so far" if self.is_stream else ""
        dropped = f", {self.dropped_rows:,} dropped" if self.dropped else ""
        lines = [f"{self.source}: {counted(self.rows, 'row')}{read} ({self.format}), {self.kept:,} kept{dropped}"]
        lines += [f"  dropped {len(rows):,}: {reason} ({named_rows(rows)})" for reason, rows in self._reasons()]
        lines += [f"  {text}" for text in (*self._form_lines(), *self.warnings())]
        if self.cut:
            sides = [f"{len(self.cut[side]):,} {side}" for side in ("prompt", "chosen", "rejected") if side in self.cut]
            limit = f" to fit max_length {self.max_length}" if self.max_length is not None else ""
            lines.append(f"  cut{limit}: {', '.join(sides)}")
        if self.kept:
            limit = f" of {self.max_length:,} allowed" if self.max_length is not None else ""
            lines.append(f"  longest sequence: {counted(self.longest_tokens, 'token')}{limit}")
        return lines

    @property
    def is_mixed(self) -> bool:
        """Return whether there are conversations beside text without chat template."""
        return Form.TEXT in self.forms and self.conversations > 0

    @property
    def conversations(self) -> int:
        """Return how many kept rows hold turns that the chat template renders, as messages or as a transcript."""
        return sum(self.forms.get(form, 0) for form in (Form.CONVERSATION, Form.TRANSCRIPT))

    def _form_lines(self) -> list[str]:
        """Return in sentences whether text is in the chat template, and how to get it otherwise."""
        return [
            (words if len(self.forms) == 1 else f"{count:,} of them {words}")
            for form, count in self.forms.items()
            if (words := FORMS_IN_WORDS.get(form))
        ]

    def warnings(self) -> list[str]:
        """Return in sentences what can be done for long rows, what is left out of the kept ones, what is odd there."""
        lines = [f"{len(self.too_long):,} are too long: {advice}"] if (advice := self.longer_limits(MANY)) else []
        lines += [
            f"left out of {len(rows):,} by the chat template: {part} ({named_rows(rows)})"
            for part, rows in sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        ]
        if twice := self.forms.get(Form.RENDERED_ANSWERS):
            lines.append(f"{counted(twice, 'row')}: {QUESTION_TWICE}")
        for check in TOLD_IN_TRAINING:
            parts = self.odd.get(check.name, {})
            rows = sorted({row for rows in parts.values() for row in rows})
            if check.verdict(len(rows), self.rows) != "pass":
                lines.append(f"{check.name} in {len(rows):,}: {', '.join(parts)} ({named_rows(rows)}); {check.fix}")
        return lines

    def longer_limits(self, least_share: float = 0.0) -> str:
        """Return which limits keep how many of the rows that are too long; empty for less than a share of all rows."""
        if self.max_length is None or len(self.too_long) <= least_share * self.rows:
            return ""
        return advice([Lengths(*lengths) for lengths in self.too_long], self.max_length, self.most_tokens)

    def dropped_in_words(self) -> str:
        """Return the reasons with their counts and rows on one line; empty when nothing was dropped."""
        return "; ".join(f"{len(rows)} {reason}: {named_rows(rows)}" for reason, rows in self._reasons())

    def _reasons(self) -> list[tuple[str, list[int]]]:
        return sorted(self.dropped.items(), key=lambda item: -len(item[1]))


def named_rows(rows: Sequence[int]) -> str:
    """Return ``row 3`` or ``rows 3, 17, 20``; of many the first few and a count of the rest."""
    names = ", ".join(map(str, rows[:SHOWN_ROWS]))
    more = f" and {len(rows) - SHOWN_ROWS:,} more" if len(rows) > SHOWN_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {names}{more}"
