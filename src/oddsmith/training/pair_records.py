"""What an evaluation leaves of its pairs for the monitor: margins in a line of the diary, the telling pairs in full.

The line is small (about a kilobyte), and there is one an evaluation. The texts go into a file that every evaluation
replaces, bounded by the constants below; its name begins with ``_``, so that no upload to the hub takes it along.

Shape suffixes as in ``training/meter.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..loss import log_odds
from ..system.run_folder import PAIRS_FILE, Event, append_event
from ..system.strict_json import strict
from .first_evaluation import MOST_TOKENS, FirstEvaluation, FirstEvaluations
from .meter import EvaluatedPairs

logger = logging.getLogger(__name__)

# Margins are binned alike in all runs, so that they can be compared; what lies beyond counts in the outermost bins.
HIGHEST_MARGIN, BINS = 5.0, 40
MOST_LENGTHS = 200  # pairs of the scatter of lengths
PAIRS_A_KIND = 5
MOST_PROMPT_CHARACTERS = 2000


def snapshot(logps: Tensor) -> dict[str, Any]:
    """The margins of an evaluation's pairs.

    Args:
        logps: [P, 2], mean log-probability of chosen and rejected, nats a token.

    Returns:
        ``pairs``; ``log_odds`` with ``mean`` and ``deviation`` over the pairs; ``margins`` (chosen - rejected) as
        ``edges`` and ``counts``; ``below_zero``, the share of pairs whose rejected answer is likelier.
    """
    logps = logps.double()
    margins, odds = logps[:, 0] - logps[:, 1], log_odds(logps[:, 0]) - log_odds(logps[:, 1])
    edges = torch.linspace(-HIGHEST_MARGIN, HIGHEST_MARGIN, BINS + 1)
    places = torch.bucketize(margins, edges[1:-1].double(), right=True)
    return {
        "pairs": len(logps),
        "log_odds": {
            "mean": odds.mean().item(),
            "deviation": odds.std(unbiased=len(odds) > 1).item(),
            "pairs": len(odds),
        },
        "margins": {"edges": edges.tolist(), "counts": torch.bincount(places, minlength=BINS).tolist()},
        "below_zero": (margins < 0).double().mean().item(),
    }


def telling_pairs(margins: Tensor, before: Tensor | None) -> dict[str, list[int]]:
    """The pairs to look at.

    Args:
        margins: [P], now.
        before: [P], at the first evaluation; ``None`` if this is the first.

    Returns:
        ``worst``: the lowest margins; ``flipped``: from below zero to above it, the farthest first; ``forgotten``: the
        other way round. Positions, at most ``PAIRS_A_KIND`` each.
    """
    found = {"worst": margins.argsort()[:PAIRS_A_KIND].tolist()}
    moved = torch.zeros_like(margins) if before is None else margins - before
    start = margins if before is None else before
    for kind, is_it, order in (
        ("flipped", (start < 0) & (margins > 0), -moved),
        ("forgotten", (start > 0) & (margins < 0), moved),
    ):
        places = order.argsort()
        found[kind] = places[is_it[places]][:PAIRS_A_KIND].tolist()
    return found


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several tokens make stands at the last of them."""
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        is_open = whole.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        texts.append("" if is_open else whole[len(done) :])
        done = done if is_open else whole
    return texts


class _Evaluation(NamedTuple):
    """The last evaluation of a set, until it is written: the telling pairs by kind, and what they are compared with."""

    step: int
    rows: Any
    pairs: EvaluatedPairs
    first: FirstEvaluation
    telling: dict[str, list[int]]


class PairRecorder:
    """Writes them, evaluation after evaluation, on the main process.

    Tokens are compared with the untrained model: with the first evaluation if that was of it, else with the base under
    an adapter, where the caller can compute that. Failing both, with the first evaluation.

    Args:
        folder: The run folder.
        tokenizer: Turns tokens into text.
    """

    def __init__(self, folder: str | Path, tokenizer: Any):
        self._folder, self._tokenizer = Path(folder), tokenizer
        self._first = FirstEvaluations(self._folder)
        self._latest: dict[str, _Evaluation] = {}
        self._base: dict[str, dict[int, Tensor]] = {}
        self._sets: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Training begins, or goes on after so many steps."""
        self._first.begin(step)

    def take(self, name: str, step: int, rows: Any, pairs: EvaluatedPairs) -> list[int]:
        """Take up an evaluation: its margins go into the diary; :meth:`write` does the rest.

        Args:
            name: The evaluation set, as in its metrics' names.
            step: Optimizer steps done.
            rows: The tokenized pairs, in the order of ``pairs``.
            pairs: What was found of them.

        Returns:
            Positions of the pairs that are to be shown, and whose tokens under the base are not known.
        """
        if len(pairs.logps_P2) == 0 or len(rows) != len(pairs.logps_P2):
            return []
        append_event(self._folder, Event.PAIRS, step, set=name, **snapshot(pairs.logps_P2))
        first = self._first.of(name, step, rows, pairs)
        before = None if first.pairs is pairs else _margins(first.pairs)
        telling = telling_pairs(_margins(pairs), before)
        self._latest[name] = _Evaluation(step, rows, pairs, first, telling)
        return [] if first.step == 0 else sorted({*chain(*telling.values())} - self._base.get(name, {}).keys())

    def write(self, name: str, base: Mapping[int, Tensor]) -> None:
        """Write the telling pairs of the evaluation that was taken up last.

        Args:
            name: The evaluation set.
            base: Position -> [2, K] log-probabilities of the first tokens of chosen and rejected under the base; those
                of earlier calls are remembered.
        """
        found = self._latest.pop(name, None)
        if found is None:
            return
        known = self._base.setdefault(name, {})
        known.update(base)
        margins, before = _margins(found.pairs), _margins(found.first.pairs)
        by_base = bool(known) and found.first.step > 0
        is_first = found.first.pairs is found.pairs
        self._sets[name] = {
            "step": found.step,
            "compared_with": 0 if by_base else found.first.step,
            "first_step": found.first.step,
            "lengths": _lengths(found.rows, margins),
            "inspected": {
                kind: [
                    {
                        "row": place,
                        "margin": margins[place].item(),
                        "before": None if is_first else before[place].item(),
                        **self._in_full(
                            found.rows[place],
                            found.pairs.tokens_P2K[place],
                            known.get(place) if by_base else None if is_first else found.first.pairs.tokens_P2K[place],
                        ),
                    }
                    for place in places
                ]
                for kind, places in found.telling.items()
            },
        }
        self._replace_file()

    def _replace_file(self) -> None:
        partial = self._folder / f"{PAIRS_FILE}.partial"
        try:
            partial.write_text(json.dumps(strict({"sets": self._sets}), allow_nan=False), encoding="utf-8")
            partial.replace(self._folder / PAIRS_FILE)
        except OSError as error:  # what is only looked at must not end a run
            logger.warning(
                f"{self._folder / PAIRS_FILE}: not written ({error.strerror}); the monitor shows older pairs"
            )

    def _in_full(self, row: Mapping[str, Any], now_2K: Tensor, then_2K: Tensor | None) -> dict[str, Any]:
        prompt = row.get("prompt_input_ids") or row["chosen_input_ids"][: row["chosen_prompt_tokens"]]
        shown = self._tokenizer.decode(prompt, skip_special_tokens=True)
        told: dict[str, Any] = {"prompt": shown[:MOST_PROMPT_CHARACTERS]}
        for side, name in enumerate(("chosen", "rejected")):
            start, end = row[f"{name}_prompt_tokens"], row[f"{name}_end"]
            ids = row[f"{name}_input_ids"][start : min(end, start + MOST_TOKENS)]
            told[name] = {"tokens": pieces(self._tokenizer, ids)}
            predicted = start > 0 or bool(row.get("prompt_input_ids"))  # else the first token is no target
            if then_2K is not None and predicted:
                known_tokens = min(len(ids), now_2K.shape[1], then_2K.shape[1])
                change_K = now_2K[side, :known_tokens].float() - then_2K[side, :known_tokens].float()
                told[name]["change"] = [round(change, 3) for change in change_K.tolist()]
        return told


def _margins(pairs: EvaluatedPairs) -> Tensor:
    return pairs.logps_P2[:, 0] - pairs.logps_P2[:, 1]


def _lengths(rows: Any, margins: Tensor) -> list[list[float]]:
    """How many tokens longer the chosen answer is, and the margin, of evenly chosen pairs."""
    chosen, rejected = (
        [end - start for end, start in zip(rows[f"{side}_end"], rows[f"{side}_prompt_tokens"], strict=True)]
        for side in ("chosen", "rejected")
    )
    every = -(-len(margins) // MOST_LENGTHS)
    return [[chosen[i] - rejected[i], round(margins[i].item(), 4)] for i in range(0, len(margins), every)]
