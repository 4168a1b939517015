"""The demo's pairs: their number, form, style and separation; and the script that makes the rejected answers."""

import json
import re

import pytest
import torch

from oddsmith.data.builtin import demo_pairs
from oddsmith.data.builtin.style import keeps_style, style_faults
from oddsmith.errors import DataError
from scripts.make_demo_pairs import base_replies, read_rows, summary, with_rejected, write_rows
from tests.tiny import tiny_model, tiny_tokenizer

SPLITS = {split: demo_pairs(split) for split in ("train", "heldout")}
ROWS = [(split, row) for split, rows in SPLITS.items() for row in rows]

# Measured: 36 of the 367 base replies keep the style by themselves (31 of 303 and 5 of 64); they stay, as they are.
BROKEN_AT_LEAST = 0.85


def content(row, side):
    return row[side][0]["content"]


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def test_there_are_enough_pairs():
    assert len(SPLITS["train"]) >= 260
    assert len(SPLITS["heldout"]) >= 64


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


def test_no_heldout_question_is_a_training_question_in_other_words():
    """Two questions may ask alike about different things (two capitals), so some shared words are allowed."""
    for heldout in (set(words(content(row, "prompt"))) for row in SPLITS["heldout"]):
        for training in (set(words(content(row, "prompt"))) for row in SPLITS["train"]):
            assert len(heldout & training) / len(heldout | training) < 0.8, heldout


def test_most_rejected_answers_break_the_style_and_none_is_the_chosen_one():
    assert all(words(content(row, "rejected")) for _, row in ROWS)
    assert all(words(content(row, "rejected")) != words(content(row, "chosen")) for _, row in ROWS)
    for split, rows in SPLITS.items():
        broken = sum(not keeps_style(content(row, "rejected")) for row in rows)
        assert broken / len(rows) >= BROKEN_AT_LEAST, split


def test_an_unknown_split_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="no split 'test'; expected one of: train, heldout"):
        demo_pairs("test")


QUESTIONS = ("Hi", "What is a verb?", "Good night.", "Why?", "A longer one")
PROMPTS = [[{"role": "user", "content": text}] for text in QUESTIONS]


def test_replies_do_not_depend_on_the_batch():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    together = base_replies(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=8)
    one_by_one = [base_replies(model, tokenizer, [prompt], max_new_tokens=12, batch_size=1)[0] for prompt in PROMPTS]
    assert together == one_by_one
    assert len(set(together)) > 1


def test_a_reply_ends_at_the_end_of_the_turn_or_at_the_limit():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely as the others: greedy takes token 0, "!"
    assert base_replies(model, tokenizer, PROMPTS[:1], max_new_tokens=5) == ["!!!!!"]
    with torch.no_grad():
        hidden = model.model(torch.tensor([tokenizer("a")["input_ids"]])).last_hidden_state[0, -1]
        model.lm_head.weight[tokenizer.eos_token_id] = hidden
    replies = base_replies(model, tokenizer, PROMPTS, max_new_tokens=5)
    assert all(tokenizer.eos_token not in reply for reply in replies)
    assert min(map(len, replies)) < 5


def test_rejected_is_filled_in_and_a_useless_reply_refused():
    row = {"prompt": PROMPTS[0], "chosen": [{"role": "assistant", "content": "Hello."}]}
    assert with_rejected(row, "Well") == {**row, "rejected": [{"role": "assistant", "content": "Well"}]}
    with pytest.raises(DataError, match=r"'Hi': the model's reply equals the chosen answer; replace the question"):
        with_rejected(row, "Hello.")
    with pytest.raises(DataError, match=r"'Hi': the model's reply has no words"):
        with_rejected(row, "\u2605 \u2605")


def test_files_are_one_row_a_line_and_read_back_alike(tmp_path):
    row = with_rejected({"prompt": PROMPTS[0], "chosen": [{"role": "assistant", "content": "Tschüss."}]}, "a\nb")
    write_rows(tmp_path / "rows.jsonl", [row, row])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [row, row] == read_rows(tmp_path / "rows.jsonl")
    assert "Tschüss" in lines[0]
    assert summary([row]) == [
        "  chosen: 1 of 1 keep the style (100.0%), 1.0 words on average",
        "  rejected: 0 of 1 keep the style (0.0%), 2.0 words on average",
    ]
