"""Find a module that mixes tokens in another way than through the attention that packed rows replace.

Such a module (a convolution or a scan over the row, a recurrence, a shift by one token, an attention of its own, a
choice among neighbours) lets sequences of a packed row flow into each other. Whatever it is called and however small
its weights are, it computes sums over tokens, and NaN in a sum makes the sum NaN:

    0 * NaN = NaN       so a weight of 0 hides nothing, and rounding and precision play no part

The embeddings of some tokens of a row become NaN, the attention lets each token see itself alone, and the model runs
once. If any other token becomes NaN, the module in which it happens is the one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ...batching.forest import ForestLayout, pack
from ...errors import ModelError
from ..limits import embedding_rows
from .attention import NAME, forest_attention, forest_attention_in, require_packable
from .current_layout import set_layout
from .packed import head_replaced
from .padded import unwrap

PROMPT_TOKENS, ANSWER_TOKENS = 5, 6  # of a sequence; two sequences share a prompt
MARKED_EVERY = 16  # tokens; prompts, ends of answers and tokens between them are marked in turn
FIRST_ID, MARK = 16, 100  # ordinary tokens in any vocabulary, and larger than any position here


class _Mixed(Exception):
    """A module was found; ends the forward pass, which may take long in such a module."""

    def __init__(self, kind: type[nn.Module]):
        super().__init__(kind.__name__)
        self.kind = kind


def mixing_module(model: nn.Module, *, tokens: int) -> type[nn.Module] | None:
    """Run a model once, in the mode, precision and context it is in, and return the class of what mixes tokens.

    Args:
        model: A causal language model, possibly wrapped.
        tokens: Length of the row, about. What works on blocks of tokens mixes only in a row longer than a block.

    Returns:
        The innermost class that mixes tokens; ``None`` where all but the attention works token by token.

    Raises:
        ModelError: The attention cannot be replaced, or the NaN of a token disappears on the way through the model.
    """
    inner = unwrap(model)
    embeddings = inner.get_input_embeddings()
    mark = min(MARK, embedding_rows(inner) - 1)
    ids_T, layout = _row(tokens, mark)
    device = embeddings.weight.device
    ids_T, layout = ids_T.to(device), layout.to(device)
    is_marked_T = ids_T == mark
    found_T: list[Tensor] = []

    def caught(head: nn.Module, hidden_1TD: Tensor) -> Tensor:
        found_T.append(hidden_1TD[0].isnan().any(-1))
        return hidden_1TD[..., 0]

    with ExitStack() as stack:
        stack.enter_context(_own_token_attention())
        stack.enter_context(forest_attention_in(model))
        stack.enter_context(head_replaced(model, caught))
        for module in inner.modules():
            if isinstance(module, nn.Embedding) or module is embeddings:
                stack.callback(module.register_forward_hook(_marking(mark)).remove)
            if not type(module).__module__.startswith("torch."):  # the class around it says more
                hook = module.register_forward_hook(_watching(is_marked_T), with_kwargs=True)
                stack.callback(hook.remove)
        set_layout(layout)
        try:
            model(input_ids=ids_T[None], position_ids=layout.depth_T[None], use_cache=False)
        except _Mixed as found:
            return found.kind
    if (found_T[0] & ~is_marked_T).any():
        return type(inner)
    if not found_T[0][is_marked_T].all():
        raise ModelError("what becomes of a token on its way through the model could not be followed")
    return None


def _row(tokens: int, mark: int) -> tuple[Tensor, ForestLayout]:
    """Return the ids of a packed row of about so many tokens, int64 [T], and its layout; every 16th id is ``mark``."""
    generator = np.random.default_rng(0)
    sequences = []
    for _ in range(max(2, tokens // (PROMPT_TOKENS + 2 * ANSWER_TOKENS))):
        prompt = generator.integers(min(FIRST_ID, mark // 2), mark, PROMPT_TOKENS)
        for answer in generator.integers(min(FIRST_ID, mark // 2), mark, (2, ANSWER_TOKENS)):
            sequences.append(np.concatenate([prompt, answer]))
    ids_T, _, layout = pack(sequences)
    ids_T[::MARKED_EVERY] = mark
    return torch.from_numpy(ids_T), layout


@contextmanager
def _own_token_attention() -> Iterator[None]:
    """Let every token see itself alone while inside, in layers that call the forest attention."""

    def own_token(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        require_packable(*args, **kwargs)

        def per_query_head(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1)

        is_nan = query.isnan().any(-1, keepdim=True) | per_query_head(key).isnan().any(-1, keepdim=True)
        out = per_query_head(value).masked_fill(is_nan, float("nan"))
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, own_token)
    try:
        yield
    finally:
        AttentionInterface.register(NAME, forest_attention)


def _marking(mark: int) -> Any:
    """Return a hook of an embedding that makes the embeddings of the id ``mark`` NaN."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.shape != output.shape[:-1]:
            return None
        return output.masked_fill((ids == mark).unsqueeze(-1), float("nan"))

    return hook


def _watching(is_marked_T: Tensor) -> Any:
    """Return a hook that raises :class:`_Mixed` after a module that got clean tokens and makes some of them NaN."""
    T = len(is_marked_T)

    def spoiled(values: Any) -> list[bool]:
        """Return for each tensor over the tokens of the row, [1, T, ...], whether a token without a mark is NaN."""
        of_row = [v for v in values if isinstance(v, Tensor) and v.ndim > 2 and v.shape[:2] == (1, T)]
        return [bool((v[0].flatten(1).isnan().any(-1) & ~is_marked_T).any()) for v in of_row if v.is_floating_point()]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        if any(spoiled(outputs)):
            inputs = spoiled((*args, *kwargs.values()))
            if inputs and not any(inputs):
                raise _Mixed(type(module))

    return hook
