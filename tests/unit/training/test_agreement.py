"""Which processes write to which disk."""

import pytest

from oddsmith.training.agreement import Seen, ranks_with


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("aabb", [[0, 1], [0, 1], [2, 3], [2, 3]]),
        ("abab", [[0, 2], [1, 3], [0, 2], [1, 3]]),  # dealt out in turn, as ``srun --distribution=cyclic`` does
        ("abba", [[0, 3], [1, 2], [1, 2], [0, 3]]),
    ],
)
def test_processes_are_together_that_see_the_same_file(nodes, expected):
    """On machines of the same name, as containers may have."""
    found = [Seen(rank, "localhost", "run", [f"_probe-{node}"], None) for rank, node in enumerate(nodes)]
    assert [ranks_with(found, rank) for rank in range(len(nodes))] == expected
