"""A run folder that a stranger made leads no read and no write elsewhere, and nothing in it keeps us waiting."""

import os
import shutil
from itertools import cycle
from pathlib import Path

import pytest

from oddsmith.cli.main import main
from oddsmith.errors import NotAFileError
from oddsmith.export.publish import publish
from tests.command import SETTINGS, run_here, save_config, save_model, save_pairs
from tests.tiny_runs import make_trainer
from tests.unit.system.test_outside import put_socket

pytestmark = pytest.mark.timeout(60)

LAST = "checkpoint-2"
WRITTEN = (  # into a run folder, each by another part
    *("events.jsonl", "run.yaml", "_lock", "_lock.json", "_lock.json.1-ab.partial", "README.md", "curves.svg"),
    *("trainer_state.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
    *("tokenizer_config.json", "chat_template.jinja", "_held_out_pairs.json", "_first_evaluation.npz", "report.html"),
    *("_quarantine", "runs", "merged", "gguf", "merged.partial", "checkpoint-4", "base_model.json"),
)
READ = tuple(f"{LAST}/{file}" for file in ("manifest.json", "trainer_state.json", "config.json", "model.safetensors"))
ODD = {
    "link": lambda place, target: place.symlink_to(target),
    "broken link": lambda place, target: place.symlink_to(target.with_name("not-there")),
    "pipe": lambda place, target: os.mkfifo(place),
    "socket": lambda place, target: put_socket(place),
    "device": lambda place, target: place.symlink_to("/dev/zero"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, pairs, a configuration and a run of two steps."""
    folder = tmp_path_factory.mktemp("place")
    paths = {
        "model_name_or_path": str(save_model(folder / "model")),
        "dataset_name": str(save_pairs(folder / "pairs.jsonl")),
    }
    more = {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "output_dir": str(folder / "run")}
    save_config(folder / "config.yaml", **paths, **SETTINGS, **more)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(folder / "config.yaml")])
    assert not ended.value.code
    return folder


@pytest.fixture
def run(place, tmp_path):
    return shutil.copytree(place / "run", tmp_path / "run")


@pytest.fixture
def victim(tmp_path):
    """A file of the user's; a folder beside it stands for one."""
    file = tmp_path / "home" / ".bashrc"
    file.parent.mkdir()
    file.write_text("mine\n")
    yield file
    assert file.read_text() == "mine\n"
    assert os.listdir(file.parent) == [file.name]


def put(run: Path, file: str, kind: str, victim: Path) -> Path:
    place = run / file
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    ODD[kind](place, victim if "." in file else victim.parent)
    return place


def commands(place: Path, run: Path) -> list[tuple]:
    """What reads a run folder or writes into it, or into one of its checkpoints."""
    train = ("train", place / "config.yaml", "--output-dir", run)
    return [
        (*train, "--resume"),
        (*train, "--resume", run / LAST),
        (*train, "--overwrite-output-dir"),
        ("train", run / "config.yaml", "--resume"),
        ("diagnose", run),
        ("export", run, "--to", "merged"),
        ("export", run, "--to", "gguf"),
        ("eval", run, "--dataset-name", place / "pairs.jsonl"),
        ("compare", place / "model", run, "--prompts", place / "pairs.jsonl"),
        ("train", place / "config.yaml", "--from-weights", run, "--output-dir", run.with_name("other")),
    ]


@pytest.mark.parametrize("file", [*WRITTEN, *READ])
def test_a_run_goes_on_through_no_link(place, run, victim, capsys, file):
    put(run, file, "link", victim)
    outcome = run_here(capsys, "train", place / "config.yaml", "--output-dir", run, "--resume")
    assert outcome.code == 2
    assert f"{run / file}: is a symbolic link, not a file of this folder; put the file itself there" in outcome.err


@pytest.mark.parametrize("file", WRITTEN[:17])
def test_a_folder_in_the_place_of_a_file_is_said_before_the_training(place, run, capsys, file):
    (run / file).unlink(missing_ok=True)
    (run / file).mkdir()
    outcome = run_here(capsys, "train", place / "config.yaml", "--output-dir", run, "--resume", "--max-steps", 3)
    assert outcome.code == 2
    assert f"{run / file}: is a folder in the place of a file that a run writes" in outcome.err


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        *[("events.jsonl", kind) for kind in ODD],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in zip((*WRITTEN, *READ), cycle(ODD), strict=False)],
    ],
)
def test_no_command_follows_or_waits(place, run, victim, capsys, file, kind):
    put(run, file, kind, victim)
    for words in commands(place, run):
        outcome = run_here(capsys, *words)
        assert outcome.code == 2, (words, outcome)
        has_none = words[1] == run / "config.yaml" or (file == "run.yaml" and "--overwrite-output-dir" in words)
        assert has_none or f"{run / file}: is a " in outcome.err, (words, outcome)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("resume", [True, "auto", None, LAST])
def test_a_script_trains_through_none(run, victim, kind, resume):
    put(run, "chat_template.jinja", kind, victim)
    trainer = make_trainer(run, max_steps=1)
    with pytest.raises(NotAFileError, match="chat_template.jinja: is a "):
        trainer.train(resume_from_checkpoint=str(run / LAST) if resume == LAST else resume)


def test_a_script_saves_its_model_through_none(tmp_path, victim):
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    (tmp_path / "model").mkdir()
    for folder in (tmp_path / "run", tmp_path / "model"):
        (folder / "tokenizer.json").symlink_to(victim)
        with pytest.raises(NotAFileError, match="tokenizer.json: is a symbolic link"):
            trainer.save_model(str(folder))


def test_a_folder_with_a_link_is_not_uploaded(tmp_path, victim):
    """The trainer saves its model before it uploads the run folder."""
    run = tmp_path / "run"
    trainer = make_trainer(run, max_steps=1)
    trainer.train()
    (run / "inner").mkdir()
    (run / "inner" / "notes").symlink_to(victim)
    for upload in (trainer.save_model, lambda: publish(run, "someone/model")):
        with pytest.raises(NotAFileError, match="inner/notes: is a symbolic link"):
            upload()


def test_what_has_a_second_name_elsewhere_is_not_written_there(place, run, tmp_path, capsys):
    """As in a backup that was made with ``cp -al``."""
    backup = tmp_path / "backup"
    shutil.copytree(run, backup, copy_function=os.link)
    before = {file: file.read_bytes() for file in sorted(backup.rglob("*")) if file.is_file()}
    longer = ("--output-dir", run, "--resume", "--max-steps", 3)
    outcome = run_here(capsys, "train", place / "config.yaml", *longer)
    assert outcome.code == 0, outcome.err
    assert {file: file.read_bytes() for file in sorted(backup.rglob("*")) if file.is_file()} == before
    assert (run / "events.jsonl").read_bytes().startswith((backup / "events.jsonl").read_bytes())


def test_the_run_itself_may_be_reached_by_a_link_and_hold_the_links_of_a_tracker(place, run, tmp_path, capsys):
    (run / "wandb").mkdir()
    (run / "wandb" / "latest-run").symlink_to("offline-run")
    (tmp_path / "data").symlink_to(tmp_path)
    words = ("--output-dir", tmp_path / "data" / "run", "--resume", "--max-steps", 3)
    outcome = run_here(capsys, "train", place / "config.yaml", *words)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", ["out", "out.partial", "out.replaced", "out.partial.lock"])
def test_an_export_into_the_folder_of_a_stranger_follows_no_link(run, victim, tmp_path, capsys, name):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).symlink_to(victim.parent)
    outcome = run_here(capsys, "export", run, "--to", "merged", "--output", tmp_path / "theirs" / "out")
    assert (outcome.code == 0) == (name in ("out.partial", "out.replaced")), outcome
    assert "not foreseen" not in outcome.err
