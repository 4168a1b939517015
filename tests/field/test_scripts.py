"""The scripts of this folder run as written, on tiny models, and what they leave is what they are after."""

import importlib
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.command import run_here, save_model, save_rows
from tests.field.alignment_handbook import RECIPE
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

# The script, whether its model has a chat template, and the warnings that it gets, by their beginnings.
EVAL = "evaluation_strategy is an older name"
TOKENIZER = "tokenizer is an older name"
SCRIPTS = {
    "smol_course_notebook": (False, [EVAL]),
    "smol_course_page": (True, [TOKENIZER]),
    "unsloth_notebook": (True, [TOKENIZER, "warmup_ratio is an older name"]),
    "llama3_qlora": (False, [TOKENIZER, EVAL]),
    "trl_documentation": (True, []),
    "trl_script": (True, [TOKENIZER]),
    "alignment_handbook": (True, [TOKENIZER, EVAL]),
    "autotrain": (True, [TOKENIZER, "warmup_ratio is an older name"]),
}
SUMS = [(n, n + 2) for n in range(12)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows as UltraFeedback's: a raw prompt beside whole conversations; and instructions with an input."""
    folder = tmp_path_factory.mktemp("data")

    def row(one, two):
        question = {"role": "user", "content": f"What is {one} plus {two}?"}
        answers = {"chosen": f"It is {one + two}.", "rejected": f"Who knows what {one} plus {two} may be, after all?"}
        sides = {side: [question, {"role": "assistant", "content": text}] for side, text in answers.items()}
        return {"prompt": question["content"], **sides, "score_chosen": 9.0, "source": "sums"}

    save_rows(folder / "train.jsonl", [row(*pair) for pair in SUMS[:8]])
    save_rows(folder / "test.jsonl", [row(*pair) for pair in SUMS[8:]])
    instruction = {"instruction": "Add.", "refused": "Who knows?"}
    rows = [{**instruction, "input": f"{one}, {two}", "accepted": f"{one + two}."} for one, two in SUMS]
    save_rows(folder / "instructions.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A chat model, and a base model without chat template and without ChatML's tokens."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "chat")
    plain = tiny_tokenizer(None, bos="<s>", eos="</s>", chatml=False)
    save_model(folder / "base", model=tiny_model(vocab_size=len(plain)), tokenizer=plain)
    return folder


@pytest.fixture
def run(data, models, tmp_path, caplog, monkeypatch, verbosity):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run(name):
        has_template, warnings = SCRIPTS[name]
        script = importlib.import_module(f"tests.field.{name}")
        with caplog.at_level(logging.WARNING, logger="oddsmith"):
            trainer = script.main(str(models / ("chat" if has_template else "base")), str(data), str(tmp_path))
        said = [record.getMessage() for record in caplog.records if record.name.startswith("oddsmith")]
        for beginning in warnings:
            assert sum(line.startswith(beginning) for line in said) == 1, said
        return trainer, said

    return run


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_each_script_says_what_it_follows():
    files = {file.stem for file in Path(__file__).parent.glob("[!_]*.py") if not file.stem.startswith("test_")}
    assert files == SCRIPTS.keys()
    for name in files:
        assert importlib.import_module(f"tests.field.{name}").__doc__.startswith("In the pattern of ")


def test_smol_course_notebook(run, tmp_path):
    trainer, _ = run("smol_course_notebook")
    assert trainer.state.global_step == 2
    assert trainer.state.eval_steps == 1  # a fifth of the run
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "SmolLM2-FT-ORPO")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).count("<|im_start|>") == 1
    assert trainer.model.get_input_embeddings().num_embeddings == len(tokenizer)
    row = trainer.train_dataset[0]
    assert tokenizer.decode(row["chosen_input_ids"]).startswith("<|im_start|>user\nWhat is ")


def test_trl_script(run, tmp_path):
    trainer, _ = run("trl_script")
    assert trainer.state.global_step == 2
    assert (tmp_path / "adapter_model.safetensors").is_file()
    row = trainer.train_dataset[0]
    assert trainer.processing_class.decode(row["chosen_input_ids"]).startswith("<|im_start|>user\nWhat is ")


def test_smol_course_page(run):
    trainer, _ = run("smol_course_page")
    assert (trainer.state.global_step, trainer.args.beta) == (2, 0.1)


def test_unsloth_notebook(run, tmp_path):
    trainer, said = run("unsloth_notebook")
    assert any("max_completion_length" in line for line in said)
    assert len(losses(trainer)) == 3
    weights = load_file(tmp_path / "lora_model" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    tokenizer = trainer.processing_class
    end = tokenizer.eos_token_id
    assert all(
        row["chosen_input_ids"].count(end) == row["chosen_input_ids"][-1:].count(end) == 1
        for row in trainer.train_dataset
    )


def test_llama3_qlora(run, tmp_path):
    trainer, said = run("llama3_qlora")
    told = [line for line in said if "rendered with their question, so that it stands twice in each text" in line]
    assert [line.split(":")[0] for line in told] == ["train", "eval"]
    assert trainer.state.eval_steps == 1
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.isfinite(merged(torch.tensor([trainer.train_dataset[0]["chosen_input_ids"]])).logits).all()
    end = trainer.processing_class.eos_token_id
    assert merged.generation_config.eos_token_id == end


def test_trl_documentation(run):
    trainer, _ = run("trl_documentation")
    assert trainer.state.global_step == 2


def test_alignment_handbook(run, tmp_path):
    trainer, said = run("alignment_handbook")
    assert not any("stands twice" in line for line in said)
    assert (trainer.args.eval_strategy, trainer.args.lr_scheduler_type) == ("epoch", "inverse_sqrt")
    text = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_input_ids"])
    assert text.count("What is") == text.count("<|im_start|>user") == text.count("<|im_start|>assistant") == 1
    assert json.loads((tmp_path / "train_results.json").read_text())["train_samples"] == 8
    assert json.loads((tmp_path / "eval_results.json").read_text())["eval_samples"] == 4
    assert "alignment-handbook" in (tmp_path / "README.md").read_text()


def test_the_recipe_of_alignment_handbook_is_a_file_of_the_command(data, models, tmp_path, capsys, verbosity):
    words = ["--model-name-or-path", models / "chat", "--dataset-name", data, "--output-dir", tmp_path / "run"]
    outcome = run_here(capsys, "train", RECIPE, *words, "--bf16", "false", "--json")
    assert outcome.code == 0, outcome.err
    assert "evaluation_strategy is an older name" in outcome.err
    document = json.loads(outcome.out)
    assert (document["steps"], document["data"]["eval"]["kept"]) == (2, 4)
    assert document["evaluation"]["step"] == 2


def test_autotrain(run, tmp_path):
    trainer, _ = run("autotrain")
    assert trainer.state.best_model_checkpoint
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert trainer.processing_class.chat_template == CHATML
