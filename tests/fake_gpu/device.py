"""``fake_gpu``: a process in which ``"cuda"`` is a device without data. Import it before torch."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from . import guard

guard.load()

import torch  # noqa: E402
import torch._subclasses.fake_tensor as fake_tensor_module  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily  # noqa: E402
from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: E402

from . import flex  # noqa: E402

HOPPER = (9, 0)


def _unreachable(*arguments: Any) -> Any:
    raise AssertionError("fake tensors never come to a kernel")


# With CUDA these are one kernel each. Without it their dispatch finds only the compositions of other operations.
_kernels = torch.library.Library("aten", "IMPL")
for _name in ("silu_backward", "mish_backward", "_fused_rms_norm"):
    _kernels.impl(_name, _unreachable, "CUDA")


@dataclasses.dataclass
class FakeGpu:
    """The device, while :func:`fake_gpu` is entered."""

    mode: FakeTensorMode

    def on(self, value: Any) -> Any:
        """Return a batch of real CPU tensors, nested as it may be, as fake CUDA tensors; a layout stays fake CPU's.

        ``forest_logps`` moves the layout itself.
        """
        if isinstance(value, Tensor):
            return self.fake(value).to("cuda", non_blocking=True)
        if isinstance(value, dict):
            return {key: self.on(item) for key, item in value.items()}
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return dataclasses.replace(
                value, **{name: self.fake(t) for name, t in fields.items() if isinstance(t, Tensor)}
            )
        return value

    def fake(self, tensor: Tensor) -> Tensor:
        """Return a real tensor as a fake one on its device."""
        return tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor.detach())


@contextlib.contextmanager
def fake_gpu(
    capability: tuple[int, int] = HOPPER, total_bytes: int = 80 << 30, *, data_dependent: bool = False
) -> Iterator[FakeGpu]:
    """Make all tensors fake, and ``"cuda"`` a device of this compute capability and memory.

    ``data_dependent`` gives shapes that depend on values a symbol (``nonzero``); otherwise they are errors.
    """
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True) if data_dependent else None
    with contextlib.ExitStack() as stack:
        for owner, name, stub in _stubs(capability, total_bytes):
            stack.enter_context(mock.patch.object(owner, name, stub))
        _forget_answers()
        stack.callback(_forget_answers)
        mode = FakeTensorMode(allow_non_fake_inputs=False, shape_env=shapes)
        stack.enter_context(mode)
        yield FakeGpu(mode)


def _forget_answers() -> None:
    """Empty the caches of the product's functions: another device gives other answers."""
    for name, module in list(sys.modules.items()):
        if name.startswith("oddsmith."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _stubs(capability: tuple[int, int], total_bytes: int) -> Iterator[tuple[Any, str, Any]]:
    """Return what is replaced while the device is there: who has it, its name, and by what."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.cuda.amp import common

    from oddsmith.model.logprobs.attention import cuda

    properties = types.SimpleNamespace(
        name="fake GPU",
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        total_memory=total_bytes,
        shared_memory_per_block_optin=232448,
    )
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8, device="cpu"),
        "set_rng_state": lambda *arguments: None,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0) or including_emulation,
        "mem_get_info": lambda device=None: (total_bytes, total_bytes),
        "reset_peak_memory_stats": lambda device=None: None,
    }
    for name in ("memory_reserved", "memory_allocated", "max_memory_reserved", "max_memory_allocated"):
        answers[name] = lambda device=None: 0
    yield from ((torch.cuda, name, answer) for name, answer in answers.items())
    yield common, "amp_definitely_not_available", lambda: False
    yield fake_tensor_module, "init_gpu_context", lambda device: None
    yield FakeTensorMode, "avoid_device_init", property(lambda self: True)
    yield BaseTunerLayer, "_move_adapter_to_device_of_base_layer", lambda *arguments, **others: None
    # There are no values to compare in the trial of an attention kernel.
    yield cuda, "fault_of", lambda attend, kind: None
    # Dynamo does not trace inside of FakeTensorMode; FlexAttention becomes one operator, other functions stay plain.
    yield torch, "compile", flex.compile_stub
    yield from _wherever_imported("has_triton", lambda: True)  # it comes with PyTorch for CUDA


def _wherever_imported(name: str, stub: Any) -> list[tuple[Any, str, Any]]:
    """Return a replacement of a function of the product for each of its modules that has it."""
    modules = [module for key, module in list(sys.modules.items()) if key.startswith("oddsmith.")]
    return [(module, name, stub) for module in modules if name in vars(module)]


@contextlib.contextmanager
def fake_weights_are_plain() -> Iterator[None]:
    """Let layers of ours take a fake parameter for a parameter: its class is ``FakeTensor``, and it says what it is."""

    def is_plain(weight: Any) -> bool:
        usual = type(weight) is nn.Parameter or (type(weight) is FakeTensor and getattr(weight, "_is_param", False))
        return usual and weight.numel() > 0 and not weight.is_meta

    with contextlib.ExitStack() as stack:
        for owner, name, stub in _wherever_imported("is_plain", is_plain):
            stack.enter_context(mock.patch.object(owner, name, stub))
        yield


@contextlib.contextmanager
def real_tensors() -> Iterator[None]:
    """Compute with real CPU tensors while inside, as the search for layers with a forward of ours does."""
    with unset_fake_temporarily(), torch.device("cpu"):
        yield
