"""The parts of the trainer, each by itself: no Trainer, only what its interface asks for."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from oddsmith import ORPOConfig
from oddsmith.checkpoint.manifest import Manifest, verify
from oddsmith.errors import CheckpointError, NonFiniteError
from oddsmith.model.logprobs.padded import PairLogps
from oddsmith.model.logprobs.paths import ForestPath, PaddedPath
from oddsmith.training.checkpointing import CheckpointManager
from oddsmith.training.evaluation import user_metrics
from oddsmith.training.guard import StepGuard, WatchedPairs
from oddsmith.training.meter import EvaluatedPairs, TrainingMeter, pair_sums
from oddsmith.training.pace import Pace
from oddsmith.training.step import Circumstances, Stepper, pair_counts


def settings(folder: Path, **more: Any) -> ORPOConfig:
    return ORPOConfig(**{"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", **more})


def logps(chosen: list[float], rejected: list[float], tokens: int = 4) -> PairLogps:
    chosen_B, rejected_B = torch.tensor(chosen), torch.tensor(rejected)
    tokens_B = torch.full_like(chosen_B, tokens)
    return PairLogps(
        -chosen_B * tokens, tokens_B, chosen_B, rejected_B, tokens_B, 2 * tokens_B, torch.zeros(2 * len(chosen), 1),
        None,
    )  # fmt: skip


def counts(pairs: int, tokens: int = 4) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.ones(pairs),
        "row": torch.arange(pairs) + 10,
        "num_pairs": torch.tensor(float(pairs)),
        "num_nll_tokens": torch.tensor(float(pairs * tokens)),
    }


@dataclass
class Run:
    """A run as its parts see it: one linear layer, no loop."""

    args: ORPOConfig
    model: nn.Module = field(default_factory=lambda: nn.Linear(2, 1))
    accelerator: Accelerator = field(default_factory=lambda: Accelerator(cpu=True))
    state: TrainerState = field(default_factory=lambda: TrainerState(global_step=4))
    control: TrainerControl = field(default_factory=TrainerControl)
    gradient_norm: torch.Tensor | None = None
    sharded_by: str | None = None
    processing_class: Any = None
    skipped: list[float] = field(default_factory=list)

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.lr_scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer)
        self.callback_handler = CallbackHandler([], self.model, None, self.optimizer, self.lr_scheduler)

    def is_world_process_zero(self) -> bool:
        return True

    def checkpoint_is_complete(self, folder: Path, beside_s: float) -> None:
        verify(folder)

    def loss_sum(self) -> torch.Tensor:
        return torch.tensor(1.5)

    def skip_optimizer_step(self, loss_sum: torch.Tensor) -> None:
        self.skipped.append(loss_sum.item())

    def write_model(self, folder: Path) -> None:
        torch.save(self.model.state_dict(), folder / "weights.data")

    def load_model_and_optimizer(self, folder: Path) -> None:
        self.model.load_state_dict(torch.load(folder / "weights.data"))


class TestMeter:
    def test_a_line_averages_over_its_steps_and_leaves_out_a_skipped_one(self):
        meter = TrainingMeter()
        for chosen in (-1.0, -3.0):
            meter.add(pair_sums(logps([chosen], [-2.0]), counts(1), 0.1), counts(1))
        before = meter.state_dict()
        meter.add(pair_sums(logps([float("nan")], [-2.0]), counts(1), 0.1), counts(1))
        meter.leave_out_step(before)
        metrics = meter.read(3, lambda tensor: tensor, router_loss=False)
        assert metrics["logps/chosen"] == pytest.approx(-2.0)
        assert metrics["skipped_steps"] == 1
        assert meter.read(4, lambda tensor: tensor, router_loss=False) == {}

    def test_sums_of_a_version_with_other_metrics_are_dropped(self):
        meter = TrainingMeter()
        older = {"total": torch.ones(1), "seconds": 1.0, "last_step": 2, "skipped_steps": 0}
        meter.load_state_dict(older, version=1)  # the first version had no names
        meter.load_state_dict({**older, "quantities": ["or_loss"]}, version=1)
        assert meter.read(5, lambda tensor: tensor, router_loss=False) == {}

    @pytest.mark.parametrize(("known", "logged"), [({"num_tokens": 7}, True), ({}, False)])
    def test_tokens_are_counted_only_from_the_start_of_a_run(self, known, logged):
        meter = TrainingMeter()
        meter.load_state_dict(known, version=1)
        for step in (1, 2):
            meter.add(pair_sums(logps([-1.0], [-2.0]), counts(1), 0.1), counts(1))
            meter.leave_out_step(meter.state_dict())
            metrics = meter.read(step, lambda tensor: tensor, router_loss=False)
            assert ("num_tokens" in metrics) == logged
            assert metrics.get("num_tokens", 7) >= 7


class TestGuard:
    def guard(self, folder, **more) -> tuple[StepGuard, Run]:
        run = Run(settings(folder, **more))
        guard = StepGuard(run, TrainingMeter(), roll_back=lambda step, is_good: None)
        guard.begin()
        return guard, run

    def step(self, guard, run, chosen, norm=1.0):
        guard.on_step_begin(run.args, run.state, run.control)
        guard.watch(logps(chosen, [-2.0] * len(chosen)), counts(len(chosen)))
        guard.add_loss(torch.tensor(chosen).sum())
        run.gradient_norm = torch.tensor(norm)
        guard.on_pre_optimizer_step(run.args, run.state, run.control)

    def test_a_step_with_nan_is_skipped_and_its_row_is_named(self, tmp_path):
        guard, run = self.guard(tmp_path)
        self.step(guard, run, [-1.0, float("nan")])
        assert run.skipped == [1.5]
        assert guard.is_norm_invalid
        (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
        assert (event["event"], event["step"], event["rows"]) == ("skipped", 5, [11])
        self.step(guard, run, [-1.0, -1.0])
        assert (len(run.skipped), guard.is_norm_invalid) == (1, False)

    def test_watched_pairs_keep_no_memory_of_their_micro_batch(self):
        batch = counts(2)
        buffer = torch.zeros(1000, dtype=batch["row"].dtype)
        buffer[:2] = batch["row"]
        watched = WatchedPairs.of(logps([-1.0, -1.0], [-2.0, -2.0]), batch | {"row": buffer[:2]})
        assert torch.equal(watched.row_B, batch["row"])
        kept = {value.untyped_storage().data_ptr() for value in watched if value is not None}
        assert buffer.untyped_storage().data_ptr() not in kept

    def test_an_infinite_gradient_is_skipped(self, tmp_path):
        guard, run = self.guard(tmp_path)
        self.step(guard, run, [-1.0], norm=float("inf"))
        assert run.skipped == [1.5]

    def test_without_a_checkpoint_to_go_back_to_the_run_stops(self, tmp_path):
        guard, run = self.guard(tmp_path, max_skipped_steps=2)
        self.step(guard, run, [float("nan")])
        with pytest.raises(NonFiniteError, match="the last of 2 in a row, and there is no good checkpoint"):
            self.step(guard, run, [float("nan")])

    def test_weights_that_are_not_finite_are_not_saved_and_end_the_run(self, tmp_path):
        guard, run = self.guard(tmp_path)
        run.control.should_save = True
        run.model.weight.data[0, 0] = float("nan")
        guard.on_step_end(run.args, run.state, run.control)
        assert not run.control.should_save
        with pytest.raises(NonFiniteError, match="the weights weight are NaN or infinite after the last step"):
            guard.on_train_end(run.args, run.state, run.control)


class TestStepper:
    def stepper(self, meter=None):
        path = PaddedPath(lambda rows: rows, 0, "sequence", False, False)
        seen = SimpleNamespace(losses=[], forgotten=0)
        seen.add_loss = seen.losses.append
        seen.forget_micro_batches = lambda: None
        accelerator = Accelerator(cpu=True)

        def circumstances():
            return Circumstances("cpu", frozenset(), "no", False)

        parts = (accelerator, meter or TrainingMeter(), seen, Pace(is_sharded=lambda: False))
        return Stepper(*parts, lambda: path, lambda: path, circumstances, automatic=True), seen

    def batch(self, lengths: list[int], width: int = 6) -> dict[str, torch.Tensor]:
        mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
        labels = torch.where(mask == 1, 7, -100)
        labels[:, :2] = -100  # the prompt
        return {"chosen_input_ids": mask, "chosen_attention_mask": mask, "chosen_labels": labels}

    def test_an_item_sums_its_micro_batches(self):
        stepper, seen = self.stepper()
        losses = iter([1.0, 2.0])
        item = {"micro_batches": [{}, {}], "loaded": None}
        assert stepper.train(nn.Linear(1, 1), item, lambda model, batch: torch.tensor(next(losses))) == 3.0
        assert seen.losses == [3.0]

    @pytest.mark.parametrize(
        ("device", "kind", "then", "expected"),
        [
            ("cpu", DistributedType.NO, 60, 100),
            ("cpu", DistributedType.NO, 40, 40),  # its system would end the process
            ("cuda", DistributedType.NO, 40, 100),  # the step is repeated if they do not fit
            ("cuda", DistributedType.MULTI_GPU, 40, 100),
            ("cuda", DistributedType.FSDP, 40, 40),
            ("cuda", DistributedType.DEEPSPEED, 40, 40),
        ],
    )
    def test_a_resumed_run_makes_micro_batches_of_as_many_tokens_as_before(self, device, kind, then, expected):
        path = ForestPath("sequence", *[None] * 3, "", max_tokens=then, head_bytes=7)
        stepper, _ = self.stepper()
        stepper._accelerator = SimpleNamespace(device=torch.device(device), distributed_type=kind)
        stepper._choose_path = lambda: path
        stepper.load_state_dict({"max_tokens": 100, "head_bytes": 9})
        assert (path.max_tokens, path.head_bytes) == (expected, 9 if expected == 100 else 7)

    def test_batches_of_another_loader_get_the_counts_of_their_step(self):
        stepper, _ = self.stepper()
        first, second = stepper.with_step_counts([self.batch([4, 6]), self.batch([3])])
        assert (first["num_pairs"], second["num_pairs"]) == (3, 3)
        assert second["num_nll_tokens"] == (4 - 1) + (6 - 1) + (3 - 1)
        response_only = PaddedPath(lambda rows: rows, 0, "response", False, False)
        assert pair_counts(self.batch([4, 6]), response_only) == (2, 2 + 4)

    def test_tokens_without_a_label_between_labels_are_not_counted(self):
        batch = self.batch([6])
        batch["chosen_labels"][0, 3:5] = -100
        for nll_on, expected in (("sequence", 3), ("response", 2)):
            assert pair_counts(batch, PaddedPath(lambda rows: rows, 0, nll_on, False, False)) == (1, expected)


class TestCheckpoints:
    def manager(self, folder) -> tuple[CheckpointManager, Run, TrainingMeter]:
        run = Run(settings(folder))
        meter = TrainingMeter()
        identity = SimpleNamespace(datasets={}, manifest=lambda: Manifest(step=run.state.global_step, files={}))
        return CheckpointManager(run, identity, {"meter": meter}), run, meter

    def test_a_run_resumes_with_its_parts_and_random_states(self, tmp_path):
        manager, _, meter = self.manager(tmp_path)
        meter.add(pair_sums(logps([-1.0], [-2.0]), counts(1), 0.1), counts(1))
        assert manager.save(tmp_path / "checkpoint-4")
        assert not manager.save(tmp_path / "checkpoint-4")  # once a step
        drawn = torch.rand(1)
        resumed, _, fresh_meter = self.manager(tmp_path)
        with resumed.training(True, allow_changed=False) as folder:
            resumed.restore_parts()
            resumed.restore_random_states()
        assert folder == tmp_path / "checkpoint-4"
        assert torch.rand(1) == drawn
        assert fresh_meter.read(1, lambda tensor: tensor, False)["logps/chosen"] == pytest.approx(-1.0)

    def test_a_rollback_loads_the_newest_good_weights_and_keeps_the_schedule(self, tmp_path):
        manager, run, _ = self.manager(tmp_path)
        good = run.model.weight.detach().clone()
        manager.save(tmp_path / "checkpoint-4")
        run.model.weight.data.zero_()
        run.lr_scheduler.step()
        epoch = run.lr_scheduler.last_epoch
        assert manager.roll_back(5, is_good=lambda: True) == tmp_path / "checkpoint-4"
        assert torch.equal(run.model.weight, good)
        assert run.lr_scheduler.last_epoch == epoch
        assert manager.roll_back(3, is_good=lambda: True) is None

    def test_without_a_checkpoint_there_is_nothing_to_resume(self, tmp_path):
        manager, *_ = self.manager(tmp_path)
        with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
            manager.training(True, allow_changed=False).__enter__()


def test_the_users_metrics_get_the_pairs_in_batches(tmp_path):
    pairs = EvaluatedPairs(torch.tensor([[-1.0, -2.0]] * 3), torch.zeros(3, 2, 0), nll_P=torch.ones(3))
    args = settings(tmp_path, batch_eval_metrics=True, include_for_metrics=["loss"], per_device_eval_batch_size=2)
    sizes = []

    def compute(prediction, compute_result):
        sizes.append(len(prediction.losses))
        return {"last": compute_result}

    assert user_metrics(compute, pairs, None, args)[2] == {"last": True}
    assert sizes == [2, 1]
    assert np.allclose(pairs.losses(0.0).numpy(), 1.0)
