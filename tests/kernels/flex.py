"""Compile FlexAttention for cards that are not here, as the product calls it, and say what its kernels need.

    python -m tests.kernels.flex needs sm_86 sm_90    shared memory, by type and size of heads; all cards by default
    python -m tests.kernels.flex graphs               how many graphs are made for forests of 1 to 20 blocks
    python -m tests.kernels.flex kept                 bytes kept for the backward pass, for rows of several lengths

"cuda" is a device without data there (``tests/fake_gpu``), so this module is imported before torch, in a process of its
own. Dynamo, AOTAutograd and Inductor run as they would on the card; what they would launch is compiled by Triton
instead, up to the point where its shared memory is known.
"""

from __future__ import annotations

from tests.fake_gpu import guard

guard.load()

import dataclasses
import importlib.util
import itertools
import linecache
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import numpy as np
import torch
import torch._inductor.async_compile as async_compile
import torch._inductor.fx_passes.joint_graph as joint_graph
import torch._inductor.fx_passes.post_grad as post_grad
import torch._inductor.runtime.triton_heuristics as triton_heuristics
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.utils import counters
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import fake_tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from oddsmith.batching.forest import ForestLayout, pack
from oddsmith.model.logprobs.attention import cuda, flex

from .cards import CARDS, Card, CardDriver

HEADS, GROUPS = 4, 2


class Need(NamedTuple):
    """Shared memory of a kernel of FlexAttention."""

    backward: bool
    shared_bytes: int
    warps: int
    stages: int

    def __str__(self) -> str:
        name = "backward" if self.backward else "forward"
        return f"{name} {self.shared_bytes:,} B ({self.warps} warps, {self.stages} stages)"


class FlexOnCard:
    """FlexAttention on a card that is not here; made by :func:`flex_on`."""

    def __init__(self, card: Card, mode: fake_tensor.FakeTensorMode, folder: Path):
        self.card, self.mode, self.folder = card, mode, folder
        self.sources: list[tuple[str, str]] = []

    def attend(
        self,
        forest: ForestLayout,
        dtype: torch.dtype,
        channels: int,
        *,
        heads: int = HEADS,
        groups: int = GROUPS,
        train: bool = True,
        sinks: bool = False,
        **options: Any,
    ) -> int:
        """Compute tree attention on tensors without values, and its backward pass; return how many bytes it keeps."""
        tensors = {name: t for name, t in vars(forest).items() if isinstance(t, torch.Tensor)}
        with self.mode:
            tensors = {name: self.mode.from_tensor(t).to("cuda") for name, t in tensors.items()}
            layout = dataclasses.replace(forest, **tensors)
            # Rows that would be padded are made as long: only in the mode can they be padded.
            rows = max(len(forest.depth_T), flex.LEAST_ROWS)
            query, key, value = (
                torch.empty(1, n, rows, channels, device="cuda", dtype=dtype, requires_grad=train)
                for n in (heads, groups, groups)
            )
            if sinks:
                options["sinks"] = torch.empty(heads, device="cuda", dtype=dtype, requires_grad=train)
            # Made here and kept, for Dynamo traces outside of the mode.
            flex.block_mask(layout, options.get("window"), options.get("chunk"))
            if softcap := options.get("softcap"):
                flex._capped(softcap, query.device)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
            alive.append(tensor.untyped_storage())
            return tensor

        alive: list[Any] = []
        with torch.set_grad_enabled(train), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = cuda.cuda_forest_attention(query, key, value, layout, scaling=0.1, **options)
        if train:
            out.sum().backward()
        return sum(kept.values())

    def needs(self) -> list[Need]:
        """Compile what has been caught since the last call."""
        sources, self.sources = self.sources, []
        return [self._need(name, source) for name, source in sources if "_tem_" in name]

    def _need(self, name: str, source: str) -> Need:
        path = self.folder / f"kernel_{len(list(self.folder.iterdir()))}.py"
        path.write_text(source)
        found: dict[str, Any] = {}

        def template(num_stages: int, num_warps: int, triton_meta: dict[str, Any], **others: Any) -> Any:
            def keep(function: Any) -> Any:
                found.update(function=function, stages=num_stages, warps=num_warps, meta=triton_meta)
                return function

            return keep

        with mock.patch.object(triton_heuristics, "template", template):
            spec = importlib.util.spec_from_file_location(path.stem, path)
            linecache.clearcache()
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        meta = found["meta"]
        source_of = ASTSource(found["function"], dict(meta["signature"]), dict(meta["constants"]), meta["configs"][0])
        options = {"num_warps": found["warps"], "num_stages": found["stages"]}
        # The assembler would add registers to what is known, and take most of the time.
        target = CardDriver(self.card).get_current_target()
        with mock.patch.object(CUDABackend, "make_cubin", return_value=b""):
            kernel = triton.compiler.compile(source_of, target=target, options=options)
        return Need("backward" in name, kernel.metadata.shared, found["warps"], found["stages"])


@contextmanager
def flex_on(card: Card) -> Iterator[FlexOnCard]:
    """Let "cuda" be a card without data."""
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    properties = SimpleNamespace(
        name=card.name,
        major=card.capability[0],
        minor=card.capability[1],
        multi_processor_count=card.multiprocessors,
        shared_memory_per_block_optin=card.shared_bytes,
        shared_memory_per_block=48 << 10,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1536,
        warp_size=32,
        total_memory=24 << 30,
        L2_cache_size=6 << 20,
        gcnArchName="",
        is_integrated=0,
    )
    answers = {
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: card.capability,
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
    }

    def allocated(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
        with mode:
            return torch.empty_strided(size, stride, dtype=dtype, device="cuda")

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(mock.patch.dict(os.environ, TRITON_CACHE_DIR=str(folder / "triton")))
        on_card = FlexOnCard(card, mode, folder)

        def caught(self: Any, name: str, source: str, **others: Any) -> Any:
            on_card.sources.append((name, source))
            return SimpleNamespace(run=lambda *arguments, **options: None)

        patches: list[tuple[Any, str, Any]] = [(torch.cuda, name, answer) for name, answer in answers.items()]
        patches += [(CudaInterface, n, staticmethod(a)) for n, a in answers.items() if hasattr(CudaInterface, n)]
        patches += [
            (torch._C._dynamo.guards, "_empty_strided_cuda", allocated),
            (async_compile.AsyncCompile, "triton", caught),
            (async_compile.AsyncCompile, "wait", lambda self, scope: None),
            (fake_tensor, "init_gpu_context", lambda device: None),
            (cuda, "flash_kernels", lambda device: {}),
            (cuda, "fault_of", lambda attend, kind: None),  # there are no values to compare
            # They try their patterns on tensors of the card.
            (joint_graph, "lazy_init", lambda *arguments: None),
            (post_grad, "lazy_init", lambda *arguments: None),
        ]
        for owner, name, stub in patches:
            stack.enter_context(mock.patch.object(owner, name, stub))
        stack.enter_context(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", return_value=0, create=True))
        triton.runtime.driver.set_active(CardDriver(card))
        DeviceProperties.create.cache_clear()
        for cached in (cuda.chosen_attention, flex.block_mask, flex.kernel_options, flex._capped, flex._compiled):
            cached.cache_clear()
        torch._dynamo.reset()
        yield on_card


def branching(blocks: float) -> ForestLayout:
    """Return a forest of so many blocks of rows: a prompt and two answers."""
    rows = max(3, round(blocks * flex.BLOCK))
    prompt = np.arange(rows // 3)
    return pack([np.r_[prompt, 1 + np.arange((rows - len(prompt)) // 2)], np.r_[prompt, np.zeros(rows // 3, int)]])[2]


def print_needs(names: list[str]) -> int:
    """Print what every kernel needs; return how many need too much."""
    forest, over = branching(6.3), 0
    for card in CARDS:
        if names and str(card) not in names:
            continue
        for dtype, channels, softcap in itertools.product(DTYPES, CHANNELS, (None, 50.0)):
            if dtype == torch.float32 and softcap:  # a soft cap has needed no shared memory in any case
                continue
            with flex_on(card) as on_card:
                on_card.attend(forest, dtype, channels, softcap=softcap)
                needs = on_card.needs()
            too_much = max(need.shared_bytes for need in needs) > card.shared_bytes
            # 16 rows each of queries, keys, values and gradients are 128 KiB, and no product takes fewer.
            expected = (dtype, channels) == (torch.float32, 512) and card.shared_bytes < 128 << 10
            over += too_much and not expected
            what = f"{str(dtype)[6:]} heads of {channels}{', soft cap' if softcap else ''}"
            note = f"  OVER {card.shared_bytes:,} B: the whole mask is used" if too_much else ""
            print(f"{card!s:7} {what:32} {'; '.join(map(str, needs))}{note}", flush=True)
    return over


# The kernels round the channels up to a power of 2: heads of 96 are like those of 80, those of 192 like those of 256.
DTYPES, CHANNELS = (torch.bfloat16, torch.float32), (64, 80, 128, 256, 512)
# What the layers of one model ask for: Gemma 3 and gpt-oss have windows and full layers, some with other heads.
LAYERS = {
    "plain": [{}, {"window": 200}, {"chunk": 300}],
    "soft cap": [{"softcap": 50.0}, {"softcap": 50.0, "window": 200}],
    "sinks": [{"sinks": True}, {"sinks": True, "window": 200}],
}
SHAPES = [{"heads": 8, "groups": 4, "channels": 64}, {"heads": 4, "groups": 2, "channels": 128}]


def print_graphs() -> None:
    """Print how many graphs each kind of layer needs for training and evaluation, over forests of 1 to 20 blocks."""
    for name, layers in LAYERS.items():
        with flex_on(CARDS[1]) as on_card:
            before = counters["stats"]["unique_graphs"]
            for train, blocks in itertools.product((True, False), (0.02, 1, 1.5, 2, 2.5, 3, 4, 5.1, 8, 13, 20)):
                for shape, options in itertools.product(SHAPES, layers):
                    on_card.attend(branching(blocks), torch.bfloat16, train=train, **shape, **options)
            print(name, counters["stats"]["unique_graphs"] - before, flush=True)


def print_kept() -> None:
    """Print how many bytes a token a layer with a soft cap keeps: heads of Gemma 2."""
    with flex_on(CARDS[3]) as on_card:
        for blocks in (4, 16, 64):
            forest = branching(blocks)
            kept = on_card.attend(forest, torch.bfloat16, 256, heads=8, groups=4, softcap=50.0)
            print(len(forest.depth_T), kept / len(forest.depth_T), flush=True)


def main(command: str, *names: str) -> int:
    warnings.simplefilter("ignore")
    if command == "needs":
        return min(print_needs(list(names)), 1)
    {"graphs": print_graphs, "kept": print_kept}[command]()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
