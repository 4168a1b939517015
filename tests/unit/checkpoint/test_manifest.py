"""A checkpoint is what its manifest says, to the bit; everything else is none, with the reason."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.checkpoint.manifest import UNFINISHED, begin, commit, files_in, is_unfinished, retract, verify
from oddsmith.errors import CheckpointError
from oddsmith.system.run_folder import MANIFEST_FILE


@pytest.fixture
def folder(tmp_path) -> Path:
    return make(tmp_path / "checkpoint-3")


def make(folder: Path) -> Path:
    begin(folder)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 20)
    (folder / "inner").mkdir()
    (folder / "inner" / "a.json").write_text("{}")
    commit(folder, step=3, world_size=2, pairs_per_step=8, settings={"beta": 0.1})
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    return str(caught.value)


def test_what_was_written_verifies(folder):
    manifest = verify(folder)
    assert (manifest.step, manifest.world_size, manifest.settings) == (3, 2, {"beta": 0.1})
    assert set(manifest.files) == set(files_in(folder)) == {"model.safetensors", "inner/a.json"}
    assert manifest.files["model.safetensors"]["bytes"] == 5120


def test_a_save_that_was_cut_off_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-1"
    begin(folder)
    (folder / "model.safetensors").write_bytes(b"half")
    assert is_unfinished(folder)
    assert refusal(folder) == f"{folder}: is no checkpoint: its save was never finished"


def test_a_folder_without_a_manifest_is_no_checkpoint(folder):
    (folder / MANIFEST_FILE).unlink()
    assert not is_unfinished(folder)
    assert refusal(folder) == f"{folder}: is no checkpoint: it has no manifest.json, so its files cannot be verified"


@given(st.integers(0, 5119), st.integers(0, 7))
def test_a_single_flipped_bit_is_found(tmp_path_factory, place, bit):
    folder = make(tmp_path_factory.mktemp("run") / "checkpoint-3")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[place] ^= 1 << bit
    (folder / "model.safetensors").write_bytes(content)
    expected = f"{folder}: model.safetensors is damaged (its SHA-256 is not the one that was written)"
    assert refusal(folder) == expected


def test_a_refusal_leaves_no_threads(folder):
    (folder / "model.safetensors").write_bytes(bytes(5120))
    before = threading.enumerate()
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    assert set(threading.enumerate()) <= set(before), caught


def test_a_missing_or_cut_file_is_named(folder):
    (folder / "inner" / "a.json").write_text("{")
    assert refusal(folder) == f"{folder}: inner/a.json has 1 bytes; 2 were written"
    (folder / "inner" / "a.json").unlink()
    assert refusal(folder) == f"{folder}: inner/a.json is missing"


def test_a_file_that_a_loader_might_read_and_that_was_not_saved_with_it_is_refused(folder):
    (folder / "other").mkdir()
    for name in (
        "pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "modeling.py", "x.safetensors",
        "other/adapter_model.bin",
    ):  # fmt: skip
        (folder / name).touch()
        assert refusal(folder) == f"{folder}: {name} was not saved with it; remove it"
        (folder / name).unlink()


def test_notes_and_exports_beside_the_files_do_no_harm(folder):
    (folder / "notes.txt").write_text("the good one")
    (folder / "merged").mkdir()
    (folder / "merged" / "model.safetensors").touch()
    assert verify(folder).step == 3


def test_a_pickle_that_was_saved_with_it_is_refused_unless_sharding_wrote_it(tmp_path):
    for sharded_by in (None, "FSDP"):
        folder = tmp_path / f"{sharded_by}" / "checkpoint-1"
        begin(folder)
        (folder / "optimizer.bin").touch()
        commit(folder, step=1, sharded_by=sharded_by)
    assert verify(folder).sharded_by == "FSDP"
    assert "optimizer.bin is a pickle, which can run code" in refusal(tmp_path / "None" / "checkpoint-1")


@pytest.mark.parametrize("name", ["model.safetensors", "inner", MANIFEST_FILE, "new"])
def test_a_symbolic_link_is_refused_wherever_it_is(folder, name, tmp_path):
    target = tmp_path / "elsewhere"
    if name != "new":
        (folder / name).rename(target)
    (folder / name).symlink_to(target)
    assert refusal(folder) == f"{folder}: {name} is a symbolic link; expected the file itself"


def test_a_link_to_a_checkpoint_is_refused(folder, tmp_path):
    (tmp_path / "checkpoint-9").symlink_to(folder)
    assert refusal(tmp_path / "checkpoint-9").endswith("is a symbolic link; expected the checkpoint itself")


def test_a_pipe_is_refused_without_waiting_for_it(folder):
    os.mkfifo(folder / "pipe")
    assert refusal(folder) == f"{folder}: pipe is no ordinary file"
    (folder / MANIFEST_FILE).unlink()
    os.mkfifo(folder / MANIFEST_FILE)
    assert refusal(folder) == f"{folder}: {MANIFEST_FILE} is no ordinary file"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"step": "3"}, "step is no number"),
        ({"step": True}, "step is no number"),
        ({"files": []}, "files is no object"),
        ({"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}}, "the file name '../../etc/passwd'"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "the file name '/etc/passwd'"),
        ({"files": {"a": {"bytes": "1", "sha256": ""}}}, "the entry of 'a'"),
        ({"settings": None}, "settings is no object"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(folder, fields, found):
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert refusal(folder) == f"{folder}: manifest.json is damaged ({found})"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "NaN", '{"format": 1}', "[" * 100_000])
def test_what_is_no_manifest_is_refused(folder, text):
    (folder / MANIFEST_FILE).write_text(text)
    assert f"{folder}: manifest.json is damaged" in refusal(folder)


def test_a_huge_manifest_is_not_read(folder):
    with (folder / MANIFEST_FILE).open("wb") as file:
        file.truncate(2**40)
    assert refusal(folder) == f"{folder}: manifest.json is larger than 16,777,216 bytes"


def test_taking_a_manifest_back_leaves_an_unfinished_save(folder):
    retract(folder)
    assert is_unfinished(folder)
    assert (folder / UNFINISHED).is_file()
