"""What lies in the place of a file and is none is refused at once: pipes that nobody writes to, sockets, devices."""

import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from tests.command import SETTINGS, environment, run_here, save_config, save_model, save_pairs
from tests.tiny import ragged_pairs
from tests.unit.system.test_outside import SPECIAL

pytestmark = pytest.mark.timeout(60)

OF_DATASETS = [
    *(f"pairs.{suffix}" for suffix in ("csv", "tsv", "txt", "json", "jsonl", "jsonl.gz", "parquet", "xlsx")),
    *(f"folder/train.{suffix}" for suffix in ("csv", "jsonl", "parquet")),
    *(f"saved/{name}" for name in ("state.json", "data-00000-of-00001.arrow")),
]
OF_MODELS = [
    *("config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "vocab.json"),
    *("adapter_config.json", "adapter_model.safetensors", "base_model.json", "additional_chat_templates/rag.jinja"),
]
OF_LOGS = [
    *("trainer_state.json", "checkpoint-5/trainer_state.json", "trainer_log.jsonl", "events.jsonl", "loss.csv"),
    "adapter_config.json",
]
TRAIN = "train config.yaml --dry-run"
CASES = [
    *((file, f"{TRAIN} --dataset-name {file.partition('/')[0]}") for file in OF_DATASETS),
    *((f"model/{file}", TRAIN) for file in OF_MODELS),
    *((f"log/{file}", "diagnose log") for file in OF_LOGS[:-1]),
    *((file, f"compare model model --prompts {file}") for file in ("prompts.txt", "prompts.jsonl")),
    *((f"model/{file}", "export model --to gguf") for file in OF_MODELS if file.endswith(".safetensors")),
    ("recipe.yaml", "train recipe.yaml"),
    ("model.gguf", "chat model.gguf --prompt Hello"),
    ("template.jinja", f"{TRAIN} --chat-template template.jinja"),
    ("zero.json", f"{TRAIN} --deepspeed zero.json"),
    ("fsdp.json", f"{TRAIN} --fsdp full_shard --fsdp-config fsdp.json"),
    ("accelerate.json", f"{TRAIN} --accelerator-config accelerate.json"),
    ("bench.jsonl", "data check pairs.jsonl --benchmark bench.jsonl"),
    ("console.log", "diagnose console.log"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, pairs and a configuration, which the commands run in."""
    save_model(tmp_path / "model")
    save_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "log").mkdir()
    paths = {"model_name_or_path": "model", "dataset_name": "pairs.jsonl", "output_dir": "run"}
    save_config(tmp_path / "config.yaml", **paths, **SETTINGS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(file: Path, kind: str) -> None:
    if file.parent.name == "saved":
        datasets.Dataset.from_list(ragged_pairs(4)).save_to_disk(str(file.parent))
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    SPECIAL[kind][0](file)


@pytest.mark.parametrize(
    ("file", "words", "kind"),
    [
        *((*case, "pipe") for case in CASES),
        *(pytest.param(*case, kind, marks=pytest.mark.slow) for case in CASES for kind in ("socket", "device")),
    ],
)
def test_it_is_refused_at_once(place, capsys, file, words, kind):
    put(place / file, kind)
    outcome = run_here(capsys, *words.split())
    assert outcome.code == 2, outcome
    found = rf"is a ({kind}|pipe, a socket or a device|symbolic link|link)\b"
    assert re.search(rf"({re.escape(Path(file).name)}|chat_template)\b.*{found}", outcome.err), outcome.err


def test_a_pipe_of_the_shell_is_read(tmp_path):
    """A process substitution is a file that the user typed."""
    command = f"exec {sys.executable} -P -m oddsmith.cli.main train <(printf '# settings\\nbeat: 0.1\\n')"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environment())
    assert re.match(r"error: /dev/fd/\d+:2: .*beat", shown.stderr), shown
