"""The conditions under which a module runs a memory-saving forward, checked at each call: 2 to 4 us a layer.

They hold for a state that may change between any two calls: adapters are switched, merged and disabled, hooks come and
go. What ``nn.Module`` keeps in dicts is read from these: ``layer.lora_A`` searches three of them, and takes five times
as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# What autocast casts; it leaves float64 alone.
AT_MOST_SINGLE = {torch.float32, torch.bfloat16, torch.float16}


class Branch(NamedTuple):
    """The one active adapter of a LoRA layer, which adds s (x A^T) B^T and nothing else.

    Its tensors are in any floating dtype, frozen or not.
    """

    lora_A: Tensor  # [R, D]
    lora_B: Tensor  # [O, R]
    scaling: float  # s
    adapter: str = "default"


def branch_of(layer: Any) -> Branch | None:
    """Return the branch of a LoRA layer of PEFT, where it has one such branch."""
    if torch.compiler.is_compiling() or layer.disable_adapters or layer.merged:
        return None
    children = layer._modules
    lora_A, lora_B = children["lora_A"]._modules, children["lora_B"]._modules
    active = [name for name in layer.active_adapters if name in lora_A]
    if len(active) != 1 or active[0] in vars(layer).get("lora_variant", ()):
        return None
    (adapter,) = active
    dropout = children["lora_dropout"]._modules[adapter]
    if layer.training and type(dropout) is not nn.Identity and getattr(dropout, "p", 0.0) > 0:
        return None
    A, B = plain_weight(lora_A[adapter]), plain_weight(lora_B[adapter])
    if A is None or B is None or has_bias(lora_A[adapter]) or has_bias(lora_B[adapter]):
        return None
    return Branch(A, B, layer.scaling[adapter], adapter)


def plain_weight(layer: Any) -> Tensor | None:
    """Return the weight of a linear layer, where all the layer does is to multiply by it and to add its bias."""
    if type(layer) is not nn.Linear or is_hooked(layer):
        return None
    weight = layer._parameters.get("weight")
    return weight if is_plain(weight) else None


def has_bias(layer: Any) -> bool:
    """Return whether a linear layer adds a bias."""
    return layer._parameters["bias"] is not None


def product_dtype(x: Tensor, *weights: Tensor | None) -> torch.dtype | None:
    """Return the dtype of a layer's products: autocast's, or the one that all tensors have; otherwise ``None``."""
    device = x.device.type
    dtypes = {tensor.dtype for tensor in (x, *weights) if tensor is not None}
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) if dtypes <= AT_MOST_SINGLE else None
    return x.dtype if len(dtypes) == 1 else None


def is_plain(weight: Any) -> bool:
    """Return whether a parameter holds its values: not quantised, not sharded, not managed by DeepSpeed.

    A fake one stands for one that does: steps of a model without values are measured as of the real one.
    """
    if (type(weight) is not nn.Parameter and type(weight) is not FakeTensor) or hasattr(weight, "ds_id"):
        return False
    return not weight.is_meta and weight.numel() > 0


def is_hooked(module: nn.Module) -> bool:
    """Return whether hooks rely on the module being called: DeepSpeed and accelerate load weights in them."""
    own = vars(module)
    return bool(
        own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_backward_hooks"]
        or "forward" in own
    )
