"""Pack the sequences of a micro-batch into one row, a prefix forest, in which common beginnings occur once.

Two pairs; their prompts begin with p q, and three of their answers with c:

    pair 0: p q c d e   chosen        row       p q c d e f g h
            p q c f     rejected      depth     0 1 2 3 4 3 2 3
    pair 1: p q g h     chosen        path      0 0 0 0 0 1 2 2
            p q c d e   rejected
                                      path 1 continues p q c, path 2 continues p q

A token attends to its ancestors and itself: to row ``k`` from row ``q`` where ``k <= q < subtree_end[k]`` (rows are in
depth-first order). Position ids are depths. So every token has the hidden state it would have in its own sequence, and
tokens that several sequences share are computed once. There is no padding.

A token may have several children; its position then predicts several tokens. An *entry* is a token with its parent: the
prediction of that token at that position. Log-probabilities are computed per entry and summed per sequence.

Shape suffixes: T tokens of the row, E entries, S = 2B sequences (chosen first), B pairs, L longest of them, M most
sequences that share an entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .collate import SIDES, gaps_of, padded


class Path(NamedTuple):
    """A run of tokens without a branch, and the rows of its ancestors."""

    start: int  # first row of the path
    end: int  # one past its last row
    ancestors: tuple[tuple[int, int], ...]  # runs of rows (start, end) from the root to the token before ``start``
    depth: int  # number of ancestors, which is the depth of the first token of the path


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: a key of caches
class ForestLayout:
    """Which token attends to which in a packed row."""

    paths: tuple[Path, ...]  # in the order of their rows; together they are the whole row
    depth_T: Tensor  # depth of each token, int64
    subtree_end_T: Tensor  # one past the last row below each token, int64
    # Rows of the keys of all paths one after another, ancestors first, int64; K is at most the number of tokens before
    # sharing
    key_row_K: Tensor
    query_ends_P: Tensor  # 0 and one past the last row of each path, int32
    key_ends_P: Tensor  # 0 and the same in ``key_row_K``, int32
    longest_path: int  # number of tokens of the longest path
    longest_keys: int  # largest number of keys of a path

    def to(self, device: torch.device) -> ForestLayout:
        """Return the same layout with its tensors on ``device``: itself if they are there."""
        if self.depth_T.device == device:
            return self
        names = ("depth_T", "subtree_end_T", "key_row_K", "query_ends_P", "key_ends_P")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def lowest_depth(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """Return the smallest depth that each token attends to, int64 [T]; below 0 is as good as 0.

        With a ``window``, a token attends to this many tokens at most, itself included; with a ``chunk``, to those of
        its own chunk of so many.
        """
        lowest_T = torch.zeros_like(self.depth_T) if window is None else self.depth_T - (window - 1)
        return lowest_T if chunk is None else lowest_T.maximum(self.depth_T // chunk * chunk)

    def ancestor_mask(self, window: int | None = None, chunk: int | None = None) -> Tensor:
        """Return a dense mask, bool [T, T], True where the token of the row attends to that of the column.

        ``window`` and ``chunk`` are those of :meth:`lowest_depth`.
        """
        row_T = torch.arange(len(self.depth_T), device=self.depth_T.device)
        mask_TT = (row_T[None, :] <= row_T[:, None]) & (row_T[:, None] < self.subtree_end_T[None, :])
        return mask_TT & (self.depth_T[None, :] >= self.lowest_depth(window, chunk)[:, None])


def pack(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray], ForestLayout]:
    """Pack sequences into a forest.

    In lexicographic order each sequence shares its longest common beginning with its neighbour, so each one adds to the
    forest the tokens that it does not share with the one before, and the rows are in depth-first order.

    ``sequences`` are token ids, int, none empty. Return the token ids of the row, int64 [T], for each sequence the rows
    of its tokens, int64, and the layout.
    """
    order = sorted(range(len(sequences)), key=lambda s: np.asarray(sequences[s], dtype=">i4").tobytes())
    rows_of: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(sequences)
    ids: list[np.ndarray] = []
    starts: list[int] = []
    ancestors: list[np.ndarray] = []
    total = 0
    previous_ids, previous_rows = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for s in order:
        sequence = np.asarray(sequences[s], dtype=np.int64)
        shared = _common_prefix(previous_ids, sequence)
        added = len(sequence) - shared
        rows = np.concatenate([previous_rows[:shared], np.arange(total, total + added)])
        if added and (shared < len(previous_ids) or not len(previous_ids)):
            starts.append(total)
            ancestors.append(rows[:shared])
        # Otherwise the sequence continues the one before it: the same path, longer.
        ids.append(sequence[shared:])
        total += added
        rows_of[s] = previous_rows = rows
        previous_ids = sequence
    return np.concatenate(ids), rows_of, _layout(starts, ancestors, rows_of, total)


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    n = min(len(first), len(second))
    differs = first[:n] != second[:n]
    return int(differs.argmax()) if differs.any() else n


def _layout(starts: list[int], ancestors: list[np.ndarray], rows_of: Sequence[np.ndarray], total: int) -> ForestLayout:
    depth_T = np.empty(total, dtype=np.int64)
    subtree_end_T = np.zeros(total, dtype=np.int64)
    for rows in rows_of:
        depth_T[rows] = np.arange(len(rows))
        # A subtree ends with the largest last row of the sequences through it.
        subtree_end_T[rows] = np.maximum(subtree_end_T[rows], rows[-1] + 1)
    ends = [*starts[1:], total]
    paths = [
        Path(start, end, _runs(above), depth=len(above))
        for start, end, above in zip(starts, ends, ancestors, strict=True)
    ]
    keys = [np.concatenate([above, np.arange(p.start, p.end)]) for p, above in zip(paths, ancestors, strict=True)]
    return ForestLayout(
        paths=tuple(paths),
        depth_T=torch.from_numpy(depth_T),
        subtree_end_T=torch.from_numpy(subtree_end_T),
        key_row_K=torch.from_numpy(np.concatenate(keys)),
        query_ends_P=torch.tensor([*starts, total], dtype=torch.int32),
        key_ends_P=torch.from_numpy(np.cumsum([0, *map(len, keys)], dtype=np.int32)),
        longest_path=max(end - start for start, end in zip(starts, ends, strict=True)),
        longest_keys=max(map(len, keys)),
    )


def _runs(rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return ascending rows as runs ``(start, end)`` of neighbours."""
    if not len(rows):
        return ()
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(rows, breaks))


def forest_batch(rows: Sequence[Mapping[str, Any]], nll_on: str) -> dict[str, Any]:
    """Pack tokenized pairs into a forest, with the entries and token counts that the loss needs.

    Args:
        rows: Tokenized rows (``PreparedData.dataset``) of a causal model.
        nll_on: ``"sequence"`` or ``"response"``.

    Returns:
        ``input_ids`` and ``position_ids`` int64 [1, T]; ``forest``, the layout; ``position_E`` (ascending) and
        ``target_E``: the position that predicts a token, and the token, int64; ``response_entry_SL`` and
        ``nll_entry_BL``: the entries of each response and of each pair's NLL, int64, padded with E;
        ``response_place_ME`` and ``nll_place_ME``: the other way round, where each entry stands in these lists laid end
        to end, int64, padded with S * L (B * L); ``response_tokens_S``, ``nll_tokens_B`` and ``tokens_B`` (tokens of
        both sequences, before sharing), int64.
    """
    sequences = [np.asarray(row[f"{side}_input_ids"])[: row[f"{side}_end"]] for side in SIDES for row in rows]
    prompt_tokens = [row[f"{side}_prompt_tokens"] for side in SIDES for row in rows]
    ids_T, rows_of, layout = pack(sequences)
    # A response's first token is predicted by the last of its prompt; the first token of all is never predicted.
    gaps = [gaps_of(row, side) for side in SIDES for row in rows]
    response = [
        _without(gaps_s, of, max(prompt, 1)) for gaps_s, of, prompt in zip(gaps, rows_of, prompt_tokens, strict=True)
    ]
    chosen = range(len(rows))
    nll = [_without(gaps[s], rows_of[s], 1) for s in chosen] if nll_on == "sequence" else [response[s] for s in chosen]
    parent_T = np.full(len(ids_T), -1)
    for of in rows_of:
        parent_T[of[1:]] = of[:-1]
    is_entry_T = np.zeros(len(ids_T), dtype=bool)
    for predicted in (*response, *nll):
        is_entry_T[predicted] = True
    node_E = np.flatnonzero(is_entry_T)
    node_E = node_E[np.argsort(parent_T[node_E], kind="stable")]
    entry_T = np.full(len(ids_T), -1)
    entry_T[node_E] = np.arange(len(node_E))
    response_entries, nll_entries = [entry_T[of] for of in response], [entry_T[of] for of in nll]
    return {
        "input_ids": torch.from_numpy(ids_T)[None],
        "position_ids": layout.depth_T[None],
        "forest": layout,
        "position_E": torch.from_numpy(parent_T[node_E]),
        "target_E": torch.from_numpy(ids_T[node_E]),
        "response_entry_SL": padded(response_entries, len(node_E)),
        "response_place_ME": _places(response_entries, len(node_E)),
        "nll_entry_BL": padded(nll_entries, len(node_E)),
        "nll_place_ME": _places(nll_entries, len(node_E)),
        "response_tokens_S": torch.tensor([len(of) for of in response]),
        "nll_tokens_B": torch.tensor([len(of) for of in nll]),
        "tokens_B": torch.tensor([len(rows_of[s]) + len(rows_of[s + len(rows)]) for s in chosen]),
    }


def _places(lists: Sequence[np.ndarray], num_entries: int) -> Tensor:
    """Return where each entry stands in lists that are padded to the longest and laid end to end: int64 [M, E].

    An entry that stands in fewer than M lists has one past the last place instead.
    """
    width = max(1, *map(len, lists))
    entry = np.concatenate(lists)
    place = np.concatenate([s * width + np.arange(len(entries)) for s, entries in enumerate(lists)])
    order = np.argsort(entry, kind="stable")
    count_E = np.bincount(entry, minlength=num_entries)
    nth = np.arange(len(entry)) - np.repeat(np.cumsum(count_E) - count_E, count_E)  # of the places of its entry
    place_ME = np.full((max(1, count_E.max(initial=0)), num_entries), len(lists) * width)
    place_ME[nth, entry[order]] = place[order]
    return torch.from_numpy(place_ME)


def _without(gaps: Sequence[tuple[int, int]], rows: np.ndarray, first: int) -> np.ndarray:
    """Return the rows of a sequence from its position ``first`` on, without those of the gaps."""
    places = [first, *(place for gap in gaps for place in gap), len(rows)]
    return np.concatenate([rows[start:end] for start, end in zip(places[::2], places[1::2], strict=True)])
