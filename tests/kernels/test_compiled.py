"""Every kernel compiles for every card, and fits its shared memory (`make test-kernels`)."""

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux alone")

from .cards import CARDS, T4, compiling_for
from .cases import LAUNCHES

IN_EVERY_RUN = (CARDS[-1], T4)  # the newest and the oldest; both have little shared memory


@pytest.mark.slow
@pytest.mark.parametrize(
    "card",
    [pytest.param(card, marks=[] if card in IN_EVERY_RUN else pytest.mark.cards) for card in (*CARDS, T4)],
    ids=str,
)
@pytest.mark.parametrize("launch", LAUNCHES.values(), ids=LAUNCHES.keys())
def test_each_kernel_fits_each_card(card, launch, tmp_path):
    with compiling_for(card, tmp_path) as kernels:
        launch()
    assert kernels, "nothing was launched"
    for kernel in kernels:
        assert kernel.shared_bytes <= card.shared_bytes, f"{kernel}; the {card.name} has {card.shared_bytes:,} B"
