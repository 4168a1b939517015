"""Forwards of modules of transformers and PEFT by ``elementwise.py`` and ``linear.py``, and which modules they suit.

Two functions per kind of module. The first inspects a module, tries on a small copy of it whether our forward gives the
same values and gradients as the module's own, and returns our forward or ``None``. The second is our forward: it checks
its conditions again at each call, and calls the module's own where they do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....system.memory import is_of_the_machine
from ..kernels.gated import Activation
from ..kernels.norm import Scale
from .conditions import AT_MOST_SINGLE, branch_of, is_hooked, is_plain, plain_weight, product_dtype
from .elementwise import gated_product, rms_norm
from .linear import Weights, add_branches, linears

Forward = Callable[..., Tensor]

# ---- RMSNorm


def norm_forward(module: Any) -> Forward | None:
    """Replace RMSNorm modules, found by their class's name, that match one ``Scale`` to the last bit of bf16."""
    weight: Any = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not is_plain(weight) or weight.ndim != 1 or eps is None:
        return None
    scale = next((scale for scale in Scale if _normalises(module, eps, scale)), None)
    return None if scale is None else partial(forward_norm, module, module.forward, eps, scale)


def _normalises(module: Any, eps: float, scale: Scale) -> bool:
    """Return whether the module, with a random weight, computes what ``rms_norm`` does with this scale."""
    shape = tuple(module.weight.shape)
    x, weight, grad = _random((3, *shape), shape, (3, *shape))
    probe = _shallow_copy(module)
    for x_dtype, weight_dtype in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)):
        vars(probe)["_parameters"] = {"weight": nn.Parameter(weight.to(weight_dtype))}
        ours = rms_norm(x.to(x_dtype), probe.weight, eps, scale)
        theirs = _try(probe, x.to(x_dtype))
        if theirs is None or theirs.dtype != ours.dtype or not torch.equal(theirs, ours):
            return False
    vars(probe)["_parameters"] = {"weight": nn.Parameter(weight)}
    return _agree(probe, lambda x: rms_norm(x, probe.weight, eps, scale), x, grad)


def forward_norm(module: Any, own: Forward, eps: float, scale: Scale, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an RMSNorm module."""
    usual = not args and not kwargs and x.dtype in AT_MOST_SINGLE and is_plain(module.weight)
    if not usual or torch.compiler.is_compiling():
        return own(x, *args, **kwargs)
    return rms_norm(x, module.weight, eps, scale)


# ---- Linear layers, with and without LoRA
#
# ``weights_of`` a layer are asked for at each call, also by groups of layers (groups.py).


def linear_forward(layer: Any) -> Forward | None:
    """Replace linear layers that are trained, or whose weight autocast casts."""
    return (
        partial(forward_linear, layer, layer.forward) if type(layer) is nn.Linear and is_plain(layer.weight) else None
    )


def lora_forward(layer: Any) -> Forward | None:
    """Replace PEFT's LoRA layers over a plain linear layer, or a bitsandbytes 4-bit one."""
    kind = f"{type(layer).__module__}.{type(layer).__name__}"  # by name: bitsandbytes may not be installed
    plain = kind == "peft.tuners.lora.layer.Linear" and type(layer.base_layer) is nn.Linear
    branch = branch_of(layer) if plain or kind == "peft.tuners.lora.bnb.Linear4bit" else None
    if branch is None:
        return None
    adapter = branch.adapter
    base, bias, A, B, x, grad = _random((6, 8), (6,), (2, 8), (6, 2), (2, 3, 8), (2, 3, 6))
    probe: Any = _small_copy(
        layer,
        base_layer=_linear_of(base, bias if layer.base_layer.bias is not None else None),
        lora_A=nn.ModuleDict({adapter: _linear_of(A)}),
        lora_B=nn.ModuleDict({adapter: _linear_of(B)}),
        lora_dropout=nn.ModuleDict(),
    )
    probe.lora_dropout[adapter] = nn.Identity()
    return _checked(forward_lora if plain else forward_lora_4bit, layer, probe, x, grad)


def forward_linear(layer: Any, own: Forward, x: Tensor) -> Tensor:
    """Run a linear layer that is trained, or whose weight autocast casts."""
    weights = linear_weights(layer)
    dtype = None if weights is None else product_dtype(x, *weights.tensors)
    if weights is None or dtype is None or (not weights.base.requires_grad and weights.base.dtype == dtype):
        return own(x)  # of the last there is nothing to save
    return linears(x, [weights], dtype)[0]


def linear_weights(layer: Any) -> Weights | None:
    """Return what a linear layer multiplies by; ``None`` where its own forward has to run."""
    weight = layer._parameters.get("weight")  # FSDP and parametrisations take it away
    if torch.compiler.is_compiling() or not is_plain(weight):
        return None
    return Weights(weight, layer._parameters["bias"])


def forward_lora(layer: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a LoRA layer over a plain linear layer."""
    weights = None if args or kwargs else lora_weights(layer)
    dtype = None if weights is None else product_dtype(x, *weights.tensors)
    return own(x, *args, **kwargs) if weights is None or dtype is None else linears(x, [weights], dtype)[0]


def lora_weights(layer: Any) -> Weights | None:
    """Return what a LoRA layer over a plain linear layer multiplies by; ``None`` where its own forward has to run."""
    base = layer._modules["base_layer"]
    branch, weight = branch_of(layer), plain_weight(base)
    return None if branch is None or weight is None else Weights(weight, base._parameters["bias"], branch)


def forward_lora_4bit(layer: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a LoRA layer over a 4-bit one."""
    branch = None if args or kwargs else branch_of(layer)
    if branch is None or x.dtype != product_dtype(x, *branch[:2]):
        return own(x, *args, **kwargs)
    return add_branches([layer.base_layer(x)], x, [branch])[0]


# ---- Gated MLPs


def mlp_forward(module: Any) -> Forward | None:
    """Replace down_proj(act(gate_proj(x)) * up_proj(x)), or the same with both in one gate_up_proj."""
    children = module._modules
    fused = "gate_up_proj" in children
    if "down_proj" not in children or not (fused or children.keys() >= {"gate_proj", "up_proj"}):
        return None
    act = next((children[name] for name in ("act_fn", "activation_fn") if children.get(name) is not None), None)
    if act is None or (activation := _activation(act)) is None:
        return None
    gate, up, down, x, grad = _random((6, 8), (6, 8), (8, 6), (3, 8), (3, 8))
    inputs = {"gate_up_proj": torch.cat([gate, up])} if fused else {"gate_proj": gate, "up_proj": up}
    weights = inputs | {"down_proj": down}
    probe = _small_copy(module, **{name: _linear_of(weight) for name, weight in weights.items()})
    return _checked(partial(forward_mlp, act, activation, fused), module, probe, x, grad)


def _activation(module: nn.Module) -> Activation | None:
    """Return the activation of ours that equals the module between -12 and 12."""
    points = torch.linspace(-12, 12, 2001, device="cpu")
    values = None if is_hooked(module) or next(module.parameters(), None) is not None else _try(module, points)
    if values is None or values.shape != points.shape:
        return None
    return next((ours for ours in Activation if torch.allclose(ours.of(points), values, rtol=1e-5, atol=1e-6)), None)


def forward_mlp(
    act: nn.Module, activation: Activation, fused: bool, module: Any, own: Forward, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Run a gated MLP, whose activation module is not called: hooks on it need the MLP's own forward."""
    if args or kwargs or torch.compiler.is_compiling() or is_hooked(act):
        return own(x, *args, **kwargs)
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1) if fused else (module.gate_proj(x), module.up_proj(x))
    return module.down_proj(gated_product(gate, up, activation))


# ---- Inspecting and trying a module


def _shallow_copy(module: nn.Module) -> Any:
    """Return another module of the same class and attributes; FSDP's classes have a ``__new__`` that copy calls."""
    probe = object.__new__(type(module))
    vars(probe).update(vars(module))
    return probe


def _small_copy(module: nn.Module, **children: nn.Module) -> nn.Module:
    """Return the module's own code and settings with other, small children; the module itself is unchanged."""
    probe = _shallow_copy(module)
    vars(probe)["_modules"] = {**module._modules, **children}
    return probe


def _random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random float32 tensors without changing the random state of the run."""
    generator = torch.Generator("cpu").manual_seed(0)
    return [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]


def _linear_of(weight_OD: Tensor, bias_O: Tensor | None = None) -> nn.Linear:
    outputs, inputs = weight_OD.shape
    layer = nn.Linear(inputs, outputs, bias=bias_O is not None, device="meta")
    layer.weight = nn.Parameter(weight_OD)
    if bias_O is not None:
        layer.bias = nn.Parameter(bias_O)
    return layer


def _try(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return what a module computes of x; ``None`` where it needs more arguments or another width."""
    try:
        y = module.forward(x)  # without hooks: they are for the model's own passes
    except (
        RuntimeError,
        TypeError,
        AttributeError,
        LookupError,
        ValueError,
    ) as error:  # the last from Triton's kernels
        if is_of_the_machine(error):
            raise
        return None
    return y if isinstance(y, Tensor) else None


def _checked(ours: Forward, module: nn.Module, probe: nn.Module, x: Tensor, grad: Tensor) -> Forward | None:
    """Return our forward for a module, if it agrees with the module's own on its small copy ``probe``."""
    return (
        partial(ours, module, module.forward) if _agree(probe, partial(ours, probe, probe.forward), x, grad) else None
    )


def _agree(probe: nn.Module, ours: Forward, x: Tensor, grad: Tensor) -> bool:
    """Return whether a module and our forward for it give the same values and gradients in float32, on the CPU."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        wanted = [x.requires_grad_(), *(parameter for parameter in probe.parameters() if parameter.requires_grad)]
        theirs, found = _try(probe, x), ours(x)
        if theirs is None or theirs.shape != found.shape:
            return False
        results = [(y, *torch.autograd.grad(y, wanted, grad, materialize_grads=True)) for y in (theirs, found)]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))
