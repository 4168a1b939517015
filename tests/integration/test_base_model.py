"""Conversations for a base model without a chat template (``chat_template: chatml``), from rows to a trained model."""

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import clone_chat_template

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.errors import ModelError
from oddsmith.export.merge import merge_adapter
from oddsmith.inference.loading import load_for_inference
from oddsmith.model.generation import answer
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.pairs import assistant, merging_tokenizer, new_merging_tokenizer, user
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

ROWS = [
    {"prompt": [user(f"{n}?")], "chosen": [assistant(f"Yes, {n}.")], "rejected": [assistant(f"No {n} at all.")]}
    for n in range(8)
]
START, END = 260, 261  # ids of the new tokens
KINDS = {"untied": {}, "tied": {"tie_word_embeddings": True}, "padded": {"vocab_size": 272}}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind)
def base(request, tmp_path_factory) -> Path:
    """A base model, whose embeddings hold its tokens alone, or 12 more rows."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = new_merging_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    tiny_model(**{"vocab_size": len(tokenizer), **ids, **KINDS[request.param]}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of(*kinds: str):
    """Run a test with some kinds of bases, the others in the slow tests."""
    others = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in kinds]
    return pytest.mark.parametrize("base", [*kinds, *others], indirect=True)


def lora(**settings) -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **settings)


def trainer_of(model, folder: Path, adapter=None, tokenizer=None, **settings) -> ORPOTrainer:
    options = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4}
    fixed = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    args = ORPOConfig(str(folder), **{**fixed, **options, **settings})
    return ORPOTrainer(model, args, train_dataset=ROWS, processing_class=tokenizer, peft_config=adapter)


def ids_of(tokenizer) -> torch.Tensor:
    text = tokenizer.apply_chat_template([*ROWS[0]["prompt"], *ROWS[0]["chosen"]], return_dict=False)
    return torch.tensor([text])


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(ids).logits


@pytest.mark.parametrize("adapter", [None, lora()], ids=["whole", "LoRA"])
def test_what_is_trained_is_what_is_saved_loaded_and_merged(base, tmp_path, adapter):
    trainer = trainer_of(str(base), tmp_path / "run", adapter, chat_template="chatml")
    assert trainer.path.name == "prefix forest"
    tokenizer = trainer.processing_class
    ids, before = ids_of(tokenizer), trainer.model.get_input_embeddings().weight.detach().clone()
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [START, END]
    torch.testing.assert_close(before[START], before[END])
    trainer.train()
    trainer.save_model()
    after = trainer.model.get_input_embeddings().weight.detach()
    assert (after[[START, END]] - before[[START, END]]).abs().min() > 1e-4
    if adapter:
        assert torch.equal(after[:START], before[:START])
        with safe_open(tmp_path / "run" / "adapter_model.safetensors", "pt") as weights:
            rows = [name for name in weights.keys() if "lora_" not in name]  # noqa: SIM118
            assert {weights.get_tensor(name).shape for name in rows} == {(2, 16)}
        again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run")
        assert torch.equal(logits(again, ids), logits(trainer.model, ids))
    run = str(tmp_path / "run")
    assert torch.equal(logits(load_model(run), ids), logits(trainer.model, ids))
    saved = load_tokenizer(run)
    assert torch.equal(ids_of(saved), ids)
    assert saved.eos_token == "<|im_end|>"
    if adapter:
        report = merge_adapter(run, tmp_path / "merged", dtype="float32")
        assert report.is_tied == bool(trainer.model.config.tie_word_embeddings)
        assert set(report.end_tokens) == {merging_tokenizer().eos_token_id, END}
        merged = load_model(str(tmp_path / "merged"))
        torch.testing.assert_close(logits(merged, ids), logits(trainer.model, ids), atol=2e-5, rtol=2e-5)


@of("untied", "tied")
@pytest.mark.parametrize("adapter", [pytest.param(None, marks=pytest.mark.slow), lora()], ids=["whole", "LoRA"])
def test_packed_and_padded_steps_are_the_same(base, tmp_path, adapter):
    gradients = []
    for forest in (True, False):
        trainer = trainer_of(
            str(base), tmp_path, adapter, chat_template="chatml", prefix_forest=forest, max_steps=1, learning_rate=1e-9
        )
        kept: dict[str, torch.Tensor] = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda grad, name=name, kept=kept: kept.update({name: grad.clone()}))
        trainer.train()
        gradients.append((trainer.state.log_history[0]["loss"], kept))
    (loss, packed), (expected_loss, padded) = gradients
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert packed.keys() == padded.keys()
    rows = [name for name in packed if "embed_tokens" in name or "lm_head" in name]
    assert rows
    for name in packed:
        torch.testing.assert_close(packed[name], padded[name], atol=2e-5, rtol=1e-4)


@of("tied")
@pytest.mark.parametrize("adapter", [pytest.param(None, marks=pytest.mark.slow), lora()], ids=["whole", "LoRA"])
def test_a_resumed_run_has_the_same_bits(base, tmp_path, adapter):
    whole = trainer_of(str(base), tmp_path / "whole", adapter, chat_template="chatml", max_steps=4)
    whole.train()
    settings = {"chat_template": "chatml", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_of(str(base), tmp_path / "run", adapter, **settings).train()
    resumed = trainer_of(str(base), tmp_path / "run", adapter, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@of("tied", "padded")
@pytest.mark.parametrize("adapter", [pytest.param(None, marks=pytest.mark.slow), lora()], ids=["whole", "LoRA"])
def test_a_script_that_clones_a_template_gets_the_same(base, tmp_path, adapter, caplog):
    tiny_tokenizer(CHATML, bos=None).save_pretrained(tmp_path / "chat")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model, tokenizer, _ = clone_chat_template(model, tokenizer, str(tmp_path / "chat"), resize_to_multiple_of=None)
    script = trainer_of(model, tmp_path / "script", adapter, tokenizer)
    setting = trainer_of(str(base), tmp_path / "setting", adapter, chat_template="chatml")
    for trainer in (script, setting):
        trainer.train()
        trainer.save_model()
    ids = ids_of(setting.processing_class)
    assert torch.equal(ids_of(script.processing_class), ids)
    assert script.processing_class.eos_token == setting.processing_class.eos_token
    if setting.model.config.vocab_size == len(tokenizer):  # the rows start alike
        first, second = (trainer.state.log_history[0]["loss"] for trainer in (script, setting))
        assert first == pytest.approx(second, abs=1e-3)
    if adapter:
        told = [message for message in caplog.messages if message.startswith("No training has seen the rows of")]
        assert len(told) == 2
        assert len(set(told)) == 1
    assert torch.equal(logits(load_model(str(tmp_path / "script")), ids), logits(script.model, ids))


@of("padded")
def test_a_trained_model_keeps_its_rows(base, tmp_path):
    """Another trainer with the same settings, over the model in memory or the saved one, goes on from it."""
    trainer = trainer_of(str(base), tmp_path / "run", chat_template="chatml")
    trainer.train()
    trainer.save_model()
    learned = trainer.model.get_input_embeddings().weight.detach().clone()
    for model in (trainer.model, AutoModelForCausalLM.from_pretrained(tmp_path / "run")):
        again = trainer_of(model, tmp_path / "again", tokenizer=trainer.processing_class, chat_template="chatml")
        assert torch.equal(again.model.get_input_embeddings().weight, learned)
    with_adapter = trainer_of(str(tmp_path / "run"), tmp_path / "again", lora(), chat_template="chatml")
    assert with_adapter.model.active_peft_config.trainable_token_indices is None


@of("untied")
def test_the_end_of_an_answer_is_learned(base, tmp_path):
    trainer = trainer_of(
        str(base), tmp_path / "run", lora(), chat_template="chatml", max_steps=60, learning_rate=3e-2, logging_steps=60
    )
    trainer.train()
    trainer.save_model()
    model, tokenizer = load_for_inference(str(tmp_path / "run"))
    prompt = tokenizer.apply_chat_template(ROWS[0]["prompt"], add_generation_prompt=True, return_dict=False)
    probabilities = model(torch.tensor([[*prompt, *tokenizer("Yes, 0.").input_ids]])).logits[0, -1].softmax(-1)
    assert probabilities.argmax() == END
    assert len(answer(model, tokenizer, [prompt], max_new_tokens=40)[0]) < 40
    assert END in model.generation_config.eos_token_id


def test_a_model_that_has_the_template_is_left_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO, "oddsmith.model.loading.chat_template")
    model = tiny_model()
    weight = model.get_input_embeddings().weight.detach().clone()
    trainer = trainer_of(model, tmp_path, lora(), tiny_tokenizer())
    assert torch.equal(trainer.model.get_input_embeddings().weight, weight)
    assert trainer.model.active_peft_config.trainable_token_indices is None
    assert not [record for record in caplog.records if record.name.endswith("chat_template")]


@pytest.mark.parametrize("base", ["untied"], indirect=True)
def test_an_adapter_that_would_not_train_the_rows_is_refused(base, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora())
    with pytest.raises(ModelError, match="needs rows for the tokens .* has an adapter already"):
        trainer_of(model, tmp_path, tokenizer=load_tokenizer(str(base)), chat_template="chatml")


@pytest.mark.slow
def test_a_base_in_4_bits(base, tmp_path):
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    options = {"quantization_config": quantization, "dtype": "float32"}
    trainer = trainer_of(str(base), tmp_path / "run", lora(), chat_template="chatml", model_init_kwargs=options)
    trainer.train()
    trainer.save_model()
    ids = ids_of(trainer.processing_class)
    again, _ = load_for_inference(str(tmp_path / "run"))
    torch.testing.assert_close(logits(again, ids).float(), logits(trainer.model, ids), atol=1e-5, rtol=1e-5)
    report = merge_adapter(str(tmp_path / "run"), tmp_path / "merged", dtype="float32", merge_into="dequantized")
    assert report.from_trained.kl < 1e-9


@of("untied")
def test_a_system_message_for_rows_of_a_base_model(tmp_path, base):
    rows = Dataset.from_list(ROWS)
    args = ORPOConfig(str(tmp_path), chat_template="chatml", system_prompt="Be kind.", use_cpu=True, bf16=False)
    trainer = ORPOTrainer(str(base), args, train_dataset=rows)
    assert all(text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n") for text in trainer.train_dataset["prompt"])
