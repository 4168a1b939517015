"""Let DeepSpeed read a checkpoint of ZeRO that another number of processes wrote.

Each process of a run under ZeRO writes its share of the weights and of the optimizer's state, all parameters in one
flat tensor, and DeepSpeed reads them in as many processes alone:

    ZeRO-1, 2   rank    0              1                    a group's parameters one after the other, then cut
                        [a a a a b b | b c c c c c pad]
    ZeRO-3      rank    0              1                    each parameter cut, the pieces one after the other
                        [a a b b c c c | a a b pad c c pad]

Here a process puts the parameters of its own share together from the pieces of the old ranks, by name, and hands
DeepSpeed the share that it would have written itself. DeepSpeed's own conversion (``ds_to_universal``) is for Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..system.outside import read_text
from ..system.shards import whole_numel

# As DeepSpeed names the files and their contents.
SHARE, OPTIMIZER = "*zero_pp_rank_{}_mp_rank_00_optim_states.pt", "optimizer_state_dict"
BASE, WEIGHTS, SLICES, PADDINGS = (
    "base_optimizer_state", "single_partition_of_fp32_groups", "param_slice_mappings", "group_paddings",
)  # fmt: skip
ALIGNMENT, FLAT, FROZEN, WORLD = (
    "param_alignment_paddings", "fp32_flat_groups", "frozen_param_fragments", "dp_world_size",
)  # fmt: skip


class Piece(NamedTuple):
    """Where a piece of a parameter lies."""

    begin: int  # in the parameter
    numel: int
    group: int
    offset: int  # in the flat tensor of the group


Layout = Mapping[str, Piece]  # name of a parameter -> its piece in the share of a rank
Flat = Callable[[int, int], Tensor]  # old rank, group -> a flat tensor: the weights, or a kind of the optimizer's state


@contextmanager
def other_worlds() -> Iterator[None]:
    """Let DeepSpeed's engines load, inside, what another number of processes saved."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    load = DeepSpeedEngine.load_checkpoint

    def load_any(engine: Any, folder: str, *arguments: Any, **options: Any) -> Any:
        place = Path(folder) / read_text(Path(folder) / "latest").strip()
        first = min(place.glob("*mp_rank_00_model_states.pt"))
        model = torch.load(first, map_location="cpu", mmap=True, weights_only=False)
        if model[WORLD] == engine.seq_dp_world_size:
            return load(engine, folder, *arguments, **options)
        with _resharding(engine, first, model):
            return load(engine, folder, *arguments, **options)

    DeepSpeedEngine.load_checkpoint = load_any
    try:
        yield
    finally:
        DeepSpeedEngine.load_checkpoint = load


@contextmanager
def _resharding(engine: Any, first: Path, model: Mapping[str, Any]) -> Iterator[None]:
    """Replace, inside, how an engine finds and reads the files beside the ``first``, which holds ``model``."""
    is_partitioned = engine.zero_optimization_partition_weights()  # ZeRO-3
    read_module, processes = engine.load_module_state_dict, model[WORLD]

    def shares(*_: Any) -> list[Any]:
        optimizer = engine.optimizer
        files = [file for rank in range(processes) for file in first.parent.glob(SHARE.format(rank))]
        if engine.zero_nvme_offload_optimizer() or len(files) < processes:
            lacking = f"only {len(files)} of their files are here"
            why = "the optimizer is on NVMe" if len(files) == processes else lacking
            raise CheckpointError(
                f"{first.parents[1]}: was saved by {processes} processes, and cannot be read by another number of them"
                f" ({why}); resume it with {processes} processes"
            )
        old = [torch.load(file, map_location="cpu", mmap=True, weights_only=False)[OPTIMIZER] for file in files]
        rank = torch.distributed.get_rank(group=optimizer.dp_process_group)
        if is_partitioned:
            shapes, now = model["param_shapes"], engine.seq_dp_world_size
            own = _share_of_partitions(optimizer, engine.param_names, old, shapes, rank, now)
        else:
            own = _share_of_groups(optimizer, engine.param_names, old)
        return [own if other == rank else None for other in range(engine.seq_dp_world_size)]

    def module(checkpoint: dict[str, Any], **options: Any) -> None:
        checkpoint[WORLD] = engine.seq_dp_world_size
        if is_partitioned:
            checkpoint[FROZEN] = None  # in shares of the old ranks, and the same as in the base
        read_module(checkpoint=checkpoint, **options)

    replaced = {
        "_get_all_ckpt_names": lambda *_: [str(first)],
        "_get_all_zero_checkpoints": shares,
        "load_module_state_dict": module,
    }
    vars(engine).update(replaced)
    try:
        yield
    finally:
        for name in replaced:
            del vars(engine)[name]


# ---- ZeRO-1 and 2


def _share_of_groups(optimizer: Any, names: Mapping[Any, str], old: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of this process."""
    groups = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
    partitions = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
    before = [
        {
            name: Piece(0, piece.numel, group, piece.start)
            for group, slices in enumerate(state[SLICES])
            for name, piece in slices.items()
        }
        for state in old
    ]
    now: dict[str, Piece] = {}
    for group, parameters in enumerate(groups):
        for parameter in parameters:
            if (mapping := parameter._hp_mapping) is not None:
                begin, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                now[names[parameter]] = Piece(begin.start, begin.numel, group, flat.start)

    def in_new_pieces(of: Flat) -> list[Tensor]:
        return _repartitioned(before, now, of, [partition.numel() for partition in partitions])

    own = dict(old[0])
    if ALIGNMENT in own:
        own[ALIGNMENT] = optimizer.round_robin_bit16_padding
    own[WEIGHTS] = in_new_pieces(lambda rank, group: old[rank][WEIGHTS][group])
    lengths = [
        old[0][WEIGHTS][group].numel() + (old[0][PADDINGS][group] if ALIGNMENT in own else 0)
        for group in range(len(groups))
    ]
    own[BASE] = _optimizer_state(old, BASE, lengths, in_new_pieces, [g["params"] for g in old[0][BASE]["param_groups"]])
    return own


# ---- ZeRO-3


def _share_of_partitions(
    optimizer: Any,
    names: Mapping[Any, str],
    old: Sequence[dict[str, Any]],
    shapes: Sequence[Mapping[str, torch.Size]],
    rank: int,
    processes: int,
) -> dict[str, Any]:
    """Return the share of this process; ``shapes`` are those of the parameters in the groups of the old ranks."""
    old_groups = [{name: shape.numel() for name, shape in group.items()} for group in shapes]
    groups = [{names[parameter]: whole_numel(parameter) for parameter in group} for group in optimizer.fp16_groups]
    before = [_partitions(old_groups, other, len(old)) for other in range(len(old))]
    now, own = _partitions(groups, rank, processes), optimizer.state_dict()
    lengths = [flat.numel() for flat in optimizer.fp32_partitioned_groups_flat]

    def in_new_pieces(of: Flat) -> list[Tensor]:
        return _repartitioned(before, now, of, lengths)

    own[FLAT] = in_new_pieces(lambda other, group: old[other][FLAT][group])
    old_lengths = [flat.numel() for flat in old[0][FLAT]]
    own[OPTIMIZER] = _optimizer_state(
        old, OPTIMIZER, old_lengths, in_new_pieces, [group["params"] for group in own[OPTIMIZER]["param_groups"]]
    )
    return {**{name: old[0][name] for name in ("loss_scaler", "dynamic_loss_scale", "overflow")}, **own}


def _partitions(groups: Sequence[Mapping[str, int]], rank: int, processes: int) -> dict[str, Piece]:
    """Return the pieces of a rank: of each parameter the same number, of which the last may be beyond its end."""
    pieces: dict[str, Piece] = {}
    for group, numels in enumerate(groups):
        offset = 0
        for name, numel in numels.items():
            share = -(-numel // processes)
            begin = min(rank * share, numel)
            pieces[name] = Piece(begin, min(share, numel - begin), group, offset)
            offset += share
    return pieces


# ---- Both


def _optimizer_state(
    old: Sequence[dict[str, Any]],
    key: str,
    lengths: Sequence[int],
    in_new_pieces: Callable[[Flat], list[Tensor]],
    ids: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Return the state of torch's optimizer, of which each flat tensor is a parameter.

    Args:
        old: The shares of the old ranks.
        key: Under which they hold it.
        lengths: Of the flat tensors of the first old rank.
        in_new_pieces: Puts flat tensors together for this process, one for each of its groups.
        ids: Those of the flat tensors in each group of the optimizer.

    Returns:
        The state, as torch's optimizer loads it.
    """
    states = [share[key]["state"] for share in old]
    groups = [{**group, "params": list(own)} for group, own in zip(old[0][key]["param_groups"], ids, strict=True)]
    old_ids = sorted(states[0])
    if not old_ids:
        return {"state": {}, "param_groups": groups}
    first = states[0][old_ids[0]]
    is_flat = {
        name: isinstance(value, Tensor) and value.dim() == 1 and value.numel() == lengths[0]
        for name, value in first.items()
    }

    def of(name: str) -> Flat:
        return lambda rank, group: states[rank][old_ids[group]][name]

    flat = {name: in_new_pieces(of(name)) for name in first if is_flat[name]}
    new_ids = [number for own in ids for number in own]
    return {
        "state": {
            number: {name: flat[name][place] if is_flat[name] else deepcopy(value) for name, value in first.items()}
            for place, number in enumerate(new_ids)
        },
        "param_groups": groups,
    }


def _repartitioned(before: Sequence[Layout], now: Layout, of: Flat, lengths: Sequence[int]) -> list[Tensor]:
    """Return flat tensors of these ``lengths``, with the parameters where ``now`` says, and 0 between them."""
    flats = [torch.zeros(length, dtype=of(0, 0).dtype) for length in lengths]
    for name, piece in now.items():
        flat, end, begin = flats[piece.group], piece.begin + piece.numel, 0
        for rank, layout in enumerate(before):
            if (source := layout.get(name)) is None:
                continue
            left, right = max(begin, piece.begin), min(begin + source.numel, end)
            if left < right:
                taken = of(rank, source.group).narrow(0, source.offset + left - begin, right - left)
                flat.narrow(0, piece.offset + left - piece.begin, right - left).copy_(taken)
            begin += source.numel
    return flats
