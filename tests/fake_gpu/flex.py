"""FlexAttention as one operator for each pass, in place of Dynamo and Inductor, which cannot run on fake tensors here.

The operators check what the kernels ask for (one dtype, one device, head sizes, a mask on that device) and return
tensors of the right shapes. Whether the kernels compile for a card is what ``tests/kernels`` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

_library = torch.library.Library("fake_gpu", "DEF")
_library.define("flex_forward(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
_library.define(
    "flex_backward(Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse, Tensor grad)"
    " -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("fake_gpu::flex_forward", lib=_library)
def _forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    return out, query.new_empty(query.shape[:-1], dtype=torch.float32)


@torch.library.register_fake("fake_gpu::flex_backward", lib=_library)
def _backward(query: Tensor, key: Tensor, value: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Flex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.fake_gpu.flex_forward(query, key, value)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.fake_gpu.flex_backward(*ctx.saved_tensors, grad)


def flex_stub(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_lse: bool = False,
    return_aux: Any = None,
) -> Any:
    """Return what ``torch.nn.attention.flex_attention.flex_attention`` returns, without values."""
    if len({t.dtype for t in (query, key, value)}) > 1 or len({t.device for t in (query, key, value)}) > 1:
        raise ValueError("FlexAttention takes query, key and value of one dtype, on one device")
    if query.shape[-1] < 16 or value.shape[-1] < 16:
        raise ValueError("FlexAttention's kernel takes heads of at least 16 channels")
    if (query.shape[1] != key.shape[1]) and not enable_gqa:
        raise ValueError("FlexAttention takes fewer key heads with enable_gqa only")
    if block_mask is not None and block_mask.kv_indices.device != query.device:
        raise ValueError(f"the block mask is on {block_mask.kv_indices.device}")
    out, lse = _Flex.apply(query, key, value)
    if return_aux is not None:
        return out, torch_flex.AuxOutput(lse=lse if return_aux.lse else None)
    return (out, lse) if return_lse else out


def compile_stub(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Stand in for ``torch.compile``."""
    if function is None:
        return compile_stub
    return flex_stub if function is torch_flex.flex_attention else function
