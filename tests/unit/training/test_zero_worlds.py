"""Shares of ZeRO from one number of processes to another."""

import pytest
import torch

from oddsmith.training.zero_worlds import Piece, _partitions, _repartitioned

SIZES = [{"a": 7, "b": 1, "c": 12}, {"d": 5}]  # parameters of two groups
VALUES = {
    name: 100.0 * number + torch.arange(size) for number, (name, size) in enumerate(SIZES[0].items() | {("d", 5)})
}


def cut(processes):
    """Cut parameters as ZeRO-3 does: each by itself. Return layouts and flat tensors, by rank."""
    layouts = [_partitions(SIZES, rank, processes) for rank in range(processes)]
    flats = []
    for layout in layouts:
        groups = [torch.zeros(sum(-(-size // processes) for size in group.values())) for group in SIZES]
        for name, (begin, numel, group, offset) in layout.items():
            groups[group][offset : offset + numel] = VALUES[name][begin : begin + numel]
        flats.append(groups)
    return layouts, flats


def cut_in_one(processes):
    """Cut parameters as ZeRO-1 and 2 do: one after the other, then in equal shares."""
    layouts, flats = [{} for _ in range(processes)], [[] for _ in range(processes)]
    for group, sizes in enumerate(SIZES):
        whole = torch.cat([VALUES[name] for name in sizes])
        share = -(-len(whole) // processes)
        padded = torch.cat([whole, torch.zeros(share * processes - len(whole))])
        for rank in range(processes):
            flats[rank].append(padded[rank * share : (rank + 1) * share])
        at = 0
        for name, size in sizes.items():
            for rank in range(processes):
                begin, end = max(at, rank * share), min(at + size, (rank + 1) * share)
                if begin < end:
                    layouts[rank][name] = Piece(begin - at, end - begin, group, begin - rank * share)
            at += size
    return layouts, flats


@pytest.mark.parametrize("make", [cut, cut_in_one])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2), (2, 4), (4, 2), (1, 9), (9, 4)])
def test_a_share_is_that_of_a_run_in_as_many_processes(make, before, after):
    old_layouts, old_flats = make(before)
    for layout, flats in zip(*make(after), strict=True):
        found = _repartitioned(old_layouts, layout, lambda rank, group: old_flats[rank][group], [len(f) for f in flats])
        for ours, theirs in zip(found, flats, strict=True):
            assert torch.equal(ours, theirs)
