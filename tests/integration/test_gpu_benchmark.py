"""The first minutes on a GPU, rehearsed on the CPU at toy size: sections, tables, and what they find wrong.

``make rehearse-gpu`` runs all of it as it runs on a GPU, in processes of their own; here they are forked.
"""

import importlib
import json
import signal
import subprocess
import sys
import time

import pytest

from tests.forked import fork_server

QUICK = ["--device", "cpu", "--repeats", "1", "--steps", "1", "--works"]


@pytest.fixture(scope="module")
def first_minutes(benchmarks):
    return importlib.import_module("on_gpu.first_minutes")


def measured(first_minutes, folder, *words):
    args = first_minutes.arguments([*words, "--output", str(folder / "results.md")])
    return first_minutes.measure(args, folder), (folder / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(first_minutes, tmp_path_factory):
    words = [*QUICK, "8b-lora", "--sections", "environment", "paths", "works"]
    return measured(first_minutes, tmp_path_factory.mktemp("trained"), *words)


def test_both_paths_agree_and_so_do_the_trainers(trained):
    sections = trained[0]["sections"]
    assert [found.get("failed") or found.get("wrong") or [] for found in sections.values()] == [[], [], []]
    checks = sections["paths"]["works"]["8b-lora"]["checks"]
    assert {check["dtype"] for check in checks} >= {"float32"}
    assert all(check["agrees"] and check["padded"] <= check["allowed"] for check in checks)
    (work,) = sections["works"]["works"]
    ours, reference = (work["trainers"][name] for name in ("ours", "trl-best"))
    assert ours["layout"].startswith("prefix forest"), ours["layout"]
    assert len(ours["loss"]) == len(reference["loss"]) == 4  # two to warm up, one timed, one profiled
    assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-3)
    assert next(run["reference"] for run in work["runs"] if run["reference"]).startswith("TRL 1.16")


def test_tokens_are_counted_as_they_are_computed(trained):
    (work,) = trained[0]["sections"]["works"]["works"]
    computed = {run["trainer"]: run["computed_tokens"] for run in work["runs"]}
    assert computed["ours"] == [count["forest"] for count in work["counts"]]
    assert computed["trl-best"] == [count["padded"] for count in work["counts"]]
    (ours,) = [run for run in work["runs"] if run["trainer"] == "ours"]
    assert ours["longest"] == max(count["forest"] for count in work["counts"])


def test_one_step_is_profiled(trained):
    (work,) = trained[0]["sections"]["works"]["works"]
    ours, reference = (run["profile"] for run in work["runs"])
    assert reference is None
    assert "aten::mm" in [line["name"] for line in ours["host"]]
    assert 0 < sum(line["seconds"] for line in ours["host"]) <= 1.1 * ours["seconds"]


def test_the_results_file_says_what_it_is(trained):
    document, text = trained
    for expected in (
        f"# CPU, {document['date']}",
        "A rehearsal at toy size",
        document["commit"],
        "| paths       |",
        "| float32 | gradients ",
        "| gradient norm of step 1 |",
        "Losses and first gradient norms agree.",
        "Against TRL 1.16.",
        "| `aten::mm` ",
    ):
        assert expected in text


def test_the_stand_in_computes_what_trl_computes(first_minutes, trained, tmp_path):
    (work,) = trained[0]["sections"]["works"]["works"]
    ask = first_minutes.Asker(tmp_path, {"device": "cpu", "toy": True, "seed": 0}, time.monotonic() + 60)
    request = {"work": "8b-lora", "trainer": "trl-best", "steps": 4, "plain": True, "profiled": False}
    plain, halves = (ask("worker", **request, halvings=halvings) for halvings in (0, 1))
    trl = work["trainers"]["trl-best"]
    assert plain["reference"] == "plain PyTorch (asked for)"
    assert plain["loss"] == pytest.approx(trl["loss"], rel=1e-6)
    assert plain["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-4)
    assert (plain["micro_batch"], halves["micro_batch"]) == (10, 5)
    assert halves["loss"] == pytest.approx(trl["loss"], rel=1e-2)  # a mean of two means


@pytest.fixture
def forked(first_minutes, benchmarks, monkeypatch):
    """Fork the processes that are to be killed or to train together, from one that has the libraries."""

    def start(command, variables=None):
        module, *files = command[command.index("-m") + 1 :]
        process = fork_server().Process(target=_run, args=(str(benchmarks), module, files, variables or {}))
        process.start()
        return process

    def wait_for(started, seconds):
        for process in started:
            process.join(seconds)
        return [first_minutes.Ended(process.exitcode, "") for process in started]

    monkeypatch.setattr(first_minutes, "start", start)
    monkeypatch.setattr(first_minutes, "wait_for", wait_for)


def _run(benchmarks, module, files, variables):
    import os

    import torch

    torch.set_num_threads(1)
    os.environ.update(variables)
    sys.path.insert(0, benchmarks)
    importlib.import_module(module).main(*files)


@pytest.mark.slow
def test_a_run_is_killed_and_resumed_and_two_processes_train_as_one(first_minutes, forked, tmp_path):
    document, text = measured(
        first_minutes, tmp_path, *QUICK, "8b-lora", "--sections", "restart", "processes", "--minutes", "4"
    )
    restart, processes = (document["sections"][name] for name in ("restart", "processes"))
    assert restart["repeated"] == restart["resumed"] == {"files": [], "loss": 0.0}, restart
    assert (processes["both"]["processes"], processes["both"]["backend"]) == (2, "gloo")
    assert processes["wrong"] == []
    assert "| killed in step 6, resumed at step 4 | the same " in text


@pytest.mark.slow
def test_a_resumed_run_is_compared(first_minutes, monkeypatch, tmp_path):
    """As above, in one process: what would kill it raises an exception that nobody catches on its way."""

    class Killed(BaseException):
        pass

    def kill(process, number):
        raise Killed

    def launch(command, seconds):
        try:
            importlib.import_module("on_gpu.restart").main(*command[-2:])
        except Killed:
            return first_minutes.Ended(-signal.SIGKILL, "")
        return first_minutes.Ended(0, "")

    monkeypatch.setattr(importlib.import_module("on_gpu.restart").os, "kill", kill)
    monkeypatch.setattr(first_minutes, "launch", launch)
    document, _ = measured(first_minutes, tmp_path, *QUICK, "8b-lora", "--sections", "restart")
    restart = document["sections"]["restart"]
    assert restart["repeated"] == restart["resumed"] == {"files": [], "loss": 0.0}, restart
    assert restart["layout"] == "prefix forest"


def test_other_bytes_after_a_resume_are_wrong_only_where_undisturbed_runs_have_the_same(first_minutes, monkeypatch):
    same, other = ({"files": {"a": digest}, "loss": {"1": 1.0}, "layout": "prefix forest"} for digest in "xy")
    killed = first_minutes.Ended(-signal.SIGKILL, "")
    monkeypatch.setattr(first_minutes, "launch", lambda *rest: killed)

    class Answers:
        seconds_left = 1.0
        folder = first_minutes.FOLDER
        command = staticmethod(lambda *rest: [])

        def __init__(self, second, resumed):
            self.runs = {"undisturbed": [same, second], "resumed": [resumed]}

        def apart(self, module, *, role, **request):
            return {"runs": self.runs[role]}

    assert first_minutes.restart(Answers(same, same), None)["wrong"] == []
    (line,) = first_minutes.restart(Answers(same, other), None)["wrong"]
    assert line.endswith("the resumed one has others; no loss differs")
    later = {"files": {"a": "y"}, "loss": {"1": 1.1}, "layout": "padded batches"}
    padded, line = first_minutes.restart(Answers(same, later), None)["wrong"]
    assert padded == "the resumed run computes on padded batches, undisturbed ones on prefix forest"
    assert line.endswith("losses differ in step 1")
    assert first_minutes.restart(Answers(other, other), None)["wrong"] == []


def test_a_difference_is_found(first_minutes, trained):
    report = importlib.import_module("on_gpu.report")
    (work,) = trained[0]["sections"]["works"]["works"]
    ours, reference = work["runs"]
    wrong = [
        ({"loss": [float("nan")] * 4}, "loss of step 1: nan (Oddsmith)"),
        ({"grad_norm": [9.0] * 4}, "gradient norm: 9 (Oddsmith)"),
        ({"tokens": "others"}, "tokens differ"),
        ({"initial_weights": "others"}, "initial_weights differ"),
    ]
    for change, expected in wrong:
        (found, *_) = report.differences(work | {"runs": [ours | change, reference]})
        assert found.startswith(expected)
    several = work | {"runs": [ours | {"loss": [9.0] * 4}, reference | {"micro_batch": 2}], "differences": []}
    assert report.differences(several) == []
    assert report.verdict(several).startswith("Losses are not compared")


def test_a_section_that_fails_leaves_the_others(first_minutes, monkeypatch, tmp_path):
    def paths(ask, args):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(first_minutes.RUN, "paths", paths)
    monkeypatch.setitem(first_minutes.RUN, "tests", lambda ask, args: {"counts": {"passed": 3}, "wrong": []})
    document, text = measured(first_minutes, tmp_path, "--device", "cpu", "--sections", "paths", "tests")
    assert document["sections"]["paths"]["failed"] == "RuntimeError: no such kernel"
    assert "**Failed**: RuntimeError: no such kernel" in text
    assert "3 tests: 3 passed." in text


def test_a_step_that_does_not_fit_is_halved_and_time_is_kept(first_minutes, capsys):
    def ask(module, **request):
        micro_batch = 8 >> request["halvings"]
        fits = request["trainer"] != "trl-best" or micro_batch <= 2
        answer = {"step_s": [1.0], "layout": "padded batches"} if fits else {"failed": "out of memory"}
        return answer | {"micro_batch": micro_batch}

    args = first_minutes.arguments(["--repeats", "2"])
    found = list(first_minutes.runs(ask, args, "8b-lora", float("inf")))
    assert [(run["trainer"], run["micro_batch"]) for run in found] == [("ours", 8), ("trl-best", 2)] * 2
    assert len(list(first_minutes.runs(ask, args, "8b-lora", 0.0))) == 1  # the first, whose time nobody knows
    assert "no time left for trl-best, ours, trl-best" in capsys.readouterr().err


def test_a_process_of_its_own_answers_or_says_why_not(first_minutes, monkeypatch, tmp_path):
    (tmp_path / "on_gpu").mkdir()
    (tmp_path / "on_gpu" / "__init__.py").touch()
    modules = {
        "answering": "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text())",
        "failing": "raise SystemExit('torch: out of memory')",
        "hanging": "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)",
    }
    for name, source in modules.items():
        (tmp_path / "on_gpu" / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(first_minutes, "FOLDER", tmp_path)
    monkeypatch.setattr(first_minutes, "ROOT", tmp_path)
    ask = first_minutes.Asker(tmp_path, {"device": "cuda"}, time.monotonic() + 30)
    assert ask("answering", role="any") == {"device": "cuda", "role": "any"}
    assert ask("failing") == {"failed": "out of memory"}
    assert ask("missing")["failed"].endswith("No module named on_gpu.missing")
    ask.ends_s = time.monotonic()
    assert ask("hanging") == {"failed": "not done after 1 s"}


def test_outcomes_of_tests_are_read_while_they_come(first_minutes):
    cut_short = "\n".join(
        [
            "tests/gpu/test_a.py::test_one[cuda-float32] PASSED     [ 10%]",
            "tests/gpu/test_a.py::test_one[cuda-torch.bfloat16] FAILED",
            "tests/gpu/test_b.py::test_two SKIPPED (needs flash_attn)",
            "tests/gpu/test_b.py::test_three ERROR",
            "tests/gpu/test_b.py::test_four ",
            "FAILED tests/gpu/test_a.py::test_one[cuda-torch.bfloat16] - AssertionError: out: 0.5",
        ]
    )
    found = first_minutes.outcomes_in(cut_short)
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert found["wrong"] == [
        "`tests/gpu/test_a.py::test_one[cuda-torch.bfloat16]`: AssertionError: out: 0.5",
        "`tests/gpu/test_b.py::test_three`: failed",
    ]


def test_what_is_missing_is_said_without_any_package(first_minutes, benchmarks):
    """The script starts under a Python that has no packages at all, as on a borrowed machine."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = [{str(benchmarks)!r}]"]
    command[-1] += "\nsys.argv = ['first_minutes']\nfrom on_gpu.first_minutes import main\nsys.exit(main())"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    for expected in ("transformers>=5.21 is not installed", "peft>=0.21.2 is not installed", "--wheels FOLDER"):
        assert expected in done.stderr
    assert first_minutes.missing() == []
    (too_old,) = first_minutes.missing(["torch>=99.1"])
    assert too_old.startswith("torch>=99.1 is needed, 2.")


def test_the_works_have_the_shapes_that_they_name(first_minutes):
    works = importlib.import_module("on_gpu.works")
    assert tuple(works.WORKS) == first_minutes.WORKS
    llama, qwen, _, small = (works.multiplied_parameters(work.shape) for work in works.WORKS.values())
    assert (round(llama / 1e9, 2), round(qwen / 1e9, 3), round(small / 1e9, 3)) == (7.5, 0.494, 0.494)


def test_lengths_are_like_ultrafeedbacks(first_minutes):
    works = importlib.import_module("on_gpu.works")
    rows = works.make_rows(2000, vocabulary=128256, max_length=2048, scale=1.0, seed=0)
    lengths = {name: [len(row[name].split()) for row in rows] for name in ("prompt", "chosen", "rejected")}
    assert sum(lengths["prompt"]) / 2000 == pytest.approx(185, rel=0.1)
    assert sum(lengths["chosen"]) / 2000 == pytest.approx(305, rel=0.1)
    assert max(p + max(c, r) for p, c, r in zip(*lengths.values(), strict=True)) <= 2047  # and the end token
    assert json.dumps(rows) == json.dumps(works.make_rows(2000, vocabulary=128256, max_length=2048, scale=1.0, seed=0))


@pytest.mark.slow
def test_a_model_in_four_bits_is_quantised_layer_by_layer(first_minutes, tmp_path):
    ask = first_minutes.Asker(tmp_path, {"device": "cpu", "toy": True, "seed": 0}, time.monotonic() + 60)
    answer = ask("paths", work="8b-qlora", steps=1)
    assert all(check["agrees"] for check in answer["checks"])
