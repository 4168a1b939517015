"""Checks of rows one by one, in whichever process reads them; what they find in batches of rows can be added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import DataError, RowError
from ..formats import PreferencePair, Row, format_of, to_pair
from . import catalogue
from .answers import Hit, answer_hits
from .benchmark import Benchmark
from .content import content_hits
from .finding import Check
from .language import language_hits
from .lengths import LengthAccount
from .prints import Fingerprint, fingerprint
from .roles import role_hits
from .texts import PairTexts

if TYPE_CHECKING:
    from .template import TemplateCheck


@dataclass
class RowAccount:
    """What was found in some rows.

    Args:
        rows: How many were read.
        hits: Numbers of the rows at fault, by check and part (a side, a reason, ...).
        formats: How many rows are of each format.
        characters: Lengths of the answers.
        tokens: The same in tokens, of the pairs that are kept; only with a tokenizer.
        kept: Numbers of the rows that the training keeps; only with a tokenizer.
        prints: Row numbers and fingerprints of the pairs.
    """

    rows: int = 0
    hits: dict[tuple[Check, str], list[int]] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    characters: LengthAccount = field(default_factory=LengthAccount)
    tokens: LengthAccount = field(default_factory=LengthAccount)
    kept: int = 0
    prints: list[tuple[int, Fingerprint]] = field(default_factory=list)

    def hit(self, row: int, hits: Iterable[Hit]) -> None:
        """Remember that a row does not pass some checks."""
        for key in hits:
            rows = self.hits.setdefault(key, [])
            if not rows or rows[-1] != row:
                rows.append(row)

    def add(self, other: RowAccount) -> None:
        """Add what was found in the rows after these; their fingerprints stay where they are."""
        self.rows += other.rows
        self.kept += other.kept
        for key, rows in other.hits.items():
            self.hits.setdefault(key, []).extend(rows)
        self.formats.update(other.formats)
        self.characters.add(other.characters)
        self.tokens.add(other.tokens)


@dataclass
class RowChecker:
    """Checks batches of rows.

    Args:
        benchmark: What must not stand in them.
        template: The checks that need a tokenizer.
    """

    benchmark: Benchmark | None = None
    template: TemplateCheck | None = None

    def check(self, start: int, rows: Sequence[Any]) -> RowAccount:
        """Check some rows.

        Args:
            start: Number of the first.
            rows: The rows.

        Returns:
            What was found.
        """
        account = RowAccount(rows=len(rows))
        numbers: list[int] = []
        pairs: list[PreferencePair] = []
        texts: list[PairTexts] = []
        for number, row in enumerate(rows, start):
            pair = self._pair(number, row, account)
            if pair is None:
                continue
            said = PairTexts.of(pair)
            if not said.is_unicode():  # a tokenizer would stop at it
                account.hit(number, [(catalogue.NO_PAIR, "invalid Unicode")])
                continue
            numbers.append(number)
            pairs.append(pair)
            texts.append(said)
        for number, pair, said in zip(numbers, pairs, texts, strict=True):
            account.hit(number, answer_hits(pair, said))
            account.hit(number, role_hits(pair))
            account.hit(number, content_hits(said))
            account.hit(number, language_hits(said))
            if self.benchmark is not None and self.benchmark.is_in(said):
                account.hit(number, [(catalogue.BENCHMARK_OVERLAP, "")])
            account.characters.count(len(said.chosen), len(said.rejected))
            account.prints.append((number, fingerprint(said)))
        if self.template is not None:
            self._check_tokens(self.template, numbers, pairs, texts, account)
        return account

    def _pair(self, number: int, row: Row, account: RowAccount) -> PreferencePair | None:
        try:
            pair = to_pair(row)
            account.formats[format_of(row)] += 1
        except RowError as error:
            account.hit(number, [(catalogue.NO_PAIR, error.reason)])
        except DataError:
            account.hit(number, [(catalogue.NO_PAIR, "unknown columns")])
        else:
            return pair
        return None

    @staticmethod
    def _check_tokens(
        template: TemplateCheck,
        numbers: Sequence[int],
        pairs: Sequence[PreferencePair],
        texts: Sequence[PairTexts],
        account: RowAccount,
    ) -> None:
        for number, (hits, tokens) in zip(numbers, template.hits(pairs, texts), strict=True):
            account.hit(number, hits)
            if tokens is not None:
                account.kept += 1
                account.tokens.count(
                    tokens.chosen_end - tokens.chosen_prompt_tokens, tokens.rejected_end - tokens.rejected_prompt_tokens
                )
