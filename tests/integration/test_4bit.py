"""A base in 4 and 8 bits on the CPU: gradients and merges are right, also after an evaluation."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from oddsmith.config import ModelConfig, ORPOConfig
from oddsmith.errors import MissingExtraError, ModelError
from oddsmith.model.adapters import add_adapter, get_peft_config, get_quantization_config, keep_weights_unpacked
from oddsmith.model.loading.models import load_model
from oddsmith.model.loading.setup import ready_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from tests.tiny_runs import let_transformers_add, make_trainer

bitsandbytes = pytest.importorskip("bitsandbytes")

IDS = torch.arange(1, 30)[None]
FOUR_BIT = ModelConfig(use_peft=True, load_in_4bit=True, lora_r=4, lora_dropout=0.0, init_lora_weights="gaussian")
SIZE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 258, "initializer_range": 0.1}


@pytest.fixture
def folder(tmp_path):
    tiny_model(**SIZE).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_weights_that_are_stored_in_4_bits_name_the_extra_that_is_missing(folder, monkeypatch):
    """transformers names a package and a version, and the folder alone."""
    settings = Path(folder) / "config.json"
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"quantization_config": stored}))
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MissingExtraError) as error:
        load_model(folder)
    needs = 'a model in 4 or 8 bits needs an optional dependency; install it with: pip install "oddsmith[4bit]"'
    assert str(error.value) == f"{folder}: {needs}"


def four_bit_model(folder: str, **settings) -> PeftModel:
    """A 4-bit base with an adapter that has been trained a little."""
    config = copy.copy(FOUR_BIT)
    vars(config).update(settings)
    torch.manual_seed(0)
    base = load_model(folder, dtype=torch.bfloat16, quantization_config=get_quantization_config(config))
    model = add_adapter(base, get_peft_config(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def dequantised(linear) -> torch.Tensor:
    return bitsandbytes.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state).float()


def test_every_linear_layer_but_the_head_is_4_bit(folder):
    model = load_model(folder, dtype=torch.bfloat16, quantization_config=get_quantization_config(FOUR_BIT))
    kinds = {name.rpartition(".")[2]: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit"
    assert kinds["lm_head"] == "Linear"
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype is torch.bfloat16
    original = tiny_model(**SIZE).model.layers[0].mlp.up_proj.weight.detach()
    assert ((dequantised(layer) - original).norm() / original.norm()).item() == pytest.approx(0.09, abs=0.03)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_gradients_are_the_same_before_and_after_an_evaluation(folder, settings):
    model = four_bit_model(folder, **settings)
    before = gradients(model)
    assert all(gradient.abs().max() > 0 for gradient in before.values())
    with torch.no_grad():
        evaluated = model.eval()(IDS).logits
    after = gradients(model)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
    with torch.no_grad():
        assert torch.equal(model.train()(IDS).logits, evaluated)


# ---- Models that users make


@pytest.fixture
def packing(monkeypatch):
    """Let bitsandbytes repack weights in an evaluation, as it does on CPUs with AVX512-BF16.

    What it computes of repacked weights on another CPU is wrong, but so are the gradients with AVX512-BF16.
    """
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)


ADAPTER = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
EXACT = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def quantised(folder: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=EXACT)


def with_adapter_of_transformers(base):
    let_transformers_add(base, ADAPTER)
    return base


def evaluated(model):
    with torch.no_grad():
        model.eval()(IDS)
    return model


MADE = {
    "get_peft_model": lambda base, adapter: get_peft_model(quantised(base), ADAPTER),
    "get_peft_model of a prepared model": lambda base, adapter: get_peft_model(
        prepare_model_for_kbit_training(quantised(base)), ADAPTER
    ),
    "PeftModel.from_pretrained": lambda base, adapter: PeftModel.from_pretrained(
        quantised(base), adapter, is_trainable=True
    ),
    "AutoPeftModel": lambda base, adapter: AutoPeftModelForCausalLM.from_pretrained(
        adapter, is_trainable=True, dtype=torch.float32, quantization_config=EXACT
    ),
    "add_adapter of transformers": lambda base, adapter: with_adapter_of_transformers(quantised(base)),
    "a base to add an adapter to": lambda base, adapter: quantised(base),
    "load_model": lambda base, adapter: load_model(base, quantization_config=EXACT),
    "load_model of an adapter": lambda base, adapter: load_model(adapter, quantization_config=EXACT, is_trainable=True),
}


def gradients_after_an_evaluation(model) -> list[torch.Tensor]:
    """Gradients of the same adapter in every model, after an evaluation as the trainer makes one."""
    adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    evaluated(model)
    return list(gradients(model).values())


def off(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Norm of the difference of two gradients, relative to the norm of the second."""
    assert len(found) == len(expected) == 28
    vectors = [torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (found, expected)]
    return ((vectors[0] - vectors[1]).norm() / vectors[1].norm()).item()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter of it, the settings of a run, and the gradients over the dequantised base."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny_model(**SIZE, attention_bias=True, tie_word_embeddings=False)
    for layer in base.model.layers:
        layer.self_attn.q_proj.bias.data.normal_()
    base.save_pretrained(folder / "base")
    get_peft_model(quantised(str(folder / "base")), ADAPTER).save_pretrained(folder / "adapter")
    plain = quantised(str(folder / "base")).dequantize()
    expected = gradients_after_an_evaluation(get_peft_model(plain, ADAPTER))
    return str(folder / "base"), str(folder / "adapter"), ORPOConfig(str(folder), use_cpu=True, bf16=False), expected


@pytest.mark.parametrize("way", MADE)
def test_gradients_are_right_however_the_model_was_made(packing, made, way):
    base, adapter, args, expected = made
    model = MADE[way](base, adapter)
    model = ready_model(model, args, None if hasattr(model, "peft_config") else ADAPTER)
    assert off(gradients_after_an_evaluation(model), expected) < 1e-5


@pytest.mark.parametrize("way", ["get_peft_model", "a base to add an adapter to"])
def test_weights_that_were_packed_before_are_unpacked(packing, made, way):
    """Packing rounded their scales to bf16, so gradients are close, not equal; with packed weights they are 70% off."""
    base, adapter, args, expected = made
    model = evaluated(MADE[way](base, adapter))
    layer = next(module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit))
    assert layer.weight.quant_state.packing_format_for_cpu
    model = ready_model(model, args, None if hasattr(model, "peft_config") else ADAPTER)
    assert not layer.weight.quant_state.packing_format_for_cpu
    assert off(gradients_after_an_evaluation(model), expected) < 0.1


def test_training_a_model_that_was_made_elsewhere(packing, made, tmp_path):
    """On packed rows over 4-bit weights, biases included, the steps are those on padded batches over plain weights."""

    def steps(base, forest):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, get_peft_model(base, ADAPTER), 6, max_steps=2, prefix_forest=forest)
        trainer.train()
        assert (trainer.path.name == "prefix forest") == forest
        return [entry[name] for entry in trainer.state.log_history for name in ("loss", "grad_norm") if name in entry]

    expected = steps(quantised(made[0]).dequantize(), False)
    assert len(expected) == 4
    assert steps(quantised(made[0]), True) == pytest.approx(expected, rel=1e-5)


def test_merging_gives_the_dequantised_base_plus_ba(folder):
    model = four_bit_model(folder)
    with torch.no_grad():
        model.eval()(IDS)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    base = dequantised(layer.base_layer)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (FOUR_BIT.lora_alpha / FOUR_BIT.lora_r)
    assert update.norm() > 0.2 * base.norm()
    merged = dequantised(model.merge_and_unload().model.layers[1].mlp.up_proj)
    # The sum is quantised to 4 bits again; that error, and no other, is between the two.
    state = layer.base_layer.weight.quant_state
    again = bitsandbytes.functional.quantize_4bit(
        (base + update).to(state.dtype), quant_type="nf4", blocksize=state.blocksize, compress_statistics=True
    )
    expected = bitsandbytes.functional.dequantize_4bit(*again).float()
    torch.testing.assert_close(merged, expected, atol=2e-3, rtol=0)


def test_saved_and_loaded_it_computes_the_same(folder, tmp_path):
    model = four_bit_model(folder).eval()
    with torch.no_grad():
        expected = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    settings = {"dtype": torch.bfloat16, "quantization_config": get_quantization_config(FOUR_BIT)}
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path / "adapter"), **settings)(IDS).logits, expected)


def test_checkpointing_does_not_change_the_gradients(folder):
    expected = gradients(four_bit_model(folder))
    model = four_bit_model(folder)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


def test_only_the_quantised_weights_change_their_type(folder):
    """Norms, embeddings and head stay bf16: casting them to float32 costs memory and brings nothing."""
    model = four_bit_model(folder)
    types = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert types == {torch.bfloat16, torch.uint8}


def test_pissa_is_refused(folder):
    message = "init_lora_weights='pissa' subtracts the adapter's initial value from the base's weights"
    with pytest.raises(ModelError, match=message):
        four_bit_model(folder, init_lora_weights="pissa")


def test_a_gguf_file_in_4_bit(tmp_path):
    original = tiny_model(**SIZE)
    file = write_gguf(tmp_path / "tiny.gguf", original, tiny_tokenizer())
    original.save_pretrained(tmp_path / "folder")
    settings = {"dtype": torch.bfloat16, "quantization_config": get_quantization_config(FOUR_BIT)}
    model = load_model(str(file), **settings)
    assert model.config._name_or_path == str(file)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, load_model(str(tmp_path / "folder"), **settings)(IDS).logits)


def test_8_bit(folder):
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_8bit=True))
    base = load_model(folder, dtype=torch.bfloat16, quantization_config=settings)
    assert type(base.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    model = add_adapter(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    before = gradients(model)
    with torch.no_grad():
        model.eval()(IDS)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name]), name


def test_dora_over_8_bits_is_refused_on_a_cpu(folder, tmp_path):
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_8bit=True))
    base = load_model(folder, quantization_config=settings)
    with pytest.raises(ModelError, match="use_dora over an 8-bit base fails on a CPU .* take load_in_4bit, or leave"):
        ready_model(base, ORPOConfig(str(tmp_path), use_cpu=True), LoraConfig(target_modules=["q_proj"], use_dora=True))


def test_unpacking_leaves_other_models_alone():
    model = tiny_model()
    keep_weights_unpacked(model)
    assert "support_avx512bf16_for_cpu" not in vars(model.model.layers[0].mlp.up_proj)
