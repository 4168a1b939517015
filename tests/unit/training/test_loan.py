"""A model that is lent to a training, without one: what is set on it, and what is left of it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oddsmith import ORPOConfig
from oddsmith.training.loan import ModelLoan
from tests.tiny import tiny_model

IDS = torch.arange(3, 9)[None]


def settings(folder: Path, **more) -> ORPOConfig:
    return ORPOConfig(str(folder), use_cpu=True, bf16=False, **more)


def input_has_gradient(model) -> bool:
    return model.get_input_embeddings()(IDS).requires_grad


@pytest.mark.parametrize("by", ["the settings", "the user", "nobody"])
def test_checkpointing_an_adapter_needs_gradients_of_the_input(by, tmp_path):
    model = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear"))
    if by == "the user":
        model.base_model.model.model.gradient_checkpointing = True
    loan = ModelLoan(model, settings(tmp_path, gradient_checkpointing=by == "the settings"))
    loan.begin()
    assert input_has_gradient(model) == (by != "nobody")
    loan.give_back()
    assert not input_has_gradient(model)


def test_what_the_user_set_stays(tmp_path):
    model = tiny_model(attention_dropout=0.1)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    model.model.norm.forward = lambda x: x
    model.lm_head.register_forward_hook(hook := lambda module, args, y: y)
    model.model.layers[0].eval()
    loan = ModelLoan(model, settings(tmp_path, gradient_checkpointing=True))
    loan.begin()
    model.gradient_checkpointing_enable()
    model.train()
    loan.give_back()
    assert input_has_gradient(model)
    assert model.is_gradient_checkpointing
    assert "forward" in vars(model.model.norm)
    assert hook in model.lm_head._forward_hooks.values()
    assert [layer.training for layer in model.model.layers] == [False, True]


def test_dropout_is_off_until_the_model_is_given_back(tmp_path):
    model = tiny_model(attention_dropout=0.1)
    attention = model.model.layers[0].self_attn
    loan = ModelLoan(model, settings(tmp_path))
    for _ in range(2):
        loan.begin()
        assert attention.attention_dropout == 0
        loan.give_back()
        assert attention.attention_dropout == 0.1
    other = ModelLoan(model, settings(tmp_path, disable_dropout=False))
    other.begin()
    assert attention.attention_dropout == 0.1
