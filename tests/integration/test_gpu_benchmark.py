"""The benchmark for a GPU, at toy size on the CPU: both works, each trainer, tables and what it finds wrong."""

import importlib
import json

import pytest


@pytest.fixture(scope="module")
def gpu(benchmarks):
    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("gpu")
        patch.setattr(module, "device_name", lambda: "")
        yield module


@pytest.fixture(scope="module")
def measured(gpu, tmp_path_factory):
    """The document and the results file of a quick run over two trainers, TRL's stand-in in the second work."""
    folder = tmp_path_factory.mktemp("measured")
    documents = []
    for work, more in (("llama-8b-lora", []), ("qwen-0.5b-full", ["--plain"])):
        words = ["--work", work, "--quick", "--only", "ours", "trl-default", "--output", str(folder / "results.md")]
        documents.append(gpu.measure(gpu.arguments([*words, *more]), folder))
    return documents, (folder / "results.md").read_text(encoding="utf-8")


def test_trainers_agree_after_both_paths_did(measured):
    for document in measured[0]:
        (work,) = document["works"]
        assert work["differences"] == []
        assert [check["agrees"] for check in work["checks"]] == [True] * 4
        ours, reference = (work["trainers"][name] for name in ("ours", "trl-default"))
        assert ours["layout"].startswith("prefix forest"), ours["layout"]
        assert len(ours["loss"]) == len(reference["loss"]) == 5
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-3)
        assert ours["operations_share"] > 0  # of a timed product, which at toy size may be any number


def test_tokens_are_counted_as_they_are_computed(measured):
    for document in measured[0]:
        (work,) = document["works"]
        computed = {run["trainer"]: run["computed_tokens"] for run in work["runs"]}
        assert computed["ours"] == [count["forest"] for count in work["counts"]]
        assert computed["trl-default"] == [count["padded"] for count in work["counts"]]


def test_the_stand_in_computes_what_trl_computes(gpu, measured, tmp_path):
    (with_plain,) = measured[0][1]["works"]
    request = gpu.request_of("qwen-0.5b-full", gpu.arguments(["--quick"]), "cpu", tmp_path)
    trl = gpu.process("worker", request | {"trainer": "trl-default", "micro_batch": 8}, tmp_path / "answer.json")
    plain = with_plain["trainers"]["trl-default"]
    assert trl["reference"].startswith("TRL 1.16")
    assert plain["label"] == "padded batches, checkpointing"
    assert plain["loss"] == pytest.approx(trl["loss"], rel=1e-6)
    assert plain["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-4)
    halves = gpu.process(
        "worker", request | {"trainer": "trl-default", "micro_batch": 4, "plain": True}, tmp_path / "answer.json"
    )
    assert halves["loss"] == pytest.approx(trl["loss"], rel=1e-2)  # a mean of two means


def test_the_results_file_says_what_it_is(measured):
    document, text = measured[0][1], measured[1]
    for expected in (
        document["commit"],
        "no GPU: a toy run",
        "| padded batches, checkpointing | 8 ",
        "| gradient norm of step 1 |",
        "Losses and first gradient norms agree.",
        "Against plain PyTorch (asked for).",
    ):
        assert expected in text


def test_a_difference_is_found(gpu, measured):
    report = importlib.import_module("on_gpu.report")
    (work,) = measured[0][0]["works"]
    ours, reference = work["runs"]
    wrong = [
        ({"loss": [float("nan")] * 5}, "loss of step 1: nan (Oddsmith)"),
        ({"grad_norm": [9.0] * 5}, "gradient norm: 9 (Oddsmith)"),
        ({"tokens": "others"}, "tokens differ"),
        ({"initial_weights": "others"}, "initial_weights differ"),
    ]
    for change, expected in wrong:
        (found, *_) = report.differences(work | {"runs": [ours | change, reference]})
        assert found.startswith(expected)
    several = work | {"runs": [ours | {"loss": [9.0] * 5}, reference | {"micro_batch": 2}], "differences": []}
    assert report.differences(several) == []
    assert report.verdict(several).startswith("Losses are not compared")


def test_nothing_is_timed_where_the_paths_disagree(gpu, monkeypatch, tmp_path):
    disagrees = {"checks": [{"agrees": False}], "operations_per_second": 1.0}
    asked = []
    monkeypatch.setattr(gpu, "process", lambda module, *request: asked.append(module) or disagrees)
    document = gpu.measure(gpu.arguments(["--work", "llama-8b-lora"]), tmp_path)
    assert asked == ["check"]
    assert document["works"][0]["differences"] == ["packed rows and padded batches disagree; nothing was timed"]


def test_a_step_that_does_not_fit_is_halved_and_time_is_kept(gpu, monkeypatch, tmp_path, capsys):
    def process(module, request, answer):
        fits = request["trainer"] != "trl-best" or request["micro_batch"] <= 2
        return {"step_s": [1.0], "layout": "padded batches"} if fits else {"failed": "out of memory"}

    monkeypatch.setattr(gpu, "process", process)
    args = gpu.arguments(["--only", "ours", "trl-best", "--repeats", "2"])
    found = list(gpu.runs(args, {"pairs": 8}, tmp_path / "answer.json", float("inf")))
    assert [(run["trainer"], run["micro_batch"]) for run in found] == [("ours", 8), ("trl-best", 2)] * 2
    assert list(gpu.runs(args, {"pairs": 8}, tmp_path / "answer.json", 0.0)) == []
    assert "no time left for ours, trl-best, ours, trl-best" in capsys.readouterr().err


def test_a_process_of_its_own_answers_or_says_why_not(gpu, monkeypatch, tmp_path):
    (tmp_path / "on_gpu").mkdir()
    (tmp_path / "on_gpu" / "__init__.py").touch()
    answering = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text(pathlib.Path(sys.argv[1]).read_text())"
    (tmp_path / "on_gpu" / "answering.py").write_text(answering, encoding="utf-8")
    (tmp_path / "on_gpu" / "failing.py").write_text("raise SystemExit('torch: out of memory')", encoding="utf-8")
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)
    request = {"device": "cuda"}
    assert gpu.process("answering", request, tmp_path / "answer.json") == request
    assert gpu.process("failing", request, tmp_path / "answer.json") == {"failed": "out of memory"}
    failed = gpu.process("missing", request, tmp_path / "answer.json")["failed"]
    assert failed.endswith("No module named on_gpu.missing")


def test_both_works_have_the_shapes_that_they_name(gpu):
    works = importlib.import_module("on_gpu.works")
    llama, qwen = (works.multiplied_parameters(works.WORKS[name].shape) for name in works.WORKS)
    assert (round(llama / 1e9, 2), round(qwen / 1e9, 3)) == (7.5, 0.494)  # 8.03 billion with the input embedding


def test_lengths_are_like_ultrafeedbacks(gpu):
    works = importlib.import_module("on_gpu.works")
    rows = works.make_rows(2000, vocabulary=128256, max_length=2048, scale=1.0, seed=0)
    lengths = {name: [len(row[name].split()) for row in rows] for name in ("prompt", "chosen", "rejected")}
    assert sum(lengths["prompt"]) / 2000 == pytest.approx(185, rel=0.1)
    assert sum(lengths["chosen"]) / 2000 == pytest.approx(305, rel=0.1)
    assert max(p + max(c, r) for p, c, r in zip(*lengths.values(), strict=True)) <= 2047  # and the end token
    assert json.dumps(rows) == json.dumps(works.make_rows(2000, vocabulary=128256, max_length=2048, scale=1.0, seed=0))
