"""JSON that we write and read again, with something else in it: one line, or it counts for nothing; never a crash."""

import fcntl
import shutil
from itertools import cycle
from pathlib import Path

import datasets
import numpy as np
import pytest

from oddsmith.checkpoint.lock import held
from oddsmith.checkpoint.manifest import read_manifest
from oddsmith.checkpoint.state import read_state
from oddsmith.cli.main import main
from oddsmith.data.sources.loading import load_rows
from oddsmith.diagnose.readers import read_history
from oddsmith.errors import OddsmithError
from oddsmith.export.named_model import find_model
from oddsmith.model.loading.adapter_base import read_base_record
from oddsmith.model.loading.models import load_model, load_tokenizer
from oddsmith.monitor.events import read_pairs
from oddsmith.system.run_folder import read_events
from oddsmith.training.held_out_pairs import FirstEvaluations
from tests.command import SETTINGS, Outcome, run_here, save_config, save_model, save_pairs
from tests.fuzz.answers import answered
from tests.tiny import ragged_pairs

ODD = {
    "list": "[]",
    "null": "null",
    "number": "5",
    "text": '"x"',
    "object": "{}",
    "deep": "[" * 100_000,
    "deep and sound": '{"a":' * 900 + "1" + "}" * 900,
    "thousands of digits": '{"step": 1' + "0" * 5_000 + "}",
    "NaN": '{"step": NaN, "pid": NaN, "files": NaN, "sets": NaN, "_data_files": 1e999, "splits": NaN}',
    "numbers": '{"step": 5, "pid": 5, "files": 5, "sets": 5, "_data_files": 5, "splits": 5, "log_history": 5}',
    "objects in lists": '{"files": [{}], "sets": [{}], "_data_files": [{}], "splits": [{}], "log_history": [[]]}',
    "nothing": "",
    "cut": '{"a": [1, 2',
    "no UTF-8": "\udcff",
}


def put(file: Path, content: str) -> None:
    file.write_bytes(content.encode(errors="surrogateescape"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A run of an adapter with a checkpoint and evaluations, and datasets; not to be changed."""
    place = tmp_path_factory.mktemp("sound")
    save_model(place / "model")
    save_pairs(place / "pairs.jsonl")
    paths = {"model_name_or_path": "model", "dataset_name": "pairs.jsonl", "output_dir": "run"}
    lora = {"use_peft": True, "lora_r": 2, "eval_strategy": "steps", "eval_steps": 1, "test_split_size": 4}
    save_config(place / "config.yaml", **paths, **SETTINGS, **lora, max_steps=2, save_strategy="steps", save_steps=2)
    rows = datasets.Dataset.from_list(ragged_pairs(12))
    rows.save_to_disk(str(place / "saved"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(place / "splits"))
    return place


@pytest.fixture(scope="module")
def trained(sound) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sound)
        with pytest.raises(SystemExit) as ended:
            main(["train", "config.yaml"])
        assert not ended.value.code
    return sound


def read_first_evaluation(file: Path) -> None:
    """As a resumed run does; what the file says of its sets is odd."""
    text = file.read_text(errors="surrogateescape")
    np.savez(file.with_suffix(""), sets=np.array(text.encode(errors="replace").decode()))
    FirstEvaluations(file.parent).begin(2)


def load(file: Path) -> None:
    load_tokenizer(str(file.parent))
    load_model(str(file.parent))
    find_model(str(file.parent)).quantization_config()


def lock(file: Path) -> None:
    """Take a run that another process holds."""
    with (file.parent / "_lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with held(file.parent):
            pass


READERS = {
    "events.jsonl": lambda file: (read_events(file.parent), read_history(file)),
    "trainer_state.json": read_history,
    "_held_out_pairs.json": lambda file: read_pairs(file.parent),
    "base_model.json": lambda file: read_base_record(str(file.parent)),
    "saved/state.json": lambda file: load_rows(str(file.parent)),
    "splits/dataset_dict.json": lambda file: load_rows(str(file.parent)),
    "_lock.json": lock,
    "_first_evaluation.npz": read_first_evaluation,
    "manifest.json": lambda file: read_manifest(file.parent),
    "optimizer.json": lambda file: read_state(file.parent, "optimizer"),
    "process-0.json": lambda file: read_state(file.parent, "process-0"),
    **dict.fromkeys(("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.json"), load),
    **dict.fromkeys(("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json"), load),
    "model.safetensors.index.json": load,
    "adapter_config.json": load,
}


@pytest.mark.parametrize("file", READERS)
def test_a_reader_takes_it_or_refuses_it_in_one_line(sound, tmp_path, file):
    path = tmp_path / file
    if READERS[file] is load:
        shutil.copytree(sound / "model", tmp_path, dirs_exist_ok=True)
    elif path.parent != tmp_path:
        shutil.copytree(sound / path.parent.name, path.parent)
    for content in ODD.values():
        put(path, content)
        with answered(OddsmithError):
            READERS[file](path)


WHOLE = cycle(("list", "numbers", "deep", "objects in lists", "thousands of digits"))
OF_RUNS = (
    *("events.jsonl", "run.yaml", "_lock.json", "_held_out_pairs.json", "base_model.json", "trainer_state.json"),
    *("adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
    *("checkpoint-2/manifest.json", "checkpoint-2/trainer_state.json", "checkpoint-2/optimizer.json"),
    *("checkpoint-2/adapter_config.json", "checkpoint-2/base_model.json", "_first_evaluation.npz"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "content"), zip(OF_RUNS, WHOLE, strict=False))
def test_every_command_says_one_line_or_does_its_work(trained, tmp_path, monkeypatch, capsys, file, content):
    monkeypatch.chdir(trained)
    run = shutil.copytree(trained / "run", tmp_path / "run")
    put(run / file, ODD[content])
    for words in (
        ("monitor", run, "--once", "--output", tmp_path / "page.html"),
        ("diagnose", run),
        ("chat", run, "--prompt", "Hello", "--max-new-tokens", 2),
        ("eval", run, "--dataset-name", "pairs.jsonl"),
        ("export", run, "--to", "merged"),
        ("train", "config.yaml", "--output-dir", run, "--resume", "--max-steps", 3),
    ):
        require_words(run_here(capsys, *words), words)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["saved/state.json", "saved/dataset_info.json", "splits/dataset_dict.json"])
def test_commands_say_one_line_of_a_dataset(trained, tmp_path, monkeypatch, capsys, file):
    monkeypatch.chdir(trained)
    saved = shutil.copytree(trained / file.split("/")[0], tmp_path / file.split("/")[0])
    for content in ("list", "numbers", "deep", "objects in lists"):
        put(tmp_path / file, ODD[content])
        for words in (("data", "check", saved), ("train", "config.yaml", "--dataset-name", saved, "--dry-run")):
            require_words(run_here(capsys, *words), words)


def require_words(outcome: Outcome, words: tuple) -> None:
    said = outcome.out + outcome.err
    assert "not foreseen" not in said, (words, said)
    assert "Traceback" not in said, (words, said)
    assert outcome.code in (0, 1, 2), (words, outcome)
