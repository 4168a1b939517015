"""What an evaluation leaves of its pairs, derived by hand, and bounded."""

import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from oddsmith import ORPOTrainer
from oddsmith.loss import log_odds
from oddsmith.model.loading.models import load_model
from oddsmith.system.run_folder import FIRST_EVALUATION_FILE, PAIRS_FILE, read_events
from oddsmith.training.held_out_pairs import (
    BINS,
    MAX_LENGTHS,
    PAIRS_PER_KIND,
    HeldOutPairs,
    pairs_to_inspect,
    snapshot,
    token_texts,
    tokens_kept,
)
from oddsmith.training.meter import EvaluatedPairs
from oddsmith.training.recorder import Recorder
from tests.command import save_model
from tests.tiny import ragged_pairs, tiny_tokenizer
from tests.tiny_runs import SETTINGS, make_trainer, train_run

SIDES = ("chosen", "rejected")


def test_a_snapshot_counts_the_margins():
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [-1.0, -1.5], [-9.0, -1.0]])
    found = snapshot(logps)
    odds = [(log_odds(chosen) - log_odds(rejected)).item() for chosen, rejected in logps.double()]
    assert found["below_zero"] == 0.5
    assert found["log_odds"]["mean"] == pytest.approx(sum(odds) / 4)
    assert found["log_odds"]["deviation"] == pytest.approx(torch.tensor(odds).std().item(), rel=1e-5)
    edges, counts = found["margins"]["edges"], found["margins"]["counts"]
    assert (len(edges), len(counts), sum(counts)) == (BINS + 1, BINS, 4)
    # margins 1.0, -2.0, 0.5, and -8.0, which lies beyond the lowest edge
    assert {edges[i] for i, count in enumerate(counts) if count} == {1.0, -2.0, 0.5, -5.0}


def test_one_pair_has_no_deviation():
    assert snapshot(torch.tensor([[-1.0, -2.0]]))["log_odds"]["deviation"] == 0.0


def test_the_pairs_to_inspect():
    before = torch.tensor([-1.0, 2.0, 0.5, -3.0, 1.0])
    now = torch.tensor([1.0, -1.0, -0.1, 0.5, 2.0])
    assert pairs_to_inspect(now, before) == {"worst": [1, 2, 3, 0, 4], "flipped": [3, 0], "forgotten": [1, 2]}
    assert pairs_to_inspect(now, None) == {"worst": [1, 2, 3, 0, 4], "flipped": [], "forgotten": []}


def test_pieces_put_together_are_the_text():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("naïve 🙂 words")["input_ids"]
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


def evaluated(count: int, seed: int = 0, kept: int = 4) -> EvaluatedPairs:
    """An evaluation of so many pairs, with any figures."""
    drawn = torch.Generator().manual_seed(seed)
    tokens = -torch.rand(count, 2, kept, generator=drawn)
    return EvaluatedPairs(-torch.rand(count, 2, generator=drawn), tokens.to(torch.float16))


def recorded(folder: Path) -> dict:
    return json.loads((folder / PAIRS_FILE).read_text())["sets"]


def test_what_is_written_is_bounded(tmp_path):
    rows = Rows([pair_row() for _ in range(1000)])
    recorder = HeldOutPairs(tmp_path, tiny_tokenizer())
    for step in (0, 5):
        assert recorder.add("eval", step, rows, evaluated(1000, seed=step)) == []  # the base is known: step 0
        recorder.write("eval", {})
    found = recorded(tmp_path)["eval"]
    assert (found["step"], found["first_step"], found["compared_with"]) == (5, 0, 0)
    assert len(found["lengths"]) <= MAX_LENGTHS
    assert found["lengths"][0][0] == 1
    now, then = evaluated(1000, seed=5), evaluated(1000, seed=0)
    for kind in ("worst", "flipped", "forgotten"):
        assert len(found["inspected"][kind]) == PAIRS_PER_KIND
        for pair in found["inspected"][kind]:
            change = (now.tokens_P2K.float() - then.tokens_P2K.float())[pair["row"], 0, :3]
            assert pair["chosen"]["change"] == pytest.approx(change.tolist(), abs=1e-3)
            assert len(pair["chosen"]["tokens"]) == 3
            assert len(pair["rejected"]["change"]) == len(pair["rejected"]["tokens"]) == 2
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 5]
    assert max(map(len, lines)) < 2000


def test_a_first_evaluation_of_a_trained_model_is_compared_with_the_base_if_that_can_be_computed(tmp_path):
    rows, recorder = Rows([pair_row() for _ in range(3)]), HeldOutPairs(tmp_path, tiny_tokenizer())
    first, second = evaluated(3), evaluated(3, seed=1)
    assert recorder.add("eval", 5, rows, first) == [0, 1, 2]
    recorder.write("eval", {})
    found = recorded(tmp_path)["eval"]
    assert found["compared_with"] == 5
    assert "change" not in found["inspected"]["worst"][0]["chosen"]  # with itself
    assert recorder.add("eval", 10, rows, second) == [0, 1, 2]
    recorder.write("eval", dict(enumerate(evaluated(3, seed=2).tokens_P2K)))
    found = recorded(tmp_path)["eval"]
    assert (found["first_step"], found["compared_with"]) == (5, 0)
    worst = found["inspected"]["worst"][0]
    change = second.tokens_P2K.float() - evaluated(3, seed=2).tokens_P2K.float()
    assert worst["chosen"]["change"] == pytest.approx(change[worst["row"], 0, :3].tolist(), abs=1e-3)
    assert worst["before"] == pytest.approx((first.logps_P2[:, 0] - first.logps_P2[:, 1])[worst["row"]].item())
    assert recorder.add("eval", 15, rows, second) == []  # known by now


def test_the_first_evaluation_outlives_an_interruption_and_no_new_beginning(tmp_path):
    rows = Rows([pair_row() for _ in range(9)])
    before = HeldOutPairs(tmp_path, tiny_tokenizer())
    before.begin(0)
    before.add("eval", 5, rows, evaluated(9))
    resumed = HeldOutPairs(tmp_path, tiny_tokenizer())
    resumed.begin(7)
    resumed.add("eval", 10, rows, evaluated(9, seed=1))
    resumed.write("eval", {})
    margins = (lambda pairs: pairs.logps_P2[:, 0] - pairs.logps_P2[:, 1])(evaluated(9))
    worst = recorded(tmp_path)["eval"]["inspected"]["worst"][0]
    assert (recorded(tmp_path)["eval"]["first_step"], worst["before"]) == (5, margins[worst["row"]].item())
    for step, others in ((3, rows), (7, Rows([{**pair_row(), "chosen_end": 4}] * 9)), (0, rows)):
        anew = HeldOutPairs(tmp_path, tiny_tokenizer())
        anew.begin(step)  # before it was, of other pairs, or from the start
        anew.add("eval", 10, others, evaluated(9, seed=1))
        anew.write("eval", {})
        assert recorded(tmp_path)["eval"]["first_step"] == 10


@pytest.mark.parametrize("content", [b"", b"\xff" * 50, b"PK\x03\x04cut", b"\x80\x04K\x01."])
def test_a_first_evaluation_that_is_not_readable_ends_no_run(tmp_path, caplog, content):
    (tmp_path / FIRST_EVALUATION_FILE).write_bytes(content)
    recorder = HeldOutPairs(tmp_path, tiny_tokenizer())
    recorder.begin(5)
    assert "not readable" in caplog.text


def test_of_a_large_set_less_of_each_answer_is_kept():
    assert (tokens_kept(0), tokens_kept(1000), tokens_kept(10_000), tokens_kept(10**9)) == (256, 256, 52, 0)


def test_files_that_cannot_be_written_end_no_run(tmp_path, caplog):
    for name in (PAIRS_FILE, FIRST_EVALUATION_FILE):
        (tmp_path / name).mkdir()
    recorder = HeldOutPairs(tmp_path, tiny_tokenizer())
    recorder.add("eval", 0, Rows([pair_row()]), evaluated(1))
    recorder.write("eval", {})
    assert "not written (is a directory); the monitor shows older pairs" in caplog.text
    assert f"{FIRST_EVALUATION_FILE}: not written" in caplog.text


def pair_row() -> dict:
    ids = {"chosen_input_ids": [3, 5, 7, 9, 11], "rejected_input_ids": [3, 5, 8, 10]}
    ends = {"chosen_prompt_tokens": 2, "rejected_prompt_tokens": 2, "chosen_end": 5, "rejected_end": 4}
    return ids | ends


class Rows(list):
    """A data set's two ways in: a row by number, a column by name."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


OFTEN = {"eval_strategy": "steps", "eval_steps": 1}


def losses_of(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder) if event["event"] == "log" and "loss" in event]


def test_an_adapter_is_compared_with_its_base(tmp_path):
    """The same whether the base was evaluated before the first step or its tokens are computed without the adapter."""
    base = save_model(tmp_path / "base")
    known, computed = (
        recorded(train_run(base, tmp_path / f"run-{first}", lora={}, eval_on_start=first, **OFTEN))["eval"]
        for first in (True, False)
    )
    assert (known["first_step"], computed["first_step"]) == (0, 1)
    assert known["compared_with"] == computed["compared_with"] == 0
    changes, others = (
        {(pair["row"], side): pair[side]["change"] for pair in found["inspected"]["worst"] for side in SIDES}
        for found in (known, computed)
    )
    assert changes.keys() == others.keys()
    assert any(any(change) for change in changes.values())
    for where, change in changes.items():
        assert change == pytest.approx(others[where], abs=2e-3)


def test_computing_the_base_moves_no_random_number(tmp_path, monkeypatch):
    """Whether it has to be computed depends on interruptions, which must not show in dropout."""
    base, dropout = save_model(tmp_path / "base"), {"lora": {"lora_dropout": 0.3}, "disable_dropout": False}
    with_it = train_run(base, tmp_path / "with", **dropout, **OFTEN)
    assert recorded(with_it)["eval"]["compared_with"] == 0
    monkeypatch.setattr(Recorder, "_can_remove_adapter", False)
    without = train_run(base, tmp_path / "without", **dropout, **OFTEN)
    assert recorded(without)["eval"]["compared_with"] == 1
    assert losses_of(with_it) == losses_of(without)


def test_all_weights_are_compared_with_the_first_evaluation(tmp_path):
    folder = train_run(save_model(tmp_path / "base"), tmp_path / "run", **OFTEN)
    found = recorded(folder)["eval"]
    assert (found["step"], found["first_step"], found["compared_with"]) == (2, 1, 1)
    assert len(found["inspected"]["worst"]) == 3
    worst = found["inspected"]["worst"][0]
    assert worst["prompt"]
    assert any(worst["chosen"]["change"])
    assert not list(folder.glob("*.partial"))


class StopAt(TrainerCallback):
    """Ends a training early, as an interruption does."""

    def __init__(self, step: int):
        self._step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self._step


def test_a_resumed_run_keeps_its_first_evaluation(tmp_path):
    base = save_model(tmp_path / "base")

    def trainer(folder: Path, stop_at: int) -> ORPOTrainer:
        settings = {**SETTINGS, **OFTEN, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
        rows = (6, ragged_pairs(3, seed=1))
        return make_trainer(folder, load_model(str(base)), *rows, callbacks=[StopAt(stop_at)], **settings)

    trainer(tmp_path / "undisturbed", 4).train()
    trainer(tmp_path / "interrupted", 2).train()
    trainer(tmp_path / "interrupted", 4).train(resume_from_checkpoint=str(tmp_path / "interrupted" / "checkpoint-2"))
    undisturbed = recorded(tmp_path / "undisturbed")
    assert recorded(tmp_path / "interrupted") == undisturbed
    assert (undisturbed["eval"]["first_step"], undisturbed["eval"]["step"]) == (1, 4)


def test_answers_of_the_untrained_model_are_there_without_an_evaluation_before(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "generate_during_eval": True}
    folder = train_run(save_model(tmp_path / "base"), tmp_path / "run", **settings)
    events = read_events(folder)
    answered = [event for event in events if event["event"] == "samples"]
    assert [event["step"] for event in answered][:2] == [0, 2]
    assert [event["event"] for event in events].index("start") < events.index(answered[0])
    prompts = [[one["Prompt"] for one in event["answers"]] for event in answered]
    assert prompts[0] == prompts[1]


def test_a_model_that_is_only_measured_leaves_no_records(tmp_path):
    base = save_model(tmp_path / "base")
    make_trainer(tmp_path / "run", load_model(str(base)), None, ragged_pairs(3, seed=1), **SETTINGS).evaluate()
    assert not (tmp_path / "run" / PAIRS_FILE).exists()
    assert "pairs" not in {event["event"] for event in read_events(tmp_path / "run")}
