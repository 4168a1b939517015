"""Rows of large files are read where they lie: the same rows, tokens and errors as those that are held in memory."""

import csv
import gzip
import io
import json
import re

import pytest

from oddsmith.config import ScriptArguments
from oddsmith.data.prepare import prepare
from oddsmith.data.sources import json_lines, load_datasets, load_rows
from oddsmith.data.sources.json_lines import JsonLines
from oddsmith.data.token_cache import MIN_ROWS, token_key
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import DataError, RowError
from tests.faults import file_size_limit
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": f"Question {n}? ", "chosen": f"Yes é {n}", "rejected": "No"} for n in range(MIN_ROWS)]
ROWS[3] = ROWS[3] | {"rejected": "Yes é 3"}


@pytest.fixture(params=(7, 2**24), ids=("in small chunks", "at once"))
def by_place(request, monkeypatch):
    monkeypatch.setattr(json_lines, "MIN_BYTES", 0)
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", request.param)


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(json_lines, "MIN_BYTES", 0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path / "cache"))


def lines(*texts: str) -> bytes:
    return "".join(texts).encode()


def write(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer() -> PairTokenizer:
    return PairTokenizer(tiny_tokenizer(bos="<s>", eos="</s>"), max_length=32)


FILES = {
    "plain": lines('{"a": 1}\n', '{"a": 2}\n'),
    "without an end": lines('{"a": 1}\n', '{"a": 2}'),
    "blank lines": lines("\n", '{"a": 1}\n', " \t\n", "\u00a0\n", ' {"a": 2}\n', "\n"),
    "windows": lines('{"a": 1}\r\n', "\r\n", '{"a": 2}\r\n'),
    "byte order mark": b"\xef\xbb\xbf" + lines('{"a": 1}\n', '{"a": 2}\n'),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_file(by_place, tmp_path, name):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(FILES[name])
    rows = load_rows(str(path))
    assert isinstance(rows, JsonLines)
    assert list(rows) == rows[:] == [rows[0], rows[-1]] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "line"), ((b'{"a": 1}\n{"a": \n', 2), (b'{"a": 1}\n\n[1]\n', 3), (b'{"a": 1}\n{"a": "\xff"}\n', 2))
)
def test_errors_name_the_line_as_they_do_of_rows_in_memory(by_place, tmp_path, monkeypatch, text, line):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(text)
    with pytest.raises(DataError, match=f"pairs.jsonl, line {line}") as by_place_error:
        list(load_rows(str(path)))
    monkeypatch.setattr(json_lines, "MIN_BYTES", 2**30)
    with pytest.raises(DataError, match=re.escape(str(by_place_error.value))):
        load_rows(str(path))


def test_tokens_report_and_bad_rows_are_those_of_rows_in_memory(by_place, tmp_path):
    path = write(tmp_path / "pairs.jsonl")
    for processes in (1, 2):
        found = prepare(load_rows(str(path)), tokenizer(), num_proc=processes)
        expected = prepare(ROWS, tokenizer(), num_proc=1)
        assert found.dataset.to_dict() == expected.dataset.to_dict()
        assert found.report == expected.report
    bad = write(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "x", "chosen": None, "rejected": "y"}])
    with pytest.raises(RowError, match=f"train, row {MIN_ROWS}"):
        prepare(load_rows(str(bad)), tokenizer(), num_proc=2)
    (tmp_path / "broken.jsonl").write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(DataError, match=f"broken.jsonl, line {MIN_ROWS + 1}"):
        prepare(load_rows(str(tmp_path / "broken.jsonl")), tokenizer(), num_proc=2)


def test_key_follows_the_content_and_the_choice_of_rows_not_the_name(by_place, tmp_path):
    rows = load_rows(str(write(tmp_path / "a.jsonl")))
    same = load_rows(str(write(tmp_path / "b.jsonl")))
    other = load_rows(str(write(tmp_path / "c.jsonl", [*ROWS[1:], ROWS[0]])))
    some = load_rows(str(write(tmp_path / "d.jsonl", [*ROWS, ROWS[0]]))).select(range(MIN_ROWS))
    keys = [token_key(each, tokenizer(), "error") for each in (rows, same, other, some)]
    assert keys[0] == keys[1]
    assert len({*keys}) == 3


def test_rows_held_out_and_slices_are_those_of_rows_in_memory(by_place, tmp_path, monkeypatch):
    path = str(write(tmp_path / "pairs.jsonl"))
    arguments = ScriptArguments(dataset_name=path, test_split_size=0.1)
    found = load_datasets(arguments, seed=1, evaluate=True)
    sliced = load_rows(path, split="train[100:200]")
    assert isinstance(found.train, JsonLines)
    monkeypatch.setattr(json_lines, "MIN_BYTES", 2**30)
    expected = load_datasets(arguments, seed=1, evaluate=True)
    assert [list(found.train), list(found.evaluation)] == [expected.train, expected.evaluation]
    assert list(sliced) == load_rows(path, split="train[100:200]")


def test_a_file_that_is_cut_off_meanwhile_is_told(by_place, tmp_path):
    path = write(tmp_path / "pairs.jsonl")
    rows = load_rows(str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="has become shorter while it was read"):
        list(rows)


def test_replacing_a_file_leaves_the_rows_as_they_were(by_place, tmp_path):
    rows = load_rows(str(write(tmp_path / "pairs.jsonl")))
    write(tmp_path / "new.jsonl", ROWS[:1]).replace(tmp_path / "pairs.jsonl")
    assert list(rows) == ROWS


def in_memory(monkeypatch, *given, **options):
    with monkeypatch.context() as patch:
        patch.setattr(json_lines, "MIN_BYTES", 2**30)
        return load_rows(*given, **options)


@pytest.mark.parametrize("suffix", (".csv", ".tsv.gz", ".json", ".jsonl.gz"))
def test_rows_of_other_large_text_files_lie_on_disk(large, tmp_path, monkeypatch, suffix):
    path, text = tmp_path / f"pairs{suffix}", io.StringIO()
    if "json" in suffix:
        text.write(json.dumps(ROWS) if suffix == ".json" else "\n".join(map(json.dumps, ROWS)))
    else:
        writer = csv.DictWriter(text, ROWS[0], delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(ROWS)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    rows = load_rows(str(path))
    assert isinstance(rows, JsonLines)
    assert list(rows) == in_memory(monkeypatch, str(path)) == ROWS
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_who_has_no_room_on_disk_holds_rows_in_memory(large, tmp_path, monkeypatch):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(ROWS))
    with file_size_limit(1000):
        assert load_rows(str(path)) == ROWS


@pytest.mark.parametrize("columns", ("prompt=q.0,chosen=good", "prompt=q.0,chosen=late"))
def test_columns_of_other_names_are_read_by_place(large, tmp_path, monkeypatch, columns):
    rows = [{"q": [row["prompt"]], "good": row["chosen"], "rejected": "No"} for row in ROWS]
    rows[7]["late"] = "Later"  # any row may have a column
    path = str(write(tmp_path / "pairs.jsonl", rows))
    found = load_rows(path, columns=columns)
    assert isinstance(found, JsonLines)
    assert list(found) == in_memory(monkeypatch, path, columns=columns)
    assert found.digest() != load_rows(path).digest()
    with pytest.raises(DataError, match="found the columns q, good, rejected, late"):
        load_rows(path, columns="chosen=best")


def test_a_mixture_is_read_by_place(large, tmp_path, monkeypatch):
    (tmp_path / "b.json").write_text(json.dumps([{"q": "Why? ", "chosen": "So", "rejected": "No"}] * 30))
    parts = [
        {"path": str(write(tmp_path / "a.jsonl")), "weight": 2},
        {"path": str(tmp_path / "b.json"), "weight": 1, "columns": "prompt=q"},
        {"path": "builtin:house-style", "weight": 1},
    ]
    found = load_datasets(ScriptArguments(datasets=parts), seed=1, evaluate=False).train
    assert isinstance(found, JsonLines)
    monkeypatch.setattr(json_lines, "MIN_BYTES", 2**30)
    assert list(found) == load_datasets(ScriptArguments(datasets=parts), seed=1, evaluate=False).train


def test_small_files_are_held_in_memory(tmp_path):
    assert load_rows(str(write(tmp_path / "pairs.jsonl"))) == ROWS
