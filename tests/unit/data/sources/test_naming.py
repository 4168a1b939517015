"""Columns get the names that formats read, in rows of every kind, and what is wrong with them is said."""

import datasets
import pytest

from oddsmith.config import ScriptArguments
from oddsmith.data.formats import to_pair
from oddsmith.data.prepare import prepare
from oddsmith.data.sources import load_datasets, load_rows, numbered_rows, offering, open_rows
from oddsmith.data.sources.naming import named_row, parse_columns, text_of_columns, with_names
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import ConfigError, DataError, RowError
from tests.command import save_rows
from tests.tiny import tiny_tokenizer

PLAIN = {"prompt": "question", "chosen": "good answer", "rejected": "bad"}
ROWS = [{"question": f"q {n}", "good answer": f"g {n}", "bad": f"b {n}", "id": n, "chosen": "?"} for n in range(5)]
NAMED = [{"prompt": f"q {n}", "chosen": f"g {n}", "rejected": f"b {n}", "id": n} for n in range(5)]
PATHS = {"prompt": "q.text", "chosen": "all.0.text", "rejected": "all.-1.text"}
NESTED = [
    {"q": {"text": f"q {n}"}, "all": [{"text": f"g {n}"}, {"text": f"b {n}"}], "id": n, "chosen": "?"}
    for n in range(5)
]  # fmt: skip


def plain_rows(rows):
    return [dict(sorted(row.items())) for row in rows]


@pytest.mark.parametrize(
    "kind",
    [
        lambda rows: rows,
        datasets.Dataset.from_list,
        lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
        lambda rows: datasets.IterableDataset.from_generator(lambda: iter(rows)),
    ],
    ids=["list", "dataset", "stream", "generator"],
)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, PLAIN), (NESTED, PATHS)], ids=["names", "paths"])
def test_rows_of_every_kind(kind, rows, columns):
    found = with_names(kind(rows), columns, "a")
    assert plain_rows(found) == plain_rows(NAMED)
    if rows is ROWS:
        assert type(found) is type(kind(rows))
    pair_tokenizer = PairTokenizer(tiny_tokenizer(), max_length=64)
    assert len(list(prepare(found, pair_tokenizer).dataset)) == 5


def test_names_may_be_exchanged():
    rows = [{"prompt": "q", "chosen": "bad", "rejected": "good"}]
    columns = {"chosen": "rejected", "rejected": "chosen"}
    expected = [{"prompt": "q", "chosen": "good", "rejected": "bad"}]
    assert list(with_names(rows, columns, "a")) == list(with_names(datasets.Dataset.from_list(rows), columns, "a"))
    assert list(with_names(rows, columns, "a")) == [dict(sorted(row.items())) for row in expected]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    assert list(with_names(stream, columns, "a")) == expected
    moved = {"prompt": "chosen", "chosen": "rejected"}
    for kind in (rows, datasets.Dataset.from_list(rows), stream):
        assert plain_rows(with_names(kind, moved, "a")) == [{"chosen": "good", "prompt": "bad"}]


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a.b": {"c.d": 1}}, "a.b.c.d", 1),
        ({"a": '[{"b": "x"}]'}, "a.0.b", "x"),
        ({"a": "{'b': 'x'}"}, "a.b", "x"),
        ({"a": None}, "a", None),
    ],
)
def test_a_path(row, path, value):
    assert named_row(row, {"prompt": path}) == {"prompt": value} | (
        {"a": {"b": 2}} if path == "a.b" and value == 1 else {}
    )


@pytest.mark.parametrize(
    ("row", "path", "found"),
    [
        ({"a": {"b": 1}}, "a.c", "a has the keys b"),
        ({"a": [1]}, "a.1", "a is a list of 1, counted from 0"),
        ({"a": [1]}, "a.x", "a is a list of 1, counted from 0"),
        ({"a": None}, "a.b", "a is null"),
        ({"a": 7}, "a.b", "a is a number"),
        ({"a": "text"}, "a.b", "a is text"),
        ({"a": "{text"}, "a.b", "a is text that is no JSON"),
        ({"b": 1}, "a", "the row has the columns b, chosen, rejected"),
    ],
)
def test_a_path_that_leads_nowhere_is_a_fault_of_its_row(row, path, found):
    with pytest.raises(RowError, match=f"^column not found: prompt={path} leads nowhere: {found}$"):
        to_pair(named_row({**row, "chosen": "a", "rejected": "b"}, {"prompt": path}))


def test_such_rows_can_be_dropped():
    rows = with_names([NESTED[0], {"q": {}, "all": [{"text": "a"}]}, NESTED[1], NESTED[2]], PATHS, "a")
    report = prepare(rows, PairTokenizer(tiny_tokenizer(), max_length=64), bad_rows="drop").report
    assert report.dropped == {"column not found": [1]}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("prompt=question,chosen=good answer,rejected=bad", PLAIN),
        (" prompt = question , chosen=good answer,rejected=bad", PLAIN),
        ("prompt=a, b,chosen=x=y", {"prompt": "a, b", "chosen": "x=y"}),
        ('{"prompt": "a,chosen=b"}', {"prompt": "a,chosen=b"}),
        ({"prompt": 0}, {"prompt": "0"}),
        (None, {}),
    ],
)
def test_the_setting_is_text_or_a_mapping(text, columns):
    assert parse_columns(text) == columns
    if columns:
        assert parse_columns(text_of_columns(columns)) == columns


@pytest.mark.parametrize("name", ["a,chosen=b", " a ", 'it\'s "$x"', "a\nb", "\x1b[31m", "=", "né", "a,b"])
def test_odd_names_survive_as_text(name):
    columns = {"prompt": name, "chosen": "c"}
    text = text_of_columns(columns)
    assert parse_columns(text) == columns
    assert text.isprintable()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("question", "columns has 'question'; expected NAME=COLUMN, as in prompt=question,"),
        ("prompt=", "columns has 'prompt='; expected NAME=COLUMN"),
        ("prompt=a,prompt=b", "columns gives prompt twice, 'a' and 'b'; keep one"),
        ("prompt=a,chosen=a", "columns: prompt and chosen are both read from 'a'; give each its own column"),
        ("promt=a", "columns names 'promt', which no format reads; did you mean prompt?"),
        ("frage=prompt", "the name comes first: prompt=frage"),
        ("xyz=a", "expected one of prompt, chosen, rejected, "),
        ("{", "columns is no JSON at character 1"),
        ({}, "columns is empty"),
        ([], "columns is a list; expected prompt="),
        ({"prompt": ["a"]}, "columns: prompt is a list; expected the name of a column"),
        ({"prompt": ""}, "columns: prompt is text; expected the name of a column"),
    ],
)
def test_what_is_wrong_with_the_setting(value, message):
    with pytest.raises(ConfigError) as caught:
        parse_columns(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": "god answer"}, "no column 'god answer' for chosen; found the columns question, good answer, bad"),
        ({"chosen": "god answer"}, "id, chosen; did you mean good answer?"),
        ({"question": "prompt"}, "no column 'prompt' for question; .*; the name comes first: prompt=question"),
        ({"prompt": "q.text"}, "no column 'q.text' for prompt"),
    ],
)
def test_a_column_that_is_not_there(columns, message):
    with pytest.raises(DataError, match=message):
        with_names(ROWS, columns, "a.csv")
    assert with_names(ROWS, {"prompt": "q"}, "a.csv", where_there=True) is ROWS


def test_columns_of_comparisons_have_names_too():
    row = {"q": "Which is it?", "one": "This.", "two": "That.", "best": "b"}
    columns = parse_columns("question=q,response_a=one,response_b=two,winner=best")
    pair = to_pair(named_row(row, columns))
    assert (pair.chosen[0]["content"], pair.rejected[0]["content"]) == ("That.", "This.")
    assert parse_columns("preferred_output=a,score_1=b,ratings=c")


class TestRuns:
    """Where the setting reaches: training, evaluation, mixtures, files that are read again and again."""

    def test_training_and_evaluation(self, tmp_path):
        path, named = str(save_rows(tmp_path / "a.jsonl", ROWS)), str(save_rows(tmp_path / "b.jsonl", NAMED))
        text = text_of_columns(PLAIN)
        rows = load_datasets(ScriptArguments(path, columns=text, test_split_size=2), seed=1, evaluate=True)
        assert plain_rows([*rows.train, *rows.evaluation]) != plain_rows(ROWS)
        assert all("prompt" in row for row in (*rows.train, *rows.evaluation))
        arguments = ScriptArguments(path, columns=text, eval_dataset_name=f"{named},{path}")
        for found in load_datasets(arguments, seed=1, evaluate=True).evaluation.values():
            assert plain_rows(found) == plain_rows(NAMED)

    def test_each_dataset_of_a_mixture_has_its_own(self, tmp_path):
        path, named = str(save_rows(tmp_path / "a.jsonl", ROWS)), str(save_rows(tmp_path / "b.jsonl", NAMED))
        nested = str(save_rows(tmp_path / "c.jsonl", NESTED))
        parts = [{"path": path}, {"path": named}, {"path": nested, "columns": PATHS}]
        for streaming in (False, True):
            arguments = ScriptArguments(datasets=parts, columns=PLAIN, dataset_streaming=streaming)
            rows = plain_rows(load_datasets(arguments, seed=1, evaluate=False).train)
            assert sorted(rows, key=str) == sorted(plain_rows(NAMED) * 3, key=str)

    def test_a_mixture_names_the_dataset_of_unknown_columns(self, tmp_path):
        path, named = str(save_rows(tmp_path / "a.jsonl", ROWS)), str(save_rows(tmp_path / "b.jsonl", NAMED))
        for streaming in (False, True):
            arguments = ScriptArguments(datasets=[named, path], dataset_streaming=streaming)
            with pytest.raises(DataError, match=r"^datasets\[1\] \(.*a.jsonl\): found .* did you mean prompt=question"):
                load_datasets(arguments, seed=1, evaluate=False)

    def test_a_file_that_is_read_again(self, tmp_path):
        rows = open_rows(str(save_rows(tmp_path / "a.jsonl", NESTED)), columns=PATHS)
        assert plain_rows(row for _, row in numbered_rows(rows)) == plain_rows(NAMED) == plain_rows(rows)
        with pytest.raises(DataError, match="there is no column"):
            open_rows(str(tmp_path / "a.jsonl"), columns={"prompt": "x"})

    def test_an_error_offers_all_columns_that_have_to_be_given(self, tmp_path):
        path = str(save_rows(tmp_path / "a.jsonl", [{"q": "a", "good": "b", "bad": "c"}]))
        rows = load_rows(path, columns="prompt=q")
        for of_one_dataset, expected in ((True, {"prompt": "q", "chosen": "good", "rejected": "bad"}), (False, {})):
            with pytest.raises(DataError) as caught, offering("prompt=q", of_one_dataset=of_one_dataset):
                prepare(rows, PairTokenizer(tiny_tokenizer(), max_length=64))
            assert caught.value.columns == expected
