"""A run resumes exactly from a complete checkpoint of the same run, and refuses any other."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from oddsmith import ORPOTrainer
from oddsmith.checkpoint.manifest import read_manifest, verify
from oddsmith.errors import CheckpointError, ConfigError
from oddsmith.monitor.run import Run
from oddsmith.system.run_folder import events_that_count, read_events
from oddsmith.training.early_stopping import early_stopping_of
from tests import tiny_runs
from tests.command import run_forked, save_config, save_model, save_pairs
from tests.tiny import ragged_pairs
from tests.tiny_runs import make_trainer

SETTINGS = {
    **tiny_runs.SETTINGS, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2, "max_steps": -1,
    "num_train_epochs": 2, "max_tokens_per_microbatch": 200, "include_num_input_tokens_seen": "all",
}  # fmt: skip
ADAFACTOR = {"optim": "adafactor", "lr_scheduler_type": "reduce_lr_on_plateau"}
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
TIMED = ("per_second", "runtime", "memory_gib")


class Cut(TrainerCallback):
    """Ends a training behind a step, as a kill would."""

    class Killed(BaseException):
        pass

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise self.Killed


def make(folder: Path, *, cut=None, callbacks=(), peft=None, **options) -> ORPOTrainer:
    callbacks = [*([Cut(cut)] if cut else []), *callbacks]
    held_out = ragged_pairs(4, seed=1)
    return make_trainer(folder, evaluate=held_out, peft_config=peft, callbacks=callbacks, **{**SETTINGS, **options})


def start(folder: Path, cut: int = 5, **options) -> None:
    with pytest.raises(Cut.Killed):
        make(folder, cut=cut, **options).train()


def lines(trainer: ORPOTrainer) -> list[dict]:
    """The logged values of a run, but for those that measure time."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in TIMED)}
        for entry in trainer.state.log_history
    ]


def assert_same(one: ORPOTrainer, other: ORPOTrainer) -> None:
    assert lines(one) == lines(other)
    weights = other.model.state_dict()
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


# ---- Exactly


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"peft": LORA, "disable_dropout": False},
        {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": True,
            "eval_on_start": True,
            "restore_callback_states_from_checkpoint": True,
        },
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"eval_strategy": "epoch", "save_steps": 3, "gradient_accumulation_steps": 2},
                {**ADAFACTOR, "eval_strategy": "epoch", "logging_steps": 1},
                {"max_steps": 7},
            )
        ),
    ],
    ids=["full", "LoRA with dropout", "best model", "evaluated at epochs", "another optimizer", "ends in mid-epoch"],
)
@pytest.mark.parametrize("cut", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path, options, cut):
    whole = make(tmp_path / "whole", **options)
    ended = whole.train()
    start(tmp_path / "cut", cut, **options)
    resumed = make(tmp_path / "cut", **options)
    ended_later = resumed.train(resume_from_checkpoint="auto")
    assert_same(whole, resumed)
    assert ended.training_loss == ended_later.training_loss == ended.metrics["train_loss"]
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0


def test_a_run_that_only_has_to_be_written_is_not_trained_further(tmp_path):
    whole = make(tmp_path, max_steps=4)
    ended = whole.train()
    again = make(tmp_path, max_steps=4)
    ended_again = again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert_same(whole, again)
    assert ended_again.training_loss == ended.training_loss


def test_the_loss_of_a_run_that_is_made_longer_is_the_mean_of_all_its_steps(tmp_path):
    def longer(args, state, control, **kwargs):
        state.max_steps = 5

    more = TrainerCallback()
    more.on_train_begin = longer
    settings = {"logging_steps": 1, "lr_scheduler_type": "constant"}
    make(tmp_path, max_steps=2, **settings).train()
    trainer = make(tmp_path, max_steps=4, callbacks=[more], **settings)
    ended = trainer.train(resume_from_checkpoint=True, allow_changed=True)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 5
    assert ended.training_loss == ended.metrics["train_loss"] == pytest.approx(sum(losses) / 5)


EARLY = {
    "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "early_stopping_patience": 4,
    "early_stopping_threshold": 100.0,  # no improvement is enough, so the run stops when its patience is over
}  # fmt: skip


def test_early_stopping_counts_on(tmp_path):
    by_settings = make(tmp_path / "settings", load_best_model_at_end=True, **EARLY)
    by_settings.train()

    def stopping():
        return [EarlyStoppingCallback(early_stopping_patience=4, early_stopping_threshold=100.0)]

    options = {**EARLY, "early_stopping_patience": None, "early_stopping_threshold": 0.0}
    options |= {"metric_for_best_model": "eval_loss", "load_best_model_at_end": True}
    start(tmp_path / "callback", 3, callbacks=stopping(), **options)
    by_callback = make(tmp_path / "callback", callbacks=stopping(), **options)
    by_callback.train(resume_from_checkpoint=True)
    start(tmp_path / "cut", 3, load_best_model_at_end=True, **EARLY)
    resumed = make(tmp_path / "cut", load_best_model_at_end=True, **EARLY)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == by_callback.state.global_step == by_settings.state.global_step == 5
    assert_same(resumed, by_settings)
    assert_same(by_callback, by_settings)


def test_a_run_that_was_stopped_early_goes_on_with_more_patience_alone(tmp_path, caplog):
    make(tmp_path, **EARLY).train()
    reason = "eval_loss has not improved by more than 100 on its best (5."
    assert "step 5: stopped early, because " + reason in caplog.text
    assert "will end with the weights of its last step, not with its best" in caplog.text
    again = make(tmp_path, **EARLY)
    again.create_model_card()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    assert "the run was stopped early; give more early_stopping_patience to go on" in caplog.text
    assert f"| stopped early | {reason}" in (tmp_path / "README.md").read_text()
    page = Run(tmp_path)
    page.refresh()
    assert (page.summary()["state"], page.summary()["happened"]["stopped_early"]) == ("finished", 1)
    assert page.details()["marks"][0]["text"].startswith(f"stopped early: {reason}")
    more = make(tmp_path, **{**EARLY, "early_stopping_patience": 6})
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 7


def test_an_evaluation_counts_once_and_of_several_sets_that_of_the_metric(tmp_path):
    trainer = make(tmp_path, **EARLY, metric_for_best_model="b_rewards/margins")
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    trainer.train()
    stopping = early_stopping_of(trainer.callback_handler.callbacks)
    assert (trainer.state.global_step, stopping.early_stopping_patience_counter) == (5, 4)
    trainer.evaluate()
    assert stopping.early_stopping_patience_counter == 4
    trainer.train()  # counts anew
    assert trainer.state.global_step == 5


@pytest.mark.parametrize(
    ("metric", "hint"), [("rewards/margin", "did you mean rewards/margins?"), ("xyz", "such as loss")]
)
def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path, metric, hint):
    trainer = make(tmp_path, **EARLY, metric_for_best_model=metric)
    with pytest.raises(ConfigError, match=re.escape(f"{metric!r}, which no evaluation of this run has; {hint}")):
        trainer.train()
    trainer.compute_metrics = lambda prediction: {"mine": 1.0}
    with pytest.raises(ConfigError, match=re.escape(f"{metric!r}, which the evaluation lacks; it has eval_loss, ")):
        trainer.train()


def test_micro_batches_are_made_as_before(tmp_path):
    start(tmp_path, max_tokens_per_microbatch="auto")
    kept = json.loads((tmp_path / "checkpoint-4" / "process-0.json").read_text())["parts"]["layout"]
    budget = kept["state"]["max_tokens"]
    resumed = make(tmp_path, max_tokens_per_microbatch="auto")
    resumed.path.max_tokens = int(budget * 1.5)  # more memory is free now
    resumed.path.head_bytes = kept["state"]["head_bytes"] * 2
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.path.max_tokens, resumed.path.head_bytes) == (budget, kept["state"]["head_bytes"])
    poor = make(tmp_path, max_tokens_per_microbatch="auto", num_train_epochs=2)
    poor.path.max_tokens = budget // 4
    poor.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert poor.path.max_tokens == budget // 4


# ---- Longer


def longer(folder: Path, options: dict, **more) -> ORPOTrainer:
    """Resume a run that was done, with more epochs or steps."""
    make(folder, **options).train()
    trainer = make(folder, **{**options, **more})
    trainer.train(resume_from_checkpoint=True)
    return trainer


CONSTANT = {"lr_scheduler_type": "constant"}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        pytest.param({**CONSTANT, "num_train_epochs": 1}, {"num_train_epochs": 2}, marks=pytest.mark.slow),
        ({**CONSTANT, "max_steps": 4, "peft": LORA, "disable_dropout": False}, {"max_steps": 9}),
        pytest.param({**CONSTANT, "max_steps": 4}, {"max_steps": -1, "num_train_epochs": 2}, marks=pytest.mark.slow),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 3, "max_steps": 6}, {"max_steps": 11}),
    ],
    ids=["an epoch more", "LoRA with dropout, within an epoch", "steps, then epochs", "a schedule without a length"],
)
def test_a_longer_run_equals_one_that_was_as_long_from_the_start(tmp_path, caplog, options, more):
    resumed = longer(tmp_path / "run", options, **more)
    assert caplog.text.count("steps now instead of") == caplog.text.count("goes on at") == 1
    whole = make(tmp_path / "whole", **{**options, **more})
    ended = whole.train()
    assert_same(whole, resumed)
    assert resumed.loss_sums.mean_of_run() == ended.training_loss


def rates(trainer: ORPOTrainer) -> list[float]:
    return [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]


@pytest.mark.parametrize("schedule", ["linear", pytest.param("cosine", marks=pytest.mark.slow)])
def test_a_longer_run_has_the_learning_rates_of_its_new_length_from_there_on(tmp_path, caplog, schedule):
    options = {"lr_scheduler_type": schedule, "logging_steps": 1, "num_train_epochs": 1}
    resumed = longer(tmp_path / "run", options, num_train_epochs=2)
    whole = make(tmp_path / "whole", **{**options, "num_train_epochs": 2})
    whole.train()
    assert rates(resumed)[6:] == rates(whole)[6:]
    assert rates(resumed)[:6] != rates(whole)[:6]
    line = f"12 steps now instead of 6; its learning rate follows {schedule} over 12 steps from here on: 0.005, not 0"
    assert caplog.text.count(line) == 1


def test_a_run_may_become_shorter_but_not_than_what_is_done(tmp_path):
    start(tmp_path)
    message = f"{tmp_path}/checkpoint-4: is of step 4, and with max_steps 3 this run ends after step 3"
    assert message in refused(tmp_path, max_steps=3)
    with pytest.raises(CheckpointError, match=r"with num_train_epochs 0.5 this run ends after step 3"):
        make(tmp_path, num_train_epochs=0.5).train(resume_from_checkpoint=True, allow_changed=True)
    trainer = make(tmp_path, num_train_epochs=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    events = read_events(tmp_path)
    trainer.create_model_card()
    assert [event["step"] for event in events_that_count(events) if event["event"] == "end"] == [6]
    assert "| steps | 6 |" in (tmp_path / "README.md").read_text()


def test_shares_of_all_steps_are_those_of_the_new_length(tmp_path):
    options = {**CONSTANT, "num_train_epochs": 1, "logging_steps": 0.5, "save_steps": 0.5}
    resumed = longer(tmp_path, options, num_train_epochs=2)
    assert [line["step"] for line in resumed.state.log_history if "loss" in line] == [3, 6, 12]
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-12",
    }


def test_settings_of_the_optimizer_that_may_change_do_change(tmp_path):
    start(tmp_path, **CONSTANT)
    trainer = make(tmp_path, learning_rate=2e-2, weight_decay=0.1, adam_beta2=0.9, logging_steps=1, **CONSTANT)
    trainer.train(resume_from_checkpoint=True, allow_changed=True)
    (step,) = {(group["lr"], group["betas"]) for group in trainer._finished_optimizer.param_groups}
    assert step == (2e-2, (0.9, 0.9))
    assert {group["weight_decay"] for group in trainer._finished_optimizer.param_groups} == {0.1, 0.0}
    assert set(rates(trainer)[1:]) == {2e-2}


@pytest.mark.parametrize("steps", [4, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (6, 8))])
def test_a_longer_run_over_a_stream_goes_on_where_it_stopped(tmp_path, steps):
    def stream():
        return Dataset.from_list(ragged_pairs(12)).to_iterable_dataset()

    options = {**CONSTANT, "max_steps": steps}
    make(tmp_path / "run", pairs=stream(), **options).train()
    resumed = make(tmp_path / "run", pairs=stream(), **{**options, "max_steps": 13})
    resumed.train(resume_from_checkpoint=True)
    whole = make(tmp_path / "whole", pairs=stream(), **{**options, "max_steps": 13})
    whole.train()
    weights = resumed.model.state_dict()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


# ---- What a checkpoint holds


def test_nothing_in_a_run_folder_is_a_pickle(tmp_path):
    make(tmp_path, peft=LORA).train()
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".md", ".svg", ".jinja"}


def test_the_manifest_identifies_the_run_and_holds_no_secret(tmp_path):
    start(tmp_path, hub_token="hf_secret", gradient_accumulation_steps=3, cut=3)
    manifest = verify(tmp_path / "checkpoint-2")
    assert (manifest.step, manifest.world_size, manifest.pairs_per_step) == (2, 1, 6)
    assert manifest.settings["learning_rate"] == 1e-2
    assert manifest.settings["dtype"] == "float32"
    assert (manifest.data["train"]["pairs"], manifest.data["eval"]["pairs"]) == (12, 4)
    assert {"oddsmith", "torch", "transformers", "peft"} <= manifest.versions.keys()
    assert "hf_secret" not in (tmp_path / "checkpoint-2" / "manifest.json").read_text()


def test_old_checkpoints_go_and_two_and_the_best_stay(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": True}
    trainer = make(tmp_path, save_total_limit=1, metric_for_best_model="eval_loss", **options)  # the first is the best
    trainer.train()
    stay = {"checkpoint-2", "checkpoint-10", "checkpoint-12"}
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == stay
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_a_run_folder_that_was_moved_keeps_its_best_model(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    options["load_best_model_at_end"] = True
    start(tmp_path / "here", **options)
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = make(tmp_path / "there", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint.startswith(str(tmp_path / "there"))


# ---- What is refused


def refused(folder: Path, resume: object = True, **options) -> str:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError) as caught:
        make(folder, **options).train(resume_from_checkpoint=resume)
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert before.items() <= after.items()
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"learning_rate": 2e-2}, "learning_rate: 0.01 -> 0.02", marks=pytest.mark.slow),
        ({"beta": 0.2, "seed": 1}, "beta: 0.1 -> 0.2; seed: 42 -> 1"),
        pytest.param({"pairs": 13}, "train pairs: others than before (12 pairs -> 13 pairs)", marks=pytest.mark.slow),
        ({"pairs": ragged_pairs(12, seed=5)}, "train pairs: others than before (12 pairs -> 12 pairs)"),
        ({"weight_decay": 0.1, "num_train_epochs": 3}, "weight_decay: 0.0 -> 0.1"),
    ],
)
def test_another_run_is_refused_with_the_difference_unless_it_is_allowed(tmp_path, options, expected):
    start(tmp_path)
    message = f"{tmp_path}/checkpoint-4: is of a run with other settings or data: {expected}."
    assert message in refused(tmp_path, **options)
    trainer = make(tmp_path, **options)
    trainer.train(resume_from_checkpoint=True, allow_changed=True)
    assert trainer.state.global_step == trainer.state.max_steps


def test_another_adapter_and_another_base_are_refused(tmp_path):
    bases = [save_model(tmp_path / "base"), save_model(tmp_path / "base2")]
    file = bases[1] / "model.safetensors"
    save_file({name: weight + 1e-3 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    start(tmp_path / "run", model=str(bases[0]), peft=LORA)
    assert "base model: other weights than before" in refused(tmp_path / "run", model=str(bases[1]), peft=LORA)
    wider = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    assert "adapter.r: 2 -> 4" in refused(tmp_path / "run", model=str(bases[0]), peft=wider)


def test_settings_that_change_no_step_may_change(tmp_path):
    start(tmp_path)
    trainer = make(tmp_path, logging_steps=1, save_steps=5, eval_strategy="steps", eval_steps=4, save_total_limit=3)
    trainer.train(resume_from_checkpoint=True)
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [8, 12]


def test_another_number_of_pairs_a_step_is_refused_and_another_split_of_them_is_not(tmp_path):
    start(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    twice = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert "its steps had 2 pairs (1 process), these would have 4 (1 process)" in refused(tmp_path, **twice)
    trainer = make(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 12


def test_a_checkpoint_of_the_model_alone_cannot_be_resumed(tmp_path):
    start(tmp_path, save_only_model=True)
    assert "checkpoint-4: holds only the model (save_only_model)" in refused(tmp_path)


def test_a_damaged_checkpoint_is_skipped_and_one_that_was_asked_for_is_refused(tmp_path, caplog):
    whole = make(tmp_path / "whole")
    whole.train()
    run = tmp_path / "run"
    start(run)
    weights = run / "checkpoint-4" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 4
    weights.write_bytes(content)
    assert "checkpoint-4: model.safetensors is damaged" in refused(run, str(run / "checkpoint-4"))
    resumed = make(run)
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint="auto")
    assert "it was moved to" in caplog.text
    assert (run / "_quarantine" / "checkpoint-4").is_dir()
    assert_same(whole, resumed)


def test_resuming_from_an_older_checkpoint_sets_the_newer_ones_aside(tmp_path):
    make(tmp_path).train()
    trainer = make(tmp_path, cut=5)
    with pytest.raises(Cut.Killed):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert {folder.name for folder in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert read_manifest(tmp_path / "_quarantine" / "checkpoint-12").step == 12


def test_true_wants_a_checkpoint_and_auto_does_not(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        make(tmp_path).train(resume_from_checkpoint=True)
    trainer = make(tmp_path, max_steps=1)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1


def test_other_rows_that_came_tokenized_are_recognised(tmp_path):
    tokens = make(tmp_path / "tokens").train_dataset
    assert isinstance(tokens, Dataset)
    start(tmp_path / "run", pairs=tokens)
    assert "train pairs: others than before" in refused(tmp_path / "run", pairs=tokens.select(range(11)))


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_steps(tmp_path):
    settings = SETTINGS | {
        "model_name_or_path": str(save_model(tmp_path / "model")),
        "dataset_name": str(save_pairs(tmp_path / "pairs.jsonl")),
        "max_steps": 4,
        "logging_steps": 3,  # a line of which two steps are made by two processes, and one by one
    }
    config = save_config(tmp_path / "config.yaml", **settings)

    def logged(name: str, *words: object) -> tuple[dict, dict]:
        outcome = run_forked("train", config, "--output-dir", tmp_path / name, *words)
        assert outcome.code == 0, outcome.err
        lines = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        (line,) = [line for line in lines if line["event"] == "log" and "nll_loss" in line]
        return line, load_file(tmp_path / name / "model.safetensors")

    two_line, two = logged("two", "--num-processes", 2, "--per-device-train-batch-size", 1)
    one_line, one = logged("one", "--resume", tmp_path / "two" / "checkpoint-2")
    assert one_line["step"] == two_line["step"] == 3
    for name in ("loss", "nll_loss", "or_loss", "rewards/margins", "log_odds_chosen"):
        assert one_line[name] == pytest.approx(two_line[name], rel=1e-4), name
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-5, rtol=1e-4)
