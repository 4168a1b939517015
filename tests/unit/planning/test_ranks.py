"""The memory of a rank by its parts, for each way to spread a training, against sums by hand."""

from dataclasses import replace

import pytest
import torch
from accelerate import ParallelismConfig
from transformers import AutoModelForCausalLM

from oddsmith.config import ModelConfig
from oddsmith.model.adapters import add_adapter, get_peft_config
from oddsmith.model.loading.stored_quantisation import NESTED_BYTES
from oddsmith.planning.ranks import (
    ALONE,
    DDP,
    FSDP2,
    ZERO_2,
    ZERO_3,
    RankMemory,
    Sharing,
    WeightSizes,
    peak_of_rank,
    sharing_of,
    weight_sizes,
)
from tests.tiny import tiny_model

# 1,000 numbers in float32, all trained by AdamW; a layer has 200, the output layer 100.
SIZES = WeightSizes(4000, 4000, 1000, 1000, 8000, 200, 100, 100, 10, 0, 0)


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (Sharing(ALONE, 1), (4000, 4000, 8000, 0)),
        (Sharing(DDP, 4), (4000, 4000, 8000, 4000)),
        # Output layer, its gradient and that once more to be sent; two layers: in two bytes.
        (Sharing(FSDP2, 4), (1000, 1000, 2000, 2 * 300 + 2 * 2 * 200)),
        # Within two replicas a rank holds twice as much.
        (Sharing(FSDP2, 4, replicas=2), (2000, 2000, 4000, 2 * 300 + 2 * 2 * 200)),
        # A share of the weights once more; a bucket of 10 x 10 numbers, and a second one where it is asked for.
        (Sharing(ZERO_2, 4), (5000, 1000, 2000, 400)),
        (Sharing(ZERO_2, 4, overlaps=True), (5000, 1000, 2000, 800)),
        (Sharing(ZERO_2, 4, bucket_numbers=50, overlaps=False), (5000, 1000, 2000, 200)),
        # All weights stay gathered; two buckets by default.
        (Sharing(ZERO_3, 4), (1000, 2000, 2000, 800 + 4000)),
        (Sharing(ZERO_3, 4, live_numbers=500), (1000, 2000, 2000, 800 + 2000)),
        # Weights of 16 bits, and a share of them in float32.
        (Sharing(ZERO_2, 4, in_16_bits=True), (2000 + 1000, 1000, 2000, 200)),
    ],
)
def test_what_a_rank_holds(sharing, expected):
    assert sharing.held(SIZES, 2)[:4] == expected


def test_on_a_cpu_the_buckets_of_ddp_take_memory_only_where_they_are_written():
    on_cpu = Sharing(DDP, 4, on_gpu=False)
    assert on_cpu.held(SIZES, 2, exchanges_after=True).exchange == 0
    assert on_cpu.held(SIZES, 2).exchange == Sharing(DDP, 4).held(SIZES, 2, exchanges_after=True).exchange == 4000


def test_with_one_micro_batch_gradients_take_the_place_of_activations():
    held = RankMemory(0, 1000, 0, 0, 0, 0)
    asked = {"on_top": 100, "process": 7, "first_gradients": 50}
    assert peak_of_rank(held, kept=600, several=True, **asked).total == 1000 + 600 + 100 + 7
    assert peak_of_rank(held, kept=600, several=False, **asked).total == 1000 + 100 + 7  # at the end
    assert peak_of_rank(held, kept=2000, several=False, **asked).total == 2000 + 100 + 50 + 7  # at the beginning


def test_the_bucket_of_zero_2_takes_the_place_of_activations_on_a_cpu():
    on_cpu = Sharing(ZERO_2, 4, on_gpu=False, bucket_numbers=10**9)
    assert (on_cpu.arriving(SIZES), replace(on_cpu, on_gpu=True).arriving(SIZES)) == (4000, 0)
    held = RankMemory(0, 1000, 0, 4000, 0, 0)
    asked = {"on_top": 100, "process": 7, "first_gradients": 50, "several": True, "arriving": 4000}
    assert peak_of_rank(held, kept=600, **asked).total == 1000 + 4000 + 100 + 7  # at the end
    assert peak_of_rank(held, kept=6000, **asked).total == 1000 + 6000 + 100 + 50 + 7  # at the beginning


def test_weights_that_are_gathered_or_kept_in_16_bits_are_not_cast_layer_by_layer():
    kinds = (Sharing(FSDP2, 2), Sharing(ZERO_3, 2, in_16_bits=True), Sharing(ZERO_3, 2), Sharing(DDP, 2))
    assert [sharing.computes_narrow for sharing in kinds] == [True, True, False, False]


def test_the_sizes_of_a_model_are_those_of_its_parameters():
    model = tiny_model()
    sizes = weight_sizes(model, optim="adamw_torch_fused")
    every = sum(p.numel() for p in model.parameters())
    assert (sizes.numbers, sizes.trained_numbers, sizes.bytes) == (every, every, 4 * every)
    assert sizes.optimizer_bytes == 8 * every
    assert sizes.tail_numbers == model.lm_head.weight.numel()
    assert sizes.layer_numbers == sum(p.numel() for p in model.model.layers[0].parameters())


def test_quantised_weights_are_those_under_the_adapter():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model().config, dtype=torch.bfloat16)
        linear = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
        others = sum(p.numel() for p in model.parameters()) - linear
        model = add_adapter(model, get_peft_config(ModelConfig(use_peft=True)))
    sizes = weight_sizes(model, optim="adamw_torch", bytes_per_quantised=NESTED_BYTES)
    assert sizes.quantised_numbers == linear
    assert sizes.bytes == int(2 * others + sizes.trained_bytes + NESTED_BYTES * linear)
    assert sizes.largest_linear == 16 * 32


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, DDP),
        ({"fsdp": True}, FSDP2),
        ({"fsdp": "full_shard"}, FSDP2),
        ({"deepspeed": {"zero_optimization": {"stage": 1}}}, ZERO_2),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, ZERO_3),
        ({"deepspeed": {}}, DDP),
        ({"deepspeed": {"zero_optimization": [2]}}, DDP),
    ],
)
def test_a_recipe_says_how_it_is_shared(settings, kind):
    assert sharing_of(settings, 4, bf16=True, on_gpu=True).kind == kind


def test_fsdp_shards_within_replicas():
    sizes = ParallelismConfig(dp_replicate_size=2, dp_shard_size=4)
    found = sharing_of({"fsdp": True, "parallelism_config": sizes}, 8, bf16=True, on_gpu=True)
    assert (found, found.parts) == (Sharing(FSDP2, 8, replicas=2), 4)


@pytest.mark.parametrize("deepspeed", [{}, {"zero_optimization": {"stage": 0}}, {"zero_optimization": None}])
def test_deepspeed_without_zero_in_one_process_is_one_process(deepspeed):
    assert sharing_of({"deepspeed": deepspeed}, 1, bf16=True, on_gpu=True).kind == ALONE


def test_the_settings_of_deepspeed_are_read():
    zero = {"stage": 3, "reduce_bucket_size": 5e7, "overlap_comm": False, "stage3_max_live_parameters": "auto"}
    found = sharing_of(
        {"deepspeed": {"zero_optimization": zero, "bf16": {"enabled": "auto"}}}, 4, bf16=True, on_gpu=True
    )
    assert found == Sharing(ZERO_3, 4, bucket_numbers=50_000_000, overlaps=False, in_16_bits=True)


def test_deepspeed_computes_in_the_precision_of_the_run_unless_its_settings_say_otherwise():
    def in_16_bits(**bits):
        settings = {"deepspeed": {"zero_optimization": {"stage": 2}, **bits}}
        return sharing_of(settings, 4, bf16=True, on_gpu=True).in_16_bits

    assert in_16_bits()  # accelerate adds it
    assert in_16_bits(bf16={"enabled": "auto"})
    assert not in_16_bits(bf16={"enabled": False})
