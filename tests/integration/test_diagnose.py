"""``oddsmith diagnose`` on recorded runs, while a run is written, and without torch."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.diagnose.findings import Finding, Verdict, overall
from oddsmith.diagnose.readers import history_of_events, read_history
from oddsmith.diagnose.rules import judge
from oddsmith.system.run_folder import read_events
from oddsmith.training import live_diagnosis
from oddsmith.training.live_diagnosis import Watch, send_alert
from tests.command import run_here
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import PLAIN

HISTORIES = Path(__file__).parent.parent / "histories"
RUNS = json.loads((HISTORIES / "runs.json").read_text(encoding="utf-8"))
GOOD = [run for run in RUNS if not run["expected"]]
BAD = [run for run in RUNS if run["expected"]]


def file_of(run: dict) -> Path:
    return HISTORIES / (run["name"] + (".json" if run.get("trainer") == "trl" else ".jsonl"))


def names(runs: list[dict]) -> list[str]:
    return [run["name"] for run in runs]


def test_there_are_twenty_recorded_runs_and_more():
    assert len(RUNS) >= 20
    assert all(file_of(run).is_file() for run in RUNS)


@pytest.mark.parametrize("run", GOOD, ids=names(GOOD))
def test_nothing_says_act_on_a_good_run(run):
    findings = judge(read_history(file_of(run)))
    assert overall(finding.verdict for finding in findings) is not Verdict.ACT
    assert {"preference_learned", "language_learned"} & {finding.rule for finding in findings}


@pytest.mark.parametrize("run", BAD, ids=names(BAD))
def test_what_was_done_to_a_bad_run_is_found(run):
    bad = {finding.rule for finding in judge(read_history(file_of(run))) if finding.verdict.asks_for_a_look}
    assert bad & set(run["expected"])


@pytest.mark.parametrize("run", GOOD, ids=names(GOOD))
def test_nothing_says_act_while_a_good_run_goes_on(run):
    """On the fly the rules look again and again, which gives noise as many chances."""
    if file_of(run).suffix == ".json":
        pytest.skip("a state is written once")
    events = [json.loads(line) for line in file_of(run).read_text(encoding="utf-8").splitlines()]
    for end in range(6, len(events), 9):
        acts = [f for f in judge(history_of_events(events[:end])) if f.verdict is Verdict.ACT]
        assert acts == []


def test_the_command_says_what_is_wrong(capsys):
    done = run_here(capsys, "diagnose", HISTORIES / "learning-rate-low.jsonl")
    assert done.code == 0
    assert done.out.startswith("act: something is wrong")
    assert "learning rate low" in done.out
    assert "-> learning_rate 1e-06 -> 0.0001" in done.out
    assert "log_odds_chosen  " in done.out  # drawn


def test_json_is_what_was_promised_and_strict_exits_with_3(capsys):
    done = run_here(capsys, "diagnose", HISTORIES / "learning-rate-low.jsonl", "--json", "--strict")
    assert done.code == 3
    document = json.loads(done.out)
    assert set(document) == {"verdict", "findings", "read"}
    assert document["verdict"] == "act"
    keys = {"rule", "verdict", "metric", "step", "evidence", "meaning", "change"}
    assert all(set(finding) == keys for finding in document["findings"])
    assert run_here(capsys, "diagnose", HISTORIES / "good-small.jsonl", "--strict").code == 0


def test_a_log_that_says_too_little_is_called_so_and_strict_exits_with_4(capsys, monkeypatch):
    class Pasted:
        buffer = io.BytesIO(b"INFO: loss: 1.8\nINFO: loss: 1.9\nINFO: loss: 1,7\n")
        isatty = staticmethod(lambda: False)

    monkeypatch.setattr(sys, "stdin", Pasted)
    done = run_here(capsys, "diagnose", "-", "--strict")
    assert done.code == 4
    assert done.out.startswith("cannot tell: too little is known of this run  (standard input, 2 log lines)")
    assert "1 of them look as if they had some: INFO: loss: 1,7" in done.out
    Pasted.buffer.seek(0)
    done = run_here(capsys, "diagnose", "-", "--json")
    document = json.loads(done.out)
    assert (done.code, document["verdict"], document["read"]["log_lines"]) == (0, "cannot tell", 2)
    assert [finding["verdict"] for finding in document["findings"]] == ["cannot tell"]


@pytest.mark.parametrize("words", [(), ("nowhere",), ("a", "b")])
def test_bad_input_is_one_line_and_exit_code_2(capsys, words):
    done = run_here(capsys, "diagnose", *words)
    assert done.code == 2
    assert done.err.startswith("error: ")


def test_it_answers_without_torch():
    code = (
        "import sys\nsys.argv = ['oddsmith', 'diagnose', sys.argv[1]]\nfrom oddsmith.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(', '.join({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", code, str(HISTORIES / "good-small.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("healthy")


def settings(folder: Path, **more) -> ORPOConfig:
    return ORPOConfig(**{**PLAIN, "output_dir": str(folder), "max_steps": 8, "max_length": 64, **more})


def test_a_finding_is_reported_once_while_training_and_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(live_diagnosis, "MAX_SHARE", math.inf)  # judge at each line, however short the run is
    reported: list[Finding] = []
    trainer = ORPOTrainer(
        tiny_model(),
        args=settings(tmp_path, learning_rate=1.0, eval_strategy="steps", eval_steps=4, eval_on_start=True),
        train_dataset=ragged_pairs(24),
        eval_dataset=ragged_pairs(8, seed=1),
        processing_class=tiny_tokenizer(),
    )
    trainer.remove_callback(Watch)
    trainer.add_callback(Watch(tell=reported.append))
    trainer.train()
    written = [event for event in read_events(tmp_path) if event["event"] == "finding"]
    assert [(event["rule"], event["verdict"]) for event in written] == [(f.rule, f.verdict) for f in reported]
    assert len({(f.rule, f.verdict) for f in reported}) == len(reported)
    assert ("learning_rate_high", "act") in [(f.rule, f.verdict) for f in reported]
    assert all(f.verdict is not Verdict.HEALTHY for f in reported)
    assert {"from_step", "evidence", "meaning", "change", "metric"} <= set(written[0])
    # Reading the event log afterwards gives the same findings.
    assert {f.rule for f in judge(read_history(tmp_path))} >= {"learning_rate_high", "too_few_steps"}


def test_what_cannot_be_told_yet_is_not_reported_while_training(tmp_path):
    reported: list[Finding] = []
    watch = Watch(tell=reported.append)
    args = SimpleNamespace(output_dir=str(tmp_path), report_to=[])
    state = SimpleNamespace(is_world_process_zero=True, global_step=10)
    watch.on_train_begin(args, state, None)
    watch.on_log(args, state, None, logs={"loss": 2.0})
    assert reported == []
    assert [verdict for verdict in Verdict if verdict.asks_for_a_look] == [Verdict.WATCH, Verdict.ACT]


def test_the_monitor_says_that_it_cannot_tell(capsys, tmp_path):
    (tmp_path / "train.log").write_text("Epoch\tTraining Loss\n1\t1.9\n2\t1.8\n")
    done = run_here(capsys, "monitor", tmp_path / "train.log", "--once", "--json")
    (run,) = json.loads(done.out)["runs"]
    assert (run["verdict"], run["unit"], run["step"]) == ("cannot tell", "epochs", 2)
    assert [finding["rule"] for finding in run["findings"]] == ["too_little"]


def test_an_evaluation_alone_is_not_judged(tmp_path, caplog):
    held_out = {"eval_dataset": ragged_pairs(8), "processing_class": tiny_tokenizer()}
    trainer = ORPOTrainer(tiny_model(), args=settings(tmp_path), **held_out)
    trainer.evaluate()
    assert not [event for event in read_events(tmp_path) if event["event"] == "finding"]


@pytest.mark.parametrize("prefix", ["eval", "test", "train"])
def test_an_evaluation_is_one_event_whatever_its_prefix(tmp_path, prefix):
    trainer = ORPOTrainer(
        tiny_model(),
        args=settings(tmp_path, max_steps=1),
        train_dataset=ragged_pairs(8),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    before = len(read_events(tmp_path))
    trainer.evaluate(ragged_pairs(8, seed=1), metric_key_prefix=prefix)
    events = read_events(tmp_path)
    assert [event["event"] for event in events if f"{prefix}_rewards/accuracies" in event] == ["evaluate"]
    assert [event["event"] for event in events[:before]].count("log") == 2  # the step, and the summary of the training


def test_alerts_go_to_the_trackers_that_have_them(monkeypatch):
    """Neither tracker is a dependency, and both want an account: their documented functions are recorded here."""
    sent = []

    class Level:
        WARN, ERROR = "warn", "error"

    class Recorder:
        AlertLevel = Level
        run = property(lambda self: self)

        def alert(self, title, text, level):
            sent.append((title, text, level))

    monkeypatch.setitem(sys.modules, "wandb", Recorder())
    monkeypatch.setitem(sys.modules, "trackio", Recorder())
    finding = Finding(Verdict.ACT, "loss", 3, "much", "bad", "less", rule="loss_rising")
    send_alert(["tensorboard"], finding)
    assert sent == []
    send_alert(["wandb", "trackio"], finding)
    assert sent == [("act: loss rising", "much; bad -> less", "error")] * 2


def test_a_terminal_without_the_blocks_gets_the_words(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "oddsmith.cli.main", "diagnose", str(HISTORIES / "good-small.jsonl")],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert b"preference learned" in done.stdout


def test_names_from_a_file_are_shown_as_text(capsys, tmp_path):
    path = tmp_path / "events.jsonl"
    evil = "eval_\u001b]0;x\u0007\u202e_nll_loss"
    path.write_text("".join(json.dumps({"event": "evaluate", "step": step, evil: step}) + "\n" for step in (0, 5, 9)))
    done = run_here(capsys, "diagnose", path)
    assert done.code == 0
    assert not {"\u001b", "\u0007", "\u202e"} & set(done.out)
