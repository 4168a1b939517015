"""``oddsmith data make``: pairs from each kind of model and server, whatever ends it in the middle."""

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from oddsmith.cli.main import main
from oddsmith.making import openai_client
from oddsmith.making.log import Log
from tests.command import START, environment, run_here, save_model, save_rows
from tests.forked import fork_server, free_port, redirect_output
from tests.servers import TINY, llama_server, transformers_server, wait_for
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

JUDGE = """
import hashlib, time

def score(prompt, answer):  # no two answers are as good
    return int(hashlib.sha256(answer.encode()).hexdigest()[:6], 16)

def slow(prompt, answer):
    time.sleep(0.05)
    return score(prompt, answer)

def other(prompt, answer):
    return -score(prompt, answer)
"""
QUESTIONS = ["Hi", "How are you?", "What is ORPO?", "Tell me a story.", "Why?", "And then?"]
SETTINGS = ("--samples", 3, "--max-new-tokens", 8, "--choose-unfinished", "--batch-size", 4)
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202eevil" + "x" * 200_000 + "你好"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("make")
    (folder / "mine.py").write_text(JUDGE)
    (folder / "p.txt").write_text("\n".join(QUESTIONS) + "\n")
    save_model(folder / "model", **TINY)
    write_gguf(folder / "tiny.gguf", tiny_model(**TINY), tiny_tokenizer(), merges=["Ā ā"])
    torch.manual_seed(31)
    tuned = get_peft_model(tiny_model(**TINY), LoraConfig(target_modules="all-linear", init_lora_weights=False, r=1))
    tuned.peft_config["default"].base_model_name_or_path = str(folder / "model")
    tuned.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def command(output, *words, judge="python:mine:score", settings=SETTINGS):
    return ("data", "make", "p.txt", "--judge", judge, "--output", output, *settings, *words)


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def log_of(output) -> list[dict]:
    return rows_of(Path(output).with_suffix(".log.jsonl"))


def require_each_once(output, expected: int) -> None:
    """Every answer and every score stands in the log once."""
    for event in ("answer", "score"):
        keys = [(line["question"], line["model"], line["sample"]) for line in log_of(output) if line["event"] == event]
        assert len(keys) == len(set(keys)) == expected


@pytest.mark.parametrize("model", ["model", "adapter", "tiny.gguf"])
def test_a_model_answers_and_the_better_answers_are_chosen(model, capsys, tmp_path):
    output = tmp_path / "new" / "pairs.jsonl"
    done = run_here(capsys, *command(output, "--model", model))
    assert done.code == 0, done.err
    require_each_once(output, 18)
    scores = {
        line["text"]: int(hashlib.sha256(line["text"].encode()).hexdigest()[:6], 16) for line in log_of(output)[1:19]
    }
    rows = rows_of(output)
    assert [row["prompt"] for row in rows] == [[{"role": "user", "content": text}] for text in QUESTIONS]
    for row in rows:
        chosen, rejected = (scores[row[side][0]["content"]] for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (row["score_chosen"], row["score_rejected"])
        assert chosen > rejected
    for text in ("6 pairs of 6 prompts", "18 answers", "data check: ", "margin", "█", f"--model-name-or-path {model}"):
        assert text in done.out
    before = output.read_bytes()
    again = run_here(capsys, *command(output, "--model", model))
    assert (again.code, again.out) == (0, done.out)
    assert f"{model} answers" not in again.err
    assert output.read_bytes() == before


def test_several_models_and_given_answers_compete(capsys, tmp_path, folder):
    rows = [{"prompt": text, "answer": f"given {text}"} for text in QUESTIONS]
    rows[0]["model"] = "model"  # wrote this one before
    given = save_rows(tmp_path / "given.jsonl", rows)
    done = run_here(
        capsys, *command(tmp_path / "o.jsonl", "--model", "model", "--model", "tiny.gguf", "--answers", given)
    )
    assert done.code == 0, done.err
    models = [line["model"] for line in log_of(tmp_path / "o.jsonl") if line["event"] == "answer"]
    names = ("model", "tiny.gguf", "given.jsonl", "model (given.jsonl)")
    assert [models.count(name) for name in names] == [18, 18, 5, 1]


def test_hostile_answers_reach_the_pairs_and_not_the_terminal(capsys, tmp_path):
    answers = [HOSTILE, "\x1b[31mred", "\u202eback"]
    rows = [{"prompt": "\x1b]8;;http://evil\x07Hi", "answers": answers}]
    given = save_rows(tmp_path / "\x1b[31mgiven.jsonl", rows)
    output = tmp_path / "o.jsonl"
    words = ("data", "make", "--answers", given, "--judge", "python:mine:score", "--output", output)
    done = run_here(capsys, *words)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out + done.err
    (row,) = rows_of(output)
    assert row["prompt"][0]["content"] == rows[0]["prompt"]
    assert {row[side][0]["content"] for side in ("chosen", "rejected")} < set(answers)
    document = run_here(capsys, *words, "--json")
    assert json.loads(document.out)["pairs"] == 1
    assert "\x1b" not in document.out


def test_answers_that_are_alike_give_no_pairs_in_one_line(capsys, tmp_path):
    given = save_rows(
        tmp_path / "given.jsonl", [{"prompt": "Hi", "answers": ["A", "A "]}, {"prompt": "Why", "answer": "B"}]
    )
    words = ("data", "make", "--answers", given, "--judge", "python:mine:score", "--output", tmp_path / "o.jsonl")
    done = run_here(capsys, *words)
    assert done.code == 2
    assert "error: none of 2 prompts gives a pair: 1 answers all alike, 1 one answer only; " in done.err
    assert not (tmp_path / "o.jsonl").exists()


def start(words, log: Path, first_wait_s: float = 1.0):
    """Run the command in a process of its own, with its output in ``LOG``."""
    process = fork_server().Process(target=_run, args=([str(word) for word in words], log, first_wait_s))
    process.start()
    return process


def _run(words: list[str], log: Path, first_wait_s: float) -> None:
    redirect_output(log)
    openai_client.FIRST_WAIT_S = first_wait_s
    main(words)


def wait_for_lines(process, output, lines: int) -> None:
    """Wait until the log has so many lines more than now, or the process has ended."""
    path = Path(output).with_suffix(".log.jsonl")

    def count() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    until = count() + lines
    while process.is_alive() and count() < until:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("model", "kills"),
    [
        ("model", (5, 16)),
        pytest.param("model", (1, 6, 9, 10), marks=pytest.mark.slow),
        pytest.param("tiny.gguf", (1, 6, 9, 10), marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_ends_with_the_same_pairs(model, kills, capsys, tmp_path):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    done = run_here(capsys, *command(whole, "--model", model))
    assert done.code == 0, done.err
    words = command(output, "--model", model)
    for lines in kills:  # while it answers, and while it judges
        process = start(words, tmp_path / "out")
        wait_for_lines(process, output, lines)
        process.kill()
        process.join()
    done = run_here(capsys, *words)
    assert done.code == 0, done.err
    assert output.read_bytes() == whole.read_bytes()
    require_each_once(output, 18)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_it_cleanly(number, capsys, tmp_path):
    output = tmp_path / "o.jsonl"
    words = command(output, "--model", "model", judge="python:mine:slow")
    process = start(words, tmp_path / "out")
    wait_for_lines(process, output, 22)
    os.kill(process.pid, number)
    process.join(20)
    said = (tmp_path / "out").read_text()
    assert process.exitcode == 75, said
    kept = f"{output.with_suffix('.log.jsonl')} keeps 18 of 18 answers and what was scored"
    assert said.splitlines()[-1] == f"interrupted: {kept}; the same command goes on"
    assert run_here(capsys, *words).code == 0
    require_each_once(output, 18)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--model", "model", "--temperature", "0.5"),
            "was begun with --temperature 0.8, and this is 0.5; give the same again",
        ),
        (("--model", "model", "--samples", "4"), "was begun with --samples 3, and this is 4; give the same again"),
        (("--model", "model", "--limit", "3"), "was begun with prompts 6 ("),
        (("--model", "model", "--system-prompt", "Rhyme."), "was begun with prompts 6 ("),
        (("--model", "tiny.gguf"), "was begun with --model tiny.gguf none, and this is with the weights"),
    ],
)
def test_other_settings_than_those_of_the_log_are_refused(words, message, capsys, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "refused"
    output = folder / "o.jsonl"
    if not output.exists():
        assert run_here(capsys, *command(output, "--model", "model")).code == 0
    before = output.with_suffix(".log.jsonl").read_bytes()
    done = run_here(capsys, *command(output, *words))
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert output.with_suffix(".log.jsonl").read_bytes() == before


def test_pairs_are_chosen_anew_from_the_log_and_a_new_judge_is_asked(capsys, tmp_path):
    output = tmp_path / "o.jsonl"
    assert run_here(capsys, *command(output, "--model", "model")).code == 0
    done = run_here(capsys, *command(output, "--model", "model", "--pairing", "all", judge="python:mine:other"))
    assert done.code == 0, done.err
    assert len(rows_of(output)) == 18
    assert "model answers" not in done.err


def test_a_judge_that_judges_otherwise_than_before_is_asked_again(capsys, tmp_path):
    output, rules = tmp_path / "o.jsonl", tmp_path / "rules.yaml"
    given = command(output, "--model", "model", judge=f"rule:{rules}")
    seen = []
    for rule in ("regex: '[A-Z]'", "regex: '[A-Z]'", "not_regex: '[A-Z]'"):
        rules.write_text(rule)
        assert run_here(capsys, *given).code == 0
        seen.append([line["value"] for line in log_of(output) if line["event"] == "score"])
    assert seen[0] == seen[1]
    assert seen[2] == [*seen[0], *(1 - value for value in seen[0])]


def test_two_processes_on_one_log_are_refused(capsys, tmp_path):
    output = tmp_path / "o.jsonl"
    assert run_here(capsys, *command(output, "--model", "model")).code == 0
    settings = log_of(output)[0]["settings"]
    with Log(output.with_suffix(".log.jsonl"), settings):
        done = run_here(capsys, *command(output, "--model", "model"))
    assert done.code == 2
    assert "another process is making these pairs; wait for it or end it" in done.err


def test_pairs_of_something_else_are_not_replaced(capsys, tmp_path):
    output = save_rows(tmp_path / "o.jsonl", [{"prompt": "mine"}])
    done = run_here(capsys, *command(output, "--model", "model"))
    assert (done.code, rows_of(output)) == (2, [{"prompt": "mine"}])
    assert "is there already; choose another name, or replace it with --overwrite" in done.err
    assert run_here(capsys, *command(output, "--model", "model", "--overwrite")).code == 0
    assert len(rows_of(output)) == 6


class Odd(ThreadingHTTPServer):
    """A server that answers as a script says; request number N is answered by ``script(N, body)``.

    A script returns (status, headers, body), or None to break off.
    """

    daemon_threads = True

    def __init__(self, script: Callable[[int, dict], tuple[int, dict, bytes] | None]):
        self.script, self.asked, self.lock = script, [], threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
            number = len(self.server.asked)
        found = self.server.script(number, body)
        if found is None:
            self.close_connection = True
            return
        status, headers, content = found
        self.send_response(status)
        for name, value in {**headers, "content-length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass


@contextmanager
def odd_server(script) -> Iterator[tuple[str, list]]:
    server = Odd(script)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", server.asked
    server.shutdown()
    server.server_close()


def reply(text: str) -> tuple[int, dict, bytes]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode()


def echo(number: int, body: dict) -> tuple[int, dict, bytes]:
    return reply(f"{body['messages'][-1]['content']} {body['seed']}")


def test_a_server_that_misbehaves_is_asked_again(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-very-secret-key-0123456789")
    faults = {  # of the first requests, which are open together
        1: (429, {"retry-after": "1"}, b"{}"),
        2: (503, {}, b"busy"),
        3: (200, {}, b"\x1b[2J<html>rubbish"),
        4: None,
        5: (200, {}, b'{"choices": []}'),
    }

    def script(number, body):
        if number == 6:
            return reply("\x1b]0;owned\x07\u202e")
        return faults[number] if number in faults else echo(number, body)

    output = tmp_path / "o.jsonl"
    with odd_server(script) as (url, asked):
        done = run_here(capsys, *command(output, "--model", "m", "--server", url))
    assert done.code == 0, done.err
    require_each_once(output, 18)
    assert len(asked) == 18 + len(faults)
    headers, body = asked[0]
    assert headers["authorization"] == "Bearer sk-a-very-secret-key-0123456789"
    expected = {"model": "m", "temperature": 0.8, "top_p": 0.95, "max_tokens": 8, "seed": body["seed"]}
    assert body == {**expected, "messages": [{"role": "user", "content": "Hi"}]}
    assert len({body["seed"] for _, body in asked}) == 18
    written = [path.read_text() for path in tmp_path.iterdir()] + [done.out, done.err]
    assert not any("very-secret" in text or "\x1b" in text for text in written)


def test_a_server_that_dies_is_one_line_and_what_there_is_can_be_paired(capsys, tmp_path):
    output = tmp_path / "o.jsonl"
    port = []

    def script(number, body):
        return echo(number, body) if number <= 7 else (403, {}, b'{"error": {"message": "no more\x1b[2J"}}')

    with odd_server(script) as (url, asked):
        words = command(output, "--model", "m", "--server", url, "--concurrency", 1)
        done = run_here(capsys, *words)
        assert done.code == 1
        assert len([line for line in done.err.splitlines() if line.startswith("error")]) == 1
        assert "keeps 7 of 18 answers: the same command goes on, --pair-only pairs what there is" in done.err
        assert "\x1b" not in done.err
        assert not output.exists()
        port.append(len(asked))
        done = run_here(capsys, *words, "--pair-only")
        assert done.code == 0, done.err
        assert len(asked) == port[0]
        assert len(rows_of(output)) == 2  # two prompts have three answers, the next one has one


def test_prompts_that_a_server_refuses_are_counted(capsys, tmp_path):
    def script(number, body):
        refused = body["messages"][-1]["content"] == "Why?"
        return (400, {}, b'{"error": {"message": "too long"}}') if refused else echo(number, body)

    with odd_server(script) as (url, asked):
        done = run_here(capsys, *command(tmp_path / "o.jsonl", "--model", "m", "--server", url))
        assert done.code == 0, done.err
        assert "3 not given  server refuses the prompt" in done.out
        assert len(rows_of(tmp_path / "o.jsonl")) == 5
        run_here(capsys, *command(tmp_path / "o.jsonl", "--model", "m", "--server", url))
        assert len(asked) == 18


def test_a_server_that_refuses_everything_is_an_error(capsys, tmp_path):
    with odd_server(lambda number, body: (400, {}, b'{"error": "seed is unknown"}')) as (url, asked):
        done = run_here(capsys, *command(tmp_path / "o.jsonl", "--model", "m", "--server", url, "--concurrency", 1))
    assert done.code == 1
    assert "answers none of the first prompts" in done.err
    assert "seed is unknown" in done.err
    assert len(asked) == 8


def test_llama_cpp_s_server_answers(capsys, tmp_path):
    pytest.importorskip("xllamacpp")
    settings = ("--samples", 2, "--max-new-tokens", 8, "--choose-unfinished", "--limit", 3)
    with llama_server(tmp_path) as (port, name):
        words = ("--model", name, "--server", f"http://127.0.0.1:{port}/v1")
        done = run_here(capsys, *command(tmp_path / "o.jsonl", *words, settings=settings))
        assert done.code == 0, done.err
        run_here(capsys, *command(tmp_path / "again.jsonl", *words, "--concurrency", 1, settings=settings))
    require_each_once(tmp_path / "o.jsonl", 6)
    answers = [
        {(line["question"], line["sample"]): line["text"] for line in log_of(tmp_path / name)[1:7]}
        for name in ("o.jsonl", "again.jsonl")
    ]
    # The seed draws the same; a token that was a close call may differ, since others were computed beside it.
    assert sum(text == answers[1][key] for key, text in answers[0].items()) >= 4


@pytest.mark.slow
def test_a_second_round_is_made_with_the_model_that_the_first_has_trained(capsys, tmp_path):
    recipe, output = tmp_path / "short.yaml", tmp_path / "o.jsonl"
    recipe.write_text("max_steps: 2\nlearning_rate: 0.01\nbf16: false\nuse_cpu: true\nmax_length: 64\n")
    words = command(output, "--model", "model", "--rounds", 2, "--recipe", recipe)
    done = run_here(capsys, *words)
    assert done.code == 0, done.err
    run = tmp_path / "o.round-1"
    first, second = (log_of(tmp_path / name) for name in ("o.round-1.jsonl", "o.jsonl"))
    assert {line["model"] for line in first[1:]} == {"model"}
    assert {line["model"] for line in second[1:]} == {str(run)}
    assert [line["text"] for line in first[1:19]] != [line["text"] for line in second[1:19]]
    assert len(rows_of(output)) == len(rows_of(tmp_path / "o.round-1.jsonl")) == 6
    again = run_here(capsys, *words)
    assert again.code == 0, again.err
    assert "oddsmith train" not in again.err
    recipe.write_text("max_steps: many\n")
    failed = run_here(capsys, *command(tmp_path / "f.jsonl", "--model", "model", "--rounds", 2, "--recipe", recipe))
    assert failed.code == 1
    assert "the training in" in failed.err
    assert "ended with exit code 2; mend what it says above, and start again" in failed.err


@pytest.mark.slow
def test_transformers_server_answers(capsys, tmp_path):
    pytest.importorskip("fastapi")
    with transformers_server(tmp_path) as (port, name, _):
        words = ("--model", name, "--server", f"http://127.0.0.1:{port}/v1", "--concurrency", 2)
        done = run_here(capsys, *command(tmp_path / "o.jsonl", *words, "--pairing", "all"))
    assert done.code in (0, 2), done.err
    answers = [line for line in log_of(tmp_path / "o.jsonl") if line["event"] == "answer"]
    assert len(answers) == 18


@pytest.mark.slow
def test_a_real_server_is_killed_and_comes_back(capsys, tmp_path, folder):
    port = free_port()
    serve = [*START, "serve", str(folder / "tiny.gguf"), "--port", str(port)]
    settings = ("--samples", 20, "--max-new-tokens", 1000, "--choose-unfinished", "--limit", 3)
    output = tmp_path / "o.jsonl"
    words = command(output, "--model", "tiny", "--server", f"http://127.0.0.1:{port}/v1", settings=settings)
    server = subprocess.Popen(serve, stderr=subprocess.DEVNULL, env=environment())
    wait_for(port)
    process = start(words, tmp_path / "out", first_wait_s=0.05)
    wait_for_lines(process, output, 5)
    server.kill()
    server.wait()
    process.join(60)
    said = (tmp_path / "out").read_text()
    assert process.exitcode == 1, said
    assert "--pair-only pairs what there is" in said.splitlines()[-1]
    before = log_of(output)
    assert 5 <= len(before) < 61
    server = subprocess.Popen(serve, stderr=subprocess.DEVNULL, env=environment())
    try:
        wait_for(port)
        done = run_here(capsys, *words)
        assert done.code == 0, done.err
    finally:
        server.terminate()
        server.wait(20)
    require_each_once(output, 60)
    assert log_of(output)[: len(before)] == before
