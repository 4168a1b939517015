"""What a micro-batch takes is measured on few layers without values; a real model of all layers takes the same."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    T5Config,
)

from oddsmith.batching.forest import forest_batch
from oddsmith.config import ModelConfig, ORPOConfig
from oddsmith.model.adapters import add_adapter, get_peft_config
from oddsmith.model.loading.outline import outline_model
from oddsmith.model.logprobs.attention.cpu import saved_weights
from oddsmith.model.logprobs.memory_saving import memory_saving_layers
from oddsmith.model.logprobs.output_transform import OutputTransform
from oddsmith.model.logprobs.paths import ForestPath, loss_of_a_row, pair_of
from oddsmith.model.logprobs.sequence_wise import sequence_wise_layers
from oddsmith.model.logprobs.token_budget import step_bytes
from oddsmith.planning.activations import Depths, depths_of, step_cost
from tests.tiny import tiny_model

TOKENS, HEAD_BYTES = 320, 16 * 264 * 4
SHAPE = {"num_hidden_layers": 9, "hidden_size": 64, "intermediate_size": 160}


def outline_of(folder: Path, chosen: ModelConfig, layers: int | None):
    return outline_model(str(folder), dtype=torch.float32, peft_config=get_peft_config(chosen), layers=layers)


@pytest.mark.parametrize(
    ("adapter", "checkpointing", "dtype"),
    [
        (False, False, torch.bfloat16),
        pytest.param(False, True, torch.float32, marks=pytest.mark.slow),
        pytest.param(True, False, torch.float32, marks=pytest.mark.slow),
        pytest.param(True, True, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_few_layers_without_values_tell_what_a_real_model_keeps(tmp_path, adapter, checkpointing, dtype):
    model = tiny_model(**SHAPE)
    model.config.save_pretrained(tmp_path)
    chosen = ModelConfig(model_name_or_path=str(tmp_path), use_peft=adapter, lora_dropout=0.0)
    args = ORPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    outline = partial(outline_of, tmp_path, chosen)
    cost_of = partial(step_cost, outline, depths_of(outline(None)), args, dtype=dtype, on_gpu=False)
    cost = cost_of()
    if checkpointing:
        cost = cost_of(plain=cost)

    if adapter:
        model = add_adapter(model, get_peft_config(chosen))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapter:
            model.enable_input_require_grads()
    layers = sequence_wise_layers(model, (), hands_on_states=False)
    path = ForestPath("sequence", OutputTransform(), memory_saving_layers(model), layers, "")
    precision = (lambda: torch.autocast("cpu", dtype)) if dtype != torch.float32 else nullcontext
    with path.around(model.train()):
        found = step_bytes(model, partial(loss_of_a_row, model, path, precision, TOKENS, HEAD_BYTES))

    layout = forest_batch([pair_of(np.arange(TOKENS), TOKENS // 2, TOKENS // 4)], "sequence")["forest"]
    saved = saved_weights(layout)
    predicted = cost.fixed + cost.per_token * TOKENS + (0 if checkpointing else cost.attention_weight * saved)
    assert cost.path == "prefix forest"
    assert predicted == pytest.approx(found.kept, rel=0.05)
    # Of so narrow a model the peak is known less well: too much rather than too little.
    assert 0.75 < (predicted + cost.above(TOKENS, saved=saved)) / found.peak < 1.6


TINY = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GEMMA = Gemma3TextConfig(**TINY, num_hidden_layers=7, head_dim=8, num_key_value_heads=2, sliding_window_pattern=2)
DEEPSEEK = DeepseekV3Config(
    **TINY, num_hidden_layers=7, num_key_value_heads=4, first_k_dense_replace=3, n_routed_experts=4, n_group=1,
    topk_group=1, num_experts_per_tok=2, moe_intermediate_size=16, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4,
    qk_nope_head_dim=8, v_head_dim=8,
)  # fmt: skip

T5 = T5Config(
    vocab_size=264, d_model=32, d_kv=8, d_ff=48, num_layers=7, num_decoder_layers=7, num_heads=4, dropout_rate=0.0,
    decoder_start_token_id=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "depths"),
    [
        (LlamaConfig(**TINY, num_hidden_layers=7, num_key_value_heads=2), Depths(7, 1, 1)),
        pytest.param(GEMMA, Depths(7, 2, 2), marks=pytest.mark.slow),  # every second layer sees a window
        pytest.param(DEEPSEEK, Depths(7, 4, 1), marks=pytest.mark.slow),  # the first three have no experts
        pytest.param(T5, Depths(7, 2, 1), marks=pytest.mark.slow),  # the first alone has a bias of its own
    ],
    ids=["llama", "gemma3", "deepseek", "t5"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_few_layers_tell_what_all_take(tmp_path, config, depths, checkpointing):
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    config.architectures = [type(auto_class.from_config(config)).__name__]
    config.save_pretrained(tmp_path)
    chosen = ModelConfig(model_name_or_path=str(tmp_path), use_peft=True, lora_dropout=0.0)
    args = ORPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True)
    outline = partial(outline_of, tmp_path, chosen)
    assert depths_of(outline(None)) == depths
    costs = []
    for measured in (depths, depths._replace(first=None, period=depths.layers)):
        cost_of = partial(step_cost, outline, measured, args, dtype=torch.float32, on_gpu=False)
        cost = cost_of()
        costs.append(cost_of(plain=cost) if checkpointing else cost)
    few, whole = costs
    assert few.fixed + few.per_token * TOKENS == pytest.approx(whole.fixed + whole.per_token * TOKENS, rel=0.01)
    assert few.on_top == pytest.approx(whole.on_top, rel=0.1)
    assert few.attention_weight == whole.attention_weight


def test_padded_batches_of_a_model_are_measured_too(tmp_path):
    tiny_model(**SHAPE).config.save_pretrained(tmp_path)
    chosen = ModelConfig(model_name_or_path=str(tmp_path))
    args = ORPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, prefix_forest=False)
    outline = partial(outline_of, tmp_path, chosen)
    cost = step_cost(outline, depths_of(outline(None)), args, dtype=torch.float32, on_gpu=False)
    assert (cost.path, cost.reason) == ("padded batches", "prefix_forest is off")
    assert cost.per_token > 9 * 64 * 4  # a hidden state of each layer
