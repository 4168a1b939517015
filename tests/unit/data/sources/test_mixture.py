"""Mixtures: which rows, how many, in which order."""

import json
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.sources.mixture import Part, mix, mix_streams, parse_mixture, row_counts, share_lines, shares_of
from oddsmith.errors import ConfigError


def rows(name, count):
    return [{"from": name, "row": row} for row in range(count)]


def stream(name, count):
    return datasets.Dataset.from_list(rows(name, count)).to_iterable_dataset()


def names(mixture):
    return "".join(row["from"] for row in mixture)


def test_without_weights_every_row_takes_part_evenly_spread():
    mixture = mix([rows("a", 4), rows("b", 2)], None, seed=0)
    assert names(mixture) == "abaaba"
    assert names(mix([rows("a", 3), rows("b", 1)], None, seed=0)) == "aaba"
    assert [row["row"] for row in mixture if row["from"] == "a"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("totals", "weights", "counts"),
    [
        ([100, 100], [3, 1], [100, 33]),
        ([10, 100], [1, 1], [10, 10]),
        ([700, 1000], [0.7, 0.3], [700, 300]),
        ([5, 1000], [1000, 1], [5, 1]),
        ([10, 20], None, [10, 20]),
    ],
)
def test_the_largest_mixture_of_these_shares_that_repeats_no_row(totals, weights, counts):
    assert row_counts(totals, weights) == counts


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=1, max_size=5))
def test_no_row_is_repeated_and_one_dataset_is_used_up(parts):
    totals, weights = zip(*parts, strict=True)
    counts = row_counts(totals, weights)
    assert all(1 <= count <= total for count, total in zip(counts, totals, strict=True))
    assert any(count == total for count, total in zip(counts, totals, strict=True))


def test_the_seed_decides_which_rows_are_taken():
    parts = [rows("a", 40), rows("b", 10)]
    mixture = mix(parts, [1, 1], seed=1)
    assert Counter(names(mixture)) == {"a": 10, "b": 10}
    assert len({(row["from"], row["row"]) for row in mixture}) == 20
    assert mixture == mix(parts, [1, 1], seed=1)
    assert mixture != mix(parts, [1, 1], seed=2)


def test_tables_of_one_schema_stay_a_table():
    parts = [datasets.Dataset.from_list(rows("a", 4)), datasets.Dataset.from_list(rows("b", 2))]
    mixture = mix(parts, None, seed=0)
    assert isinstance(mixture, datasets.Dataset)
    assert list(mixture) == mix([rows("a", 4), rows("b", 2)], None, seed=0)


def test_parts_of_different_schemas_become_a_list_of_rows_as_they_are():
    table = datasets.Dataset.from_list([{"prompt": "Hi", "chosen": "a", "rejected": "b"}])
    assert mix([table, [{"question": "Hi"}]], None, seed=0) == [*table, {"question": "Hi"}]


def test_streams_take_turns_until_all_are_exhausted():
    mixture = mix_streams([stream("a", 4), stream("b", 2)], None, seed=0)
    assert isinstance(mixture, datasets.IterableDataset)
    assert names(mixture) == "ababaa"


def test_weighted_streams_keep_their_shares_and_end_with_the_first():
    parts = [stream("a", 3000), stream("b", 3000)]
    drawn = names(mix_streams(parts, [3, 1], seed=5))
    assert drawn == names(mix_streams(parts, [3, 1], seed=5)) != names(mix_streams(parts, [3, 1], seed=6))
    assert drawn.count("a") == 3000
    assert 900 < drawn.count("b") < 1100  # 1000 expected, standard deviation 37


def test_streams_of_different_columns_keep_their_rows_as_they_are():
    texts = datasets.Dataset.from_list([{"question": "Hi"}]).to_iterable_dataset()
    messages = datasets.Dataset.from_list([{"question": [{"role": "user"}], "tools": "[]"}]).to_iterable_dataset()
    mixture = mix_streams([texts, messages], None, seed=0)
    assert list(mixture) == [{"question": "Hi"}, {"question": [{"role": "user"}], "tools": "[]"}]


def test_a_mixture_may_be_written_as_json_and_its_parts_as_paths():
    entries = [{"path": "a.jsonl", "split": "train[:9]"}, "user/b"]
    parts = [Part("a.jsonl", split="train[:9]"), Part("user/b")]
    assert parse_mixture(entries) == parse_mixture(json.dumps(entries)) == parts


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("[{]", "datasets is not JSON at character 2"),
        ("{}", "datasets is an object; expected a list"),
        ([], "datasets is a list; expected a list of {path, name, split, weight, columns} with at least one entry"),
        ([7], r"datasets[0] is a number"),
        ([{"path": "a", "wieght": 1}], "datasets[0] has the unknown key 'wieght'; did you mean 'weight'?"),
        ([{"path": "a", "xyz": 1}], "unknown key 'xyz'; expected path, name, split, weight, columns"),
        ([{"path": "a", "columns": 1}], "datasets[0].columns is a number; expected prompt=question,chosen=good"),
        ([{"path": "a", "columns": {"promt": "q"}}], "datasets[0].columns names 'promt', which no format reads; did"),
        ([{"name": "a"}], "datasets[0].path is null; expected text"),
        ([{"path": "a", "split": 3}], "datasets[0].split is a number; expected text"),
        ([{"path": "a", "weight": 0}], "datasets[0].weight is 0; expected a number above 0"),
        ([{"path": "a", "weight": 10**400}], "datasets[0].weight is 10000"),
        ("[" * 5_000, "datasets is not JSON at character 0: nested more than 100 levels deep"),
        ([{"path": "a", "weight": "2"}], "datasets[0].weight is '2'"),
        ([{"path": "a", "weight": float("nan")}], "datasets[0].weight is nan"),
        ([{"path": "a", "weight": 1}, {"path": "b"}], "datasets[1] has no weight, others have"),
    ],
)
def test_a_malformed_mixture_names_the_entry(entries, message):
    with pytest.raises(ConfigError) as caught:
        parse_mixture(entries)
    assert message in str(caught.value)


SMALL, LARGE = Part("small.jsonl", weight=3), Part("org/large", split="train[:50%]", weight=1)


@pytest.mark.parametrize(
    ("parts", "totals", "lines"),
    [
        (
            [SMALL, LARGE], [120, 2333],
            [
                "mixture of 2 datasets: 160 of 2,453 rows, as many as the weights allow without repeating one;"
                " without weights all are taken",
                "  small.jsonl: 120 of 120 rows taken, 0 left out, weight 3",
                "  org/large train[:50%]: 40 of 2,333 rows taken, 2,293 left out, weight 1",
            ],
        ),
        (
            [Part("a"), Part("b")], [4, 2],
            [
                "mixture of 2 datasets: all 6 rows", "  a: 4 of 4 rows taken, 0 left out",
                "  b: 2 of 2 rows taken, 0 left out",
            ],
        ),
        ([SMALL, LARGE], None, [
            "mixture of 2 streams, read until the first is exhausted", "  small.jsonl: weight 3",
            "  org/large train[:50%]: weight 1",
        ]),
        ([Part("a"), Part("b")], None, ["mixture of 2 streams, read until all are exhausted", "  a", "  b"]),
    ],
    ids=("weights", "all", "weighted streams", "streams"),
)  # fmt: skip
def test_each_source_says_what_is_taken_and_left_out(parts, totals, lines):
    assert share_lines(shares_of(parts, totals)) == lines
