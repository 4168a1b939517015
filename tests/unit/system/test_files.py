"""Why something could not be written, whoever says so; and where there is room."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oddsmith.system.files import (
    cache_folder,
    dispensable,
    flush_to_disk,
    free_bytes,
    in_words,
    nearest_folder,
    write_fault,
)
from tests.tiny import tiny_tokenizer


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("writer", ["python", "safetensors", "tokenizers"])
def test_every_writer_is_understood_on_a_full_disk(tmp_path, writer):
    """tokenizers raises a bare Exception, safetensors an error of its own; neither is an OSError."""
    backend = tiny_tokenizer(extra_special=tuple(f"<|special-{i:04}|>" for i in range(400))).backend_tokenizer
    write = {
        "python": lambda: (tmp_path / "x").write_bytes(bytes(100_000)),
        "safetensors": lambda: save_file({"x": torch.zeros(100_000)}, tmp_path / "x"),
        "tokenizers": lambda: backend.save(str(tmp_path / "x")),
    }[writer]
    with pytest.raises(Exception, match="File too large") as raised:
        write()
    assert write_fault(raised.value) == errno.EFBIG


def test_a_folder_that_is_gone_is_understood(tmp_path):
    with pytest.raises(Exception, match="No such file") as raised:
        save_file({"x": torch.zeros(1)}, tmp_path / "gone" / "x")
    assert write_fault(raised.value) == errno.ENOENT


def test_what_an_error_was_raised_from_counts_and_what_is_not_the_systems_does_not():
    quota = RuntimeError("the writer gave up")
    quota.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert in_words(write_fault(quota)) == "disk quota exceeded"
    assert write_fault(RuntimeError("shapes do not match")) is None
    assert write_fault(ConnectionError("the hub does not answer")) is None
    loop = ValueError("a")
    loop.__context__ = KeyError("b")
    loop.__context__.__context__ = loop
    assert write_fault(loop) is None


def test_room_is_measured_at_the_nearest_folder_that_is_there(tmp_path):
    deep = tmp_path / "not" / "yet" / "there"
    assert nearest_folder(deep) == tmp_path
    assert free_bytes(deep) == pytest.approx(free_bytes(tmp_path), rel=0.1)
    assert not deep.exists()


def test_folders_can_be_flushed_too(tmp_path):
    (tmp_path / "x").write_text("x", encoding="utf-8")
    flush_to_disk(tmp_path / "x")
    flush_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "gone")


def test_a_file_that_is_only_looked_at_ends_no_run_and_is_spoken_of_once(tmp_path, caplog):
    for _ in range(2):
        with dispensable(tmp_path / "card", "the card is older"):
            (tmp_path / "gone" / "card").write_text("x", encoding="utf-8")
    assert caplog.messages == [f"{tmp_path / 'card'}: not written (no such file or directory); the card is older"]
    with pytest.raises(KeyError), dispensable(tmp_path / "card", "the card is older"):
        raise KeyError("a mistake of ours")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ODDSMITH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/oddsmith")),
        ({}, Path.home() / ".cache/oddsmith"),
        ({"ODDSMITH_CACHE": "~/models"}, Path.home() / "models"),
    ],
)
def test_where_the_cache_is(environment, expected, monkeypatch):
    for name in ("ODDSMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected
