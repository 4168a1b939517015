"""The prompts that are answered: from each kind of file, some of them by a seed, each once."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oddsmith.errors import DataError, RowError
from oddsmith.making.questions import read_questions
from tests.command import save_rows
from tests.pairs import assistant, user

SYSTEM = {"role": "system", "content": "Be brief."}


def asked(name, **options):
    return [question.messages for question in read_questions(str(name), **options).asked]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi"}, [user("Hi")]),
        ({"prompt": "Once", "chosen": " upon", "rejected": " there"}, [user("Once")]),
        ({"prompt": [SYSTEM, user("Hi")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
         [SYSTEM, user("Hi")]),
        ({"messages": [user("Hi"), assistant("A"), user("And?")]}, [user("Hi"), assistant("A"), user("And?")]),
        ({"question_id": 81, "category": "writing", "turns": ["One", "Two"]}, [user("One")]),
        ({"prompt_id": 81, "category": "writing", "prompt": ["One", "Two"], "reference": []}, [user("One")]),
        ({"prompt": "Hi", "turns": 2}, [user("Hi")]),
        ({"instruction": "Translate.", "input": "Hi"}, [user("Translate.\nHi")]),
        ({"instruction": "Hi", "input": "", "output": "A"}, [user("Hi")]),
        ({"key": 1, "prompt": "Write.", "instruction_id_list": ["x:y"], "kwargs": [{"n": 2}]}, [user("Write.")]),
        ({"prompt": "Hi", "answers": ["A", "B"]}, [user("Hi")]),
    ],
    ids=["prompt", "text pair", "pair", "turns", "MT-Bench", "MT-Bench on the hub", "number of turns", "Alpaca",
         "no input", "IFEval", "comparison without a preference"],
)  # fmt: skip
def test_kinds_of_rows(tmp_path, row, messages):
    (question,) = read_questions(str(save_rows(tmp_path / "p.jsonl", [row]))).asked
    assert question.messages == messages
    assert question.row == row


def test_text_csv_and_parquet_ask_the_same(tmp_path):
    texts = ["Hi", "Wie geht's?", "你好, \x1b[31mred"]
    (tmp_path / "p.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([text] for text in texts)])
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "p.parquet")
    found = [asked(tmp_path / f"p.{kind}") for kind in ("txt", "csv", "parquet")]
    assert found[0] == found[1] == found[2] == [[user(text)] for text in texts]


def test_a_column_by_its_name(tmp_path):
    file = save_rows(tmp_path / "p.jsonl", [{"ask": "Hi", "other": "x"}])
    assert asked(file, columns={"prompt": "ask"}) == [[user("Hi")]]


def test_a_limit_draws_rows_by_the_seed_in_their_order(tmp_path):
    file = save_rows(tmp_path / "p.jsonl", [{"prompt": str(number)} for number in range(100)])
    found = [asked(file, limit=10, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    numbers = [int(messages[0]["content"]) for messages in found[0]]
    assert len(numbers) == 10
    assert numbers == sorted(numbers) != list(range(10))
    assert len(asked(file, limit=1000)) == 100


def test_rows_that_are_not_taken_are_not_looked_at(tmp_path):
    file = save_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": 3}])
    assert [asked(file, split="train[:1]", limit=1)] == [[[user("Hi")]]]
    with pytest.raises(RowError, match="row 1: prompt is not text"):
        asked(file)


def test_what_is_repeated_and_what_follows_is_counted(tmp_path):
    rows = [{"prompt": "Hi"}, {"question": "Hi"}, {"question_id": 1, "turns": ["One", "Two", "Three"]}]
    found = read_questions(str(save_rows(tmp_path / "p.jsonl", rows)))
    assert (len(found.asked), found.repeated, found.follow_ups) == (2, 1, 2)


def test_a_system_prompt_for_those_that_have_none(tmp_path):
    file = save_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": [SYSTEM, user("Hi")]}])
    other = {"role": "system", "content": "Rhyme."}
    assert asked(file, system_prompt="Rhyme.") == [[other, user("Hi")], [SYSTEM, user("Hi")]]


def test_keys_tell_questions_apart_and_stay(tmp_path):
    file = save_rows(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "Hi "}])
    keys = [question.key for question in read_questions(str(file)).asked]
    assert keys == ["b03cbbe7211f66c1387c", keys[1]]
    assert keys[0] != keys[1]


def test_nothing_to_ask(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": " "}) + "\n")
    with pytest.raises(RowError, match="empty prompt"):
        asked(tmp_path / "p.jsonl")
    save_rows(tmp_path / "p.jsonl", [{"messages": [SYSTEM]}])
    with pytest.raises(RowError, match="messages ends with a system message; expected a question"):
        asked(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="no such file"):
        asked(tmp_path / "none.jsonl")
