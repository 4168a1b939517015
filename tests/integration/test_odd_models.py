"""Commands on model folders of strangers: odd values and weights of NaN end in one line, whatever they are read by."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from oddsmith.errors import ModelError
from oddsmith.export.gguf.trial import require_survivable
from oddsmith.model.adapters import add_adapter
from oddsmith.model.computing import require_finite_files
from oddsmith.model.loading.adapter_base import record_base
from oddsmith.model.loading.models import load_model
from tests.command import SETTINGS, run_here, save_config, save_model, save_pairs
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_families import byte_tokenizer
from tests.tiny_gguf import write_gguf

SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
GENERATION, TOKENIZER, ADAPTER = "generation_config.json", "tokenizer_config.json", "adapter_config.json"
RECORD = "base_model.json"
SPOILT = "model.layers.0.mlp.down_proj.weight"
ODD = [
    ("chat", GENERATION, {"min_p": -1}),
    ("chat", GENERATION, {"penalty_alpha": math.inf}),
    ("chat", GENERATION, {"encoder_no_repeat_ngram_size": [300]}),
    ("chat", GENERATION, {"eos_token_id": -(2**70)}),
    ("compare", GENERATION, {"sequence_bias": math.inf}),
    ("compare", GENERATION, {"num_beams": 0}),
    ("eval", "config.json", {"output_hidden_states": {"x": 1}}),
    ("train", "config.json", {"output_hidden_states": {"x": 1}}),
    ("gguf", "tokenizer.json", {"post_processor": 2**63}),
    ("gguf", "tokenizer.json", {"pre_tokenizer": 0}),
    ("gguf", TOKENIZER, {"tokenizer_class": math.inf}),
    ("gguf", TOKENIZER, {"unk_token": 300}),
    ("merged", RECORD, {"files": [["a"]]}),
    ("merged", RECORD, {"quantization": "x"}),
    ("merged", RECORD, {"dtype": "nn"}),
    ("chat", RECORD, {"embeddings": {"a": 1}}),
    ("chat", RECORD, {"files": {"model.safetensors": 3}}),
    ("chat", ADAPTER, {"r": "x"}),
    ("check", TOKENIZER, {"model_max_length": "0"}),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    save_model(place / "model", **SMALL)
    tuned = add_adapter(load_model(str(place / "model")), LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(place / "adapter")
    record_base(tuned).save(place / "adapter")
    save_pairs(place / "pairs.jsonl", 4)
    return place


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    tokenizer = byte_tokenizer()
    model = tiny_model(**SMALL, vocab_size=len(tokenizer))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    return save_model(tmp_path_factory.mktemp("spoilt") / "model", model=model, tokenizer=tokenizer)


def words(command: str, model: Path, sound: Path, place: Path) -> list[object]:
    pairs = sound / "pairs.jsonl"
    if command == "train":
        settings = {"model_name_or_path": str(model), "dataset_name": str(pairs), "output_dir": str(place / "run")}
        return ["train", save_config(place / "r.yaml", max_steps=1, report_to="none", **settings, **SETTINGS)]
    return {
        "chat": ["chat", model, "--prompt", "Hi", "--max-new-tokens", 2],
        "compare": ["compare", sound / "model", model, "--prompts", pairs, "--max-new-tokens", 2],
        "eval": ["eval", model, "--dataset-name", pairs, "--max-length", 64, "--bf16", "false", "--use-cpu", "true"],
        "check": ["data", "check", pairs, "--model", model],
        "merged": ["export", model, "--to", "merged", "--output", place / "out"],
        "gguf": ["export", model, "--to", "gguf", "--quantize", "f32", "--output", place / "out"],
    }[command]


@pytest.mark.parametrize(("command", "file", "values"), ODD)
def test_an_odd_value_is_one_line(command, file, values, sound, tmp_path, capsys):
    folder = tmp_path / "odd"
    shutil.copytree(sound / ("adapter" if file in (ADAPTER, RECORD) else "model"), folder)
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **values}))
    outcome = run_here(capsys, *words(command, folder, sound, tmp_path))
    *_, answer = outcome.err.splitlines()
    assert answer.startswith("error: "), outcome.err
    assert outcome.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["chat", "compare"])
@pytest.mark.parametrize("values", [{"num_beams": 2}, {"return_dict_in_generate": True}])
def test_settings_of_other_programs_change_no_answer(command, values, sound, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(sound / "model", folder)
    settings = json.loads((folder / GENERATION).read_text())
    (folder / GENERATION).write_text(json.dumps({**settings, **values}))
    outcome = run_here(capsys, *words(command, folder, sound, tmp_path))
    assert outcome.code == 0, outcome.err


class TestNaN:
    @pytest.mark.parametrize("command", ["chat", "compare", "eval", "check", "train", "merged", "gguf"])
    def test_weights_are_named_before_anything_is_made(self, command, spoilt, sound, tmp_path, capsys):
        outcome = run_here(capsys, *words(command, spoilt, sound, tmp_path))
        *_, answer = outcome.err.splitlines()
        assert answer.startswith(
            f"error: {spoilt}: its weights model.layers.0.mlp.down_proj.weight are NaN or infinite"
        )
        assert outcome.code == 2
        assert not (tmp_path / "out").exists()

    def test_files_that_another_program_will_load(self, spoilt, sound):
        require_finite_files("sound", sound / "model")
        with pytest.raises(ModelError, match=f"spoilt: its weights {SPOILT} are NaN"):
            require_finite_files("spoilt", spoilt)

    def test_a_gguf_file(self, tmp_path):
        pytest.importorskip("cyllama")
        model = tiny_model(vocab_size=258)
        with torch.no_grad():
            model.model.norm.weight[:] = math.nan
        with pytest.raises(ModelError, match="llama.cpp computes NaN with it"):
            require_survivable(write_gguf(tmp_path / "nan.gguf", model, tiny_tokenizer(), merges=["Ā ā"]))
