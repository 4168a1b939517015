"""Getting a model ready to train: the type of its weights on a CPU that emulates bfloat16."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig

from oddsmith import ModelConfig, ORPOConfig, get_quantization_config
from oddsmith.inference.loading import load_for_inference
from oddsmith.model.loading.models import load_model
from oddsmith.model.loading.setup import ready_model, resolve_model
from oddsmith.system import precision
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(1, 20)[None]
CAST = "The model's weights were bfloat16, and this CPU has neither AVX512-BF16 nor AMX; they are float32 now."


@pytest.fixture(params=[None, "AVX512-BF16"])
def unit(request, monkeypatch) -> str | None:
    """What the CPU multiplies bfloat16 with: nothing, or AVX512-BF16."""
    monkeypatch.setattr(precision, "_cpu_bf16_unit", lambda: request.param)
    return request.param


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_in_bfloat16(unit, adapter, tmp_path, caplog):
    args = ORPOConfig(str(tmp_path), use_cpu=True)
    given = tiny_model(dtype=torch.bfloat16)
    before = copy.deepcopy(given.state_dict())
    with caplog.at_level(logging.WARNING):
        model = ready_model(given, args, LoraConfig(target_modules="all-linear") if adapter else None)
    frozen = {p.dtype for n, p in model.named_parameters() if "lora_" not in n}
    assert frozen == {torch.bfloat16 if unit else torch.float32}
    base = model.get_base_model() if adapter else model
    after = {name.replace(".base_layer", ""): value for name, value in base.state_dict().items()}
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items())
    assert [record.getMessage() for record in caplog.records] == ([] if unit else [CAST])


def test_weights_in_float32_are_left_alone(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_unit", lambda: None)
    ready_model(tiny_model(), ORPOConfig(str(tmp_path), use_cpu=True))
    assert not caplog.records


@pytest.mark.parametrize("assigned", [False, True], ids=["in the constructor", "later"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_type_in_model_init_kwargs(key, assigned, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    given = {key: torch.bfloat16 if assigned else "bf16"}
    args = ORPOConfig(str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs=None if assigned else given)
    if assigned:
        args.model_init_kwargs = given
    assert resolve_model(str(tmp_path / "base"), args).dtype is torch.bfloat16


@pytest.mark.parametrize("storage", [None, "bfloat16"])
def test_products_of_4_bit_weights(unit, tmp_path, storage):
    pytest.importorskip("bitsandbytes")
    tiny_model(hidden_size=64, intermediate_size=64, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    chosen = ModelConfig(use_peft=True, load_in_4bit=True, bnb_4bit_quant_storage=storage)
    dtype = torch.bfloat16 if unit else torch.float32

    def load(dtype):
        return load_model(str(tmp_path / "base"), dtype=dtype, quantization_config=get_quantization_config(chosen))

    model = ready_model(load(torch.bfloat16), ORPOConfig(str(tmp_path), use_cpu=True))
    logits = model(IDS).logits
    layer = model.model.layers[0].mlp.down_proj
    assert layer.compute_dtype is dtype
    assert layer.weight.quant_state is not None
    assert model.lm_head.weight.dtype is dtype
    # The 4-bit numbers are the same; loaded in bfloat16 they are rounded when they are unpacked.
    expected = load(torch.float32)(IDS).logits
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_model_to_answer(unit, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    model, _ = load_for_inference(str(tmp_path))
    assert model.dtype is (torch.bfloat16 if unit else torch.float32)


def test_answers_are_drawn_in_the_format_of_a_training_here(unit, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    drawn, _ = load_for_inference(str(tmp_path), as_trained=True)
    assert drawn.dtype is (torch.bfloat16 if unit else torch.float32)
    assert load_for_inference(str(tmp_path))[0].dtype is torch.float32
