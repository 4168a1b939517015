"""``oddsmith data make`` with each judge, on answers that are there already: what is scored, counted and kept."""

import json
from pathlib import Path

import pytest

from oddsmith.model.loading.builtin import _packaged_gguf
from tests.chat_server import Answer, chat_server
from tests.command import run_here, save_rows
from tests.servers import llama_server

QUESTIONS = ("one", "two", "three", "four")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Q {name}", "answers": ["+", "+++", "++"], "max_characters": 2} for name in QUESTIONS]
    save_rows(tmp_path / "given.jsonl", rows)


def make(capsys, *judges, words=()):
    names = [word for judge in judges for word in ("--judge", judge)]
    return run_here(capsys, "data", "make", "--answers", "given.jsonl", "--output", "pairs.jsonl", *names, *words)


def chosen():
    rows = map(json.loads, Path("pairs.jsonl").read_text().splitlines())
    return [tuple(row[side][0]["content"] for side in ("chosen", "rejected")) for row in rows]


def in_json(**values):
    return Answer(json.dumps({"reason": "", **values}))


def longest(body):
    """Compare two answers, or rate one, by their plus signs."""
    shown = [text.count("+") for text in body["messages"][1]["content"].split("<answer")[1:]]
    if len(shown) == 1:
        return in_json(score=shown[0])
    return in_json(verdict="A" if shown[0] > shown[1] else "B")


def test_judges_together_weigh_what_each_says(capsys):
    with chat_server(longest) as served:
        done = make(capsys, "rule=3", f"rubric:m@{served.url}")
        assert done.code == 0, done.err
        assert "--model-name-or-path MODEL --dataset-name pairs.jsonl" in done.out  # a file of answers is none
        assert chosen() == [("++", "+++")] * 4  # the rule forbids three characters, and counts three times
        asked = len(served.bodies)
        again = make(capsys, "rule=0.1", f"rubric:m@{served.url}")
        assert again.code == 0, again.err
        assert chosen() == [("+++", "+")] * 4
        assert len(served.bodies) == asked  # another weight asks nobody again
    card = Path("pairs.card.md").read_text()
    assert served.url not in card
    assert "rubric&#58;m" in card


def test_a_judge_that_dies_keeps_what_it_said_and_that_can_be_paired(capsys, monkeypatch):
    monkeypatch.setattr("oddsmith.making.openai_client.FIRST_WAIT_S", 0.01)
    asked = []

    def dying(body):
        asked.append(body)
        return longest(body) if len(asked) <= 12 else Answer(status=500)

    with chat_server(dying) as served:
        judge = f"judge:m@{served.url}"
        ended = make(capsys, judge, words=("--concurrency", "1"))
    assert ended.code == 1
    assert ended.err.count("error: ") == 1
    assert "answers 500" in ended.err
    assert "the same command goes on, --pair-only pairs what there is" in ended.err
    done = make(capsys, judge, words=("--pair-only",))  # nobody listens there any more
    assert done.code == 0, done.err
    assert "cannot be reached" in done.err
    assert "pairs are made of what is scored" in done.err
    assert chosen() == [("+++", "+")] * 2


def test_no_judge_is_asked_the_same_twice_whenever_it_is_ended(capsys, monkeypatch):
    """Ended in the middle of a question and started again, each comparison was put to the judge once."""
    monkeypatch.setattr("oddsmith.making.openai_client.FIRST_WAIT_S", 0.01)
    answered, is_ill = [], True

    def answer(body):
        if is_ill and len(answered) == 15:
            return Answer(status=500)
        answered.append(body["messages"][1]["content"])
        return longest(body)

    with chat_server(answer) as served:
        judge = f"judge:m@{served.url}"
        assert make(capsys, judge, words=("--concurrency", "1")).code == 1
        is_ill = False
        done = make(capsys, judge)
    assert done.code == 0, done.err
    assert len(answered) == len(set(answered)) == 4 * 6
    assert chosen() == [("+++", "+")] * 4


def test_a_function_is_asked_about_an_answer_once(capsys, tmp_path):
    (tmp_path / "mine_once.py").write_text(
        "from pathlib import Path\n\n\ndef score(prompt, answer):\n"
        "    asked = Path('asked.txt')\n    before = asked.read_text().splitlines() if asked.exists() else []\n"
        "    if len(before) == 5 and not Path('go-on').exists():\n        raise SystemExit(1)\n"
        "    asked.write_text('\\n'.join([*before, prompt + answer]) + '\\n')\n    return len(answer)\n"
    )
    assert make(capsys, "python:mine_once:score").code == 2
    (tmp_path / "go-on").touch()
    done = make(capsys, "python:mine_once:score")
    assert done.code == 0, done.err
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert len(asked) == len(set(asked)) == 12


def test_a_judge_that_lies_gives_no_pair_and_shows_its_bias(capsys):
    with chat_server(lambda body: in_json(verdict="B")) as served:
        done = make(capsys, f"judge:m@{served.url}")
    assert done.code == 2
    assert "none of 4 prompts gives a pair: 4 tie" in done.err
    assert "12 verdicts that changed with the order" in done.err


def test_what_no_judge_could_tell_is_said_where_nothing_is_left(capsys):
    with chat_server(lambda body: Answer("rubbish \x1b[2J")) as served:
        done = make(capsys, f"rubric:m@{served.url}")
    assert done.code == 2
    assert "4 fewer than two answers could be scored; 12 unreadable verdicts" in done.err
    assert "\x1b" not in done.err


def test_a_name_that_is_no_judge_makes_no_file(capsys):
    done = make(capsys, "rules")
    assert done.code == 2
    assert "the judge 'rules' is unknown" in done.err
    assert not list(Path().glob("pairs*"))


@pytest.mark.slow
def test_llama_cpp_s_server_enforces_verdicts(capsys, tmp_path):
    """A model that is far too small to judge: without the server's grammar few of its replies would be verdicts."""
    save_rows(tmp_path / "given.jsonl", [{"prompt": "What is 2 + 2?", "answers": ["4", "Bananas."]}])
    file, _ = _packaged_gguf("smollm2-135m-instruct")
    with llama_server(tmp_path, file) as (port, name):
        make(capsys, f"rubric:{name}@http://127.0.0.1:{port}/v1")
    lines = map(json.loads, (tmp_path / "pairs.log.jsonl").read_text().splitlines())
    scores = [line for line in lines if line["event"] == "score"]
    assert [line["counts"] for line in scores] == [{}, {}]  # nothing was unreadable or refused
    assert all(line["value"] in range(1, 11) for line in scores)
