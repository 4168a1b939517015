"""The predicted step against a roofline over every kernel (``benchmarks/results/gpu_roofline.md``)."""

from dataclasses import replace

import pytest

from oddsmith.planning.cards import CARDS
from oddsmith.planning.efficiency import Efficiency
from oddsmith.planning.ranks import ALONE, DDP, FSDP2, Sharing, WeightSizes
from oddsmith.planning.step_time import Computed, step_time

BODY_8B, HEAD_8B, BODY_500M, HEAD_500M = 6_979_321_856, 525_336_576, 357_826_560, 136_134_656
# Work -> what is computed, trained numbers, tokens in rows and in sequences, operations of attention.
WORKS = {
    "8b-lora": (Computed(BODY_8B, HEAD_8B, 32, 4096, True, False, False, 3.07e6, 2), 40e6, 6253, 7124, 2.91e12),
    "0.5b-full": (
        Computed(BODY_500M, HEAD_500M, 24, 896, False, False, False, 0.79e6, 2),
        494e6,
        15648,
        19612,
        1.76e12,
    ),
    "8b-qlora": (Computed(BODY_8B, HEAD_8B, 32, 4096, True, True, False, 3.11e6, 2), 40e6, 2500, 3163, 1.01e12),
    "0.5b-lora": (Computed(BODY_500M, HEAD_500M, 24, 896, True, False, False, 0.67e6, 2), 8.8e6, 4262, 5031, 0.26e12),
}
# Milliseconds: the larger of device and host, and the optimizer.
ROOFLINE = {
    ("8b-lora", "H100"): 385 + 3.0,
    ("8b-lora", "A100"): 944 + 3.1,
    ("0.5b-full", "H100"): 138 + 6.3,
    ("0.5b-full", "A100"): 308 + 9.2,
    ("0.5b-full", "RTX 4090"): 507 + 16.3,
    ("0.5b-full", "RTX 3090"): 1017 + 17.4,
    ("8b-qlora", "H100"): 175 + 3.0,
    ("8b-qlora", "RTX 4090"): 659 + 3.5,
    ("8b-qlora", "RTX 3090"): 1393 + 3.5,
    ("0.5b-lora", "H100"): 36 + 2.1,
    ("0.5b-lora", "A100"): 62 + 2.1,
    ("0.5b-lora", "RTX 4090"): 101 + 2.2,
}


def step_of(work: str, card: str, sharing: Sharing, nodes: int = 1, **changed):
    computed, trained, tokens, sequence_tokens, operations = WORKS[work]
    seen = operations / (14 * computed.channels * computed.layers)
    quantised = computed.body_numbers if computed.four_bit else 0
    numbers = computed.body_numbers + computed.head_numbers
    sizes = WeightSizes(4 * numbers, int(4 * trained), numbers, int(trained), 0, 0, 0, 0, 0, 0, quantised)
    plan = Efficiency(1, 1, 1, tokens, tokens, sequence_tokens, tokens, tokens, seen, tokens, ())
    return step_time(computed, sizes, replace(plan, **changed), sharing, CARDS[card], nodes=nodes)


@pytest.mark.parametrize(("work", "card"), ROOFLINE)
def test_the_lower_end_is_that_of_a_roofline_over_every_kernel(work, card):
    found = step_of(work, card, Sharing(ALONE, 1))
    assert 1000 * found.lower_s == pytest.approx(ROOFLINE[work, card], rel=0.12)
    assert found.upper_s == pytest.approx(1.5 * found.lower_s)
    assert found.exchange_s == 0


def test_a_rank_with_more_tokens_makes_the_step_longer():
    alone = step_of("8b-lora", "H100", Sharing(ALONE, 1))
    waiting = step_of("8b-lora", "H100", Sharing(ALONE, 1), slowest_tokens=1.5 * 6253)
    assert waiting.lower_s == pytest.approx(1.5 * alone.lower_s, rel=0.02)


def test_what_is_exchanged_depends_on_how_the_training_is_shared():
    ddp = step_of("0.5b-full", "H100", Sharing(DDP, 8))
    assert ddp.exchange_s == pytest.approx(2 * 7 / 8 * 4 * 494e6 / 450e9)
    assert step_of("0.5b-full", "H100", Sharing(DDP, 8), nodes=2).exchange_s == pytest.approx(18 * ddp.exchange_s)
    # An adapter's base is gathered twice in each micro-batch, its gradients are small.
    sharded = step_of("8b-lora", "H100", Sharing(FSDP2, 8))
    assert sharded.exchange_s == pytest.approx(7 / 8 * (4 * (BODY_8B + HEAD_8B) + 4 * 40e6) / 450e9)
