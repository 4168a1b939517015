"""The comparison with TRL, at toy size: a tiny random model, short pairs, two steps."""

import importlib
import json
import sys
from xml.etree import ElementTree

import pytest

from tests.command import save_model
from tests.tiny import ragged_pairs, tiny_model


@pytest.fixture(scope="module")
def versus_trl(benchmarks):
    return importlib.import_module("versus_trl")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def in_this_process(module, request, answer):
    """What ``versus_trl.process`` does, without the seconds that a fresh Python needs to load torch."""
    request_file = answer.with_suffix(".request.json")
    request_file.write_text(json.dumps(request), encoding="utf-8")
    importlib.import_module(f"versus.{module}").main(str(request_file), str(answer))
    return json.loads(answer.read_text(encoding="utf-8"))


def conversation(row):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


@pytest.fixture(scope="module")
def document(versus_trl, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    data = folder / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(conversation(row)) for row in ragged_pairs(12)), encoding="utf-8")
    words = ["--work", "dpo-lora-fp32", "--model", str(model_folder), "--data", str(data), "--steps", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(versus_trl, "process", in_this_process)
        return versus_trl.measure(versus_trl.arguments(words), folder)


def test_both_trainers_train_on_the_same_and_agree(document):
    assert document["differences"] == []
    assert list(document["trainers"]) == ["ours", "trl-default", "trl-best", "trl-split"]
    for run in document["runs"]:
        assert len(run["loss"]) == len(run["step_s"]) == 2
        assert min(run["step_s"]) > 0
        assert run["peak_bytes"] >= run["before_bytes"] > 2**20
    counted = [step["padded_tokens"] for step in document["step_counts"]]
    computed = {run["trainer"]: run["computed_tokens"] for run in document["runs"]}
    assert computed["trl-default"] == computed["trl-best"] == counted
    for step in document["step_counts"]:
        assert step["forest_tokens"] < step["packed_tokens"] < step["padded_tokens"]


def test_tables_results_file_and_plot(versus_trl, document, tmp_path, monkeypatch, capsys):
    measured, results, drawing = tmp_path / "a.json", tmp_path / "results.md", tmp_path / "speed.svg"
    measured.write_text(json.dumps(document), encoding="utf-8")
    words = ["--from", str(measured), "--output", str(results), "--plot", str(drawing)]
    monkeypatch.setattr(sys, "argv", ["versus_trl.py", *words])
    assert versus_trl.main() == 0
    assert "| Oddsmith " in capsys.readouterr().out
    text = results.read_text(encoding="utf-8")
    for expected in (
        document["commit"],
        document["machine"]["cpu"],
        "Floor:",
        "| gradient norm of step 1 |",
        "gradient norms agree",
    ):
        assert expected in text
    bars = [shape for shape in ElementTree.parse(drawing).iter() if shape.tag.endswith("rect")]
    assert len(bars) == 2 * len(document["trainers"])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    (
        ("loss", [1.0, 9.0], "loss of step 2: 9 (Oddsmith), "),
        ("loss", [float("nan")] * 2, "loss of step 1: nan (Oddsmith), "),
        ("grad_norm", [9.0], "gradient norm: 9 (Oddsmith), "),
        ("tokens", "others", "tokens of the rows differ"),
        ("initial_weights", "others", "initial trained weights differ"),
    ),
)
def test_a_difference_is_found_and_ends_with_1(versus_trl, document, tmp_path, monkeypatch, name, value, expected):
    theirs = {**document["runs"][2], "loss": [1.0, 1.0], "grad_norm": [1.0]}
    ours = {**theirs, "trainer": "ours", name: value}
    (found, *_) = versus_trl.disagreements([ours, theirs], bf16=True)
    assert found.startswith(expected)
    measured = tmp_path / "a.json"
    measured.write_text(json.dumps({**document, "differences": [found]}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["versus_trl.py", "--from", str(measured)])
    assert versus_trl.main() == 1


def test_counts_of_a_step_by_hand(versus_trl):
    rows = importlib.import_module("versus.rows")
    #     1 2 3 | 4 5     chosen:   1, 12, 123, 1234 predict; 12345 is the end
    #     1 2 3 | 4 6 7   rejected: 123, 1234, 12346 predict; 12346 and 123467 are new beginnings
    #     1 8 | 9         chosen:   1, 18 predict; 18, 189 are new
    #     1 8 | 5         rejected: 18 predicts; 185 is new
    side = rows.Side
    pairs = [(side([1, 2, 3, 4, 5], 3), side([1, 2, 3, 4, 6, 7], 3)), (side([1, 8, 9], 2), side([1, 8, 5], 2))]
    step = rows.count_step(pairs)
    assert (step.padded_tokens, step.packed_tokens, step.forest_tokens) == (4 * 6, 5 + 6 + 3 + 3, 5 + 2 + 2 + 1)
    assert step.target_positions == len({"1", "12", "123", "1234", "12346", "18"})
    assert step.visible_tokens == (1 + 2 + 3 + 4 + 5) + (5 + 6) + (2 + 3) + 3


def test_operations_by_hand(versus_trl):
    floor = importlib.import_module("versus.floor")
    step = {"forest_tokens": 10, "target_positions": 6, "visible_tokens": 34}
    config = tiny_model(vocab_size=264).config  # hidden 16, inner 32, 2 layers, 4 heads of 4 and 2 for keys and values
    body, head = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32), 264 * 16
    attention = 12 * 2 * 4 * 4 * 34
    assert floor.operations(step, config, adapter=True) == 4 * body * 10 + 4 * head * 6 + attention
    assert floor.operations(step, config, adapter=False) == 6 * body * 10 + 6 * head * 6 + attention


def test_a_process_that_fails_says_why_and_one_without_memory_is_a_result(versus_trl, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="versus.nothing failed:\n.*No module named versus.nothing"):
        versus_trl.process("nothing", {}, tmp_path / "answer.json")
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    assert versus_trl.process("worker", {}, tmp_path / "answer.json") == {"failed": "out of memory"}
