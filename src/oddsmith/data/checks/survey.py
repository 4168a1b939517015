"""All checks of a dataset: rows are read and checked by several processes, and compared with each other in one place.

    rows -> process k of n: batches k, k + n, ...     to_pair -> checks of one row -> RowAccount
                                                                                      |  in the order of the rows
    one place                                         added up, compared -> findings, rows to leave out

Memory: the rows of one batch a process, and about a kilobyte a pair for what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import DataError, RowError
from ..formats import to_pair
from ..processes import dealt, usable_processes
from ..sources import FileRows, Rows, batches
from . import catalogue
from .benchmark import Benchmark
from .duplicates import Duplicates, PromptIndex
from .finding import Check, Finding, Verdict, finding_of, worst
from .language import load_languages
from .prints import Fingerprint, fingerprint
from .rows import RowAccount, RowChecker
from .texts import PairTexts

if TYPE_CHECKING:
    from ..tokens.pair_tokenizer import PairTokenizer

SHOWN_PARTS = 4  # of what a check found, before the rest is only counted


@dataclass(frozen=True)
class Survey:
    """What the checks found in a dataset.

    Args:
        rows: Rows | FileRows read.
        formats: How many rows are of each format.
        findings: One a check that could be made, in the order of the catalogue.
        skipped: Names of the checks that could not be made, with what they need.
        left_out: Numbers of the rows that a cleaned set leaves out, by the first check that says so.
        kept: Rows that the training keeps; None without a tokenizer.
    """

    rows: int
    formats: dict[str, int]
    findings: list[Finding]
    skipped: dict[str, str]
    left_out: dict[str, list[int]] = field(repr=False)
    kept: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The most severe of all."""
        return worst(finding.verdict for finding in self.findings)

    def rows_left_out(self) -> set[int]:
        """Numbers of all rows that a cleaned set leaves out."""
        return {row for rows in self.left_out.values() for row in rows}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
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
    on_rows: Callable[[int], object] = lambda count: None,
    processes: int | None = None,
) -> Survey:
    """Check a dataset of preference pairs.

    Args:
        rows: The rows, which may be a stream; it is read once by every process.
        evaluation: Rows that the training must not hold.
        benchmark: Text that it must not hold.
        pair_tokenizer: Makes tokens as the training will; None leaves the checks of tokens out.
        on_rows: Called with the number of rows checked since the last call.
        processes: How many read; by default one a core.

    Returns:
        The findings.

    Raises:
        DataError: There are no rows, or a file of them is malformed.
        ModelError: The tokenizer lacks what is needed.
    """
    processes = processes or usable_processes()
    checker = RowChecker(benchmark)
    if pair_tokenizer is not None:
        from .template import TemplateCheck  # needs torch, as the tokenizer of the training does

        checker.template = TemplateCheck(pair_tokenizer)
    load_languages()  # before the processes start, so that they share it
    duplicates = Duplicates(None if evaluation is None else _prompts_of(evaluation, processes))
    account = RowAccount()
    for part in dealt(partial(_checked, rows, checker), processes):
        account.add(part)
        for row, print_ in part.prints:
            for check, faulty in duplicates.compare(row, print_):
                account.hits.setdefault((check, ""), []).append(faulty)
        on_rows(part.rows)
    if not account.rows:
        raise DataError("the dataset is empty; expected rows with a prompt and two answers")
    return _summed_up(account, checker, has_evaluation=evaluation is not None)


def _checked(rows: Rows | FileRows, checker: RowChecker, share: int, shares: int) -> Iterator[RowAccount]:
    for start, batch in batches(rows, share, shares):
        yield checker.check(start, batch)


def _prompts_of(rows: Rows | FileRows, processes: int) -> PromptIndex:
    """The prompts of an evaluation set; rows that are no pairs are its own problem."""
    index = PromptIndex()
    for prints in dealt(partial(_printed, rows), processes):
        for print_ in prints:
            index.add(print_, is_searched=not index.has_similar(print_))
    return index


def _printed(rows: Rows | FileRows, share: int, shares: int) -> Iterator[list[Fingerprint]]:
    for _, batch in batches(rows, share, shares):
        prints = []
        for row in batch:
            try:
                said = PairTexts.of(to_pair(row))
            except RowError:
                continue
            if said.is_unicode():
                prints.append(fingerprint(said))
        yield prints


def _summed_up(account: RowAccount, checker: RowChecker, *, has_evaluation: bool) -> Survey:
    rows_of: dict[Check, set[int]] = {}
    parts_of: dict[Check, dict[str, int]] = {}
    for (check, part), rows in account.hits.items():
        rows_of.setdefault(check, set()).update(rows)
        if part:
            parts_of.setdefault(check, {})[part] = len(rows)
    asked = [
        *catalogue.OF_ROWS,
        *([catalogue.EVALUATION_OVERLAP] if has_evaluation else []),
        *([catalogue.BENCHMARK_OVERLAP] if checker.benchmark is not None else []),
        *(catalogue.OF_TOKENS if checker.template is not None else []),
    ]
    findings = [
        finding_of(check, sorted(rows_of.get(check, ())), account.rows, _in_words(parts_of.get(check, {})))
        for check in asked
    ]
    is_tokenized = checker.template is not None
    lengths = account.tokens.finding("tokens") if is_tokenized else account.characters.finding("characters")
    findings.insert(asked.index(catalogue.REFUSALS_CHOSEN), lengths)
    return Survey(
        rows=account.rows,
        formats=dict(account.formats.most_common()),
        findings=findings,
        skipped=_skipped(checker, has_evaluation),
        left_out=_left_out(asked, rows_of),
        kept=account.kept if is_tokenized else None,
    )


def _left_out(asked: Sequence[Check], rows_of: Mapping[Check, set[int]]) -> dict[str, list[int]]:
    """The rows of the checks that drop theirs, each under the first that does."""
    left_out: dict[str, list[int]] = {}
    done: set[int] = set()
    for check in asked:
        rows = rows_of.get(check, set()) - done if check.drops else set()
        if rows:
            left_out[check.name] = sorted(rows)
            done |= rows
    return left_out


def _skipped(checker: RowChecker, has_evaluation: bool) -> dict[str, str]:
    skipped = {} if checker.template else {check.name: "--model" for check in catalogue.OF_TOKENS}
    if not has_evaluation:
        skipped[catalogue.EVALUATION_OVERLAP.name] = "--eval-dataset-name"
    if checker.benchmark is None:
        skipped[catalogue.BENCHMARK_OVERLAP.name] = "--benchmark"
    return skipped


def _in_words(parts: Mapping[str, int]) -> str:
    """``chosen 12, rejected 30``; the most frequent first."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    words = [f"{part} {count:,}" for part, count in ordered[:SHOWN_PARTS]]
    return ", ".join(words) + (f" and {len(ordered) - SHOWN_PARTS} more kinds" if len(ordered) > SHOWN_PARTS else "")
