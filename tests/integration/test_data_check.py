"""``oddsmith data check``: its table, exit codes, JSON and cleaned sets; without a model torch is not loaded."""

import json
import re
import subprocess
import sys

import pyarrow.parquet
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.command import environment, run_forked, run_here, save_model, save_rows
from tests.pairs import assistant, merging_tokenizer, user
from tests.terminal import Terminal
from tests.tiny import CHATML, ragged_pairs, tiny_model, tiny_tokenizer
from tests.unit.data.checks.test_survey import FAULTY, GOOD


@pytest.fixture
def faulty(tmp_path):
    return save_rows(tmp_path / "pairs.jsonl", [*GOOD, *(row for rows, _ in FAULTY.values() for row in rows)])


def test_good_pairs_end_with_0(capsys):
    code, out, err = run_here(capsys, "data", "check", "builtin:house-style", "--all")
    assert (code, err) == (0, "")
    assert "builtin:house-style: 103 rows (conversational)" in out
    assert re.search(r"^  warn  length bias\n        mean 48 characters chosen, 406 rejected, -88%", out, re.MULTILINE)
    assert re.search(r"^  pass  conflicting pairs$", out, re.MULTILINE)
    assert "not checked without --model: control tokens of this tokenizer" in out
    assert "row 0, as its row has it" in out
    assert "What is the capital of France?" in out


def test_a_failed_check_ends_with_3_and_says_what_where_and_what_to_do(capsys, monkeypatch, faulty):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(faulty.parent)  # the first line begins with the path, however long that is
    code, out, _ = run_here(capsys, "data", "check", faulty.name)
    assert code == 3
    start = len(GOOD)
    assert out.startswith("fail  (")
    assert re.split(r"\n +", re.sub(r" +", " ", out))[1:4] == [
        f"fail format 4 ({4 / len(faulty.read_text().splitlines()):.1%})",
        "null value 1, response is not text 1, missing column 1, invalid Unicode 1",
        f"rows {start}, {start + 1}, {start + 2}, {start + 3}",
    ]
    assert "        these rows are not preference pairs (a column is missing" in out
    assert "        -> repair them, or leave them out: --fix" in out
    assert re.search(r"^fail  \(\d fail, \d+ warn, \d pass\)$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 120


def test_what_passes_is_one_line_unless_all_is_asked_for(capsys):
    out = run_here(capsys, "data", "check", "builtin:house-style").out
    found = re.fullmatch(r"warn  \(0 fail, \d warn, (\d+) pass\)", out.splitlines()[0])
    assert found
    assert re.search(
        rf"^  {found[1]} checks passed \(--all lists them\); \d+ with --model, .* with --benchmark were not made$",
        out,
        re.MULTILINE,
    )
    assert "  pass  " not in out
    assert "not checked without" not in out
    every = run_here(capsys, "data", "check", "builtin:house-style", "--all").out
    assert len(re.findall(r"^  pass  ", every, re.MULTILINE)) == int(found[1])


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        ([(9, 4)], "one pair has no variance, so there is no Cohen's d"),
        ([(9, 4)] * 12, "all answers of a side are equally long, so there is no variance and no Cohen's d"),
        ([(7, 7)] * 12, "no two answers differ in length"),
        ([(9, 4), (8, 4)] * 6, "Cohen's d +12.73"),
    ],
)
def test_lengths_without_variance_are_said_to_have_none(capsys, tmp_path, monkeypatch, lengths, said):
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        {"prompt": f"Question {number}?", "chosen": chr(97 + number) * w, "rejected": chr(65 + number) * r}
        for number, (w, r) in enumerate(lengths)
    ]
    out = run_here(capsys, "data", "check", save_rows(tmp_path / "pairs.jsonl", rows), "--all").out
    assert said in " ".join(out.split())
    assert "Cohen's d +0.00" not in out


def test_json_is_one_document(faulty):
    code, out, err = run_forked("data", "check", faulty, "--json")
    assert (code, err) == (3, "")
    found = json.loads(out)
    assert (found["command"], found["verdict"], found["kept"]) == ("data check", "fail", None)
    names = {finding["check"]: finding for finding in found["findings"]}
    assert set(names["format"]) == {"check", "verdict", "count", "share", "rows", "found", "meaning", "fix"}
    assert names["format"]["rows"] == [40, 41, 42, 43]
    assert found["skipped"]["doubled BOS"] == "--model"
    assert found["example"]["row"] == 0


def test_the_fixed_set_passes(capsys, faulty, tmp_path):
    target = tmp_path / "clean.jsonl"
    code, out, _ = run_here(capsys, "data", "check", faulty, "--fix", target)
    assert code == 3  # the verdict is on what was checked
    kept = len(target.read_text(encoding="utf-8").splitlines())
    assert re.search(rf"clean\.jsonl: {kept} rows, \d+ left out\n  4 format\n", out)
    assert run_here(capsys, "data", "check", target).code == 0
    again = run_here(capsys, "data", "check", faulty, "--fix", target)
    assert again.code == 2
    assert "is there already; choose another name" in again.err


def test_with_a_model(capsys, tmp_path):
    model = save_model(tmp_path / "model", CHATML)
    rows = [*ragged_pairs(30), {"prompt": "a", "chosen": "b <|im_end|> c", "rejected": "d"}]
    data, target = save_rows(tmp_path / "pairs.jsonl", rows), tmp_path / "clean.jsonl"
    words = ("data", "check", data, "--model", model, "--max-length", 160, "--scored-pairs", 10, "--all")
    code, out, _ = run_here(capsys, *words)
    assert code == 3
    assert "31 rows (standard), 31 kept by the training" in out
    assert "identical after truncation" in out
    assert "row 1, what is learned in [brackets]" in out or "row 0, what is learned in [brackets]" in out
    assert re.search(r"model on 10 pairs\n  prefers the chosen answer in \d+%; log-odds [+-]\d\.\d+ on average", out)
    assert len(re.findall(r"^  row \d+  log-odds ", out, re.MULTILINE)) == 10
    document = json.loads(run_here(capsys, *words, "--json", "--fix", target).out)
    assert document["preference"]["pairs"] == 10
    assert len(document["preference"]["surprising"]) == 10
    assert document["fixed"]["left_out"]["control tokens of this tokenizer"] == [30]
    assert run_here(capsys, *words[:2], target, *words[3:-2], 0).code == 0


def test_colours_show_the_mask_on_a_terminal(tmp_path):
    model = save_model(tmp_path / "model", CHATML)
    data = save_rows(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "yes", "rejected": "no"}] * 2)
    colours = {**environment(), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    code, out, err = run_forked("data", "check", data, "--model", model, "--scored-pairs", 0, env=colours)
    assert code == 0, err
    assert "\x1b[32myes<|im_end|>\x1b[0m" in out
    assert "\x1b[31mno<|im_end|>\x1b[0m" in out
    assert "[yes" not in out


def test_what_would_steer_a_terminal_is_written_out(capsys, tmp_path):
    data = save_rows(tmp_path / "pairs.jsonl", [{"prompt": "a\x1b[2Jb", "chosen": "c\x07", "rejected": "d\x9b1m"}])
    out = run_here(capsys, "data", "check", data).out
    assert "a\\x1b[2Jb" in out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)


def test_evaluation_set_and_benchmark(capsys, tmp_path):
    data, evaluation = save_rows(tmp_path / "a.jsonl", GOOD), save_rows(tmp_path / "b.jsonl", GOOD[5:7])
    benchmark = save_rows(tmp_path / "bench.jsonl", [{"question": GOOD[9]["prompt"][0]["content"]}])
    words = ("data", "check", data, "--eval-dataset-name", evaluation, "--benchmark", benchmark, "--json")
    code, out, _ = run_here(capsys, *words)
    names = {finding["check"]: finding for finding in json.loads(out)["findings"]}
    assert code == 3
    assert names["prompts of the evaluation set"]["rows"] == [5, 6]
    assert names["text of the benchmark"]["rows"] == [9]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no dataset is given; expected oddsmith data check DATASET"),
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["builtin:house-style", "--max-length", "9"], "--max-length counts what a model sees; name it with --model"),
        (["builtin:house-style", "--model", "m", "--max-length", "0"], "--max-length is 0; expected 1 or more"),
        (["builtin:house-style", "--fix", "a.txt"], "give a name that ends in .jsonl"),
        (["builtin:house-style", "--dataset-test-split", "x"], "name it with --eval-dataset-name"),
        (["builtin:house-style", "--limit", "9"], "unknown flag --limit"),
    ],
)
def test_bad_usage_is_one_line_and_2(capsys, words, message):
    code, out, err = run_here(capsys, "data", "check", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_broken_line_is_named(capsys, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n', encoding="utf-8")
    code, _, err = run_here(capsys, "data", "check", file)
    assert code == 2
    assert "pairs.jsonl, line 2, column 11: not JSON" in err


@pytest.mark.parametrize("words", [[], ["--json"]])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_without_a_model_torch_is_not_loaded(tmp_path, kind, words):
    data = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        save_rows(data, ragged_pairs(20))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ragged_pairs(20)), data)
    code = (
        "import atexit, sys\n"
        "from oddsmith.cli.main import main\n"
        "atexit.register(lambda: print('LOADED', 'torch' in sys.modules))\n"
        f"main(['data', 'check', {str(data)!r}, *{words!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode in (0, 3), done.stderr
    assert done.stdout.rstrip().endswith("LOADED False")


def test_a_terminal_sees_how_far_it_is(tmp_path):
    data = save_rows(tmp_path / "pairs.jsonl", GOOD * 50)
    with Terminal("data", "check", data, columns=100) as terminal:
        terminal.wait_for(r"checking \S+ [\d,]+ rows \d:\d\d:\d\d")
        terminal.wait_for(r"(pass|warn)  \(0 fail")
        assert terminal.end() == 0
    assert "\x1b[1;33mwarn" in terminal.raw


def test_rows_that_the_model_cannot_read_fail_and_are_not_scored(capsys, tmp_path):
    model = save_model(
        tmp_path / "model", model=tiny_model(vocab_size=258), tokenizer=tiny_tokenizer(extra_special=("<extra>",))
    )
    rows = [*ragged_pairs(6), {"prompt": "Why?", "chosen": " <extra>", "rejected": " No."}]
    code, out, _ = run_here(capsys, "data", "check", save_rows(tmp_path / "p.jsonl", rows), "--model", model)
    assert code == 3
    assert re.search(r"fail  tokens without embedding +1 ", out)
    assert "token 258 ('<extra>') of 258 embeddings 1" in out
    assert f"{model} on 6 pairs" in out


def test_more_tokens_than_positions_fail_unless_they_are_cut(capsys, tmp_path):
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 256, "eos_token_id": 257}
    model = save_model(tmp_path / "model", model=GPT2LMHeadModel(GPT2Config(vocab_size=264, **sizes)))
    rows = [*ragged_pairs(6), {"prompt": "Why?", "chosen": 100 * "x", "rejected": " No."}]
    words = ["data", "check", save_rows(tmp_path / "p.jsonl", rows), "--model", model]
    code, out, _ = run_here(capsys, *words)
    assert code == 3
    assert re.search(r"fail  more tokens than positions", out)
    assert "more than 64 tokens" in out
    code, out, _ = run_here(capsys, *words, "--max-length", 64, "--all")
    assert re.search(r"pass  more tokens than positions", out)


def test_a_base_model_with_the_chat_template_and_system_message_of_the_training(capsys, tmp_path):
    model = save_model(tmp_path / "model", model=tiny_model(vocab_size=260), tokenizer=merging_tokenizer())
    rows = [
        {"prompt": [user(f"{n}?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No!")]} for n in range(6)
    ]
    words = ["data", "check", save_rows(tmp_path / "p.jsonl", rows), "--model", model, "--json"]
    code, out, _ = run_here(capsys, *words, "--chat-template", "chatml", "--system-prompt", "Be kind.")
    found = json.loads(out)
    assert found["example"]["prompt"].startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n0?")
    assert found["preference"]["pairs"] == 6
    assert not [check for check in found["findings"] if "template" in check["check"] and check["verdict"] != "pass"]
    code, out, _ = run_here(capsys, *words)
    assert (code, "has no chat template" in out) == (2, True)
