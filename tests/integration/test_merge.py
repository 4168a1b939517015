"""Merge an adapter into an ordinary model folder: what it computes, what it holds, and what is refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import oddsmith.export.divergence as divergence_module
import oddsmith.export.merge as merge_module
from oddsmith.config import ModelConfig
from oddsmith.errors import ConfigError, ExportError, ModelError
from oddsmith.export.atomic import RECORD_FILE
from oddsmith.export.divergence import divergence, logits_of
from oddsmith.export.merge import MAX_KL, MAX_KL_COMPUTED_IN_16_BITS, merge_adapter, write_model_folder
from oddsmith.export.named_model import find_model
from oddsmith.model.adapters import add_adapter, get_quantization_config
from oddsmith.model.loading.models import load_model
from tests.command import save_model
from tests.templates import LLAMA3
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from tests.tiny_runs import train_run

IDS = torch.arange(1, 40)[None]
# Weights of usual size, unlike those of tiny_model, so that rounding costs as much as in a real model.
MODEST = {"initializer_range": 0.1, "hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def base(tmp_path) -> Path:
    return save_model(tmp_path / "base", **MODEST)


@pytest.fixture
def run(base, tmp_path) -> Path:
    """A finished LoRA run."""
    return train_run(base, tmp_path / "run", {})


def logits(name: object, **options) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(name), **options)(IDS).logits.float()


KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 8},
    "pissa": {"init_lora_weights": "pissa"},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "lora on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


IN_EVERY_RUN = {"dora", "pissa", "modules_to_save", "lora on the embedding"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in IN_EVERY_RUN else pytest.mark.slow) for kind in KINDS]
)
def test_each_kind_of_adapter_computes_the_same_merged(base, tmp_path, kind):
    run = train_run(base, tmp_path / "run", KINDS[kind])
    report = merge_adapter(str(run), run / "merged", dtype="float32")
    expected = logits(run)
    assert (expected - logits(base)).abs().max() > 0.05
    torch.testing.assert_close(logits(run / "merged"), expected, atol=2e-5, rtol=2e-5)
    assert report.merged.kl < 1e-9
    assert report.written.kl <= MAX_KL["float32"] == report.tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow), "float32", None])
def test_weights_are_the_float32_sum_rounded_once(base, run, tmp_path, dtype):
    report = merge_adapter(str(run), tmp_path / "merged", dtype=dtype)
    assert report.dtype == (dtype or "bfloat16")
    adapter = load_file(run / "adapter_model.safetensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    for name, weight in after.items():
        expected = before[name]
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in adapter:
            update = adapter[f"{key}.lora_B.weight"] @ adapter[f"{key}.lora_A.weight"] * (8 / 4)
            expected = expected + update
        assert torch.equal(weight, expected.to(getattr(torch, report.dtype))), name
    assert report.written.kl <= report.tolerance
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == report.dtype


def test_a_base_in_16_bits_is_merged_in_float32_and_keeps_its_type(tmp_path):
    base = save_model(tmp_path / "base", dtype=torch.float16, **MODEST)
    run = train_run(base, tmp_path / "run", {"use_dora": True}, dtype="float16")
    report = merge_adapter(str(run), tmp_path / "merged")
    assert (report.dtype, report.compute_dtype) == ("float16", "float32")
    reference = logits(run, dtype="float32")
    assert (logits(tmp_path / "merged") - reference).abs().max() < 5e-3


def test_without_memory_for_float32_everything_is_compared_in_16_bits(base, tmp_path, monkeypatch):
    run = train_run(base, tmp_path / "run", {}, dtype="bfloat16")
    monkeypatch.setattr(divergence_module, "free_bytes", lambda device: 0)
    report = merge_adapter(str(run), tmp_path / "merged")
    assert (report.compute_dtype, report.tolerance) == ("bfloat16", MAX_KL_COMPUTED_IN_16_BITS)
    in_float32 = merge_adapter(str(run), tmp_path / "other", dtype="float32")
    assert in_float32.compute_dtype == "float32"
    weights, exact = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "other"))
    assert all(torch.equal(weights[name], exact[name].bfloat16()) for name in weights)


# ---- Embedding and head that are one weight


@pytest.mark.parametrize(
    ("targets", "in_full", "stays_tied"),
    [
        ("all-linear", None, True),
        (["lm_head"], None, False),
        (["embed_tokens", "q_proj"], None, False),
        (["embed_tokens", "lm_head"], None, False),
        (["q_proj"], ["lm_head"], False),
        (["q_proj"], ["embed_tokens"], False),
    ],
)
def test_tied_embeddings(tmp_path, targets, in_full, stays_tied):
    """Adapters of other libraries: our trainer refuses those that separate embedding and head."""
    base = save_model(tmp_path / "base", tie_word_embeddings=True, **MODEST)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=targets, modules_to_save=in_full, task_type="CAUSAL_LM")
    model = get_peft_model(load_model(str(base)), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "_A" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = model(IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    assert report.is_tied == stays_tied
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] == stays_tied
    assert ("lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")) == (not stays_tied)
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, atol=2e-5, rtol=2e-5)


def test_a_vocabulary_that_was_enlarged(base, tmp_path):
    tokenizer = tiny_tokenizer(extra_special=("<|new|>", "<|newer|>"))
    model = load_model(str(base))
    model.resize_token_embeddings(280, mean_resizing=False)
    config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    with torch.no_grad():
        model.base_model.model.model.embed_tokens.weight[264:] = 0.3
        expected = model(IDS + 240).logits
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    merged = load_model(str(tmp_path / "merged"))
    assert merged.config.vocab_size == 280
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS + 240).logits, expected, atol=2e-5, rtol=2e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)


# ---- Other models


def randomise(model) -> None:
    """Change the trainable weights of an adapter, as training would."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def test_an_encoder_decoder_model(tmp_path):
    settings = T5Config(
        vocab_size=264, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=257, eos_token_id=257,
    )  # fmt: skip
    save_model(tmp_path / "base", chat_template=None, model=T5ForConditionalGeneration(settings))
    model = add_adapter(load_model(str(tmp_path / "base")), LoraConfig(r=2, target_modules="all-linear")).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    report = merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
        found = load_model(str(tmp_path / "merged"))(**inputs).logits
        torch.testing.assert_close(found, model(**inputs).logits, atol=2e-5, rtol=2e-5)
    assert report.is_tied
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")


def test_experts_that_are_bare_parameters(tmp_path):
    settings = MixtralConfig(
        vocab_size=264, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, initializer_range=0.2,
    )  # fmt: skip
    save_model(tmp_path / "base", model=MixtralForCausalLM(settings))
    experts = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=experts, task_type="CAUSAL_LM")
    model = add_adapter(load_model(str(tmp_path / "base")), config).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "merged"), model(IDS).logits, atol=2e-5, rtol=2e-5)


def test_a_base_in_a_gguf_file(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(vocab_size=258, **MODEST), tiny_tokenizer())
    run = train_run(file, tmp_path / "run", {})
    report = merge_adapter(str(run), run / "merged", dtype="float32")
    assert report.base == str(file)
    torch.testing.assert_close(logits(run / "merged"), logits(run), atol=2e-5, rtol=2e-5)


def test_a_gguf_file_itself_is_no_run(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(vocab_size=258), tiny_tokenizer())
    with pytest.raises(ModelError, match="tiny.gguf: is an exported GGUF file already; expected a run"):
        merge_adapter(str(file), tmp_path / "merged")


# ---- The files in the folder


def test_transformers_alone_loads_it_with_tokenizer_and_template(run, tmp_path):
    report = merge_adapter(str(run), run / "merged")
    model = AutoModelForCausalLM.from_pretrained(run / "merged")
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    assert model.dtype is torch.bfloat16
    messages = [{"role": "user", "content": "Hi"}]
    expected = tiny_tokenizer().apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
    assert report.size_bytes == (run / "merged" / "model.safetensors").stat().st_size
    record = json.loads((run / "merged" / RECORD_FILE).read_text())
    assert record["written"]["kl"] == report.written.kl
    for file in (run / "merged").iterdir():
        assert str(tmp_path) not in file.read_bytes().decode("utf-8", "replace"), file.name


def test_the_end_of_turn_that_was_trained_on_ends_answers(tmp_path):
    """Llama 3: the tokenizer's own end is another token, and a published model may name none of the two."""
    tokenizer = LLAMA3.tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=None)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    tokenizer.save_pretrained(tmp_path / "base")
    run = train_run(tmp_path / "base", tmp_path / "run", {})
    report = merge_adapter(str(run), run / "merged")
    settings = GenerationConfig.from_pretrained(run / "merged")
    expected = sorted(tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"]))
    assert settings.eos_token_id == report.end_tokens == expected
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.6, 0.9, True)
    assert settings.pad_token_id == tokenizer.eos_token_id
    assert not settings._from_model_config  # or config.json would decide


def test_the_sentencepiece_file_of_the_base_comes_along(base, run):
    (base / "tokenizer.model").write_bytes(b"pieces")
    merge_adapter(str(run), run / "merged")
    assert (run / "merged" / "tokenizer.model").read_bytes() == b"pieces"


def test_a_model_that_was_trained_whole_is_cast_and_checked(base, tmp_path):
    run = train_run(base, tmp_path / "run")
    report = merge_adapter(str(run), run / "merged")
    assert (report.base, report.merged, report.dtype) == (None, None, "bfloat16")
    before, after = (load_file(folder / "model.safetensors") for folder in (run, run / "merged"))
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)


def test_a_checkpoint_is_as_good_as_a_run(base, tmp_path):
    run = train_run(base, tmp_path / "run", {}, save_strategy="steps", save_steps=1)
    merge_adapter(str(run / "checkpoint-1"), tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(run / "checkpoint-1"), atol=2e-5, rtol=2e-5)


def test_a_merged_folder_can_be_exported_again(run):
    merge_adapter(str(run), run / "merged", dtype="float32")
    again = merge_adapter(str(run / "merged"), run / "merged", dtype="float32", overwrite=True)
    assert again.written.kl == 0
    torch.testing.assert_close(logits(run / "merged"), logits(run), atol=2e-5, rtol=2e-5)


# ---- Trained on 4 bits


@pytest.fixture
def four_bit_run(base, tmp_path) -> Path:
    pytest.importorskip("bitsandbytes")
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    return train_run(base, tmp_path / "run", {}, dtype="bfloat16", quantization_config=settings)


def test_a_run_on_4_bits_is_recognised_and_loaded_as_it_was_trained(four_bit_run):
    found = find_model(str(four_bit_run))
    assert (found.kind, found.bits) == ("adapter", 4)
    layer = found.load_as_trained().base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert type(layer).__name__ == "Linear4bit"
    assert layer.weight.quant_state.nested


def test_its_adapter_is_merged_into_the_16_bit_base_and_the_difference_is_reported(four_bit_run, base):
    report = merge_adapter(str(four_bit_run), four_bit_run / "merged", dtype="float32")
    assert report.merge_into == "16bit"
    reference = load_model(str(four_bit_run), dtype="bfloat16").float()
    with torch.no_grad():
        torch.testing.assert_close(logits(four_bit_run / "merged"), reference(IDS).logits, atol=2e-5, rtol=2e-5)
    assert report.from_trained.kl > 100 * report.written.kl


def test_its_adapter_can_be_merged_into_the_dequantised_base(four_bit_run):
    there = merge_adapter(str(four_bit_run), four_bit_run / "there", dtype="float32")
    report = merge_adapter(str(four_bit_run), four_bit_run / "merged", dtype="float32", merge_into="dequantized")
    assert report.merge_into == "dequantized"
    # The remaining difference is that the trained model computes in bfloat16.
    assert report.from_trained.kl < there.from_trained.kl / 10
    with torch.no_grad():
        trained = find_model(str(four_bit_run)).load_as_trained()(IDS).logits.float()
    assert (logits(four_bit_run / "merged") - trained).abs().max() < 0.05 * trained.abs().max()
    assert "quantization_config" not in json.loads((four_bit_run / "merged" / "config.json").read_text())


def test_a_run_on_8_bits(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_8bit=True))
    run = train_run(base, tmp_path / "run", {}, dtype="bfloat16", quantization_config=settings)
    report = merge_adapter(str(run), run / "merged")
    assert (report.bits, report.merge_into) == (8, "16bit")
    assert 0 < report.from_trained.kl < 0.1


def test_without_bitsandbytes_it_merges_and_says_what_it_could_not_measure(four_bit_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = merge_adapter(str(four_bit_run), four_bit_run / "merged")
    assert report.from_trained is None
    assert 'pip install "oddsmith[4bit]"' in report.trained_missing


# ---- What is refused


def test_a_merge_that_computes_something_else_never_appears(run, monkeypatch):
    monkeypatch.setattr(merge_module, "merge_weights", lambda model, dtype: model.unload())
    message = r"the merged model does not compute .*: KL [\d.e-]+ a token, expected at most"
    with pytest.raises(ExportError, match=message):
        merge_adapter(str(run), run / "merged")
    assert not list(run.glob("merged*"))


def test_a_model_that_was_written_wrong_never_appears(run, monkeypatch):

    def lose_a_layer(model, *arguments, **options):
        model.model.layers[1].mlp.up_proj.weight.data.zero_()
        write_model_folder(model, *arguments, **options)

    monkeypatch.setattr(merge_module, "write_model_folder", lose_a_layer)
    with pytest.raises(ExportError, match="the model as bfloat16 does not compute"):
        merge_adapter(str(run), run / "merged")
    assert not list(run.glob("merged*"))


def test_weights_that_float16_cannot_hold(tmp_path):
    model = tiny_model()
    model.model.embed_tokens.weight.data *= 1e6
    save_model(tmp_path / "base", model=model)
    with pytest.raises(ExportError, match="too large for its type; try --dtype bfloat16"):
        merge_adapter(str(tmp_path / "base"), tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_is_no_change_of_weights(base, tmp_path):
    model = get_peft_model(load_model(str(base)), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="a PROMPT_TUNING adapter cannot be merged"):
        merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")


def test_an_unknown_dtype_is_known_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected bfloat16, float16 or float32"):
        merge_adapter("nothing/here", tmp_path / "merged", dtype="int8")


def test_tolerances_lie_between_rounding_and_another_model(run):
    """bfloat16's own error stays well below its tolerance; one forgotten layer lies far above both."""
    report = merge_adapter(str(run), run / "merged", dtype="bfloat16")
    ids = [IDS[0].tolist()]
    model = load_model(str(run))
    whole = logits_of(model, ids)
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.down_proj.lora_B["default"].weight.zero_()
    without_an_update = divergence(whole, logits_of(model, ids), ids).kl
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.zero_()
    without_a_weight = divergence(whole, logits_of(model, ids), ids).kl
    assert report.written.kl < MAX_KL["bfloat16"] / 4
    assert without_an_update > MAX_KL["float32"] * 1000
    assert without_a_weight > MAX_KL["bfloat16"] * 4


# ---- Runs of strangers


def test_what_a_strangers_run_says_of_itself_never_ends_an_export(run, tmp_path, caplog):
    start, *events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    start["settings"] |= {"optim": "<img src=x onerror=alert(1)>", "report_to": "[x](javascript:alert(1))"}
    odd = [{**start, "data": [5], "adapter": "x"}, *events, {"event": "evaluate", "step": 2, "eval_loss": 1e400}]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in odd) + "[]\n{")
    (run / "README.md").write_text("---\nbase_model: [\n---\n# x\n")
    said: list[int] = []
    merge_adapter(str(run), tmp_path / "m", on_stage=lambda *_: said.append(len(caplog.messages)))
    assert said[0] == 2, "both lines come before the work"
    card, log = caplog.messages
    assert card.startswith(f"{run}/README.md: its metadata cannot be read")
    assert log.endswith("the model card is made without what it says of: data, training")
    text = (tmp_path / "m" / "README.md").read_text()
    assert "javascript:" not in text
    assert "## Use it" in text
    (run / "events.jsonl").write_text(json.dumps(start))
    merge_adapter(str(run), tmp_path / "m", overwrite=True)
    assert "| `optim` | &#60;img src=x onerror=alert(1)&#62; |" in (tmp_path / "m" / "README.md").read_text()
