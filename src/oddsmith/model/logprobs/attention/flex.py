"""Tree attention by FlexAttention, for what flash kernels do not take: float32, large heads, soft caps, chunks, sinks.

The mask of the tree is a function of row and column, and nothing is gathered:

    row sees column   when   column <= row < subtree_end[column]   and   depth[column] >= lowest_depth[row]

Rows are in depth-first order, so the smallest and largest subtree end and depth of a block of rows and of a block of
columns tell whether the first sees all, some or none of the second; no [T, T] mask is made.

**One graph.** Compiling takes seconds for each graph, and after eight PyTorch stops compiling, so one graph has to
serve every forest: rows are padded to three blocks, because a size of 0, 1 or 2 blocks would be compiled as a constant.

**Tiles.** PyTorch's own sizes of the tiles need more shared memory than most cards have where heads are large: float32
with heads of 128 needs 145 KB in the forward pass, bfloat16 with heads of 256 needs 150 KB; an RTX 3090, 4090 or 5090
has 99 KB for a block of threads (docs/log.md). So they are chosen here; `make test-kernels` compiles them for six
cards.

Shape suffixes as in ``attention/__init__.py``, N blocks of rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from ....batching.forest import ForestLayout
from ....system.compilers import keep_kernels_apart
from .sinks import with_sinks

BLOCK = 128  # rows or columns of the mask
LEAST_ROWS = 3 * BLOCK
_MIN_CHANNELS = 16  # of the kernel; padding a head's channels with zeros changes nothing


def flex_forest_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: ForestLayout,
    *,
    scaling: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    smallest: bool = False,
) -> Tensor:
    """Compute ``dense_forest_attention`` by FlexAttention; ``smallest`` takes the smallest tiles that there are."""
    rows, channels = query.shape[2], value.shape[-1]
    query, key, value = (_padded(tensor, LEAST_ROWS, _MIN_CHANNELS) for tensor in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):  # a graph would be made for each state of it
        out, also = _compiled()(
            query,
            key,
            value,
            score_mod=None if softcap is None else _capped(softcap, query.device),
            block_mask=block_mask(forest, window, chunk),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options={
                "BACKEND": "TRITON",  # one kernel for all lengths, not another below 128 rows
                **kernel_options(query.device, query.dtype, max(query.shape[-1], value.shape[-1]), smallest),
            },
            return_aux=AuxRequest(lse=sinks is not None),
        )
    out = out[:, :, :rows, :channels].transpose(1, 2)
    return out if sinks is None else with_sinks(out, also.lse[:, :, :rows].transpose(1, 2), sinks)


def _padded(tensor: Tensor, rows: int, channels: int) -> Tensor:
    """Append zeros, where there are fewer rows or channels; ``F.pad`` copies where there is nothing to append."""
    missing = (0, max(0, channels - tensor.shape[-1]), 0, max(0, rows - tensor.shape[-2]))
    return F.pad(tensor, missing) if any(missing) else tensor


@cache
def _compiled() -> Any:
    keep_kernels_apart()
    # An error is better than the whole mask, which PyTorch's function makes where it is not compiled.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


@cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    cap = torch.full((), softcap, device=device)  # ``dynamic=True`` would take a number for a shape

    def capped(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


@cache
def kernel_options(device: torch.device, dtype: torch.dtype, channels: int, smallest: bool = False) -> dict[str, int]:
    """Return sizes of the kernels' tiles that fit a device's shared memory; none on a CPU, whose kernels choose.

    With b bytes an element and C channels, a power of 2, a block of threads holds

        forward    b C (M + N)              M queries, N keys or values, which follow each other
                   b C (M + 2 N (S - 1))    in a pipeline of S > 1 stages
        backward   b C 4 M                  queries, keys, values and gradients of the result, M of each; twice as much
                                            on Blackwell's data centre cards (sm_100, 103, 110)

    and at most 8 KiB of scores. Products of float32 use no tensor cores: smaller tiles, with more threads, need fewer
    registers.
    """
    if device.type != "cuda":
        return {}
    properties: Any = torch.cuda.get_device_properties(device)
    shared_bytes = getattr(properties, "shared_memory_per_block_optin", 64 << 10) - (8 << 10)  # AMD names none: 64 KiB
    channels = 1 << (max(channels, _MIN_CHANNELS) - 1).bit_length()
    half = dtype.itemsize == 2 and properties.major >= 8  # for older cards Triton multiplies float32 numbers
    row_bytes = channels * (2 if half else max(4, dtype.itemsize))
    held = 8 if half and properties.major in (10, 11) else 4
    forward, backward = [], []
    for queries in (128, 64, 32, 16):
        for keys in (64, 32, 16):
            for stages in (3, 2, 1):
                fits = row_bytes * (queries + (2 * keys * (stages - 1) or keys)) <= shared_bytes
                few_registers = queries * channels <= (16384 if half else 8192) and keys * channels <= 8192
                if fits and few_registers and (half or (stages == 1 and keys <= 32)):
                    forward.append((queries, keys, stages))
        if held * row_bytes * queries <= shared_bytes and queries * channels <= (16384 if half else 4096):
            backward.append(queries)
    queries, keys, stages = (forward or [(16, 16, 1)])[-1 if smallest else 0]
    side = min((backward or [16])[-1 if smallest else 0], 64)
    return {
        "fwd_BLOCK_M": queries,
        "fwd_BLOCK_N": keys,
        "fwd_num_stages": stages,
        "fwd_num_warps": 8 if queries * channels >= (16384 if half else 8192) else 4,
        **{f"bwd_BLOCK_{name}": side for name in ("M1", "N1", "M2", "N2")},
        "bwd_num_stages": 2 if half and not smallest else 1,
        "bwd_num_warps": 8 if side * channels >= (16384 if half else 4096) else 4,
    }


@lru_cache(maxsize=4)  # the layers of a forward pass share one or two; layouts are hashed by identity
def block_mask(forest: ForestLayout, window: int | None, chunk: int | None = None) -> BlockMask:
    """Make FlexAttention's mask of a forest on its device, without making the host wait for the device.

    Without a window and chunks the mask's empty and full blocks are exactly those of the tree. With one of them, a few
    blocks that could be empty or full count as partial.
    """
    tokens = len(forest.depth_T)
    rows = max(tokens, LEAST_ROWS)
    # Those behind the last token are seen by none, and see nothing.
    depth_T, subtree_end_T, lowest_depth_T = (
        F.pad(t, (0, rows - tokens)).int()
        for t in (forest.depth_T, forest.subtree_end_T, forest.lowest_depth(window, chunk))
    )

    # Tensors alone, so that one compiled kernel serves every forest and window.
    def is_ancestor(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (column <= row) & (row < subtree_end_T[column]) & (depth_T[column] >= lowest_depth_T[row])

    start_N = torch.arange(0, rows, BLOCK, device=depth_T.device)
    min_end_N, max_end_N = _in_blocks(subtree_end_T, 0).aminmax(dim=1)  # columns behind the last row: seen by none
    min_depth_N, max_depth_N = _in_blocks(depth_T, rows).amin(1), _in_blocks(depth_T, -1).amax(1)
    min_lowest_N, max_lowest_N = _in_blocks(lowest_depth_T, rows).amin(1), _in_blocks(lowest_depth_T, -rows).amax(1)
    some_NN = (
        (start_N[None, :] <= start_N[:, None])
        & (max_end_N[None, :] > start_N[:, None])
        & (max_depth_N[None, :] >= min_lowest_N[:, None])
    )
    all_NN = (
        (start_N[None, :] < start_N[:, None])
        & (min_end_N[None, :] >= start_N[:, None] + BLOCK)
        & (min_depth_N[None, :] >= max_lowest_N[:, None])
    )
    return BlockMask.from_kv_blocks(
        *_listed(some_NN & ~all_NN), *_listed(all_NN), BLOCK_SIZE=BLOCK, mask_mod=is_ancestor, seq_lengths=(rows, rows)
    )


def _in_blocks(values_T: Tensor, filler: int) -> Tensor:
    return F.pad(values_T, (0, -len(values_T) % BLOCK), value=filler).view(-1, BLOCK)


def _listed(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of columns each block of rows has, int32 [1, 1, N], and which, first in [1, 1, N, N]."""
    counts_N = blocks_NN.sum(-1, dtype=torch.int32)
    which_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
    return counts_N[None, None], which_NN[None, None]
