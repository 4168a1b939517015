"""Record what would be launched on the device: operations, bytes, host waits and copies.

Launches are counted where PyTorch dispatches to a kernel. Bytes are those of all inputs and outputs (what a kernel
reads and writes at least), with exceptions for operations that read a part, or nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Nothing is launched: another view of the same memory, memory without values, or questions about a tensor.
_VIEWS = {
    "view", "_unsafe_view", "transpose", "t", "permute", "slice", "select", "expand", "unsqueeze", "squeeze", "detach",
    "detach_", "alias", "as_strided", "as_strided_", "split", "chunk", "reshape", "_reshape_alias", "lift_fresh",
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "unbind", "view_as", "split_with_sizes",
    "is_same_size", "diagonal", "numpy_T", "record_stream", "is_pinned", "sym_size", "sym_numel", "sym_stride",
    "unfold", "swapaxes", "movedim", "resize_", "set_", "is_contiguous", "view_as_real", "narrow", "t_", "transpose_",
}  # fmt: skip
# The host reads a value, or a shape that depends on values, from the device.
_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "is_nonzero",
    "equal", "repeat_interleave",
}  # fmt: skip
_COPIES = {"_to_copy", "copy_", "copy"}
_TAKE_ROWS = {"index_select", "embedding", "gather", "index"}
_FILL = ("fill_", "zero_", "zeros", "ones", "full", "new_zeros", "new_ones", "arange", "scalar_tensor", "new_full")
# Products that PyTorch's own counter does not know
_MORE_PRODUCTS = {"addmm_", "baddbmm_", "addmv", "mv", "dot", "vdot", "linalg_vecdot"}

Figure = Callable[..., int]
_declared: dict[str, dict[str, Figure]] = {}


def declare(name: str, **figures: Figure) -> None:
    """Say what an operator moves or computes, where that is not its inputs and outputs.

    ``bytes``, ``flops`` and ``launches`` are called with the operator's arguments and ``out``, and return a number.
    """
    _declared[name] = figures


def _product_of_4bit(a: Tensor, b: Tensor, shape: list[int], *rest: Any, **others: Any) -> int:
    return 2 * a.numel() * shape[0]


# With many rows bitsandbytes writes the weight in 16 bits, and multiplies by that.
declare(
    "bitsandbytes::gemm_4bit",
    flops=_product_of_4bit,
    bytes=lambda a, b, shape, *rest, out, **others: _nbytes([a, b, out]) + 2 * a.element_size() * shape[0] * shape[1],
    launches=lambda *rest, **others: 2,
)


# Reads the logits, with residuals again, and writes these, in their place or elsewhere.
declare(
    "oddsmith::target_logps",
    bytes=lambda z, target, scale, soft_cap, residual, out: _nbytes(
        [z, target, out] if residual is None else [z, z, residual, target, out]
    ),
)


@dataclass(frozen=True)
class Launch:
    """One kernel."""

    operation: str
    bytes: int
    flops: int
    dtype: torch.dtype | None  # of the product's inputs
    place: str  # file and function that called it, or the node of a backward pass in C++
    stage: str  # "forward", "backward" or what ``Record.stage`` was set to
    attention: str = ""  # which attention kernel this is


@dataclass
class Record:
    """What has been launched, in order."""

    launches: list[Launch] = field(default_factory=list)
    waits: list[tuple[str, str]] = field(default_factory=list)  # operation, place
    copies: list[tuple[str, int, str]] = field(default_factory=list)  # "waits" or "does not wait", bytes, place
    stage: str = ""

    def total(self) -> tuple[int, int, int]:
        """Return the number of launches, bytes and operations."""
        return len(self.launches), sum(x.bytes for x in self.launches), sum(x.flops for x in self.launches)

    def by(self, key: Callable[[Launch], str]) -> list[tuple[str, int, int, int]]:
        """Return key, launches, bytes and operations, most bytes first."""
        groups: dict[str, list[Launch]] = defaultdict(list)
        for launch in self.launches:
            groups[key(launch)].append(launch)
        rows = [(k, len(g), sum(x.bytes for x in g), sum(x.flops for x in g)) for k, g in groups.items()]
        return sorted(rows, key=lambda row: -row[2])

    def by_place(self) -> list[tuple[str, int, int, int]]:
        """Return the launches by the place in the code that calls them."""
        return self.by(lambda launch: launch.place)

    def by_operation(self) -> list[tuple[str, int, int, int]]:
        """Return the launches by operation."""
        return self.by(lambda launch: launch.operation)

    @property
    def attention(self) -> dict[str, int]:
        """Return how often each attention kernel has been called, by stage and dtype."""
        return dict(
            Counter(
                f"{x.stage}: {x.attention} {str(x.dtype).removeprefix('torch.')}" for x in self.launches if x.attention
            )
        )

    @property
    def waiting_copies(self) -> list[str]:
        """Return the places of copies between host and device for which the host waits."""
        return [place for kind, _, place in self.copies if kind == "waits"]


class _Recorder(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, record: Record):
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        namespace = getattr(func, "namespace", "")
        # Memory for the result, ``out``, is not read; it is among the outputs.
        read = args, {key: value for key, value in kwargs.items() if key != "out"}
        inputs = [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]
        on_device = any(t.device.type == "cuda" for t in inputs)
        if on_device and (name in _WAITS or (name.startswith("index") and _has_mask(inputs[1:]))):
            self.record.waits.append((name, place_in_code()))
        out = func(*args, **kwargs)
        if namespace == "prim" or name in _VIEWS:
            return out
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        devices = {t.device.type for t in (*inputs, *outputs)}
        if name in _COPIES and {"cpu", "cuda"} <= devices:
            waits = not (kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2]))
            kind = "waits" if waits else "does not wait"
            self.record.copies.append((kind, _nbytes(outputs), place_in_code()))
        elif "cuda" in devices:
            launch = self._launch(func, name, namespace, args, kwargs, inputs, outputs, out)
            count = _declared.get(launch.operation, {}).get("launches")
            more = 0 if count is None else count(*args, **kwargs, out=out) - 1
            self.record.launches += [launch, *[replace(launch, bytes=0, flops=0, attention="")] * more]
        return out

    def _launch(
        self, func: Any, name: str, namespace: str, args: Any, kwargs: Any, inputs: Any, outputs: Any, out: Any
    ) -> Launch:
        full_name = name if namespace in ("aten", "") else f"{namespace}::{name}"
        declared = _declared.get(full_name, {})
        place = place_in_code()
        attention = _attention_kernel(full_name, place)
        in_backward = torch._C._current_graph_task_id() != -1
        moved = declared["bytes"](*args, **kwargs, out=out) if "bytes" in declared else _moved(name, inputs, outputs)
        if "flops" in declared:
            flops = declared["flops"](*args, **kwargs, out=out)
        elif attention.startswith(("flash", "flex")):
            flops = _attention_flops(attention, inputs)
        else:
            flops = _flops(func, name, args, kwargs, inputs, out)
        if not (isinstance(moved, int) and isinstance(flops, int)):  # a size that depends on data
            moved = flops = 0
        stage = self.record.stage or ("backward" if in_backward else "forward")
        dtype = inputs[1 if name.startswith("addmm") else 0].dtype if inputs else None  # a sum has its own
        return Launch(full_name, moved, flops, dtype, place, stage, attention)


def is_launch(func: Any) -> bool:
    """Return whether an operator runs a kernel."""
    return func.namespace != "prim" and func.overloadpacket.__name__ not in _VIEWS


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Record what is launched while inside."""
    record = Record()

    def synchronize(device: Any = None) -> None:
        record.waits.append(("synchronize", place_in_code()))

    with mock.patch.object(torch.cuda, "synchronize", synchronize), _Recorder(record):
        yield record


# ---- Bytes and operations


def _has_mask(indices: list[Tensor]) -> bool:
    """Return whether a tensor is indexed by what is True: how many, the host has to know."""
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _moved(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    if name.startswith(_FILL):
        return _nbytes(outputs)
    if name in _TAKE_ROWS:  # reads what it takes, not the whole table
        return 2 * _nbytes(outputs) + _nbytes(inputs[1:])
    if name == "embedding_dense_backward":  # fills a gradient as large as the table, then adds
        return _nbytes(outputs) + 3 * _nbytes(inputs[:1])
    if name in ("_foreach_norm", "_amp_foreach_non_finite_check_and_unscale_"):
        return _nbytes(inputs) * (1 if name == "_foreach_norm" else 2)
    # An operation in place returns the tensor that it was given: read and written.
    return _nbytes(inputs) + _nbytes(outputs)


def _flops(func: Any, name: str, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> int:
    if name in ("addmm_", "addmm", "mm"):  # also with a dtype for the result, which the registry does not know
        left, right = inputs[-2:]
        return 2 * left.shape[0] * left.shape[1] * right.shape[1]
    packet = getattr(func, "overloadpacket", None)
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    return 0


def _attention_kernel(name: str, place: str) -> str:
    """Return a short name of an attention kernel, "" for another operation; dense attention counts by its softmax."""
    if name == "_softmax_backward_data":
        return "dense_backward"
    if "softmax" in name and "attention" in place:
        return "dense"
    if "varlen_attn" in name or name.startswith("flash_attn"):
        return "flash" + ("_backward" if "backward" in name else "")
    if name.startswith("fake_gpu::flex"):
        return "flex" + ("_backward" if "backward" in name else "")
    if "scaled_dot_product" in name:
        kinds = ("flash", "efficient", "cudnn", "math")
        kind = next((k for k in kinds if k in name), "other")
        return f"sdpa_{kind}" + ("_backward" if "backward" in name else "")
    return ""


def _attention_flops(kernel: str, inputs: list[Tensor]) -> int:
    """Count every query with the keys that it sees, by the layout of the row; backward 2.5 times as much."""
    from oddsmith.model.logprobs import current_layout

    layout = current_layout._current
    if layout is None:
        return 0
    query, value = inputs[0], inputs[2]
    if "backward" in kernel and not kernel.startswith("flex"):  # flash-attention puts the gradient first
        query, value = inputs[1], inputs[3]
    heads = query.shape[1]
    seen = 0
    for path in layout.paths:
        length = path.end - path.start
        seen += length * path.depth + length * (length + 1) // 2
    forward = 2 * heads * (query.shape[-1] + value.shape[-1]) * seen
    return forward * 5 // 2 if "backward" in kernel else forward


# ---- Places

_LIBRARIES = ("/transformers/", "/peft/", "/torch/optim", "/accelerate/", "/bitsandbytes/", "/torch/nn/utils")


def place_in_code() -> str:
    """Return file and function of ours, or of a library's model code, that is running; or the node of autograd."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("kernels/__init__.py"):  # calls any of our operators
            frame = frame.f_back
            continue
        if "/src/oddsmith/" in name or ("/oddsmith/" in name and "site-packages" in name):
            return f"{name.split('/oddsmith/')[-1]}:{frame.f_code.co_name}"
        if any(library in name for library in _LIBRARIES):
            return f"{name.split('site-packages/')[-1].split('/')[0]} {name.split('/')[-1]}:{frame.f_code.co_name}"
        if name.endswith("torch/autograd/graph.py"):
            break
        frame = frame.f_back
    node = torch._C._current_autograd_node()  # type: ignore[attr-defined]
    return "elsewhere" if node is None else f"autograd {node.name()}"
