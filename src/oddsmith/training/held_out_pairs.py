"""Write what an evaluation measured of its pairs, for the monitor.

The margins go into one event of about a kilobyte per evaluation. The texts of a few pairs worth reading go into
``_held_out_pairs.json``, which every evaluation replaces and the constants below bound. The first evaluation of each
set is kept in ``_first_evaluation.npz``, so that an interrupted run still compares with its beginning.

Shape suffixes as in ``meter.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..batching.collate import IGNORED, trl_features
from ..batching.plan import response_tokens
from ..checkpoint.values import whole
from ..loss import pair_log_odds
from ..system.files import dispensable, replacing
from ..system.run_folder import FIRST_EVALUATION_FILE, PAIRS_FILE, Event, append_event
from ..system.strict_json import read_object, strict
from .meter import LENGTH_COLUMNS, EvaluatedPairs, lengths_in

logger = logging.getLogger(__name__)

SETS = "sets"
MAX_TOKENS = 256  # of a response
MAX_TOKENS_BYTES = 2 << 20  # of an evaluation set; a larger set keeps fewer tokens of each response
# Margins are binned equally in all runs, so that they can be compared; larger ones count in the outermost bins.
HIGHEST_MARGIN, BINS = 5.0, 40
MAX_LENGTHS = 200  # pairs in the scatter plot of lengths
PAIRS_PER_KIND = 5
MAX_PROMPT_CHARACTERS = 2000


def tokens_kept(pairs: int) -> int:
    """Return K: for how many tokens of a response an evaluation of so many pairs keeps the log-probabilities."""
    return min(MAX_TOKENS, MAX_TOKENS_BYTES // (2 * torch.float16.itemsize * max(pairs, 1)))


def snapshot(logps: Tensor) -> dict[str, Any]:
    """Summarise the margins of an evaluation's pairs.

    Args:
        logps: [P, 2], mean log-probability of chosen and rejected, nats per token.

    Returns:
        ``pairs``; ``log_odds`` with ``mean`` and ``deviation`` over the pairs; ``margins`` (chosen - rejected) as
        ``edges`` and ``counts``; ``below_zero``, the share of pairs whose rejected response is likelier.
    """
    logps = logps.double()
    margins, odds = logps[:, 0] - logps[:, 1], pair_log_odds(logps[:, 0], logps[:, 1])
    edges = torch.linspace(-HIGHEST_MARGIN, HIGHEST_MARGIN, BINS + 1)
    bins = torch.bucketize(margins, edges[1:-1].double(), right=True)
    return {
        "pairs": len(logps),
        "log_odds": {
            "mean": odds.mean().item(),
            "deviation": odds.std(unbiased=len(odds) > 1).item(),
            "pairs": len(odds),
        },
        "margins": {"edges": edges.tolist(), "counts": torch.bincount(bins, minlength=BINS).tolist()},
        "below_zero": (margins < 0).double().mean().item(),
    }


def pairs_to_inspect(margins: Tensor, before: Tensor | None) -> dict[str, list[int]]:
    """Choose the pairs worth reading.

    Args:
        margins: [P], now.
        before: [P], at the first evaluation; ``None`` if this is the first.

    Returns:
        Positions, at most ``PAIRS_PER_KIND`` of each kind. ``worst``: the lowest margins; ``flipped``: from below zero
        to above it, the largest change first; ``forgotten``: from above zero to below it.
    """
    chosen = {"worst": margins.argsort()[:PAIRS_PER_KIND].tolist()}
    change = torch.zeros_like(margins) if before is None else margins - before
    start = margins if before is None else before
    for kind, applies, order in (
        ("flipped", (start < 0) & (margins > 0), -change),
        ("forgotten", (start > 0) & (margins < 0), change),
    ):
        positions = order.argsort()
        chosen[kind] = positions[applies[positions]][:PAIRS_PER_KIND].tolist()
    return chosen


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token; a character made of several tokens stands at the last of them."""
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        is_open = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        texts.append("" if is_open else text[len(done) :])
        done = done if is_open else text
    return texts


# What a file that this version did not write raises in numpy and here.
_NOT_WRITTEN_HERE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, BadZipFile, MemoryError),
    *(NotImplementedError, RuntimeError),  # zip: an unknown method, a password
)


def _numbers(array: Any) -> Tensor:
    tensor = torch.from_numpy(array)
    if not tensor.is_floating_point():
        raise TypeError(f"{tensor.dtype} in the place of numbers")
    return tensor


def _are_of_a_size(pairs: EvaluatedPairs, others: EvaluatedPairs) -> bool:
    return pairs.logps_P2.shape == others.logps_P2.shape and pairs.tokens_P2K.shape == others.tokens_P2K.shape


class FirstEvaluation(NamedTuple):
    """The first evaluation of a set.

    Args:
        step: Optimizer steps done then; 0 is the untrained model.
        rows: Digest of the lengths of its pairs, which tells it from another set of the same name.
        pairs: What it measured.
    """

    step: int
    rows: str
    pairs: EvaluatedPairs


class FirstEvaluations:
    """The first evaluation of each set of a run.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path):
        self._file = folder / FIRST_EVALUATION_FILE  # not safetensors, which would be taken for weights
        self._sets: dict[str, FirstEvaluation] = {}

    def begin(self, step: int) -> None:
        """Start a run, keeping only evaluations of the untrained model, or continue one after ``step`` steps."""
        self._sets = {name: first for name, first in self._sets.items() if first.step == 0}
        if step > 0:
            self._sets = {name: first for name, first in self._read().items() if first.step <= step} | self._sets

    def of(self, name: str, step: int, rows: Any, pairs: EvaluatedPairs) -> FirstEvaluation:
        """Return the first evaluation of a set: this one, if there was none or the set has other pairs now.

        Args:
            name: The evaluation set.
            step: Optimizer steps done.
            rows: Its tokenized pairs.
            pairs: What this evaluation measured.

        Returns:
            The first evaluation.
        """
        digest = hashlib.sha256(json.dumps([list(rows[column]) for column in LENGTH_COLUMNS]).encode()).hexdigest()
        known = self._sets.get(name)
        if known is None or known.rows != digest or not _are_of_a_size(known.pairs, pairs):
            known = self._sets[name] = FirstEvaluation(step, digest, pairs)
            self._write()
        return known

    def _read(self) -> dict[str, FirstEvaluation]:
        if not self._file.is_file():
            return {}
        try:
            with np.load(self._file, allow_pickle=False) as file:
                if any(entry.compress_type != ZIP_STORED for entry in file.zip.infolist()):
                    raise ValueError("packed; this version writes unpacked arrays")
                return {
                    name: FirstEvaluation(
                        whole(facts["step"]),
                        facts["rows"],
                        EvaluatedPairs(_numbers(file[f"{number}_logps"]), _numbers(file[f"{number}_tokens"])),
                    )
                    for number, (name, facts) in enumerate(read_object(str(file[SETS])).items())
                }
        except _NOT_WRITTEN_HERE as error:
            logger.warning(f"{self._file}: not readable ({error}); pairs are compared with the next evaluation")
            return {}

    def _write(self) -> None:
        facts = {name: {"step": first.step, "rows": first.rows} for name, first in self._sets.items()}
        arrays: dict[str, Any] = {SETS: np.array(json.dumps(facts))}
        for number, first in enumerate(self._sets.values()):
            arrays[f"{number}_logps"] = first.pairs.logps_P2.numpy()
            arrays[f"{number}_tokens"] = first.pairs.tokens_P2K.numpy()
        with (
            dispensable(self._file, "after an interruption pairs are compared with the next evaluation"),
            replacing(self._file) as partial,
            partial.open("wb") as file,
        ):
            np.savez(file, **arrays)


class _Evaluation(NamedTuple):
    """The latest evaluation of a set until it is written: its pairs to inspect, and what they are compared with."""

    step: int
    rows: Any
    pairs: EvaluatedPairs
    first: FirstEvaluation
    inspected: dict[str, list[int]]


class HeldOutPairs:
    """Write the pairs of evaluations, on the main process.

    Tokens are compared with the untrained model: with the first evaluation if that was of it, else with the base under
    an adapter if the caller can compute that, else with the first evaluation.

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
        """Start a run, or continue one after ``step`` steps."""
        self._first.begin(step)

    def add(self, name: str, step: int, rows: Any, pairs: EvaluatedPairs) -> list[int]:
        """Record the margins of an evaluation; :meth:`write` writes the texts.

        Args:
            name: The evaluation set, as in the names of its metrics.
            step: Optimizer steps done.
            rows: The tokenized pairs, in the order of ``pairs``.
            pairs: What was measured of them.

        Returns:
            Positions of the pairs to inspect whose tokens under the base are not known yet.
        """
        if len(pairs.logps_P2) == 0 or len(rows) != len(pairs.logps_P2):
            return []
        append_event(self._folder, Event.PAIRS, step, set=name, **snapshot(pairs.logps_P2))
        first = self._first.of(name, step, rows, pairs)
        before = None if first.pairs is pairs else _margins(first.pairs)
        inspected = pairs_to_inspect(_margins(pairs), before)
        self._latest[name] = _Evaluation(step, rows, pairs, first, inspected)
        return [] if first.step == 0 else sorted({*chain(*inspected.values())} - self._base.get(name, {}).keys())

    def write(self, name: str, base: Mapping[int, Tensor]) -> None:
        """Write the pairs to inspect of the evaluation that was added last.

        Args:
            name: The evaluation set.
            base: Position -> [2, K] log-probabilities of the first tokens of chosen and rejected under the base; those
                of earlier calls are remembered.
        """
        latest = self._latest.pop(name, None)
        if latest is None:
            return
        known = self._base.setdefault(name, {})
        known.update(base)
        margins, before = _margins(latest.pairs), _margins(latest.first.pairs)
        by_base = bool(known) and latest.first.step > 0
        is_first = latest.first.pairs is latest.pairs

        def inspect(position: int) -> dict[str, Any]:
            first_2K = None if is_first else latest.first.pairs.tokens_P2K[position]
            then_2K = known.get(position) if by_base else first_2K
            return {
                "row": position,
                "dataset_row": latest.rows[position].get("row"),
                "margin": margins[position].item(),
                "before": None if is_first else before[position].item(),
                **self._texts(latest.rows[position], latest.pairs.tokens_P2K[position], then_2K),
            }

        self._sets[name] = {
            "step": latest.step,
            "compared_with": 0 if by_base else latest.first.step,
            "first_step": latest.first.step,
            "lengths": _lengths(latest.rows, margins),
            "inspected": {kind: list(map(inspect, positions)) for kind, positions in latest.inspected.items()},
        }
        file = self._folder / PAIRS_FILE
        with dispensable(file, "the monitor shows older pairs"), replacing(file) as partial:
            partial.write_text(json.dumps(strict({SETS: self._sets}), allow_nan=False), encoding="utf-8")

    def _texts(self, row: Mapping[str, Any], now_2K: Tensor, then_2K: Tensor | None) -> dict[str, Any]:
        """Return prompt and responses as text, with the change of each token's log-probability."""
        prompt = row.get("prompt_input_ids") or row["chosen_input_ids"][: row["chosen_prompt_tokens"]]
        text = self._tokenizer.decode(prompt, skip_special_tokens=True)
        texts: dict[str, Any] = {"prompt": text[:MAX_PROMPT_CHARACTERS]}
        features = trl_features(row, is_encoder_decoder=bool(row.get("prompt_input_ids")))
        for side, name in enumerate(("chosen", "rejected")):
            start, labels = row[f"{name}_prompt_tokens"], features[f"{name}_labels"]
            all_ids = [token for token in labels if token != IGNORED]
            ids = all_ids[:MAX_TOKENS]
            texts[name] = {"tokens": token_texts(self._tokenizer, ids), "tokens_not_shown": len(all_ids) - len(ids)}
            is_predicted = start > 0 or bool(row.get("prompt_input_ids"))  # else the first token is no target
            if then_2K is not None and is_predicted:
                num_known = min(len(ids), now_2K.shape[1], then_2K.shape[1])
                change_K = now_2K[side, :num_known].float() - then_2K[side, :num_known].float()
                texts[name]["change"] = [round(change, 3) for change in change_K.tolist()]
        return texts


def _margins(pairs: EvaluatedPairs) -> Tensor:
    return pairs.logps_P2[:, 0] - pairs.logps_P2[:, 1]


def _lengths(rows: Any, margins: Tensor) -> list[list[float]]:
    """Return, for evenly chosen pairs, by how many tokens the chosen response is longer, and the margin."""
    columns = lengths_in(rows)
    longer = response_tokens(columns, "chosen") - response_tokens(columns, "rejected")
    every = -(-len(margins) // MAX_LENGTHS)
    return [[int(longer[i]), round(margins[i].item(), 4)] for i in range(0, len(margins), every)]
