"""Arrow and Parquet files that were tampered with: none crashes a process, fills a disk or a memory."""

import json
import logging
import os
import random
import struct

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oddsmith.data.sources.loading import load_rows
from oddsmith.data.sources.tables import _temporary_folder
from oddsmith.errors import DataError, NotAFileError
from tests.fuzz.of_tables import EXTREMES, read_tables

ROWS = [{"prompt": f"Why {n}?", "chosen": "Yes.", "rejected": "No", "turns": ["a"] * n} for n in range(5)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder in which ``datasets`` keeps what it makes of Parquet files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a folder made by ``save_to_disk``."""
    place = tmp_path_factory.mktemp("saved")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(place))
    return {path.name: path.read_bytes() for path in place.iterdir()}


def write(files, place):
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    return str(place)


def in_arrow(saved, old, new):
    """The saved folder with 32-bit numbers of its table replaced."""
    (name,) = (name for name in saved if name.endswith(".arrow"))
    old, new = (struct.pack(f"<{len(numbers)}i", *numbers) for numbers in (old, new))
    assert saved[name].count(old) >= 1
    return {**saved, name: saved[name].replace(old, new)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param((0, 4, 8, 12, 16, 20), (0, 4, 8, 12, 16, 2**30), id="of text"),
        pytest.param((0, 0, 1, 3, 6, 10), (0, 0, 1, 3, 6, 2**30), id="of a list", marks=pytest.mark.slow),
    ],
)
def test_an_offset_beyond_its_buffer_is_a_line(saved, tmp_path, old, new):
    files = in_arrow(saved, old, new)
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: .*; write the file again"):
        load_rows(write(files, tmp_path / "given"))
    read_tables(files, ".")  # in a process of its own: without the inspection it is killed by SIGSEGV


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_no_mutation_crashes(saved, part):
    """120 files with one to three of their numbers replaced, of which the plain reader is killed by a tenth.

    A file takes 0.3 s of a processor, so a part stays far below the time limit of a test on a busy machine, too.
    """
    name = "data-00000-of-00001.arrow"
    draw = random.Random(part)
    for _ in range(20):
        content = bytearray(saved[name])
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(content) // 4) * 4
            content[place : place + 4] = struct.pack("<Q", draw.choice(EXTREMES))[:4]
        read_tables({**saved, name: bytes(content)}, ".")


def test_a_truncated_file_is_a_line(saved, tmp_path):
    name = "data-00000-of-00001.arrow"
    with pytest.raises(DataError, match="write the file again"):
        load_rows(write({**saved, name: saved[name][:-300]}, tmp_path / "given"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "../given/data-00000-of-00001.arrow"}]}, "names files outside of its folder"),
        ({"_data_files": "data"}, "not what save_to_disk writes"),
        ([], "not what save_to_disk writes"),
        ({"_data_files": [{"filename": "state.json"}]}, "state.json: .*; write the file again"),
    ],
    ids=["another folder", "a text", "a list", "no Arrow"],
)
def test_a_state_of_another_shape_is_a_line(saved, tmp_path, state, message):
    given = write({**saved, "state.json": json.dumps(state).encode()}, tmp_path / "given")
    with pytest.raises(DataError, match=message):
        load_rows(given)


def test_a_pipe_in_a_saved_folder_is_a_line(saved, tmp_path):
    given = write({name: content for name, content in saved.items() if "arrow" not in name}, tmp_path / "given")
    os.mkfifo(tmp_path / "given" / "data-00000-of-00001.arrow")
    with pytest.raises(NotAFileError, match="a pipe, not a file"):
        load_rows(given)


def bomb(kind):
    """A table that takes kilobytes in a file, and up to terabytes out of it."""
    if kind == "the same text":
        return pa.table({"prompt": ["Why?"] * 100_000, "chosen": ["x" * 1_000] * 100_000})
    if kind == "a text in a dictionary":
        numbers = pa.array(np.zeros(100_000, dtype=np.int32))
        return pa.table({"prompt": pa.DictionaryArray.from_arrays(numbers, pa.array(["x" * 10**6]))})
    if kind == "rows of nothing":
        return pa.table({"prompt": pa.nulls(10**7)})
    return pa.table({"prompt": pa.ListArray.from_arrays(pa.array([0, 10**7], pa.int32()), pa.nulls(10**7))})


MORE_BOMBS = ["a text in a dictionary", "rows of nothing", "a list of nothing"]
BOMBS = ["the same text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE_BOMBS)]


@pytest.mark.parametrize("kind", BOMBS)
def test_a_parquet_bomb_is_refused_before_anything_is_written(kind, tmp_path, cache):
    path = tmp_path / "pairs.parquet"
    pq.write_table(bomb(kind), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"pairs.parquet: unpacks to more than 67,108,864 bytes, 200 times its size"):
        load_rows(str(path))
    assert sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["the same text", *MORE_BOMBS])
def test_a_parquet_bomb_is_refused_as_a_stream(kind, tmp_path):
    pq.write_table(bomb(kind), tmp_path / "pairs.parquet", compression="zstd")
    with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
        load_rows(str(tmp_path / "pairs.parquet"), streaming=True)


def test_packed_arrow_that_is_a_bomb_is_refused(saved, tmp_path):
    table = pa.table({"prompt": ["x" * 10**8]})
    with (
        pa.BufferOutputStream() as sink,
        pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer,
    ):
        writer.write_table(table)
    given = write({**saved, "data-00000-of-00001.arrow": sink.getvalue().to_pybytes()}, tmp_path / "given")
    with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
        load_rows(given)


def test_parquet_of_thousands_of_columns_is_refused(tmp_path):
    pq.write_table(pa.table({f"column {number}": ["a"] for number in range(1_001)}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="found 1,001 columns; expected at most 1,000"):
        load_rows(str(tmp_path / "pairs.parquet"))


@pytest.mark.slow
def test_rows_that_do_not_fit_on_the_disk_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("oddsmith.data.sources.tables.free_bytes", lambda place: 10)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="do not fit in the 0 kB that are free; name another folder with HF_DATASETS"):
        load_rows(str(tmp_path / "pairs.parquet"))


def parquet(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
    return str(tmp_path / "pairs.parquet")


@pytest.mark.parametrize("suffix", ["arrow", pytest.param("json", marks=pytest.mark.slow)])
def test_a_damaged_cache_of_a_parquet_file_is_made_anew(tmp_path, cache, caplog, suffix):
    given = parquet(tmp_path)
    assert list(load_rows(given)) == ROWS
    (kept,) = cache.rglob(f"*.{suffix}")
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        assert list(load_rows(given)) == ROWS
    assert "read anew" in caplog.text
    caplog.clear()
    assert list(load_rows(given)) == ROWS
    assert not caplog.text


@pytest.mark.parametrize("fault", ["of another user", pytest.param("a link", marks=pytest.mark.slow)])
def test_a_cache_of_another_user_is_left_alone(tmp_path, cache, caplog, monkeypatch, fault):
    given = parquet(tmp_path)
    folder = cache / f"oddsmith-{os.geteuid()}"
    if fault == "a link":
        (tmp_path / "of-another").mkdir()
        cache.mkdir()
        folder.symlink_to(tmp_path / "of-another")
    else:
        user = os.geteuid() + 1
        (cache / f"oddsmith-{user}").mkdir(parents=True)
        monkeypatch.setattr(os, "geteuid", lambda: user)
    with caplog.at_level(logging.WARNING):
        rows = load_rows(given)
    assert list(rows) == ROWS
    assert "may be written by others" in caplog.text
    assert all(file["filename"].startswith(_temporary_folder().name) for file in rows.cache_files)


def test_others_cannot_write_what_is_kept_of_a_parquet_file(tmp_path, cache):
    folder = cache / f"oddsmith-{os.geteuid()}"
    folder.mkdir(parents=True, mode=0o777)
    folder.chmod(0o777)
    load_rows(parquet(tmp_path))
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_parquet_bomb_of_the_hub_is_refused(tmp_path, monkeypatch):
    """A folder stands for what is downloaded: ``datasets`` builds both in the same way."""
    (tmp_path / "data").mkdir()
    pq.write_table(bomb("the same text"), tmp_path / "data" / "train.parquet", compression="zstd")
    build = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: build(str(tmp_path / "data")))
    with pytest.raises(DataError, match="unpacks to more than 67,108,864 bytes"):
        load_rows("somebody/pairs")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data" / "train.parquet")
    assert list(load_rows("somebody/pairs")) == ROWS


def test_a_time_that_python_cannot_hold_is_a_line(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([2**60], pa.timestamp("us"))}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="pairs.parquet: .*; write the file again"):
        load_rows(str(tmp_path / "pairs.parquet"))
