"""Tables that are joined while they are made: the same table in memory, on disk, and where the disk is full."""

import pyarrow as pa
import pytest

from oddsmith.data import spool
from oddsmith.data.prepare import prepare
from oddsmith.data.spool import joined
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from tests.faults import file_size_limit
from tests.tiny import tiny_tokenizer

TABLES = [pa.table({"a": [[n] * 50], "b": [str(n)]}) for n in range(200)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "MEMORY_BYTES", 1000)
    return tmp_path / "cache" / "tokens"


def test_what_is_large_lies_in_a_file_without_a_name(folder):
    before = pa.total_allocated_bytes()
    found = joined(iter(TABLES))
    assert pa.total_allocated_bytes() - before < 10_000
    assert found == pa.concat_tables(TABLES)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("limit_bytes", (0, 100, 20_000))
def test_a_full_disk_leaves_the_rest_in_memory(limit_bytes):
    with file_size_limit(limit_bytes):
        assert joined(iter(TABLES)) == pa.concat_tables(TABLES)


@pytest.mark.parametrize("limit_bytes", (0, 20_000))
def test_an_error_of_whoever_makes_the_tables_is_no_full_disk(limit_bytes):
    def tables():
        yield from TABLES[:100]
        raise OSError("the rows cannot be read")

    with file_size_limit(limit_bytes), pytest.raises(OSError, match="the rows cannot be read"):
        joined(tables())


def test_who_keeps_no_tokens_has_them_in_memory(folder):
    folder.parent.mkdir(parents=True)
    folder.touch()
    assert joined(iter(TABLES)) == pa.concat_tables(TABLES)


def test_what_is_small_is_never_written(folder, monkeypatch):
    monkeypatch.setattr(spool, "MEMORY_BYTES", 10**9)
    assert joined(iter(TABLES)) == pa.concat_tables(TABLES)
    assert not folder.exists()


def test_tokens_are_the_same_and_progress_is_told(monkeypatch):
    rows = [{"prompt": f"Question {n}? ", "chosen": f"Yes {n}", "rejected": "No"} for n in range(1200)]
    tokenizer = PairTokenizer(tiny_tokenizer(bos="<s>", eos="</s>"), max_length=32)
    told: list[tuple[int, int]] = []
    on_disk = prepare(rows, tokenizer, num_proc=1, progress=lambda *numbers: told.append(numbers))
    assert told == [(500, 1200), (1000, 1200), (1200, 1200)]
    monkeypatch.setattr(spool, "MEMORY_BYTES", 10**9)
    monkeypatch.setenv("ODDSMITH_CACHE", "/nowhere")
    in_memory = prepare(rows, tokenizer, num_proc=1)
    assert on_disk.dataset.to_dict() == in_memory.dataset.to_dict()
    assert on_disk.report == in_memory.report
