"""NaN, infinite and far too large numbers in real runs: skipped, reported, undone, and never trained on.

Faults are made in the run itself: a weight that becomes NaN, a row with a NaN embedding, a gradient that overflows in
one of two processes.
"""

import copy
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback

from oddsmith import ORPOTrainer
from oddsmith.checkpoint.manifest import verify
from oddsmith.errors import NonFiniteError
from oddsmith.system.run_folder import read_events
from oddsmith.training import checkpointing
from tests.command import run_here, run_two_processes, save_config, save_model, save_rows
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import make_trainer

BROKEN = "\x07"  # a byte that no other row has; its embedding is NaN
BAD_ROW = 4
# What differs between two runs that computed the same.
NOT_COMPARED = ("step", "epoch", "skipped_steps", "memory_gib", "total_flos", "num_tokens")


SETTINGS = {
    "train_sampling_strategy": "sequential",
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant_with_warmup",  # so that the rate depends only on the steps that were made
    "warmup_steps": 20,
    "max_length": 256,
    "prefix_forest": False,  # choosing it takes a check at the start
}


def trainer_of(folder, rows, model=None, evaluate=None, *, peft=None, **more):
    """Two pairs a step, in the order of the file."""
    return make_trainer(folder, model, Dataset.from_list(rows), evaluate, peft_config=peft, **{**SETTINGS, **more})


LOGGERS = ("oddsmith.training.guard", "oddsmith.training.checkpointing")


def logged(caplog):
    """Return what a run has logged about its steps and weights."""
    return [record.getMessage() for record in caplog.records if record.name in LOGGERS]


def broken_model(**overrides):
    model = tiny_model(**overrides)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer()(BROKEN).input_ids[0]] = math.nan
    return model


def broken_rows(count=12, bad=(BAD_ROW,)):
    rows = ragged_pairs(count, seed=3)
    for row in bad:
        rows[row]["rejected"] = f" {BROKEN}."
    return rows


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same_weights(trainer, other) -> None:
    for name, weight in weights(other).items():
        assert torch.equal(weights(trainer)[name].nan_to_num(7), weight.nan_to_num(7)), name


def lines(trainer):
    """The log lines of losses without what depends on the step's number or on the machine."""
    return [
        {name: value for name, value in line.items() if name not in NOT_COMPARED and not name.endswith("_per_second")}
        for line in trainer.state.log_history
        if "loss" in line
    ]


def events(folder, *kinds):
    return [event for event in read_events(folder) if event["event"] in kinds]


class At(TrainerCallback):
    """Calls a function when a step begins, or when it has ended."""

    def __init__(self, step, act, *, begins=False):
        self.step, self.act, self.begins = step, act, begins

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.begins and state.global_step + 1 == self.step:
            self.act(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if not self.begins and state.global_step == self.step:
            self.act(model)


@torch.no_grad()
def spoil(model, value=math.nan):
    """Spoil one weight that is trained."""
    last = [weight for weight in model.parameters() if weight.requires_grad][-1]
    last.view(-1)[0] = value


@torch.no_grad()
def scale(model, factor):
    model.get_output_embeddings().weight.mul_(factor)


def overflow_once(model):
    """Let the next gradient of a weight overflow."""
    weight = next(weight for weight in model.parameters() if weight.requires_grad)

    def hook(gradient):
        handle.remove()
        return gradient * torch.inf

    handle = weight.register_hook(hook)


# ---- A step that is skipped

WAYS = {
    "padded": {},
    "prefix forests": {"prefix_forest": True},
    "accumulation": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "prefix_forest": True},
    "accumulation, padded": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "no clipping": {"max_grad_norm": 0},
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
}


IN_EVERY_RUN = {"accumulation", "bf16", "momentum"}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way in IN_EVERY_RUN else pytest.mark.slow) for way in WAYS]
)
def test_a_skipped_step_is_as_if_it_had_not_been(way, tmp_path, caplog):
    rows = broken_rows()
    trainer = trainer_of(tmp_path / "skips", rows, broken_model(), max_steps=6, **WAYS[way])
    trainer.train()
    good = rows[:BAD_ROW] + rows[BAD_ROW + 2 :]
    reference = trainer_of(tmp_path / "without", good, broken_model(), max_steps=5, **WAYS[way])
    reference.train()
    assert_same_weights(trainer, reference)
    assert lines(trainer) == lines(reference)  # the rising learning rate among them
    assert all(math.isfinite(value) for line in lines(trainer) for value in line.values())
    assert trainer.state.global_step == 6
    (event,) = events(tmp_path / "skips", "skipped")
    assert (event["step"], event["cause"], event["rows"]) == (3, "log-probabilities", [BAD_ROW])
    assert event["loss"] is None
    assert "step 3: skipped: log-probabilities are NaN or infinite for dataset row 4" in logged(caplog)


def test_an_adapter_s_step_is_skipped_alike(tmp_path):
    rows, adapter = broken_rows(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trainer_of(tmp_path / "skips", rows, broken_model(), peft=adapter, max_steps=6)
    trainer.train()
    good = rows[:BAD_ROW] + rows[BAD_ROW + 2 :]
    reference = trainer_of(tmp_path / "without", good, broken_model(), peft=copy.deepcopy(adapter), max_steps=5)
    reference.train()
    assert_same_weights(trainer, reference)
    assert lines(trainer) == lines(reference)


def test_a_skipped_step_enters_no_average_and_is_counted(tmp_path):
    each, thirds = (
        trainer_of(tmp_path / str(every), broken_rows(), broken_model(), max_steps=6, logging_steps=every)
        for every in (1, 3)
    )
    each.train(), thirds.train()
    single = [line["loss"] for line in lines(each)]
    first, second = [line for line in thirds.state.log_history if "loss" in line]
    assert first["loss"] == pytest.approx(sum(single[:2]) / 2, rel=1e-6)
    assert first["loss"] == pytest.approx(first["nll_loss"] + 0.1 * first["or_loss"], rel=1e-6)
    assert first["skipped_steps"] == 1
    assert "grad_norm" not in first
    assert second["loss"] == pytest.approx(sum(single[2:]) / 3, rel=1e-6)
    assert "skipped_steps" not in second
    if hasattr(each, "_initial_global_step"):  # transformers 5.17 divides by all steps
        assert thirds.state.log_history[-1]["train_loss"] == pytest.approx(sum(single) / 5, rel=1e-6)


def test_a_gradient_that_overflows_is_skipped_and_the_rows_of_its_step_are_named(tmp_path):
    rows = ragged_pairs(12, seed=3)
    trainer = trainer_of(tmp_path, rows, max_steps=6, callbacks=[At(3, overflow_once, begins=True)])
    trainer.train()
    (event,) = events(tmp_path, "skipped")
    assert (event["step"], event["cause"], sorted(event["rows"])) == (3, "gradient", [4, 5])
    assert math.isfinite(event["loss"])
    assert len(lines(trainer)) == 5
    reference = trainer_of(tmp_path / "without", rows[:4] + rows[6:], max_steps=5)
    reference.train()
    assert_same_weights(trainer, reference)


def test_nan_weights_before_the_first_step_are_reported_and_checkpoints_are_written(tmp_path, caplog):
    trainer = trainer_of(tmp_path, broken_rows(), broken_model(), max_steps=4, save_strategy="steps", save_steps=4)
    trainer.train()
    assert logged(caplog)[0] == "the weights model.embed_tokens.weight are NaN or infinite before the first step"
    verify(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}])
def test_a_run_that_makes_no_step_fails_and_saves_nothing(peft, steps, tmp_path):
    model, adapter = tiny_model(), peft and LoraConfig(**peft)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, ragged_pairs(8), model, peft=adapter, max_steps=steps, **saving)
    with pytest.raises(NonFiniteError, match=f"of {steps} steps? none could be made: .*nothing was trained"):
        trainer.train()
    assert not list(tmp_path.rglob("*.safetensors"))


# ---- Rollback, and stopping

SAVING = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "max_steps": 10}


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}])
def test_after_too_many_in_a_row_the_run_rolls_back_once_and_its_data_goes_on(peft, tmp_path, caplog):
    """Spoiled after step 5: 6, 7 and 8 are skipped, then the weights of checkpoint 4 meet the rows of step 9."""
    rows, adapter = ragged_pairs(20, seed=3), peft and LoraConfig(**peft)
    trainer = trainer_of(tmp_path / "run", rows, peft=adapter, callbacks=[At(5, spoil)], **SAVING)
    before = {name: weight.data_ptr() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert {name: weight.data_ptr() for name, weight in trainer.model.named_parameters()} == before
    skipped, back = events(tmp_path / "run", "skipped"), events(tmp_path / "run", "rolled_back")
    assert [event["step"] for event in skipped] == [6, 7, 8]
    assert [(event["step"], event["checkpoint"]) for event in back] == [(8, "checkpoint-4")]
    assert logged(caplog)[-1] == "step 8: went back to the weights of checkpoint-4"
    saved = sorted(folder.name for folder in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == ["checkpoint-10", "checkpoint-2", "checkpoint-4", "checkpoint-8"]  # none between skipped steps
    options = {**SAVING, "max_steps": 6, "peft": adapter and LoraConfig(**peft)}
    reference = trainer_of(tmp_path / "ref", rows[:8] + rows[16:], **options)
    reference.train()
    assert_same_weights(trainer, reference)
    assert lines(trainer)[-2:] == lines(reference)[-2:]
    assert trainer.optimizer.param_groups[0]["lr"] == 1e-2


def test_the_learning_rate_goes_on_where_it_was(tmp_path):
    more = {**SAVING, "lr_scheduler_type": "linear", "warmup_steps": 0}
    seen = []
    look = At(9, lambda model: seen.append(trainer.optimizer.param_groups[0]["lr"]), begins=True)
    trainer = trainer_of(tmp_path, ragged_pairs(20, seed=3), callbacks=[At(5, spoil), look], **more)
    trainer.train()
    assert seen == pytest.approx([1e-2 / 2])  # not that of the checkpoint of step 4
    rates = {line["step"]: line["learning_rate"] for line in trainer.state.log_history if "loss" in line}
    made = [1, 2, 3, 4, 5, 9, 10]  # the schedule does not move in a step that is skipped
    assert rates == pytest.approx({step: 1e-2 * (1 - number / 10) for number, step in enumerate(made)})


def test_steps_that_are_skipped_push_no_good_checkpoint_out(tmp_path):
    """Here the rows are to blame, not the weights; saved after each step, two checkpoints are kept."""
    rows, more = broken_rows(20, bad=(10, 12, 14)), {**SAVING, "save_steps": 1, "save_total_limit": 2}
    trainer_of(tmp_path, rows, broken_model(), **more).train()
    assert [event["step"] for event in events(tmp_path, "skipped")] == [6, 7, 8]
    assert [event["checkpoint"] for event in events(tmp_path, "rolled_back")] == ["checkpoint-5"]


def test_a_rollback_may_take_any_time(tmp_path, monkeypatch):
    """A process that verifies a large checkpoint, or loads one, does not hang."""
    places, verify_checkpoint = [], checkpointing.verify

    def note(*arguments, **options):
        places.append(trainer.pace.place)
        return verify_checkpoint(*arguments, **options)

    monkeypatch.setattr(checkpointing, "verify", note)
    trainer = trainer_of(tmp_path, ragged_pairs(20, seed=3), callbacks=[At(5, spoil)], **SAVING)
    trainer.train()
    assert [(place.step, place.doing, place.is_limited) for place in places] == [(8, "loading a checkpoint", False)]


def test_a_damaged_checkpoint_is_skipped_in_a_rollback(tmp_path, caplog):
    def damage(model):
        spoil(model)
        (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"")

    trainer = trainer_of(tmp_path, ragged_pairs(20, seed=3), callbacks=[At(5, damage)], **SAVING)
    trainer.train()
    assert [event["checkpoint"] for event in events(tmp_path, "rolled_back")] == ["checkpoint-2"]
    assert any(line.startswith("skipped ") and "checkpoint-4" in line for line in logged(caplog))


def test_the_second_time_the_run_stops_and_says_what_was_tried(tmp_path):
    options = {**SAVING, "max_steps": 20, "callbacks": [At(5, spoil), At(11, spoil)]}
    trainer = trainer_of(tmp_path, ragged_pairs(40, seed=3), **options)
    with pytest.raises(
        NonFiniteError,
        match=r"^step 14: log-probabilities are NaN or infinite for dataset rows 26, 27, the last of 3 in a row, as"
        r" before the run went back to its last good checkpoint; look at these rows, lower learning_rate",
    ):
        trainer.train()
    for step in (2, 4, 8, 10):
        verify(tmp_path / f"checkpoint-{step}")
    assert not (tmp_path / "checkpoint-12").exists()
    assert not events(tmp_path, "end")


def test_a_resumed_run_keeps_the_record_of_its_rollbacks(tmp_path):
    class Interrupted(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 9

    rows, more = ragged_pairs(40, seed=3), {**SAVING, "max_steps": 20, "save_steps": 4}
    trainer_of(tmp_path, rows, callbacks=[At(5, spoil), Interrupted()], **more).train()
    again = trainer_of(tmp_path, rows, callbacks=[At(11, spoil)], **more)
    with pytest.raises(NonFiniteError, match=r"^step 14: .* as before the run went back to its last good checkpoint"):
        again.train(resume_from_checkpoint=True)


def test_without_a_checkpoint_the_command_stops_with_the_rows_in_one_line(tmp_path, capsys):
    model = save_model(tmp_path / "model", model=broken_model())
    pairs = save_rows(tmp_path / "pairs.jsonl", broken_rows(4, bad=range(4)))
    settings = {"per_device_train_batch_size": 2, "max_steps": 6, "bf16": False, "use_cpu": True, "report_to": "none"}
    file = save_config(tmp_path / "run.yaml", **settings)
    places = ("--model-name-or-path", model, "--dataset-name", pairs, "--output-dir", tmp_path / "run")
    done = run_here(capsys, "train", file, *places, "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert document["kind"] == "NonFiniteError"
    assert document["error"].startswith("step 3: log-probabilities are NaN or infinite for dataset rows ")
    assert "the last of 3 in a row, and there is no good checkpoint from before them" in document["error"]
    assert "Traceback" not in done.err
    assert "step 1: skipped: log-probabilities are NaN or infinite for dataset rows" in done.err


def test_nan_weights_are_never_saved_and_never_the_result(tmp_path, caplog):
    trainer = trainer_of(tmp_path, ragged_pairs(12, seed=3), callbacks=[At(6, spoil)], **{**SAVING, "max_steps": 6})
    with pytest.raises(NonFiniteError, match=r"step 6: the weights lm_head.weight are NaN or infinite after the last"):
        trainer.train()
    assert logged(caplog) == ["step 6: the weights lm_head.weight are NaN or infinite: no checkpoint of them"]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_only_the_first_of_many_lines_are_logged_and_the_event_log_has_them_all(tmp_path, caplog):
    rows = broken_rows(80, bad=range(0, 80, 4))  # every other step
    trainer = trainer_of(tmp_path, rows, broken_model(), max_steps=80)
    trainer.train()
    assert len(events(tmp_path, "skipped")) == 40
    skipped = [line for line in logged(caplog) if "skipped" in line]
    assert len(skipped) == 20
    assert skipped[-1].endswith("; more of this is only in events.jsonl")


# ---- Loss spikes


def spiking(folder, **more):
    """Forty steps, one of them with an output layer that is twenty times too large."""
    rows = ragged_pairs(84, seed=3)
    faults = [At(40, lambda m: scale(m, 20.0), begins=True), At(40, lambda m: scale(m, 0.05))]
    return trainer_of(folder, rows, callbacks=faults, max_steps=42, learning_rate=1e-4, optim="sgd", **more)


def test_a_loss_spike_is_reported_once_with_its_rows(tmp_path, caplog):
    trainer = spiking(tmp_path)
    trainer.train()
    (event,) = events(tmp_path, "spike")
    assert (event["step"], sorted(event["rows"])) == (40, [78, 79])
    assert event["loss"] == pytest.approx(lines(trainer)[39]["loss"], rel=1e-6)
    (line,) = logged(caplog)
    assert line.startswith(f"step 40: a loss of {event['loss']:.3f}, where 6.")
    assert "; most of it from dataset rows 7" in line
    assert not events(tmp_path, "skipped")


def test_a_loss_spike_is_skipped_where_that_was_asked_for(tmp_path):
    trainer = spiking(tmp_path / "skips", loss_spikes="skip")
    trainer.train()
    (event,) = events(tmp_path / "skips", "skipped")
    assert (event["step"], event["cause"]) == (40, "spike")
    assert len(lines(trainer)) == 41
    assert max(line["loss"] for line in lines(trainer)) < 10


# ---- Evaluation


def test_an_evaluation_with_nan_rows_has_no_result_and_does_not_end_the_run(tmp_path, caplog):
    trainer = trainer_of(
        tmp_path, ragged_pairs(12, seed=3), broken_model(), max_steps=4, evaluate=broken_rows(6), eval_strategy="steps",
        eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True, logging_steps=4,
    )  # fmt: skip
    trainer.train()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 2
    for line in evaluations:
        of_the_pairs = [value for name, value in line.items() if "runtime" not in name and "per_second" not in name]
        assert all(math.isnan(v) for v in of_the_pairs if v not in (line["step"], line["epoch"]))
    assert trainer.state.best_global_step is None
    assert [(e["step"], e["rows"], e["num_rows"]) for e in events(tmp_path, "not_finite")] == [
        (2, [BAD_ROW], 1),
        (4, [BAD_ROW], 1),
    ]
    assert all(event["eval_loss"] is None for event in events(tmp_path, "evaluate"))
    assert not events(tmp_path, "pairs")
    rules = {event["rule"] for event in events(tmp_path, "finding")}
    assert "evaluation_not_finite" in rules
    assert "not_finite" not in rules  # the weights are sound: training does not use these rows
    assert any("evaluation without result: log-probabilities are NaN" in line for line in logged(caplog))


def test_measuring_alone_ends_with_the_rows_instead_of_a_table_of_nan(tmp_path, capsys):
    model = save_model(tmp_path / "model", model=broken_model())
    pairs = save_rows(tmp_path / "pairs.jsonl", broken_rows(6))
    done = run_here(capsys, "eval", model, "--dataset-name", pairs, "--use-cpu")
    assert (done.code, done.out) == (1, "")
    assert "error: log-probabilities are NaN or infinite for dataset row 4; look at these rows, and" in done.err


@pytest.mark.parametrize("metric", ["loss", "rewards/margins"])
def test_the_best_checkpoint_is_never_one_without_a_result(metric, tmp_path):
    class Spoiled(TrainerCallback):
        """The output layer is infinite during the second evaluation."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.kept = model.lm_head.weight.detach().clone()
            if state.global_step == 4:
                model.lm_head.weight.data.fill_(math.inf)

        def on_evaluate(self, args, state, control, model=None, **kwargs):
            model.lm_head.weight.data.copy_(self.kept)

    trainer = trainer_of(
        tmp_path, ragged_pairs(12, seed=3), max_steps=6, evaluate=ragged_pairs(6), eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, load_best_model_at_end=True, metric_for_best_model=metric,
        callbacks=[Spoiled(), EarlyStoppingCallback(early_stopping_patience=9)],
    )  # fmt: skip
    trainer.train()
    results = {line["step"]: line[f"eval_{metric}"] for line in trainer.state.log_history if f"eval_{metric}" in line}
    assert math.isnan(results[4])
    assert trainer.state.best_global_step in (2, 6)
    assert math.isfinite(trainer.state.best_metric)


# ---- Two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The run folder, and the results of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    run_two_processes(__name__, folder)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def train_as_one_of_two(folder: Path) -> None:
    """Step 2 has a row of NaN in one process, step 4 a gradient that overflows in one; then weights spoiled in one."""
    rank = int(os.environ["RANK"])
    faults = [At(4, overflow_once, begins=True), At(6, spoil)] if rank == 1 else []
    trainer = trainer_of(
        folder / "run", broken_rows(48), broken_model(), callbacks=faults, save_strategy="steps", save_steps=3,
        max_steps=12, logging_steps=2, ddp_backend="gloo",
    )  # fmt: skip
    trainer.train()
    found = {"weights": weights(trainer), "lines": lines(trainer), "guard": trainer.guard.state_dict()}
    torch.save(found, folder / f"{rank}.pt")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.state.destroy_process_group()


def test_both_of_two_processes_skip_what_is_wrong_in_one(two_processes):
    folder, (first, second) = two_processes
    skipped = events(folder / "run", "skipped")
    assert [event["step"] for event in skipped] == [2, 4, 7, 8, 9]
    assert (skipped[0]["cause"], skipped[0]["rows"]) == ("log-probabilities", [BAD_ROW])
    assert (skipped[1]["cause"], sorted(skipped[1]["rows"])) == ("gradient", [12, 13, 14, 15])
    assert first["guard"] == second["guard"]
    assert [event["checkpoint"] for event in events(folder / "run", "rolled_back")] == ["checkpoint-3"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight.nan_to_num(7), second["weights"][name].nan_to_num(7)), name
    assert all(math.isfinite(value) for line in first["lines"] for value in line.values())


# ---- fp16


class LossScaled(ORPOTrainer):
    """Computes in fp16 with torch's loss scaling on the CPU, where accelerate would take float32."""

    def __init__(self, *args, init_scale: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.state._mixed_precision = "fp16"
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)


def loss_scaled(folder, rows, model, init_scale, **more):
    return trainer_of(folder, rows, model, kind=LossScaled, init_scale=init_scale, **more)


def test_searching_for_the_loss_scale_is_no_fault(tmp_path):
    trainer = loss_scaled(tmp_path, ragged_pairs(40, seed=3), tiny_model(), 2.0**33, max_steps=20)
    before = weights(trainer)
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() < 2**33
    assert not events(tmp_path, "skipped")
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert all(math.isfinite(value) for line in lines(trainer) for value in line.values())


def test_a_row_of_nan_is_skipped_under_loss_scaling_and_the_scale_stays(tmp_path):
    trainer = loss_scaled(tmp_path, broken_rows(), broken_model(), 2.0**10, max_steps=6)
    trainer.train()
    assert [event["cause"] for event in events(tmp_path, "skipped")] == ["log-probabilities"]
    assert trainer.accelerator.scaler.get_scale() == 2**10
    assert len(lines(trainer)) == 5


def test_a_gradient_that_overflows_without_scaling_is_a_fault(tmp_path):
    faults = [At(step, overflow_once, begins=True) for step in (2, 3, 5)]
    trainer = loss_scaled(tmp_path, ragged_pairs(16, seed=3), tiny_model(), 4.0, callbacks=faults, max_steps=8)
    trainer.train()
    assert [event["step"] for event in events(tmp_path, "skipped")] == [5]  # at 4 and 2 the scale was still halved


if __name__ == "__main__":
    train_as_one_of_two(Path(sys.argv[1]))
