"""Layers that an adapter on every linear layer leaves out, because models do not call them as layers."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from oddsmith.model.adapters import add_adapter
from oddsmith.model.bypassed import bypassed_layers
from tests.architectures import config_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Jamba", {"dt_proj"}),  # a matrix product with its weight
        ("Bamba", {"out_proj"}),  # given to a kernel where that is installed
        ("Mamba", {"x_proj", "dt_proj", "out_proj"}),
        ("Llama 4 (text)", {"router"}),  # returns scores and logits
        ("Falcon", set()),  # a forward of its own that returns a tensor
        ("BLOOM", set()),  # reads weights in parts, for tensor-parallel checkpoints alone
        ("Qwen3", set()),
    ],
)
def test_they_are_left_out(name, expected):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
        found = {path.rpartition(".")[2] for path in bypassed_layers(model)}
        adapted = add_adapter(model, LoraConfig(target_modules="all-linear"))
    assert found == expected
    assert not any(f".{path}.lora_A" in weight for weight, _ in adapted.named_parameters() for path in expected)
    assert any("lora_A" in weight for weight, _ in adapted.named_parameters())
