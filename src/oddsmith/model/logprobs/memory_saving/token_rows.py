"""Embed tokens where PEFT trains some rows of a frozen embedding, without copying all of it.

PEFT's layer (``TrainableTokensLayer``) makes a copy of the whole weight in each forward pass, and its backward pass a
gradient of the same size, of which a few rows are read. Here the frozen embedding is looked up as it is, and the
positions of the trained tokens get their rows:

    y[t] = row of x[t] if x[t] is trained, else weight[x[t]]        d row = sum of dy[t] over its positions
"""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import is_hooked
from .forwards import Forward


def token_rows_forward(module: Any) -> Forward | None:
    """Replace PEFT's layers that train rows of a frozen embedding, if ours gives the same for these rows."""
    if (
        f"{type(module).__module__}.{type(module).__name__}"
        != "peft.tuners.trainable_tokens.layer.TrainableTokensLayer"
    ):
        return None
    base = module.base_layer
    if not isinstance(base, nn.Embedding) or is_hooked(base) or base.max_norm is not None or base.sparse:
        return None
    ours = partial(forward_token_rows, module, module.forward)
    tokens = [token for some in module.token_indices.values() for token in some]
    x = torch.tensor([0, *tokens], device=base.weight.device)
    with torch.no_grad():
        return ours if torch.equal(ours(x), module.forward(x)) else None


def forward_token_rows(module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute what the layer does.

    Its own forward runs where it is merged, disabled, or has several adapters, and where it trains the row of the token
    to pad with, which gets no gradient.
    """
    active, base = module.active_adapters, module.base_layer
    is_usual = len(active) == 1 and not (args or kwargs or module.disable_adapters or module.merged)
    if not is_usual or active[0] not in module.trainable_tokens_delta or base.weight.requires_grad:
        return own(x, *args, **kwargs)
    tokens = module.token_indices[active[0]]
    if base.padding_idx in tokens:
        return own(x)
    y = base(x)
    rows_KD = module.trainable_tokens_delta[active[0]].to(base.weight.dtype)
    scale = module._get_embed_scale()
    if scale is not None:  # of classes such as Gemma 3's, whose embedding multiplies
        rows_KD = rows_KD * scale.to(rows_KD.dtype)
    is_token = x.unsqueeze(-1) == trained_tokens(module, active[0], x.device)
    is_any = is_token.any(-1)
    # The many others take a row behind the last, which gets no gradient: theirs would be sorted, and added to a row.
    place = torch.where(is_any, is_token.int().argmax(-1), len(tokens))
    rows = F.embedding(place, F.pad(rows_KD, (0, 0, 0, 1)), padding_idx=len(tokens))
    return torch.where(is_any.unsqueeze(-1), rows.to(y.dtype), y)


_tokens: WeakKeyDictionary[nn.Module, tuple[list[int], Tensor]] = WeakKeyDictionary()


def trained_tokens(module: Any, adapter: str, device: torch.device) -> Tensor:
    """Return the ids of the tokens whose rows an adapter in PEFT's layer trains, int64 [K].

    They stay on the device: a copy from the host's list makes it wait for a GPU.
    """
    tokens = module.token_indices[adapter]
    known = _tokens.get(module)
    if known is None or known[0] != tokens or known[1].device != device:
        known = _tokens[module] = list(tokens), torch.tensor(tokens, device=device)
    return known[1]
