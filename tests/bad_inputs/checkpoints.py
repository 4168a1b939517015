"""Checkpoints that cannot be gone on from."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from oddsmith.checkpoint.manifest import UNFINISHED
from oddsmith.cli.commands.train.command import train
from oddsmith.system.run_folder import MANIFEST_FILE
from tests.bad_inputs.case import CONFIG, GOOD, BadInput, Content, folder, gone, lines
from tests.command import save_model

SETTINGS = f"{CONFIG}max_steps: 4\nsave_steps: 2\nper_device_train_batch_size: 2\nreport_to: none\n"
LAST = "out/checkpoint-4"


@cache
def _trained() -> Path:
    """The folder of a run of four steps with two checkpoints."""
    place = Path(tempfile.mkdtemp(prefix="oddsmith-run-"))
    save_model(place / "model")
    (place / "pairs.jsonl").write_text(lines(*[GOOD] * 4))
    (place / "c.yaml").write_text(SETTINGS)
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(["c.yaml"])
    return place


def _copied(path: Path) -> None:
    shutil.copytree(_trained() / path.name, path)


RUN: dict[str, Content] = {"model": _copied, "out": _copied, "c.yaml": SETTINGS}


def _damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _manifest(**fields: object) -> Callable[[Path], None]:
    """A manifest that says something else."""

    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _unfinished(path: Path) -> None:
    (path / MANIFEST_FILE).rename(path / UNFINISHED)


def _of_another_trainer(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text('{"global_step": 4}')
    (path / "optimizer.pt").write_bytes(b"PK pickle")


def _last(file: str, content: Content) -> dict[str, Content]:
    return {f"{LAST}/{file}": content}


# fmt: off
CHECKPOINTS: tuple[BadInput, ...] = (
    BadInput("names a checkpoint that is not there", "train c.yaml --resume nowhere",
        "nowhere: no such checkpoint; expected a folder such as RUN/checkpoint-100"),
    BadInput("names a folder that is none", "train c.yaml --resume empty",
        "empty: is no checkpoint: it has no manifest.json, so its files cannot be verified", {"empty": folder}),
    BadInput("names a file", "train c.yaml --resume pairs.jsonl",
        "pairs.jsonl: no such checkpoint; expected a folder such as RUN/checkpoint-100"),
    BadInput("names the run instead of a checkpoint", "train c.yaml --resume out",
        "out: is a run, not a checkpoint; give out/checkpoint-4, or for the newest that is whole --resume alone (in"
        " Python: resume_from_checkpoint=True)", RUN),
    BadInput("names one that was never finished", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: is no checkpoint: its save was never finished", {**RUN, LAST: _unfinished}),
    BadInput("names one of another trainer", f"train c.yaml --resume {LAST}5",
        "out/checkpoint-45: was written by another trainer (it has trainer_state.json and no manifest.json), so no run"
        " goes on from here; start a new one from its weights: --from-weights out/checkpoint-45 (in Python:"
        ' ORPOTrainer("out/checkpoint-45", ...))',
        {**RUN, f"{LAST}5": _of_another_trainer}),
    BadInput("names a model", "train c.yaml --resume model",
        "model: is a model, and no checkpoint of a run, so no run goes on from here; start a new one from its weights:"
        ' --from-weights model (in Python: ORPOTrainer("model", ...))'),
    BadInput("trains into a run of another trainer", "train c.yaml --overwrite-output-dir",
        "output_dir out holds a run of another trainer; choose another folder, and to start from the weights of that"
        " run give --from-weights out/checkpoint-4",
        {LAST: _of_another_trainer}),
    BadInput("starts from weights in shards", f"train c.yaml --from-weights {LAST}",
        "out/checkpoint-4: its weights lie in shards of DeepSpeed; join them first, where you trust them: python"
        " out/checkpoint-4/zero_to_fp32.py out/checkpoint-4 out/checkpoint-4 --safe_serialization",
        {f"{LAST}/zero_to_fp32.py": "", f"{LAST}/trainer_state.json": "{}", f"{LAST}/config.json": "{}"}),
    BadInput("starts from weights and goes on with a run", f"train c.yaml --from-weights {LAST} --resume",
        "--from-weights starts a new run, and --resume goes on with a run; give one of them", RUN),
    BadInput("starts from weights in the run that it replaces",
        f"train c.yaml --from-weights {LAST} --overwrite-output-dir",
        "model_name_or_path out/checkpoint-4 lies in output_dir out, which --overwrite-output-dir would empty; choose"
        " another folder", RUN),
    BadInput("has a bit flipped in the weights", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: model.safetensors is damaged (its SHA-256 is not the one that was written)",
        {**RUN, **_last("model.safetensors", _damaged)}),
    BadInput("has a file cut off", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: optimizer.safetensors has 109,120 bytes; 109,220 were written",
        {**RUN, **_last("optimizer.safetensors", _cut)}),
    BadInput("has a file missing", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: scheduler.json is missing", {**RUN, **_last("scheduler.json", gone)}),
    BadInput("has a pickle added to it", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: optimizer.pt was not saved with it; remove it", {**RUN, **_last("optimizer.pt", b"pickle")}),
    BadInput("has code added to it", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: modeling.py was not saved with it; remove it", {**RUN, **_last("modeling.py", "import os")}),
    BadInput("has a file that is a link", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4/optimizer.safetensors: is a symbolic link, not a file of this folder; put the file itself"
        " there", {**RUN, **_last("optimizer.safetensors", _linked)}),
    BadInput("is a link itself", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: is a symbolic link, not a file of this folder; put the file itself there",
        {**RUN, LAST: _linked}),
    BadInput("lies in a run with a link", "train c.yaml --resume",
        "out/notes.md: is a symbolic link, not a file of this folder; put the file itself there",
        {**RUN, "out/notes.md": lambda path: path.symlink_to("../c.yaml")}),
    BadInput("lies in a run with a pipe", "train c.yaml --resume",
        "out/notes.md: is a pipe, not a file of this folder; remove it",
        {**RUN, "out/notes.md": os.mkfifo}),
    BadInput("has a damaged manifest", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: manifest.json is damaged (...)", {**RUN, **_last(MANIFEST_FILE, "{")}),
    BadInput("has a manifest of another version", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: manifest.json is damaged (format 99; this version reads format 1)",
        {**RUN, **_last(MANIFEST_FILE, _manifest(format=99))}),
    BadInput("has no whole one left", "train c.yaml --resume",
        "out: none of its checkpoints is complete (2 in out/_quarantine); put a good copy of one into the run folder,"
        " or begin again in another folder",
        {**RUN, **_last(MANIFEST_FILE, "{"), "out/checkpoint-2/model.safetensors": _cut}),
    BadInput("goes on with another learning rate", f"train c.yaml --resume {LAST} --learning-rate 1e-4",
        "out/checkpoint-4: is of a run with other settings or data: learning_rate: 1e-06 -> 0.0001. Set them back, or"
        " continue anyway with --allow-changed (in Python: train(..., allow_changed=True))",
        RUN),
    BadInput("goes on for fewer steps than are done", f"train c.yaml --resume {LAST} --max-steps 3",
        "out/checkpoint-4: is of step 4, and with max_steps 3 this run ends after step 3; make it longer, or resume"
        " from an earlier checkpoint",
        RUN),
    BadInput("goes on with other pairs", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: is of a run with other settings or data: train pairs: others than before (4 pairs -> 4"
        " pairs). Set them back, or continue anyway with --allow-changed (in Python: train(..., allow_changed=True))",
        {**RUN, "pairs.jsonl": lines(*[{**GOOD, "prompt": "How?"}] * 4)}),
    BadInput("goes on with another base", f"train c.yaml --resume {LAST}",
        "out/checkpoint-4: is of a run with other settings or data: base model: other weights than before. Set them"
        " back, or continue anyway with --allow-changed (in Python: train(..., allow_changed=True))",
        {**RUN, "model": lambda path: save_model(path, seed=1)}),
    BadInput("goes on with another batch size", f"train c.yaml --resume {LAST} --per-device-train-batch-size 1",
        "out/checkpoint-4: its steps had 2 pairs (1 process), these would have 1 (1 process), so its 4 steps would not"
        " be the same data; keep per_device_train_batch_size x gradient_accumulation_steps x processes as it was",
        RUN),
    BadInput("goes on with an adapter", f"train c.yaml --resume {LAST} --use-peft",
        "out/checkpoint-4: is a checkpoint of the whole model; leave out use_peft, or continue with its run.yaml", RUN),
)
# fmt: on
