"""A model without weights has the shapes and types of the one that will be trained."""

import json

import pytest
import torch
from peft import LoraConfig
from transformers import T5Config, T5ForConditionalGeneration

from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.models import load_model
from oddsmith.model.loading.outline import outline_model
from tests.command import save_model


def shapes(model) -> dict:
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, {}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}])
def test_the_outline_of_what_is_trained(tmp_path, dtype, lora):
    save_model(tmp_path)
    peft_config = None if lora is None else LoraConfig(r=4, target_modules="all-linear", **lora)
    outline = outline_model(str(tmp_path), dtype=dtype, peft_config=peft_config)
    model = load_model(str(tmp_path), dtype=dtype)
    model = model if peft_config is None else add_adapter(model, peft_config)
    assert shapes(outline) == shapes(model)
    assert {p.device.type for p in outline.parameters()} == {"meta"}
    assert peft_config is None or peft_config.init_lora_weights == lora.get("init_lora_weights", True)


def test_an_adapter_that_is_trained_on(tmp_path):
    base = save_model(tmp_path / "base")
    add_adapter(load_model(str(base)), LoraConfig(r=4, target_modules="all-linear")).save_pretrained(tmp_path / "run")
    outline = outline_model(str(tmp_path / "run"), dtype=torch.float32)
    assert shapes(outline) == shapes(load_model(str(tmp_path / "run"), is_trainable=True))


def test_an_encoder_decoder_and_the_type_that_is_stored(tmp_path):
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).bfloat16()
    model.save_pretrained(tmp_path / "t5")
    assert shapes(outline_model(str(tmp_path / "t5"), dtype="auto")) == shapes(model)


def test_what_is_not_here_or_has_code_of_its_own_has_no_outline(tmp_path):
    assert outline_model("nobody/nothing", dtype=torch.float32) is None
    own = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(own), encoding="utf-8")
    (tmp_path / "code.py").write_text("raise SystemExit('this was run')", encoding="utf-8")
    assert outline_model(str(tmp_path), dtype=torch.float32) is None
