"""Run all checks of a dataset: several processes read and check rows, and the main process compares rows.

    process k of n     reads batches k, k + n, ... of the rows, checks each row -> Tally of a batch
    main process       adds the tallies up in the order of the rows, compares fingerprints -> findings, dropped rows

Memory: the rows of one batch in each process, and about a kilobyte a pair for the comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import DataError, RowError, UndecidedRow
from ..formats import PreferencePair, format_of, to_pair
from ..processes import parallel_shares, usable_processes
from ..sources import FileRows, Rows, batches
from ..tokens.tokenized import Dropped, Form, Lengths, TokenizedPair
from ..too_long import advice
from . import catalogue
from .benchmark import Benchmark
from .catalogue import Check, Finding, Hit, Verdict, worst
from .content import content_hits
from .duplicates import Duplicates, Fingerprint, PromptIndex
from .language import language_hits, language_identifier
from .lengths import LengthSums
from .rows import row_hits
from .texts import PairTexts

if TYPE_CHECKING:
    from ..limits import ModelLimits
    from ..tokens.pair_tokenizer import PairTokenizer
    from .token_checks import TokenChecks

SHOWN_PARTS = 4  # parts of a finding that are named before the rest is only counted


@dataclass(frozen=True)
class Survey:
    """The result of all checks of a dataset."""

    rows: int  # number of rows read
    formats: dict[str, int]  # how many rows have each format
    findings: list[Finding]  # one for each check that could be made, in the order of the catalogue
    skipped: dict[str, str]  # names of the checks that could not be made, with the flag that they need
    left_out: dict[str, list[int]] = field(repr=False)  # numbers of rows to drop, by the first check that drops them
    kept: int | None = None  # number of rows that the training keeps; None without a tokenizer

    @property
    def verdict(self) -> Verdict:
        """Return the most severe verdict."""
        return worst(finding.verdict for finding in self.findings)

    def rows_left_out(self) -> set[int]:
        """Return the numbers of all rows that a cleaned set leaves out."""
        return {row for rows in self.left_out.values() for row in rows}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, without the rows that are left out."""
        return {
            "verdict": self.verdict,
            "rows": self.rows,
            "kept": self.kept,
            "formats": self.formats,
            "findings": [finding.to_dict() for finding in self.findings],
            "skipped": self.skipped,
        }


def survey(
    rows: Rows | FileRows,
    *,
    evaluation: Rows | FileRows | None = None,
    benchmark: Benchmark | None = None,
    pair_tokenizer: PairTokenizer | None = None,
    limits: ModelLimits | None = None,
    on_rows: Callable[[int], object] = lambda count: None,
    processes: int | None = None,
) -> Survey:
    """Check a dataset of preference pairs.

    Args:
        rows: The rows, which may be a stream; every process reads it once.
        evaluation: The evaluation set, of which no prompt should occur in the rows.
        benchmark: A benchmark, of which no text should occur in the rows.
        pair_tokenizer: Tokenizes as the training will; None leaves the checks of tokens out.
        limits: How much the model can read; None leaves out whether it can read all.
        on_rows: Called with the number of rows checked since the last call.
        processes: Number of processes; by default one per core.

    Returns:
        The result.

    Raises:
        DataError: There are no rows, none of them is a pair, or a file of them is malformed.
        ModelError: The tokenizer lacks a chat template or an EOS token that is needed.
    """
    processes = processes or usable_processes()
    checker = RowChecker(benchmark)
    if pair_tokenizer is not None:
        from .token_checks import TokenChecks  # imports torch, like the tokenizer

        checker.token_checks = TokenChecks(pair_tokenizer, limits)
    language_identifier()  # before the processes start, so that they share the model
    duplicates = Duplicates(None if evaluation is None else _prompt_index(evaluation, processes))
    total = Tally()
    for part in parallel_shares(partial(_tallies, rows, checker), processes):
        total.add(part)
        for row, fingerprint in part.fingerprints:
            for check, faulty in duplicates.compare(row, fingerprint):
                total.hits.setdefault((check, ""), []).append(faulty)
        on_rows(part.rows)
    if not total.formats:
        raise DataError(_no_pair(total)).offering(total.meant)
    has = {
        catalogue.MODEL: pair_tokenizer is not None,
        catalogue.OUTLINE: limits is not None,
        catalogue.EVALUATION: evaluation is not None,
        catalogue.BENCHMARK: benchmark is not None,
    }
    missing = [flag for flag, is_given in has.items() if not is_given]
    is_decided = pair_tokenizer is None or pair_tokenizer.chat_template_on_text is not None
    found = {check: _limits_that_keep(lengths, pair_tokenizer, limits) for check, lengths in total.too_long.items()}
    return _summary(total, missing=missing, is_decided=is_decided, found=found)


@dataclass
class Tally:
    """The findings of the checks in some rows."""

    rows: int = 0  # number of rows read
    hits: dict[tuple[Check, str], list[int]] = field(default_factory=dict)  # faulty rows, by check and part
    formats: Counter[str] = field(default_factory=Counter)  # how many rows have each format
    characters: LengthSums = field(default_factory=LengthSums)  # lengths of the answers
    tokens: LengthSums = field(default_factory=LengthSums)  # the same in tokens, of the kept pairs
    kept: int = 0  # number of rows that the training keeps; only with a tokenizer
    conversations: int = 0  # how many of them are in the chat template
    fingerprints: list[tuple[int, Fingerprint]] = field(default_factory=list)  # with the row numbers of the pairs
    too_long: dict[Check, list[Lengths]] = field(
        default_factory=dict
    )  # of the pairs dropped for their length, by check
    first_fault: str = ""  # what is wrong with the first row that is no pair
    meant: Mapping[str, str] = field(default_factory=dict)  # which of its columns may be meant

    def hit(self, row: int, hits: Iterable[Hit]) -> None:
        """Count a row under the checks that it fails."""
        for key in hits:
            rows = self.hits.setdefault(key, [])
            if not rows or rows[-1] != row:
                rows.append(row)

    def count_tokens(self, hits: Sequence[Hit], outcome: TokenizedPair | Dropped) -> None:
        """Count the tokens of a pair, or how long it is if it is dropped for that, under the last of its hits."""
        if isinstance(outcome, TokenizedPair):
            self.kept += 1
            self.conversations += outcome.form in (Form.CONVERSATION, Form.TRANSCRIPT)
            self.tokens.count(*(len(outcome.side(side).targets()) for side in ("chosen", "rejected")))
        elif outcome.lengths is not None:
            self.too_long.setdefault(hits[-1][0], []).append(outcome.lengths)

    def add(self, other: Tally) -> None:
        """Add the tally of the rows after these, without its fingerprints."""
        self.rows += other.rows
        self.kept += other.kept
        self.conversations += other.conversations
        if not self.first_fault:
            self.first_fault, self.meant = other.first_fault, other.meant
        for check, lengths in other.too_long.items():
            self.too_long.setdefault(check, []).extend(lengths)
        for key, rows in other.hits.items():
            self.hits.setdefault(key, []).extend(rows)
        self.formats.update(other.formats)
        self.characters.add(other.characters)
        self.tokens.add(other.tokens)


@dataclass
class RowChecker:
    """Run the checks that look at one row, in the process that reads it."""

    benchmark: Benchmark | None = None
    token_checks: TokenChecks | None = None
    compares_only: bool = False  # whether pairs are only to be compared with others, not checked

    def check(self, start: int, rows: Sequence[Any]) -> Tally:
        """Check some rows, of which the first has the number ``start``."""
        tally = Tally(rows=len(rows))
        valid = []
        for number, row in enumerate(rows, start):
            found = _valid(row, tally)
            if isinstance(found, RowError):
                check = catalogue.UNDECIDED if isinstance(found, UndecidedRow) else catalogue.NO_PAIR
                tally.hit(number, [(check, found.reason)])
                continue
            valid.append((number, *found))
            if not self.compares_only:
                tally.hit(number, row_hits(row, *found))
        if self.compares_only:
            tally.fingerprints = [(number, Fingerprint.of(texts)) for number, _, texts in valid]
            return tally
        for number, pair, texts in valid:
            tally.hit(number, content_hits(pair, texts))
            tally.hit(number, language_hits(texts))
            if self.benchmark is not None and self.benchmark.is_in(texts):
                tally.hit(number, [(catalogue.BENCHMARK_OVERLAP, "")])
            tally.characters.count(len(texts.chosen), len(texts.rejected))
            tally.fingerprints.append((number, Fingerprint.of(texts)))
        if self.token_checks is not None:
            results = self.token_checks.check([pair for _, pair, _ in valid], [texts for *_, texts in valid])
            for (number, *_), (hits, outcome) in zip(valid, results, strict=True):
                tally.hit(number, hits)
                tally.count_tokens(hits, outcome)
        return tally


def _valid(row: Any, tally: Tally) -> tuple[PreferencePair, PairTexts] | RowError:
    """Return a row as a pair with its texts and count its format, or return why the row is none."""
    try:
        pair = to_pair(row)
    except RowError as error:
        if not tally.first_fault:
            tally.first_fault, tally.meant = str(error), dict(error.columns)
        return error
    texts = PairTexts.of(pair)
    if not texts.is_unicode():
        fault = RowError("invalid Unicode", "a text holds half of a surrogate pair")
        tally.first_fault = tally.first_fault or str(fault)
        return fault
    tally.formats[format_of(row)] += 1
    return pair, texts


def _tallies(rows: Rows | FileRows, checker: RowChecker, share: int, shares: int) -> Iterator[Tally]:
    for start, batch in batches(rows, share, shares):
        yield checker.check(start, batch)


def _prompt_index(rows: Rows | FileRows, processes: int) -> PromptIndex:
    """Return an index of the prompts of an evaluation set; its invalid rows are left out."""
    index, total = PromptIndex(), Tally()
    for tally in parallel_shares(partial(_tallies, rows, RowChecker(compares_only=True)), processes):
        total.add(tally)
        for _, fingerprint in tally.fingerprints:
            index.add(fingerprint)
    if not total.formats:
        raise DataError(f"evaluation set: {_no_pair(total)}")
    return index


def _no_pair(tally: Tally) -> str:
    """Return what is wrong with rows of which none is a pair."""
    if not tally.rows:
        return "the dataset is empty; expected rows with a prompt and two answers"
    none = "the only row is no pair" if tally.rows == 1 else f"none of the {tally.rows:,} rows is a pair"
    return f"{none}; row 0: {tally.first_fault}"


def _limits_that_keep(
    lengths: Sequence[Lengths], pair_tokenizer: PairTokenizer | None, limits: ModelLimits | None
) -> str:
    """Return in words which limits keep how many pairs that are too long for that of the tokenizer."""
    if pair_tokenizer is None or pair_tokenizer.max_length is None:
        return ""
    readable = (pair_tokenizer.most_tokens, limits.positions if limits is not None else None)
    most_tokens = min((tokens for tokens in readable if tokens is not None), default=None)
    return advice(lengths, pair_tokenizer.max_length, most_tokens)


def _summary(tally: Tally, *, missing: Sequence[str], is_decided: bool, found: Mapping[Check, str]) -> Survey:
    """Return the result for a tally of all rows; checks that need one of the ``missing`` flags were not made.

    ``is_decided``: whether text beside conversations is meant. ``found``: what else is to be said of the faulty rows.
    """
    rows_of: dict[Check, set[int]] = {}
    parts_of: dict[Check, dict[str, int]] = {}
    for (check, part), rows in tally.hits.items():
        rows_of.setdefault(check, set()).update(rows)
        if part:
            parts_of.setdefault(check, {})[part] = len(rows)
    text = rows_of.get(catalogue.PLAIN_TEXT, set())
    if text and tally.conversations and not is_decided:
        rows_of[catalogue.MIXED_FORMS] = text
        parts_of[catalogue.MIXED_FORMS] = {"plain text": len(text), "conversations": tally.conversations}
    has_tokens = catalogue.MODEL not in missing
    findings: list[Finding] = []
    left_out: dict[str, list[int]] = {}
    done: set[int] = set()
    for check in catalogue.CHECKS:
        if check.needs in missing:
            continue
        if check is catalogue.REFUSALS_CHOSEN:
            findings.append(tally.tokens.finding("tokens") if has_tokens else tally.characters.finding("characters"))
        faulty = rows_of.get(check, set())
        parts = found.get(check) or _counted_parts(parts_of.get(check, {}))
        findings.append(check.finding(sorted(faulty), tally.rows, parts))
        if check.drops and (dropped := faulty - done):
            left_out[check.name] = sorted(dropped)
            done |= dropped
    return Survey(
        rows=tally.rows,
        formats=dict(tally.formats.most_common()),
        findings=findings,
        skipped={
            check.name: flag if has_tokens or flag != catalogue.OUTLINE else catalogue.MODEL
            for flag in missing
            for check in catalogue.CHECKS
            if check.needs == flag
        },
        left_out=left_out,
        kept=tally.kept if has_tokens else None,
    )


def _counted_parts(parts: Mapping[str, int]) -> str:
    """Return the parts with their counts, the most frequent first: ``rejected 30, chosen 12``."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    words = [f"{part} {count:,}" for part, count in ordered[:SHOWN_PARTS]]
    return ", ".join(words) + (f" and {len(ordered) - SHOWN_PARTS} more kinds" if len(ordered) > SHOWN_PARTS else "")
