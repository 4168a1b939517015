"""Cut pairs that were tokenized whole to a length that was chosen by their lengths, without tokenizing them again."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .prepare import PreparedData, dataset_of_rows
from .tokens.pair_tokenizer import PairTokenizer
from .tokens.tokenized import Dropped


def refit(prepared: PreparedData, pair_tokenizer: PairTokenizer) -> PreparedData:
    """Fit pairs that were tokenized without ``max_length`` into that of ``pair_tokenizer``.

    Args:
        prepared: Whole pairs, by ``prepare``; no stream.
        pair_tokenizer: The same but for its ``max_length``.

    Returns:
        What ``prepare`` makes with it, but for ``forms`` in the report, which still count pairs that are dropped here.
    """
    report = replace(copy.deepcopy(prepared.report), max_length=pair_tokenizer.max_length, kept=0, longest_tokens=0)
    rows: list[dict[str, Any]] = []
    for row in prepared.dataset:
        number = row["row"]
        outcome = pair_tokenizer.fit_again(row)
        if isinstance(outcome, Dropped):
            report.dropped.setdefault(outcome.reason, []).append(number)
            report.too_long += [outcome.lengths] if outcome.lengths else []
            continue
        report.kept += 1
        report.longest_tokens = max(report.longest_tokens, outcome.longest_tokens)
        for side in outcome.cut_sides:
            report.cut.setdefault(side, []).append(number)
        rows.append(outcome.to_row(number))
    kept = {row["row"] for row in rows}
    report.dropped = {reason: sorted(numbers) for reason, numbers in report.dropped.items()}
    report.cut, report.left_out = _of_kept(report.cut, kept), _of_kept(report.left_out, kept)
    report.odd = {check: parts for check, lists in report.odd.items() if (parts := _of_kept(lists, kept))}
    return PreparedData(dataset_of_rows(rows, pair_tokenizer), report)


def _of_kept(lists: Mapping[str, Sequence[int]], kept: Collection[int]) -> dict[str, list[int]]:
    """Return the numbers of rows that are kept, by name; names of none are left out."""
    found = {name: [number for number in numbers if number in kept] for name, numbers in lists.items()}
    return {name: numbers for name, numbers in found.items() if numbers}
