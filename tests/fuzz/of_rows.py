"""Rows of preference data: files of them, the rows themselves, and the names that datasets are asked for by."""

import gzip
import json
from functools import cache
from typing import Any

from hypothesis import strategies as st

from oddsmith.data.formats import format_of, to_pair
from oddsmith.data.prepare import JSON_COLUMN, RowTokenizer, _as_json
from oddsmith.data.sources.files import read_rows
from oddsmith.data.sources.mixture import parse_mixture, row_counts
from oddsmith.data.sources.splits import Split
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import ConfigError, DataError, RowError
from oddsmith.system.strict_json import MAX_DEPTH
from tests.fuzz.answers import answered, require_json
from tests.fuzz.material import NUMBERS, SCALARS, TEXTS, VALUES, damaged, nested
from tests.fuzz.target import Target, folder
from tests.layouts import LAYOUTS
from tests.templates import LLAMA3, QWEN3
from tests.tiny import tiny_tokenizer

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Why?", "chosen": " Because.", "rejected": " No."},
    {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "No."}], "system": "Be."},
    {"chosen": "Q: Why?\nA: Because.", "rejected": "Q: Why?\nA: No."},
    {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
    {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    {"messages": str(TURNS[:1]), "chosen": json.dumps(TURNS[1:]), "rejected": str(TURNS), "context": "c", "image": "i"},
    {"query": "Why?", "chosen": TURNS, "rejected": TURNS[1:], "score_chosen": 1, "score_rejected": "2"},
    {"input": "Why?", "chosen": "Sure!\na", "rejected": "Sure!\nb", "conversation": TURNS},
    {"question": "Why?", "chosen": "Because.", "rejected": "No.", "chat_template_kwargs": {"enable_thinking": False}},
    {"instruction": "Say", "input": "why", "output": ["Because.", "No."], "history": [["Hi", "Hello"]]},
    {"instruction": "Say", "completions": [{"response": "a", "overall_score": 4}, {"response": "b", "score": "1"}]},
    {"prompt": "P", "completions": '[{"text": "a", "rating": 2}, {"text": "b", "rating": 1}]', "tools": "[]"},
    {
        "chosen": [*TURNS, TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
        "rejected": TURNS,
    },
    *(row for rows in LAYOUTS.values() for row in rows.values()),
)
_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
_TABLE = b'prompt,chosen,rejected\nWhy?," Because, it is.",No\n"two\nlines",b,c\n"[{""role"": ""user""}]",x,y\n'
FILES = {
    ".jsonl": [_LINES, *(json.dumps(row).encode() + b"\n" for row in ROWS)],
    ".json": [json.dumps(ROWS).encode(), json.dumps({"data": ROWS[:2]}, indent=1).encode(), _LINES],
    ".csv": [
        _TABLE,
        _TABLE.replace(b",", b";"),
        _TABLE.decode().encode("utf-16"),
        b"sep=|\n" + _TABLE.replace(b",", b"|"),
    ],
    ".txt": [_TABLE, _TABLE.replace(b",", b"\t")],
    ".tsv": [_TABLE.replace(b",", b"\t")],
}
COLUMNS = sorted({column for row in ROWS for column in row})
PARTS_OF_TEXT = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "human", "oracle"]) | SCALARS,
        "content": TEXTS | PARTS_OF_TEXT | VALUES,
        "from": st.sampled_from(["human", "gpt", "system"]) | SCALARS,
        "value": TEXTS | VALUES,
        "tool_calls": VALUES | st.just('[{"function": {"name": "f", "arguments": "{}"}}]'),
        "name": VALUES,
    },
)
CELLS = st.one_of(
    TEXTS, st.lists(MESSAGES, max_size=4), VALUES, nested(MAX_DEPTH), nested(900).map(json.dumps),
    st.lists(TEXTS, min_size=2, max_size=2), st.lists(MESSAGES, max_size=4).map(str),
)  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A sound row with some of its columns replaced, or a value inside of them, or columns of any kind."""
    row: dict[str, Any] = dict(draw(st.sampled_from([*ROWS, {}])))
    for column in draw(st.lists(st.sampled_from(COLUMNS), max_size=3)):
        row[column] = draw(CELLS)
    return _changed_inside(draw, row) if draw(st.booleans()) else row


def _changed_inside(draw: st.DrawFn, value: Any) -> Any:
    """Replace or remove one value, at any depth."""
    if not value or not isinstance(value, dict | list):
        return draw(CELLS)
    places = list(value) if isinstance(value, dict) else range(len(value))
    place, copy = draw(st.sampled_from(places)), value.copy()
    if draw(st.sampled_from([True, False, False, False, False])):
        del copy[place]
    else:
        copy[place] = _changed_inside(draw, copy[place])
    return copy


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Name and content of a file of rows."""
    suffix = draw(st.sampled_from(sorted(FILES)))
    content = draw(damaged(FILES[suffix]))
    if not draw(st.sampled_from([False] * 5 + [True])):
        return f"rows{suffix}", content
    packed = gzip.compress(content, compresslevel=1, mtime=0)
    return f"rows{suffix}.gz", draw(damaged([packed], most_faults=2))


def read_file(given: tuple[str, bytes]) -> None:
    """A file becomes rows, and these become pairs, or an error says where it is at fault."""
    name, content = given
    with folder() as place:
        path = place / name
        path.write_bytes(content)
        with answered(DataError):
            for row in read_rows(path):
                with answered(DataError):
                    format_of(row)
                with answered(RowError):
                    to_pair(row)


@cache
def row_tokenizers() -> tuple[RowTokenizer, ...]:
    """One with templates of each kind, and one for encoder-decoder models."""
    tokenizers = [tiny_tokenizer(), QWEN3.tokenizer(), LLAMA3.tokenizer()]
    made = [PairTokenizer(tokenizer, max_length=200, max_prompt_length=20) for tokenizer in tokenizers]
    made.append(PairTokenizer(tokenizers[0], max_length=200, is_encoder_decoder=True))
    return tuple(RowTokenizer(each, bad_rows, "train") for each in made for bad_rows in ("error", "drop"))


def tokenize_row(given: tuple[dict[str, Any], int]) -> None:
    """A row becomes tokens, is dropped, or is refused by its number."""
    row, number = given
    with answered(RowError):
        to_pair(row)
    with answered(RowError):
        tokenize = row_tokenizers()[number]
        table, report = tokenize({JSON_COLUMN: [_as_json(row)]}, [7])
        assert report.rows == 1
        assert table.num_rows == report.kept
        require_json(report.to_dict())


SPLITS = st.one_of(
    TEXTS,
    st.from_regex(r"(train|test_\w)(\[-?\d{0,3}%?:-?\d{0,3}%?\])?", fullmatch=True),
    st.builds("train[{}:{}]".format, NUMBERS, TEXTS),
)
PARTS = st.fixed_dictionaries(
    {}, optional={"path": TEXTS | VALUES, "name": VALUES, "split": VALUES, "weight": NUMBERS | VALUES, "wieght": VALUES}
)
MIXTURES = st.one_of(
    TEXTS, VALUES, nested(900), st.lists(PARTS, max_size=3), st.lists(PARTS, max_size=3).map(json.dumps)
)


def read_names(given: tuple[str, int, Any]) -> None:
    """Splits with their slices, and mixtures."""
    split, total, mixture = given
    with answered(DataError):
        rows_of = Split.parse(split).rows_of(total)
        assert 0 <= len(rows_of) <= total
    with answered(ConfigError):
        parts = parse_mixture(mixture)
        weights = [part.weight for part in parts if part.weight is not None]
        row_counts([10] * len(parts), weights or None)


TARGETS = {
    "files of rows": Target(files(), read_file),
    "rows": Target(st.tuples(rows(), st.integers(0, 7)), tokenize_row),
    "splits and mixtures": Target(st.tuples(SPLITS, st.integers(0, 1000), MIXTURES), read_names),
}
