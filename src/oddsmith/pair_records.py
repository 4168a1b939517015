"""What an evaluation leaves of its pairs for the monitor: margins in a line of the diary, the telling pairs in full.

The line is small (about a kilobyte), and there is one an evaluation. The texts go into a file that every evaluation
replaces, bounded by the constants below; its name begins with ``_``, so that no upload to the hub takes it along.

Shape suffixes: P pairs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from .events import append_event, strict
from .loss import log_odds
from .model.logps import head_only_at

logger = logging.getLogger(__name__)

PAIRS_FILE = "_held_out_pairs.json"
# Margins are binned alike in all runs, so that they can be compared; what lies beyond counts in the outermost bins.
HIGHEST_MARGIN, BINS = 5.0, 40
MOST_LENGTHS = 200  # pairs of the scatter of lengths
PAIRS_A_KIND = 5
MOST_TOKENS = 256  # of an answer
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


@torch.no_grad()
def token_logps(model: nn.Module, ids: Sequence[int], start: int) -> Tensor:
    """Log-probability of each token of an answer, float32.

    Args:
        model: A causal model.
        ids: Prompt and answer.
        start: Where the answer begins, at least 1.

    Returns:
        [len(ids) - start], nats.
    """
    device = next(model.parameters()).device
    ids_1T = torch.tensor([list(ids)], device=device)
    wanted_1T = torch.zeros_like(ids_1T, dtype=torch.bool)
    wanted_1T[:, start - 1 : -1] = True
    with head_only_at(model, wanted_1T):
        logits = model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False).logits
    if logits.dim() == 3:
        logits = logits[:, -ids_1T.shape[1] :][wanted_1T]
    return -F.cross_entropy(logits.float(), ids_1T[0, start:], reduction="none").cpu()


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several tokens make stands at the last of them."""
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        is_open = whole.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids)
        texts.append("" if is_open else whole[len(done) :])
        done = done if is_open else whole
    return texts


class PairRecorder:
    """Writes them, evaluation after evaluation, and remembers the first.

    Args:
        folder: The run folder.
        tokenizer: Turns tokens into text.
    """

    def __init__(self, folder: str | Path, tokenizer: Any):
        self._folder, self._tokenizer = Path(folder), tokenizer
        self._first: dict[str, Tensor] = {}
        self._sets: dict[str, Any] = {}

    def record(self, name: str, step: int, rows: Any, logps: Tensor, model: nn.Module | None) -> None:
        """Record an evaluation.

        Args:
            name: The evaluation set, as in its metrics' names.
            step: Optimizer steps done.
            rows: The tokenized pairs, in the order of ``logps``.
            logps: [P, 2], mean log-probability of chosen and rejected.
            model: The model by itself, for the change of each token against the base of an adapter; ``None`` leaves
                that out.
        """
        if len(logps) == 0 or len(rows) != len(logps):
            return
        append_event(self._folder, "pairs", step, set=name, **snapshot(logps))
        margins = logps[:, 0] - logps[:, 1]
        first = self._first.setdefault(name, margins)
        before = first if len(first) == len(margins) and first is not margins else None
        self._sets[name] = {
            "step": step,
            "lengths": _lengths(rows, margins),
            "inspected": {
                kind: [
                    {
                        "row": place,
                        "margin": margins[place].item(),
                        "before": None if before is None else before[place].item(),
                        **self._in_full(rows[place], model),
                    }
                    for place in places
                ]
                for kind, places in telling_pairs(margins, before).items()
            },
        }
        partial = self._folder / f"{PAIRS_FILE}.partial"
        try:
            partial.write_text(json.dumps(strict({"sets": self._sets}), allow_nan=False), encoding="utf-8")
            partial.replace(self._folder / PAIRS_FILE)
        except OSError as error:  # what is only looked at must not end a run
            logger.warning(
                f"{self._folder / PAIRS_FILE}: not written ({error.strerror}); the monitor shows older pairs"
            )

    def _in_full(self, row: Mapping[str, Any], model: nn.Module | None) -> dict[str, Any]:
        prompt = row.get("prompt_input_ids") or row["chosen_input_ids"][: row["chosen_prompt_tokens"]]
        shown = self._tokenizer.decode(prompt, skip_special_tokens=True)
        return {
            "prompt": shown[:MOST_PROMPT_CHARACTERS],
            **{side: self._side(row, side, model) for side in ("chosen", "rejected")},
        }

    def _side(self, row: Mapping[str, Any], side: str, model: nn.Module | None) -> dict[str, Any]:
        start = row[f"{side}_prompt_tokens"]
        ids = row[f"{side}_input_ids"][: min(row[f"{side}_end"], start + MOST_TOKENS)]
        told: dict[str, Any] = {"tokens": pieces(self._tokenizer, ids[start:])}
        if isinstance(model, PeftModel) and start > 0:
            now = token_logps(model, ids, start)
            with model.disable_adapter():
                told["change"] = [round(change, 3) for change in (now - token_logps(model, ids, start)).tolist()]
        return told


def _lengths(rows: Any, margins: Tensor) -> list[list[float]]:
    """How many tokens longer the chosen answer is, and the margin, of evenly chosen pairs."""
    chosen, rejected = (
        [end - start for end, start in zip(rows[f"{side}_end"], rows[f"{side}_prompt_tokens"], strict=True)]
        for side in ("chosen", "rejected")
    )
    every = -(-len(margins) // MOST_LENGTHS)
    return [[chosen[i] - rejected[i], round(margins[i].item(), 4)] for i in range(0, len(margins), every)]
