"""Exports appear whole or not at all: what stands in the way, what a full disk says, what an interruption leaves."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oddsmith.errors import ConfigError, ExportError
from oddsmith.export.atomic import RECORD_FILE, require_space, write_file, write_folder


def export(folder: Path, text: str = "new", **options) -> None:
    with write_folder(folder, **options) as partial:
        (partial / RECORD_FILE).write_text("{}", encoding="utf-8")
        (partial / "weights").write_text(text, encoding="utf-8")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with write_folder(tmp_path / "deep" / "merged") as partial:
        (partial / "weights").write_text("x", encoding="utf-8")
        assert not (tmp_path / "deep" / "merged").exists()
    assert left(tmp_path) == ["deep", "merged", "weights"]


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path):
    with write_folder(tmp_path / "merged") as partial:
        save_file({"weight": torch.zeros(1)}, partial / "model.safetensors")
    modes = [path.stat().st_mode & 0o444 for path in (tmp_path / "merged", tmp_path / "merged" / "model.safetensors")]
    assert modes[0] == modes[1]


def test_a_file_appears_when_it_is_whole(tmp_path):
    with write_file(tmp_path / "gguf" / "a.gguf") as partial:
        partial.write_text("x", encoding="utf-8")
        assert not (tmp_path / "gguf" / "a.gguf").exists()
    assert left(tmp_path) == ["a.gguf", "gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_nothing_not_even_the_folders_made_for_it(tmp_path, error):
    def stop_midway(write) -> None:
        with write(tmp_path / "new" / "deep" / "x") as partial:
            (partial / "weights" if partial.is_dir() else partial).write_text("half", encoding="utf-8")
            raise error

    for write in (write_folder, write_file):
        with pytest.raises(error):
            stop_midway(write)
    assert left(tmp_path) == []


def test_an_interrupted_replacement_leaves_what_was_there(tmp_path):
    export(tmp_path / "merged", "old")
    with pytest.raises(RuntimeError), write_folder(tmp_path / "merged", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "merged" / "weights").read_text(encoding="utf-8") == "old"
    assert left(tmp_path) == sorted(["merged", "weights", RECORD_FILE])


def test_an_export_is_replaced_only_when_asked_to(tmp_path):
    export(tmp_path / "merged", "old")
    with pytest.raises(ConfigError, match="already holds an export.*--overwrite"):
        export(tmp_path / "merged")
    export(tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / "weights").read_text(encoding="utf-8") == "new"
    assert left(tmp_path) == sorted(["merged", "weights", RECORD_FILE])


def test_what_is_no_export_is_never_removed(tmp_path):
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds no export"):
        export(tmp_path, overwrite=True)
    assert left(tmp_path) == ["thesis.txt"]


def test_a_file_is_replaced_only_when_asked_to(tmp_path):
    target = tmp_path / "a.gguf"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already"), write_file(target):
        pass
    with write_file(target, overwrite=True) as partial:
        partial.write_text("new", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "new"


def test_a_file_where_a_folder_should_be_and_the_reverse(tmp_path):
    file = tmp_path / "merged"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="merged: is a file; expected a folder"), write_folder(file):
        pass
    for write in (write_folder, write_file):
        with pytest.raises(ConfigError, match="merged is a file; expected a folder there"), write(file / "deep" / "x"):
            pass
    with pytest.raises(ConfigError, match="is a folder; expected the name of a file"), write_file(tmp_path):
        pass
    assert left(tmp_path) == ["merged"]


def test_too_little_space_is_known_before_anything_is_written(tmp_path):
    message = r"needs 1000000000.00 GB, and [\d.]+ GB are free there; make room"
    with pytest.raises(ExportError, match=message), write_folder(tmp_path / "merged"):
        require_space(tmp_path / "merged", 10**18)
    assert left(tmp_path) == []
    require_space(tmp_path / "not" / "there", 0)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_while_writing(tmp_path):
    with pytest.raises(ExportError, match="merged: nothing was written .file too large.; make room"):
        export(tmp_path / "merged", "x" * 100_000)
    with pytest.raises(ExportError, match="nothing was written"), write_folder(tmp_path / "merged") as partial:
        save_file({"weight": torch.zeros(100_000)}, partial / "model.safetensors")
    with pytest.raises(ExportError, match="nothing was written"), write_file(tmp_path / "a.gguf") as partial:
        partial.write_bytes(bytes(100_000))
    assert left(tmp_path) == []


def test_errors_of_other_files_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError), write_folder(tmp_path / "merged"):
        (tmp_path / "elsewhere").read_text(encoding="utf-8")


def test_leftovers_of_a_killed_export_are_removed_by_the_next(tmp_path):
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "half").write_text("x", encoding="utf-8")
    export(tmp_path / "merged")
    assert left(tmp_path) == sorted(["merged", "weights", RECORD_FILE])


def test_two_exports_to_one_place_do_not_mix(tmp_path):
    with write_folder(tmp_path / "merged") as partial:
        (partial / "weights").write_text("first", encoding="utf-8")
        with pytest.raises(ConfigError, match="another export is writing there"):
            export(tmp_path / "merged")
    assert (tmp_path / "merged" / "weights").read_text(encoding="utf-8") == "first"
