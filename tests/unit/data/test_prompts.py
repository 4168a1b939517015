"""Prompts of a comparison: from text, JSONL, pairs of any format and MT-Bench's file; invalid rows are refused."""

import json

import pytest

from oddsmith.data.prompts import read_prompts
from oddsmith.errors import DataError, RowError
from tests.pairs import assistant, user

SYSTEM = {"role": "system", "content": "S"}


def read(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(str(path))


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffHi\n\n  \nWie geht's?\n", encoding="utf-8")
    prompts = read_prompts(str(path))
    assert [prompt.opening for prompt in prompts] == [[user("Hi")], [user("Wie geht's?")]]
    assert [prompt.questions for prompt in prompts] == [["Hi"], ["Wie geht's?"]]


@pytest.mark.parametrize(
    ("row", "opening"),
    [
        ({"prompt": "Hi"}, [user("Hi")]),
        ({"key": 1000, "prompt": "Hi", "kwargs": [{}]}, [user("Hi")]),  # IFEval
        ({"prompt": [SYSTEM, user("Hi")]}, [SYSTEM, user("Hi")]),
        ({"messages": [user("Hi"), assistant("Hello")]}, [user("Hi")]),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, [user("Hi")]),
        ({"question": "Hi"}, [user("Hi")]),
        ({"instruction": "Hi", "output": "Hello", "generator": "m", "dataset": "d"}, [user("Hi")]),  # AlpacaEval
    ],
)
def test_rows_that_are_no_pairs(tmp_path, row, opening):
    (prompt,) = read(tmp_path / "p.jsonl", row)
    assert (prompt.opening, prompt.pair, prompt.row) == (opening, None, row)


def test_a_pair_keeps_its_answers(tmp_path):
    (prompt,) = read(tmp_path / "p.jsonl", {"question": "Hi", "chosen": "Hello", "rejected": "Go away"})
    assert prompt.opening == [user("Hi")]
    assert (prompt.pair.chosen, prompt.pair.rejected) == ([assistant("Hello")], [assistant("Go away")])


def test_the_prompt_of_plain_texts_is_continued(tmp_path):
    (prompt,) = read(tmp_path / "p.jsonl", {"prompt": "Once", "chosen": " upon", "rejected": " there"})
    assert (prompt.opening, prompt.questions) == ("Once", ["Once"])


def test_mt_bench_asks_again(tmp_path):
    (prompt,) = read(tmp_path / "q.jsonl", {"question_id": 81, "category": "writing", "turns": ["One", "Two"]})
    assert (prompt.opening, prompt.follow_ups, prompt.questions) == ([user("One")], ("Two",), ["One", "Two"])


def test_a_slice_takes_some_of_a_file(tmp_path):
    path = tmp_path / "p.jsonl"
    assert len(read(path, *[{"prompt": f"{n}"} for n in range(5)])) == 5
    assert [prompt.questions for prompt in read_prompts(str(path), "test[1:3]")] == [["1"], ["2"]]


def test_the_built_in_pairs_are_the_held_out_ones():
    prompts = read_prompts("builtin:house-style", "test[:2]")
    assert len(prompts) == 2
    assert all(prompt.pair for prompt in prompts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "Hi"},
            "p.jsonl, row 0: no prompt: found the columns text; expected a pair, turns, or one of prompt,",
        ),
        ({"prompt": " "}, r"p.jsonl, row 0: empty prompt"),
        ({"messages": [assistant("Hello")]}, "row 0: empty prompt"),
        ({"prompt": 3}, "row 0: prompt is not text"),
        ({"turns": "Hi"}, "row 0: malformed turns: expected a list of questions, as in MT-Bench's question file"),
        ({"turns": []}, "row 0: malformed turns"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "row 0: null value: chosen is null"),
    ],
)
def test_a_row_that_is_no_prompt_is_named(tmp_path, row, message):
    with pytest.raises(RowError, match=message):
        read(tmp_path / "p.jsonl", row)


def test_files_that_hold_nothing(tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, message in {"empty.txt": "is empty", "latin.txt": "UTF-8", "gone.txt": "no such file"}.items():
        with pytest.raises(DataError, match=message):
            read_prompts(str(tmp_path / name))
