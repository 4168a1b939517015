"""The model card of a run and of what is exported from it: true, valid, useful, and without secrets."""

import re
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM, T5Config

from oddsmith.cli.main import main
from oddsmith.config import ModelConfig
from oddsmith.export.merge import merge_adapter
from oddsmith.model.adapters import get_quantization_config
from oddsmith.model.loading.models import load_model
from oddsmith.system.run_folder import CARD_FILE, CURVES_FILE, read_events
from oddsmith.training.card import CardFacts, card_names, hub_id, model_card
from tests.command import SETTINGS, save_model, save_rows
from tests.tiny import CHATML, ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from tests.tiny_runs import make_trainer, train_run

TOKEN = "hf_PlantedTokenOfNobody0123456789"
RELATIONS = {"adapter", "finetune", "quantized", "merge"}
LIBRARIES = {"peft", "transformers", "gguf"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with an adapter, held-out pairs, dropped and cut rows, and secrets all around it."""
    folder = tmp_path_factory.mktemp("planted-user")
    base = save_model(folder / "planted-base")
    rows = [*ragged_pairs(8), {"prompt": "Hi", "chosen": "same", "rejected": "same"}]
    pairs = save_rows(folder / "planted-pairs.jsonl", rows)
    words = [
        "--model-name-or-path", base, "--dataset-name", pairs, "--output-dir", folder / "my-run", "--use-peft",
        "--bad-rows", "drop", "--hub-token", TOKEN, "--test-split-size", 2, "--eval-strategy", "steps",
        "--eval-steps", 1, "--logging-steps", 1, "--save-steps", 2, "--num-train-epochs", 1, "--run-name", f"{folder}",
    ]  # fmt: skip
    for name, value in SETTINGS.items():
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(sys, "excepthook", sys.excepthook)  # the command sets its own
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in ("train", *words)])
    assert not ended.value.code
    return folder / "my-run"


def hub_metadata(folder: Path) -> dict:
    """What the hub would read, checked as far as that goes without it."""
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    data = yaml.safe_load(text.split("---")[1])
    assert ModelCard(text).data.to_dict() == data
    assert data["library_name"] in LIBRARIES
    assert data["pipeline_tag"] == "text-generation"
    assert all(isinstance(tag, str) for tag in data["tags"])
    assert ("base_model" in data) == ("base_model_relation" in data)
    if "base_model" in data:
        validate_repo_id(data["base_model"])
        assert data["base_model_relation"] in RELATIONS
    for dataset in data.get("datasets", []):
        validate_repo_id(dataset)
    return data


def require_no_secrets(folder: Path, run: Path) -> None:
    for file in (CARD_FILE, CURVES_FILE):
        text = (folder / file).read_text(encoding="utf-8")
        assert not re.search(r"hf_\w{8}", text)
        for secret in ("planted", str(run.parent), str(Path.home()) + "/", socket.gethostname()):
            assert secret not in text, f"{file}: {secret}"


def test_the_card_of_a_run_holds_data_settings_curves_and_held_out_figures(run):
    text = (run / CARD_FILE).read_text(encoding="utf-8")
    assert hub_metadata(run)["library_name"] == "peft"
    assert "| train | 7 | 6 | 1 | 4 | 64 tokens |" in text
    assert "- train: 1 dropped, identical answers" in text
    assert "- train: cut to fit 64 tokens: 3 chosen, 3 rejected" in text
    for setting in ("| `beta` | 0.1 |", "| `learning_rate` | 0.001 |", "| rank | 16 |", "| precision | float32 |"):
        assert setting in text
    last = [event for event in read_events(run) if event["event"] == "evaluate"][-1]
    assert f"| loss | {last['eval_loss']:.4f} |" in text
    assert f"| after step | {last['step']} |" in text
    assert f"]({CURVES_FILE})" in text
    assert (run / CURVES_FILE).read_text(encoding="utf-8").startswith("<svg")
    assert "eprint       = {arXiv:2403.07691}" in text


def test_no_token_path_or_host_name_in_any_card(run):
    merge_adapter(str(run), run / "merged", overwrite=True)
    for folder in (run, run / "checkpoint-2", run / "merged"):
        require_no_secrets(folder, run)


def test_the_card_of_a_merged_model_has_the_runs_figures_and_its_own_proof(run, tmp_path):
    report = merge_adapter(str(run), tmp_path / "merged", title="me/my-model")
    text = (tmp_path / "merged" / CARD_FILE).read_text(encoding="utf-8")
    assert hub_metadata(tmp_path / "merged")["library_name"] == "transformers"
    assert f"{report.written.kl:.1e} nats a token" in text
    assert 'model="me/my-model"' in text
    for part in (
        "# my-model",
        "oddsmith export me/my-model --to gguf",
        "ollama create my-model",
        "## Held-out figures",
    ):
        assert part in text
    assert (tmp_path / "merged" / CURVES_FILE).is_file()


# ---- Every card's code is run


def require_answer(folder: Path, place: str, capsys, **names) -> dict:
    """Run a card's code, which has to load ``place``; return its names."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / CARD_FILE).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert {quoted for quoted in re.findall(r'"([^" ]*)"', code) if "/" in quoted or "run" in quoted} == {place}
    capsys.readouterr()
    exec(code.replace("max_new_tokens=128", "max_new_tokens=3"), names)
    assert capsys.readouterr().out.strip()
    return names


LORA = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")}
SEQ2SEQ = LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")


@pytest.mark.parametrize("kind", ["adapter", "merged", "merged elsewhere"])
def test_code_for_a_run_of_the_command(run, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(run.parent)
    if kind == "adapter":
        require_answer(run, "my-run", capsys)
        require_answer(run / "checkpoint-2", "my-run/checkpoint-2", capsys)
    elif kind == "merged":
        merge_adapter("my-run", run / "merged", overwrite=True)
        require_answer(run / "merged", "my-run/merged", capsys)
    else:
        merge_adapter("my-run", tmp_path / "a-run")
        monkeypatch.chdir(tmp_path)
        require_answer(tmp_path / "a-run", "a-run", capsys)


def trained(folder: Path, model, **options):
    """A trainer that has trained a step and saved a checkpoint, as a run in Python that never calls save_model."""
    trainer = make_trainer(folder / "my-run", model, 2, max_steps=1, save_strategy="steps", save_steps=1, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("options", "template"),
    [({}, CHATML), ({}, None), (LORA, CHATML), (LORA, None)],
    ids=["model", "model without template", "adapter", "adapter without template"],
)
def test_code_for_a_run_in_python(tmp_path, monkeypatch, capsys, options, template):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer(template, eos="<|endoftext|>")
    base = save_model(tmp_path / "base", tokenizer=tokenizer, vocab_size=len(tokenizer), eos_token_id=258)
    trainer = trained(tmp_path, str(base), tokenizer=tokenizer, **options)
    ends = [257, 258] if template else 258
    for place in ("my-run/checkpoint-1", "my-run"):
        loaded = require_answer(tmp_path / "my-run", place, capsys)["chat"].model
        assert loaded.generation_config.eos_token_id == ends
        trainer.save_model()
    trainer.create_model_card(model_name="me/my-model", dataset_name="org/pairs")
    trainer.save_model()
    text = (tmp_path / "my-run" / CARD_FILE).read_text(encoding="utf-8")
    assert '"me/my-model"' in text
    assert "org/pairs" in text  # what a card was told once stays
    trainer.save_model(str(tmp_path / "run-elsewhere"))
    assert (tmp_path / "run-elsewhere" / CARD_FILE).exists() == bool(options)


def test_code_for_an_adapter_of_a_built_in_base_and_of_a_gguf_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model(vocab_size=len(tokenizer)), tokenizer, merges=[])
    distribution = metadata.distribution
    package = SimpleNamespace(version="0.1.2", files=[file.name], locate_file=tmp_path.joinpath)
    monkeypatch.setattr(
        metadata, "distribution", lambda name: package if name == "oddsmith-smollm2" else distribution(name)
    )
    for base in ("builtin:smollm2-135m-instruct", str(file)):
        trained(tmp_path, base, **LORA).save_model()
        require_answer(tmp_path / "my-run", "my-run", capsys)
        shutil.rmtree(tmp_path / "my-run")


def test_code_for_an_adapter_of_a_model_without_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained(tmp_path, tiny_model(), **LORA).save_model()
    require_answer(tmp_path / "my-run", "my-run", capsys, base=tiny_model())
    assert "oddsmith export" not in (tmp_path / "my-run" / CARD_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("adapter", [None, SEQ2SEQ], ids=["model", "adapter"])
def test_code_for_an_encoder_decoder(tmp_path, monkeypatch, capsys, adapter):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer(None)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=len(tokenizer), **sizes))
    base = save_model(tmp_path / "base", model=model, tokenizer=tokenizer)
    trained(tmp_path, str(base), tokenizer=tokenizer, peft_config=adapter)
    require_answer(tmp_path / "my-run", "my-run/checkpoint-1", capsys)


# ---- Names


def test_what_is_on_the_hub_is_named(tmp_path):
    facts = CardFacts("me/tuned", "adapter", base_model="org/base", datasets=["org/pairs", "pairs.jsonl"], tags=["x"])
    card = model_card(facts, [])
    assert card.data.base_model == "org/base"
    assert card.data.base_model_relation == "adapter"
    assert card.data.datasets == ["org/pairs"]
    assert card.data.tags == ["oddsmith", "orpo", "x"]
    assert "[org/base](https://huggingface.co/org/base)" in card.text
    card.save(tmp_path / CARD_FILE)
    hub_metadata(tmp_path)
    assert card_names(tmp_path) == ("org/base", ["org/pairs"])


PRIVATE = ["builtin:house-style", "/home/me/model", "../model", "data/pairs.jsonl", "model.gguf", "a/b/c", "", None]


def test_which_names_are_public():
    assert hub_id("org/base") == "org/base"
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("builtin:smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [hub_id(name) for name in PRIVATE] == [None] * len(PRIVATE)


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/base") is None


@pytest.mark.parametrize("kind", ["adapter", "model", "merged", "gguf"])
def test_each_kind_has_valid_metadata(tmp_path, kind):
    facts = CardFacts("me/tuned", kind, base_model="org/base", files=["tuned-Q4_K_M.gguf"])
    model_card(facts, []).save(tmp_path / CARD_FILE)
    data = hub_metadata(tmp_path)
    assert ("gguf" in data["tags"]) == (kind == "gguf")
    if kind == "gguf":
        assert "llama-cli -m tuned-Q4_K_M.gguf" in (tmp_path / CARD_FILE).read_text(encoding="utf-8")


def test_other_prompts_other_code():
    texts = {
        "chat": model_card(CardFacts("x", "model"), []).text,
        "plain": model_card(CardFacts("x", "model", has_chat_template=False), []).text,
        "encoder": model_card(CardFacts("x", "model", is_encoder_decoder=True), []).text,
    }
    assert '"role": "user"' in texts["chat"]
    assert '"role"' not in texts["plain"]
    assert "AutoModelForSeq2SeqLM" in texts["encoder"]
    assert "llama" not in texts["encoder"]


def test_the_code_gives_the_system_message_of_the_training():
    start = {"event": "start", "step": 0, "settings": {"system_prompt": 'Say "no" | {x}.\nOr yes.', "beta": 0.1}}
    text = str(model_card(CardFacts("a", "model"), [start]))
    assert r'[{"role": "system", "content": "Say \"no\" | {x}.\nOr yes."}, {"role": "user"' in text
    assert "| `beta` | 0.1 |" in text
    assert "| `system_prompt`" not in text


def test_a_broken_last_line_of_the_event_log_is_left_out(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "log", "step": 1}\n{"event": "lo', encoding="utf-8")
    assert read_events(tmp_path) == [{"event": "log", "step": 1}]
    assert read_events(tmp_path / "nothing") == []


def test_parameters_of_4_bit_weights_are_counted_as_what_they_stand_for(tmp_path):
    pytest.importorskip("bitsandbytes")
    base = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    run = train_run(base, tmp_path / "run", {}, dtype="bfloat16", quantization_config=settings)
    start = read_events(run)[0]
    whole = sum(parameter.numel() for parameter in load_model(str(base)).parameters())
    assert start["parameters"] - start["trainable_parameters"] == whole
    assert "| base | 4 bits while training |" in (run / CARD_FILE).read_text(encoding="utf-8")
