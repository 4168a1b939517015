"""Names to rows: every kind of file and folder, what is wrong with them, and what a run trains and evaluates on."""

import csv
import gzip
import json
import subprocess
import sys
import time
from itertools import islice
from types import SimpleNamespace

import datasets
import pytest

from oddsmith.config import ScriptArguments
from oddsmith.data.builtin import demo_pairs
from oddsmith.data.sources.loading import has_split, hold_out, load_datasets, load_rows
from oddsmith.data.sources.splits import Split
from oddsmith.errors import ConfigError, DataError

ROWS = [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad, {n}"} for n in range(10)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_rows(path, rows=ROWS):
    """Rows in the way that the suffix says."""
    writers = {
        ".jsonl": lambda: path.write_text(lines(rows)),
        ".json": lambda: path.write_text(json.dumps(rows, indent=1)),
        ".gz": lambda: path.write_bytes(gzip.compress(lines(rows).encode())),
        ".csv": lambda: write_csv(path, rows),
        ".tsv": lambda: write_csv(path, rows, "\t"),
        ".parquet": lambda: datasets.Dataset.from_list(rows).to_parquet(str(path)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix]()
    return str(path)


def message_of(error, *args, **kwargs):
    with pytest.raises(error) as caught:
        load_rows(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"])
def test_every_kind_of_file_gives_its_rows(tmp_path, name):
    path = write_rows(tmp_path / name)
    rows = load_rows(path)
    assert isinstance(rows, datasets.Dataset if name == "a.parquet" else list)
    assert list(rows) == ROWS
    streamed = load_rows(path, streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert list(streamed) == ROWS


def test_odd_rows_come_back_as_they_are(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user"}], "more": None}, {"prompt": 3}]
    path = tmp_path / "odd.jsonl"
    path.write_text(lines(rows))
    assert load_rows(str(path)) == list(load_rows(str(path), streaming=True)) == rows


def test_byte_order_mark_crlf_and_blank_lines_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\r\n".join(['\ufeff{"prompt": "\u2028"}', "", "  ", '{"prompt": "b"}', ""]).encode())
    assert load_rows(str(path)) == [{"prompt": "\u2028"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    "text",
    [json.dumps({"version": 1, "data": ROWS}), "\ufeff" + json.dumps(ROWS), lines(ROWS), "\n" + lines(ROWS)],
    ids=["under data", "byte order mark", "JSON Lines", "JSON Lines after a blank line"],
)
def test_json_may_be_written_in_several_ways(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert load_rows(str(path)) == ROWS


def test_csv_cells_may_hold_line_breaks_and_long_text(tmp_path):
    row = {"prompt": "Hi, you", "chosen": "a\nb" * 100_000, "rejected": '[{"a": 1}]'}
    write_csv(tmp_path / "a.csv", [row])
    assert load_rows(str(tmp_path / "a.csv")) == [row]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": 1, }\n', ", line 3, column 10: not JSON: "),
        ("a.jsonl", b'{"a": \n', ", line 1, column 6: not JSON: Expecting value"),
        ("a.jsonl", b"{\n", "expected one whole object a line (a list of rows over many lines belongs into a .json"),
        ("a.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 100_000, ", line 2, column 1: not JSON: nested more than 100 levels"),
        ("a.json", b"[" * 900 + b"]" * 900, ", line 1, column 1: not JSON: nested more than 100 levels"),
        ("a.jsonl", b'{"a": ' + b"9" * 5_000 + b"}", ", line 1, column 1: not JSON: a number of thousands of digits"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ", line 2: found a list; expected an object such as {"),
        ("a.jsonl", b'[{"a": 1}]', ", line 1: found a list; expected an object such as"),
        ("a.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": "\xff"}\n',
         ", line 2: not UTF-8 at byte 19 of the file (found 0xff)"),
        ("a.jsonl", b"", ": the dataset is empty; expected rows with a prompt and two answers"),
        ("a.jsonl", b"\n\r\n", ": the dataset is empty"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', ", line 2, column 7: not JSON: Expecting ':' delimiter"),
        ("a.json", b'{"a": 1}\n{"a"}\n', ", line 2, column 5: not JSON"),
        ("a.json", b'[{"a": 1}, 3]', ", row 1: found a number; expected an object"),
        ("a.json", b"3", ': found a number; expected a list of rows, or {"data": [...]}'),
        ("a.json", b'[{"a":\n"\xe4"}]', ", line 2: not UTF-8 at byte 8"),
        ("a.json", b'\xef\xbb\xbf["\xe4"]', ", line 1: not UTF-8 at byte 5"),
        ("a.json", b"", ": the dataset is empty"),
        ("a.json", b'{"data": []}', ": the dataset is empty"),
        ("a.csv", b"prompt,chosen\na,b\n1,2,3\n",
         ", line 3: found 3 fields; expected the 2 of the header (prompt, chosen)"),
        ("a.csv", b"prompt,chosen,prompt\n", ": the header names 'prompt' twice"),
        ("a.csv", b'prompt\n"a', ", line 2: malformed: unexpected end of data"),
        ("a.csv", b"prompt,chosen\n", ": the dataset is empty"),
        ("a.tsv", b"\xff\n", ", line 1: not UTF-8 at byte 0"),
        ("a.jsonl.gz", b"no gzip", ": not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], ": not a whole gzip file"),
        ("a.parquet", b"PAR1 but damaged", ": Parquet magic bytes not found in footer."),
        ("a.doc", b"hello", ": found the suffix '.doc'; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .txt, "),
    ],
)  # fmt: skip
def test_a_malformed_file_names_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert message_of(DataError, str(path)).startswith(f"{path}")
    assert message in message_of(DataError, str(path))


def test_a_stream_names_the_place_when_it_gets_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"\n')
    rows = iter(load_rows(str(path), streaming=True))
    assert next(rows) == {"a": 1}
    with pytest.raises(DataError, match="line 2, column 5"):
        next(rows)


def test_a_missing_file_suggests_its_neighbour(tmp_path, monkeypatch):
    write_rows(tmp_path / "pairs_train.jsonl")
    wanted = tmp_path / "pair_train.jsonl"
    assert message_of(DataError, str(wanted)) == f"{wanted}: no such file; did you mean {tmp_path}/pairs_train.jsonl?"
    monkeypatch.chdir(tmp_path)
    assert "did you mean pairs_train.jsonl?" in message_of(DataError, "pairs_train.json")
    assert message_of(DataError, "no/such/pairs.csv") == "no/such/pairs.csv: no such file, and no folder no/such"
    assert "no such file; check the path" in message_of(DataError, "./something_else")


def test_the_hub_out_of_reach_is_said_at_once():
    start = time.perf_counter()
    message = message_of(DataError, "somebody/some-pairs", config="small")
    assert time.perf_counter() - start < 5
    assert message == (
        "dataset 'somebody/some-pairs' configuration 'small' split 'train': no file or folder of this name, and not"
        " loaded from the hub: HF_HUB_OFFLINE is set, and it is not in the cache; check the name, or give a local file"
        " (JSONL, JSON, CSV, Parquet) or folder instead"
    )


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist."), "Dataset 'a/b' doesn't exist;"),
        (
            ValueError('Unknown split "test".\nShould be one of [].\nMore.'),
            'Unknown split "test". Should be one of [];',
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported;"),
        (TimeoutError(), "TimeoutError;"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, found):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    assert f"not loaded from the hub: {found}" in message_of(DataError, "a/b")


def test_a_hub_dataset_is_asked_for_by_name_configuration_and_split(monkeypatch):
    asked = []
    table = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or table)
    assert load_rows("a/b", config="small", split="train[:3]+test", streaming=True) is table
    assert asked == [(("a/b", "small"), {"split": "train[:3]+test", "streaming": True})]


def test_the_names_of_files_and_folders_give_the_splits(tmp_path):
    write_rows(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    write_rows(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[2:4])
    write_rows(tmp_path / "data" / "test_prefs-00000-of-00001-1a2b.parquet", ROWS[4:5])
    write_rows(tmp_path / "valid" / "part.jsonl", ROWS[5:6])
    write_rows(tmp_path / "my_eval.csv", ROWS[6:7])
    write_rows(tmp_path / ".hidden" / "train.jsonl")
    (tmp_path / "notes.json").write_text("not data")
    folder = str(tmp_path)
    assert list(load_rows(folder)) == ROWS[:4]
    assert list(load_rows(folder, streaming=True)) == ROWS[:4]
    assert list(load_rows(folder, split="test_prefs")) == ROWS[4:5]
    assert load_rows(folder, split="validation") == ROWS[5:6]
    assert load_rows(folder, split="test") == load_rows(folder, split="my_eval") == ROWS[6:7]
    assert "no split 'dev'; found my_eval, part, test, test_prefs, train" in message_of(DataError, folder, split="dev")


def test_a_folder_without_names_of_splits_is_for_training(tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS[:2])
    write_rows(tmp_path / "b.csv", ROWS[2:4])
    assert load_rows(str(tmp_path)) == ROWS[:4]
    assert list(load_rows(str(tmp_path), streaming=True)) == ROWS[:4]


def test_a_folder_of_no_rows_or_of_two_kinds_says_so(tmp_path):
    (tmp_path / "README.md").write_text("Pairs")
    assert "the folder holds no file of rows" in message_of(DataError, str(tmp_path))
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "train.parquet")
    assert "split 'train' has Parquet beside other files" in message_of(DataError, str(tmp_path))


def test_a_saved_dataset_is_read_back(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table.select([3])).save_to_disk(str(tmp_path / "two"))
    assert list(load_rows(str(tmp_path / "one"), split="test")) == ROWS
    assert list(load_rows(str(tmp_path / "two"), split="test")) == ROWS[3:4]
    assert list(load_rows(str(tmp_path / "two"), streaming=True)) == ROWS
    assert "no split 'dev'; found train, test" in message_of(DataError, str(tmp_path / "two"), split="dev")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_split_may_be_a_slice(tmp_path, name):
    path = write_rows(tmp_path / name)
    for split, rows in {"train[:3]": ROWS[:3], "test[90%:]": ROWS[9:], "x[-2:]": ROWS[8:], "a": ROWS}.items():
        assert list(load_rows(path, split=split)) == rows
    message = message_of(DataError, path, split="train[2:25%]")
    assert f"{path}, split 'train[2:25%]': the dataset is empty" in message


def test_a_split_that_cannot_be_is_named(tmp_path):
    path = write_rows(tmp_path / "a.jsonl")
    assert "split 'train[:3' is not understood" in message_of(DataError, path, split="train[:3")
    assert "a stream has no length" in message_of(DataError, path, split="train[:3]", streaming=True)


def test_a_slice_covers_every_row_once():
    assert [*Split.parse("a[:33%]").rows_of(10), *Split.parse("a[33%:]").rows_of(10)] == list(range(10))


def test_a_dataset_has_the_splits_that_its_parts_name(tmp_path, monkeypatch):
    table = datasets.Dataset.from_list(ROWS)
    one, two = tmp_path / "one", tmp_path / "two"
    table.save_to_disk(str(one))
    datasets.DatasetDict(train=table, test=table.select([3])).save_to_disk(str(two))
    files = tmp_path / "files"
    write_rows(files / "train.jsonl", ROWS[:2])
    write_rows(files / "test_prefs.jsonl", ROWS[2:3])
    whole = {name: has_split(str(name), "test") for name in (one, two, files, files / "train.jsonl")}
    assert whole == {one: False, two: True, files: True, files / "train.jsonl": False}
    assert has_split(str(files), "test_prefs[:50%]")
    assert not has_split(str(files), "validation")
    assert has_split("builtin:house-style", "test[:3]")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, config: BUILDERS[name, config])
    assert [has_split("a/b", split, "small") for split in ("test", "test[:3]+train", "dev")] == [True, True, False]


BUILDERS = {("a/b", "small"): SimpleNamespace(info=SimpleNamespace(splits={"train": 1, "test": 2}))}


def test_the_demo_pairs_have_a_name():
    assert load_rows("builtin:house-style") == demo_pairs("train")
    assert load_rows("builtin:house-style", split="test") == demo_pairs("heldout")
    assert list(islice(load_rows("builtin:house-style", streaming=True), 3)) == demo_pairs("train")[:3]
    assert "no split 'dev'; found train, test" in message_of(DataError, "builtin:house-style", split="dev")
    assert message_of(DataError, "builtin:x") == "no built-in dataset 'builtin:x'; expected builtin:house-style"


def test_text_files_are_read_without_waiting_for_torch_or_datasets(tmp_path):
    path = write_rows(tmp_path / "a.jsonl")
    code = (
        "import sys; from oddsmith.data.sources import load_rows; from oddsmith.data.sources.mixture import mix;"
        f" rows = load_rows({path!r}); mix([rows, rows], [1, 2], 0);"
        " print(len(rows), sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "10 []\n"


class TestWhatARunTrainsAndEvaluatesOn:
    @pytest.fixture
    def path(self, tmp_path):
        return write_rows(tmp_path / "a.jsonl")

    @pytest.fixture
    def folder(self, tmp_path):
        write_rows(tmp_path / "splits" / "train.jsonl", ROWS[:7])
        write_rows(tmp_path / "splits" / "test.jsonl", ROWS[7:])
        return str(tmp_path / "splits")

    def test_training_rows_alone(self, path):
        assert load_datasets(ScriptArguments(dataset_name=path), seed=0, evaluate=False) == (ROWS, None, [])

    def test_splits_slices_and_other_datasets(self, path, folder):
        several = {"splits": ROWS[7:], "a": ROWS}
        for arguments, expected in (
            (ScriptArguments(folder), (ROWS[:7], ROWS[7:])),
            (ScriptArguments(path, dataset_train_split="a[:8]", dataset_test_split="a[8:]"), (ROWS[:8], ROWS[8:])),
            (ScriptArguments(path, eval_dataset_name=folder), (ROWS, ROWS[7:])),
            (ScriptArguments(path, eval_dataset_name=f"{folder}, {path}"), (ROWS, several)),
        ):
            assert load_datasets(arguments, seed=0, evaluate=True) == (*expected, [])

    def test_streams(self, folder):
        train, test, _ = load_datasets(ScriptArguments(folder, dataset_streaming=True), seed=0, evaluate=True)
        assert isinstance(train, datasets.IterableDataset)
        assert isinstance(test, datasets.IterableDataset)
        assert (list(train), list(test)) == (ROWS[:7], ROWS[7:])

    @pytest.mark.parametrize("size", [0.3, 3])
    def test_held_out_rows(self, path, size):
        arguments = ScriptArguments(path, test_split_size=size)
        train, test, _ = load_datasets(arguments, seed=1, evaluate=True)
        assert len(test) == 3
        assert sorted([*train, *test], key=ROWS.index) == ROWS
        assert (train, test, []) == load_datasets(arguments, seed=1, evaluate=True)
        assert test != load_datasets(arguments, seed=2, evaluate=True)[1]
        assert load_datasets(arguments, seed=1, evaluate=False) == (train, None, [])

    def test_held_out_rows_of_a_table_are_those_of_a_list(self):
        train, test = hold_out(datasets.Dataset.from_list(ROWS), 0.3, seed=1)
        assert (list(train), list(test)) == hold_out(ROWS, 0.3, seed=1)

    def test_held_out_rows_of_a_stream(self, path):
        arguments = ScriptArguments(path, test_split_size=3, dataset_streaming=True)
        train, test, _ = load_datasets(arguments, seed=1, evaluate=True)
        assert (list(train), list(test)) == (ROWS[3:], ROWS[:3])

    def test_a_mixture(self, path, folder):
        parts = [{"path": path, "weight": 1}, {"path": folder, "split": "test", "weight": 1}]
        rows, _, shares = load_datasets(ScriptArguments(datasets=parts), seed=0, evaluate=False)
        assert len(rows) == 6
        assert [row for row in rows if row in ROWS[7:]] == rows[1::2] == ROWS[7:]
        assert [(share.name, share.rows, share.taken) for share in shares] == [(path, 10, 3), (f"{folder} test", 3, 3)]
        assert load_datasets(ScriptArguments(datasets=json.dumps(parts)), seed=0, evaluate=False) == (
            rows,
            None,
            shares,
        )

    def test_a_mixture_of_streams(self, path, folder):
        arguments = ScriptArguments(datasets=[path, folder], dataset_streaming=True)
        rows, _, shares = load_datasets(arguments, seed=0, evaluate=False)
        assert list(rows)[:4] == [ROWS[0], ROWS[0], ROWS[1], ROWS[1]]
        assert len(list(rows)) == 17
        assert [(share.name, share.rows, share.taken) for share in shares] == [(path, None, None), (folder, None, None)]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "no dataset is given; set dataset_name"),
            ({"dataset_name": "a.jsonl", "datasets": ["b"]}, "dataset_name and datasets are both given"),
            ({"datasets": ["a.jsonl"]}, "evaluation is on, but a mixture has no test split; set test_split_size"),
            ({"dataset_name": "a.jsonl"}, "a.jsonl is a single file and has no test split; set test_split_size"),
            ({"dataset_name": "a.jsonl", "eval_dataset_name": "b", "test_split_size": 1}, "are both given; choose"),
            ({"dataset_name": "a.jsonl", "test_split_size": 10}, "test_split_size is 10, but there are 10 rows"),
            ({"dataset_name": "a.jsonl", "test_split_size": 0.96}, "leave some to train on"),
            ({"dataset_name": "a.jsonl", "test_split_size": 1.5}, "test_split_size is 1.5; expected a share such as"),
            ({"dataset_name": "a.jsonl", "test_split_size": 0}, "expected a share such as 0.1"),
            ({"dataset_name": "a.jsonl", "test_split_size": float("nan")}, "expected a share such as 0.1"),
            ({"dataset_name": "a.jsonl", "test_split_size": 0.1, "dataset_streaming": True},
             "test_split_size is 0.1, but a stream has no length; give a number of rows"),
        ],
    )  # fmt: skip
    def test_settings_that_cannot_be(self, path, monkeypatch, settings, message):
        monkeypatch.chdir(path.removesuffix("a.jsonl"))
        with pytest.raises(ConfigError) as caught:
            load_datasets(ScriptArguments(**settings), seed=0, evaluate=True)
        assert message in str(caught.value)
