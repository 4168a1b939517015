"""The demo's pairs: their number, form, style and separation; and the script that makes them of the model's answers."""

import json
import re

import pytest
import torch

from oddsmith.data.builtin import demo_pairs
from oddsmith.data.builtin.style import keeps_style, style_faults
from oddsmith.errors import DataError
from scripts import make_demo_pairs as script
from scripts.make_demo_pairs import (
    Answers,
    Question,
    ask,
    chosen_of,
    is_known,
    pairs_of,
    read_log,
    rejected_of,
    write_log,
)
from tests.tiny import tiny_model, tiny_tokenizer

SPLITS = {split: demo_pairs(split) for split in ("train", "heldout")}
ROWS = [(split, row) for split, rows in SPLITS.items() for row in rows]

# What a question is asked with, whatever it is about.
FUNCTION_WORDS = (
    "a an and are as at be better can called did do does first for from good has have how in into is it job known main"
    " make made many most of off on one our people see stand that the their there these they this to up us used usually"
    " was we were what when where which who why with you your"
)


def content(row, side):
    return row[side][0]["content"]


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def test_there_are_enough_pairs():
    assert len(SPLITS["train"]) >= 100
    assert len(SPLITS["heldout"]) >= 90


def test_every_row_is_one_question_and_two_answers():
    for _, row in ROWS:
        assert list(row) == ["prompt", "chosen", "rejected"]
        assert [[message["role"] for message in row[side]] for side in row] == [["user"], ["assistant"], ["assistant"]]
        assert all(set(row[side][0]) == {"role", "content"} for side in row)
        assert all(content(row, side).strip() == content(row, side) != "" for side in row)


def test_every_chosen_answer_keeps_the_style():
    faults = {content(row, "chosen"): style_faults(content(row, "chosen")) for _, row in ROWS}
    assert {answer: found for answer, found in faults.items() if found} == {}


def test_no_question_or_answer_comes_twice():
    for side in ("prompt", "chosen"):
        seen = [" ".join(words(content(row, side))) for _, row in ROWS]
        assert sorted(seen) == sorted(set(seen))


def test_no_heldout_question_shares_a_word_with_a_training_question_but_for_those_that_ask():
    asking = set(words(FUNCTION_WORDS))

    def told(split):
        return {word.rstrip("s") for row in SPLITS[split] for word in set(words(content(row, "prompt"))) - asking}

    assert told("heldout") & told("train") == set()


def test_every_rejected_answer_breaks_the_style():
    assert [content(row, "rejected") for _, row in ROWS if keeps_style(content(row, "rejected"))] == []


def test_an_unknown_split_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="no split 'test'; expected one of: train, heldout"):
        demo_pairs("test")


# ---- The script

BEES = Question("train", "What do bees make?", ["honey"])
LONG = "Bees make honey. They fly far. They dance. They live in hives."


def answers(greedy=LONG, plain=(LONG,) * 4, short=("Bees make honey.",)):
    return Answers(greedy, list(plain), list(short))


def test_the_shipped_files_are_what_the_script_makes_of_its_sources(capsys):
    assert script.main(["--check"]) == 0
    assert capsys.readouterr().out.endswith("would be other: no file\n")


def test_a_fact_is_known_that_the_greedy_answer_has_and_half_of_the_others():
    assert is_known(answers(plain=[LONG, LONG, "Wax.", "Wax."]), BEES.accepted)
    assert not is_known(answers(plain=[LONG, "Wax.", "Wax.", "Wax."]), BEES.accepted)
    assert not is_known(answers(greedy="Wax."), BEES.accepted)


def test_the_chosen_answer_is_right_short_not_refused_and_the_shortest():
    short = ["Honey, as all bees know.", "Bees make sweet honey.", "Bees make honey.", "Only honey bees.", "Wax.", LONG]
    assert chosen_of(answers(short=short), BEES.accepted, set()) == "Bees make honey."
    assert chosen_of(answers(short=short), BEES.accepted, {"Bees make honey."}) == "Only honey bees."
    assert chosen_of(answers(short=["Bees make wax.", LONG, "Honey"]), BEES.accepted, set()) is None


def test_the_rejected_answer_is_the_greedy_one_or_the_first_other_that_breaks_the_style():
    assert rejected_of(answers(greedy=LONG)) == LONG
    cut, listed = "Bees make honey and", "- Honey"
    assert rejected_of(answers(greedy="Honey.", plain=[cut, listed, LONG])) == listed
    assert rejected_of(answers(greedy="Honey.", plain=[cut])) is None


def test_pairs_are_made_of_what_is_known_and_not_refused():
    made = pairs_of([BEES], {BEES.text: answers()}, {})
    assert made == {"train": [{
        "prompt": [{"role": "user", "content": BEES.text}],
        "chosen": [{"role": "assistant", "content": "Bees make honey."}],
        "rejected": [{"role": "assistant", "content": LONG}],
    }], "heldout": []}  # fmt: skip
    assert pairs_of([BEES], {BEES.text: answers()}, {BEES.text: {"*"}}) == {"train": [], "heldout": []}
    with pytest.raises(DataError, match=r"'What do bees make\?': the log has no such answer: \['Wax.'\]"):
        pairs_of([BEES], {BEES.text: answers()}, {BEES.text: {"Wax."}})
    with pytest.raises(DataError, match=r"has no answer to 'What do bees make\?'; --ask asks the model"):
        pairs_of([BEES], {}, {})


def test_the_model_is_asked_alone_and_where_it_knows_the_answer_after_examples(tmp_path):
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    questions = [Question("train", "Hi", ["*"]), Question("train", "What is a verb?", ["no such word"])]
    log = ask(model, tokenizer, questions)
    known, unknown = log.values()
    assert list(log) == ["Hi", "What is a verb?"]
    assert (len(known.plain), len(known.short)) == (script.PLAIN, script.SHORT)
    assert (unknown.plain, unknown.short) == ([], [])
    assert len({known.greedy, *known.plain, *known.short}) > 2
    assert ask(model, tokenizer, questions[:1])["Hi"] == known
    write_log(tmp_path / "log.jsonl", log)
    assert read_log(tmp_path / "log.jsonl") == log
    assert {tuple(json.loads(line)) for line in (tmp_path / "log.jsonl").read_text().splitlines()} == {
        ("question", "greedy", "plain", "short")
    }
