"""Run a layer that mixes tokens in its own way (a recurrence, a convolution) on each sequence of a packed row.

Such a layer knows nothing of the forest, so it cannot take the row. But everything around it can, and it is causal:
what it makes of a token does not depend on later ones. So the row is cut into parts, the layer runs on padded batches
of parts of like lengths, padding last, and what it returns is put together to a row again:

    row           p q c d e f g h            paths of the forest: p q c d e,   p q c + f,   p q + g h
    whole         p q c d e | p q c f | p q g h               every path with its ancestors
    from states   p q -> state     c d e | c f | g h          from the state behind p q

A token's result is taken from one part, its gradient goes through all of them. **States** of transformers' recurrent
layers (of a convolution, of a recurrence) are handed on with their gradients, in the place of a cache. A state is where
paths part and at least ``min_shared`` tokens lie behind the state before, so few tokens are computed twice.

Shape suffixes: T tokens of the row, S parts of a batch, L tokens of the longest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batching.forest import ForestLayout
from ...batching.item import on_device
from ...errors import ModelError
from .current_layout import current_layout

CACHES = ("cache", "cache_params", "past_key_values")  # names under which transformers' layers get their states
MIN_SHARED = 32  # tokens: fewer cost less than another call
# A batch of parts may hold this much more than its tokens, or parts that differ by so many tokens.
_WASTE, _WASTE_TOKENS = 1.25, 16


@dataclass(frozen=True)
class SequenceWiseLayers:
    """The modules of one model that run on sequences, and a way to do that for a while."""

    modules: tuple[nn.Module, ...]  # none: the model needs no such layers
    min_shared: int | None  # tokens; ``None``: no states are handed on, every part is a whole path

    @contextmanager
    def applied(self, *, mixing: bool = True) -> Iterator[None]:
        """Let the modules run on sequences while inside; without ``mixing``, a token's result depends on it alone."""
        cut = partial(_batches_of, min_shared=self.min_shared)
        before = [vars(module).get("forward") for module in self.modules]
        for module in self.modules:
            signature = inspect.signature(module.forward)
            vars(module)["forward"] = (
                partial(_forward, module.forward, signature, cut)
                if mixing
                else partial(_token_by_token, module.forward, signature)
            )
        try:
            yield
        finally:
            for module, forward in zip(self.modules, before, strict=True):
                del vars(module)["forward"]
                if forward is not None:
                    vars(module)["forward"] = forward

    @property
    def shared_prompt_from(self) -> int | None:
        """Return from how many tokens on a prompt is computed once by all layers; ``None`` if it never is."""
        return 0 if not self.modules else self.min_shared

    @property
    def shares_prompts(self) -> bool:
        """Return whether all layers compute a prompt once, those of this class, too."""
        return self.shared_prompt_from is not None

    @property
    def said(self) -> str:
        """Return what is to be said about these layers behind a sentence; nothing where there are none."""
        if not self.modules:
            return ""
        names = " and ".join(sorted({type(module).__name__ for module in self.modules}))
        verb = "run" if " and " in names else "runs"
        how = "on answers from the state behind their prompt" if self.shares_prompts else "on whole sequences"
        return f"; {names} {verb} {how}"


def sequence_wise_layers(
    model: nn.Module, kinds: Sequence[type[nn.Module]], *, hands_on_states: bool, min_shared: int = MIN_SHARED
) -> SequenceWiseLayers:
    """Return the modules of some classes, to run on sequences; states are handed on if they can be, and if it pays.

    On a GPU a call for each prompt costs more than the tokens that it saves; there is one call for all sequences.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    modules = tuple(module for module in model.modules() if type(module) in kinds)
    return SequenceWiseLayers(modules, min_shared if hands_on_states and on_cpu else None)


# ---- The parts of a row


class Part(NamedTuple):
    """Some tokens in a row of their own sequence."""

    rows: np.ndarray  # of the packed row, int64
    repeated: int  # so many of them, from the first on, are other parts' own
    parent: int | None  # the part whose state this one continues
    keeps_state: bool  # others continue this one


def parts_of(layout: ForestLayout, min_shared: int | None) -> list[Part]:
    """Cut a row into parts, each behind the one it continues; every token is one part's own.

    ``min_shared`` is the number of tokens from one state to the next, at least 2, for layers treat a single token
    otherwise; with ``None`` there are no states.
    """
    chains = [
        np.concatenate([*(np.arange(*run) for run in path.ancestors), np.arange(path.start, path.end)])
        for path in layout.paths
    ]
    # Depths behind which another path leaves a path, by the path that has the token before as its own.
    forks: list[set[int]] = [set() for _ in chains]
    if min_shared is not None:
        starts = [path.start for path in layout.paths]
        for path in layout.paths:
            if path.ancestors:
                forks[int(np.searchsorted(starts, path.ancestors[-1][1], side="left")) - 1].add(path.depth)
    parts: list[Part] = []
    states: dict[int, tuple[int, int]] = {}  # last row before a state -> its depth, its part
    for path, chain, depths in zip(layout.paths, chains, forks, strict=True):
        found = [
            (depth, part) for row, (depth, part) in states.items() if depth <= path.depth and chain[depth - 1] == row
        ]
        base, parent = max(found, default=(0, None))
        for depth in sorted(depths):
            if min_shared is not None and depth - base >= min_shared:
                parts.append(Part(chain[base:depth], max(0, path.depth - base), parent, True))
                base, parent = depth, len(parts) - 1
                states[int(chain[depth - 1])] = base, parent
        parts.append(Part(chain[base:], max(0, path.depth - base), parent, False))
    return parts


class Batch(NamedTuple):
    """Parts that a layer computes at once."""

    row_SL: Tensor  # the token of the row at each place, int64; a part is filled up with its last
    kept: Tensor  # places of the flattened batch whose results are kept, int64
    parents: tuple[int, ...]  # parts whose states are continued; none if the parts begin a sequence
    state_of: int | None  # the part whose state is kept, alone in its batch


class Batches(NamedTuple):
    """All batches of a row in order, and for each of its tokens the place among the kept results, int64 [T]."""

    batches: tuple[Batch, ...]
    place_T: Tensor


@lru_cache(maxsize=4)  # the layers of a forward pass share one; layouts are compared by identity
def _batches_of(layout: ForestLayout, min_shared: int | None) -> Batches:
    parts, tokens, device = parts_of(layout, min_shared), len(layout.depth_T), layout.depth_T.device
    groups = [[i] for i, part in enumerate(parts) if part.keeps_state]
    for begins in (True, False):
        ends = [i for i, part in enumerate(parts) if not part.keeps_state and (part.parent is None) is begins]
        groups += _of_like_lengths(ends, parts)
    batches, own = [], []
    for group in groups:
        members = [parts[i] for i in group]
        # A layer with a state treats a single token as the next one of a generation.
        longest = max(1 if members[0].parent is None else 2, *(len(part.rows) for part in members))
        filled = [np.pad(part.rows, (0, longest - len(part.rows)), mode="edge") for part in members]
        kept = [s * longest + np.arange(part.repeated, len(part.rows)) for s, part in enumerate(members)]
        own += [part.rows[part.repeated :] for part in members]
        batches.append(
            Batch(
                torch.from_numpy(np.stack(filled)),
                torch.from_numpy(np.concatenate(kept)),
                tuple(part.parent for part in members if part.parent is not None),
                group[0] if members[0].keeps_state else None,
            )
        )
    place_T = np.empty(tokens, dtype=np.int64)
    place_T[np.concatenate(own)] = np.arange(tokens)
    return on_device(Batches(tuple(batches), torch.from_numpy(place_T)), device, pin=False)


def _of_like_lengths(indices: list[int], parts: Sequence[Part]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in sorted(indices, key=lambda i: len(parts[i].rows)):
        length = len(parts[i].rows)
        if groups:
            lengths = [len(parts[j].rows) for j in groups[-1]]
            places = length * (len(lengths) + 1)
            if places <= _WASTE * (sum(lengths) + length) or length - lengths[0] <= _WASTE_TOKENS:
                groups[-1].append(i)
                continue
        groups.append([i])
    return groups


# ---- A layer on parts


def _forward(
    forward: Callable[..., Any],
    signature: inspect.Signature,
    cut: Callable[[ForestLayout], Batches],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call a layer's ``forward`` on the parts of the row among its arguments, and return the row of its results."""
    call = signature.bind(*args, **kwargs)
    arguments = dict(call.arguments)
    tokens = _rows_among(args, kwargs)[0].shape[1]
    batches, place_T = cut(current_layout(tokens))
    cache = next((name for name in CACHES if name in signature.parameters), None)
    states: dict[int, States] = {}
    kept = []
    for batch in batches:
        call.arguments.update({name: _of_parts(value, batch.row_SL, tokens) for name, value in arguments.items()})
        if batch.parents or batch.state_of is not None:
            if cache is None:
                raise ModelError("this layer takes no states")
            state = States([states[part] for part in batch.parents])
            call.arguments[cache] = state
            if batch.state_of is not None:
                states[batch.state_of] = state
        outputs = forward(*call.args, **call.kwargs)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        kept.append(first.flatten(0, 1)[batch.kept])
    result = torch.cat(kept)[place_T].unsqueeze(0)
    return (result, *outputs[1:]) if isinstance(outputs, tuple) else result


def _token_by_token(forward: Callable[..., Any], signature: inspect.Signature, /, *args: Any, **kwargs: Any) -> Any:
    """Return results of the shape of a layer's: of any token the same, or NaN where the token's arguments are."""
    call = signature.bind(*args, **kwargs)
    rows = _rows_among(args, kwargs)
    tokens = rows[0].shape[1]
    is_nan_T = torch.stack([row[0].isnan().flatten(1).any(-1) for row in rows if row.shape[:2] == (1, tokens)]).any(0)
    one = (~is_nan_T).nonzero()[:1]
    call.arguments.update({name: _of_parts(value, one, tokens) for name, value in call.arguments.items()})
    outputs = forward(*call.args, **call.kwargs)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    places = is_nan_T.view(1, -1, *[1] * (first.ndim - 2))
    result = first.expand(1, tokens, *first.shape[2:]).masked_fill(places, float("nan"))
    return (result, *outputs[1:]) if isinstance(outputs, tuple) else result


def _rows_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors over tokens among a layer's arguments, [1, T, ...]; the first is of the packed row."""
    rows = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 2]
    if not rows:
        raise ModelError("this layer does not compute a packed row")
    return rows


def _of_parts(value: Any, row_SL: Tensor, tokens: int) -> Any:
    """Return an argument of a layer for some parts of the row: what is [1, T, ...] becomes [S, L, ...]."""
    if isinstance(value, Tensor) and value.shape[:2] == (1, tokens):
        return value[0][row_SL]
    if isinstance(value, tuple | list):
        return type(value)(_of_parts(one, row_SL, tokens) for one in value)
    if isinstance(value, dict):
        return {name: _of_parts(one, row_SL, tokens) for name, one in value.items()}
    return value


class States:
    """What a layer remembers of the tokens before, by the methods of transformers' caches, with gradients.

    A cache of transformers writes into its tensors, which has no gradients. Begins with the states of some parts,
    stacked, or with none.
    """

    def __init__(self, parents: Sequence[States]):
        kinds = ("conv", "recurrent")
        self.tensors: dict[tuple[str, int], Tensor] = {
            key: torch.cat([parent.tensors[key] for parent in parents])
            for key in (parents[0].tensors if parents else ())
            if key[0] in kinds
        }

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the last inputs of a convolution, [S, C, kernel size], or ``None`` at the start."""
        return self.tensors.get(("conv", state_idx))

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int, **_: Any
    ) -> Tensor:
        """Take new inputs [S, C, L] of a convolution, and return them behind those before, [S, C, kernel size + L]."""
        before = self.get_conv_state(layer_idx, state_idx)
        if before is None:
            inputs = F.pad(conv_states, (max(0, conv_kernel_size - conv_states.shape[-1]), 0))
        else:
            inputs = torch.cat([before, conv_states], -1)
        self.tensors["conv", state_idx] = inputs[..., -conv_kernel_size:]
        return inputs

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the state of a recurrence, [S, ...], or ``None`` at the start."""
        return self.tensors.get(("recurrent", state_idx))

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        """Take the state behind the tokens of this call."""
        self.tensors["recurrent", state_idx] = recurrent_states
        return recurrent_states

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return that all states of a call are wanted, not the next token of a generation alone."""
        return True
