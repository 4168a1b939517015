"""What people override or pass in transformers' Trainer works here: by really subclassing or passing it."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments
from trl.experimental.utils import DPODataCollatorWithPadding

from oddsmith import ORPOTrainer
from oddsmith.errors import ConfigError
from oddsmith.system.run_folder import read_events
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

METRICS = {"nll_loss", "rewards/margins", "log_odds_ratio"}


SETTINGS = {
    "per_device_eval_batch_size": 2, "max_steps": 3, "learning_rate": 1e-3, "train_sampling_strategy": "sequential",
}  # fmt: skip


def make(folder, kind=ORPOTrainer, **more):
    """A trainer of a tiny model on twelve pairs, four held out."""
    rows, held_out = (Dataset.from_list(ragged_pairs(count, seed)) for count, seed in ((12, 1), (4, 2)))
    return make_trainer(folder, None, rows, held_out, kind=kind, **{**SETTINGS, **more})


def losses(trainer) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Losses of three steps, and the metrics of an evaluation after them, of an unchanged trainer."""
    trainer = make(tmp_path_factory.mktemp("plain"))
    return losses(trainer), trainer.evaluate()


class OwnTrainLoader(ORPOTrainer):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)


class OwnEvalLoader(ORPOTrainer):
    def get_eval_dataloader(self, eval_dataset=None):
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(rows, batch_size=3, collate_fn=self.data_collator)


class WrappedLoader(ORPOTrainer):
    def get_train_dataloader(self):
        self.asked = True
        return super().get_train_dataloader()


class TestDataLoaders:
    @pytest.mark.parametrize("settings", [{}, {"prefix_forest": False}], ids=["packed", "padded"])
    def test_own_training_batches_give_the_same_losses(self, tmp_path, plain, settings):
        trainer = make(tmp_path, OwnTrainLoader, **settings)
        assert losses(trainer) == pytest.approx(plain[0], rel=1e-5)
        assert trainer.state.log_history[0].keys() >= METRICS

    def test_own_training_batches_are_normalised_over_the_accumulated_step(self, tmp_path):
        ours = losses(make(tmp_path / "ours", max_steps=2, gradient_accumulation_steps=3))
        theirs = losses(make(tmp_path / "theirs", OwnTrainLoader, max_steps=2, gradient_accumulation_steps=3))
        assert theirs == pytest.approx(ours, rel=1e-5)

    def test_own_training_batches_resume(self, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 1}
        through = losses(make(tmp_path / "through", OwnTrainLoader, **settings))
        make(tmp_path / "cut", OwnTrainLoader, **settings, callbacks=[StopAt(2)]).train()
        resumed = make(tmp_path / "cut", OwnTrainLoader, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert [line["loss"] for line in resumed.state.log_history if "loss" in line] == through

    @pytest.mark.parametrize("settings", [{}, {"prefix_forest": False}], ids=["packed", "padded"])
    def test_own_evaluation_batches_give_the_same_metrics(self, tmp_path, plain, settings):
        trainer = make(tmp_path, OwnEvalLoader, eval_strategy="steps", eval_steps=3, **settings)
        trainer.train()
        metrics = next(line for line in trainer.state.log_history if "eval_loss" in line)
        for name in ("eval_loss", *(f"eval_{name}" for name in METRICS)):
            assert metrics[name] == pytest.approx(plain[1][name], rel=1e-5)

    def test_a_loader_that_is_only_wrapped_stays_packed(self, tmp_path, plain):
        trainer = make(tmp_path, WrappedLoader)
        assert losses(trainer) == plain[0]
        assert trainer.asked
        assert trainer.path.name == "prefix forest"


class WeightedByColumn(ORPOTrainer):
    """A loss that a column of the rows decides, which is no concern of ours."""

    seen: ClassVar[list] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.seen += zip(inputs.pop("chosen_score"), inputs["chosen"], inputs["note"], strict=True)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class TestCollators:
    def test_the_users_own_call_makes_a_batch_of_rows(self, tmp_path):
        trainer = make(tmp_path)
        rows = trainer.train_dataset
        batch = trainer.data_collator([rows[0], rows[1]])
        assert set(batch) == {
            f"{part}_{of}" for part in ("chosen", "rejected") for of in ("input_ids", "attention_mask", "labels")
        } | {"prompt_input_ids", "prompt_attention_mask"}
        ids, mask, labels = (batch[f"chosen_{of}"][1] for of in ("input_ids", "attention_mask", "labels"))
        assert ids[mask == 1].tolist() == rows[1]["chosen_input_ids"][: rows[1]["chosen_end"]]
        assert labels[labels != -100].tolist() == ids[mask == 1][rows[1]["chosen_prompt_tokens"] :].tolist()
        loss = trainer.compute_loss(trainer.model, trainer.data_collator([rows[0], rows[1]]))
        assert loss.item() == pytest.approx(float(make(tmp_path).compute_loss(trainer.model, batch)))

    @pytest.mark.parametrize("stay", [True, False])
    def test_trls_gives_the_same_losses(self, tmp_path, plain, stay):
        collator = DPODataCollatorWithPadding(pad_token_id=257)
        trainer = make(tmp_path, data_collator=collator, remove_unused_columns=not stay)
        assert losses(trainer) == pytest.approx(plain[0], rel=1e-5)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(plain[1]["eval_loss"], rel=1e-5)

    @pytest.mark.parametrize("kind", [Dataset.from_list, list], ids=["dataset", "list"])
    def test_columns_of_the_rows_reach_a_loss_where_they_stay(self, tmp_path, plain, kind):
        rows = [{**row, "chosen_score": number, "note": f"n{number}"} for number, row in enumerate(ragged_pairs(12, 1))]
        rows.insert(0, {**rows[3], "chosen": rows[3]["rejected"]})  # is dropped
        WeightedByColumn.seen.clear()
        options = {"kind": WeightedByColumn, "remove_unused_columns": False, **SETTINGS}
        trainer = make_trainer(tmp_path, None, kind(rows), **options)
        assert losses(trainer) == pytest.approx(plain[0], rel=1e-5)
        answers = {row["chosen_score"]: (row["chosen"].strip(), row["note"]) for row in rows[1:]}
        assert len(WeightedByColumn.seen) == 6
        for score, answer, note in WeightedByColumn.seen:
            assert answers[score] == (answer.strip(), note)

    def test_a_column_of_mixed_types_is_left_out_and_told(self, tmp_path, caplog):
        rows = [{**row, "meta": meta} for row, meta in zip(ragged_pairs(4), [1, "x", None, [2]], strict=True)]
        trainer = make_trainer(tmp_path, None, rows, remove_unused_columns=False, max_steps=1)
        assert "meta" not in trainer.train_dataset.column_names
        assert "column meta is left out of the batches" in caplog.text
        trainer.train()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class DoubledLoss(ORPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert "chosen_input_ids" in inputs  # TRL's names, padded
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class LossOfTheirOwn(ORPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["chosen_input_ids"], labels=inputs["chosen_labels"])
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class CountingSteps(ORPOTrainer):
    trained = predicted = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        assert "chosen_input_ids" in inputs
        self.trained += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        self.predicted += 1
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


class OwnPredictions(ORPOTrainer):
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        loss, *_ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        return loss, torch.ones(len(inputs["chosen_labels"]), 3), torch.zeros(len(inputs["chosen_labels"]))


class TestMethods:
    def test_compute_loss_on_top_of_ours(self, tmp_path, plain):
        trainer = make(tmp_path, DoubledLoss, max_steps=1)
        assert losses(trainer) == pytest.approx([2 * plain[0][0]], rel=1e-5)
        whole = {"per_device_eval_batch_size": 4}  # transformers averages a loss that is not ours over batches
        untrained = make(tmp_path / "untrained", **whole).evaluate()
        metrics = make(tmp_path / "doubled", DoubledLoss, **whole).evaluate()
        assert metrics["eval_loss"] == pytest.approx(2 * untrained["eval_loss"], rel=1e-5)
        assert metrics["eval_nll_loss"] == pytest.approx(untrained["eval_nll_loss"], rel=1e-5)

    def test_compute_loss_without_ours(self, tmp_path):
        trainer = make(tmp_path, LossOfTheirOwn, eval_strategy="steps", eval_steps=3)
        assert all(np.isfinite(losses(trainer)))
        metrics = next(line for line in trainer.state.log_history if "eval_loss" in line)
        assert np.isfinite(metrics["eval_loss"])

    def test_training_step_and_prediction_step(self, tmp_path, plain):
        trainer = make(tmp_path, CountingSteps, eval_strategy="steps", eval_steps=3)
        assert losses(trainer) == pytest.approx(plain[0], rel=1e-5)
        assert (trainer.trained, trainer.predicted) == (3, 2)

    def test_create_optimizer(self, tmp_path):
        class WithSGD(ORPOTrainer):
            def create_optimizer(self, model=None):
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate)
                return self.optimizer

        trainer = make(tmp_path, WithSGD)
        losses(trainer)
        assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)

    def test_an_optimizer_that_averages_its_steps_saves_the_average(self, tmp_path):
        class Averaging(torch.optim.SGD):  # as the schedule-free ones
            mode = "train"

            def train(self):
                self.mode = "train"

            def eval(self):
                self.mode = "eval"

        seen = []

        class Watching(TrainerCallback):
            def on_step_end(self, *args, **kwargs):
                seen.append(optimizer.mode)

            def on_save(self, *args, **kwargs):
                seen.append(optimizer.mode)

        model = tiny_model()
        optimizer = Averaging(model.parameters(), lr=1e-3)
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(tmp_path, model, callbacks=[Watching()], optimizers=(optimizer, None), **settings)
        trainer.train()
        assert seen == ["train", "eval", "train", "eval"]
        assert optimizer.mode == "eval"

    def test_log_and_evaluate(self, tmp_path):
        class Talkative(ORPOTrainer):
            def log(self, logs, start_time=None):
                super().log({**logs, "mine": 1.0}, start_time)

            def evaluate(self, *args, **kwargs):
                return {**super().evaluate(*args, **kwargs), "eval_mine": 2.0}

        trainer = make(tmp_path, Talkative, eval_strategy="steps", eval_steps=3, metric_for_best_model="mine")
        trainer.train()
        assert all(line["mine"] == 1.0 for line in trainer.state.log_history)
        assert trainer.state.log_history[0].keys() >= METRICS
        assert trainer.state.best_metric == 2.0


class TestEvaluation:
    def test_predict(self, tmp_path):
        trainer = make(tmp_path)
        predicted = trainer.predict(Dataset.from_list(ragged_pairs(4, seed=2)))
        assert predicted.predictions.shape == (4, 2)
        assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])

    def test_another_prefix_is_one_event(self, tmp_path):
        trainer = make(tmp_path)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
        for prefix in ("test", "train"):
            metrics = trainer.evaluate(metric_key_prefix=prefix)
            assert (metrics[f"{prefix}_loss"], f"{prefix}_rewards/margins" in metrics) == (loss, True)
            events = [event for event in read_events(tmp_path) if f"{prefix}_rewards/margins" in event]
            assert [event["event"] for event in events] == ["evaluate"]

    def test_compute_metrics_gets_losses_and_prompts(self, tmp_path):
        seen = {}

        def compute(prediction):
            seen.update(losses=prediction.losses, inputs=prediction.inputs, predictions=prediction.predictions)
            return {"mean": float(prediction.losses.mean())}

        settings = {"include_for_metrics": ["inputs", "loss"], "per_device_eval_batch_size": 4}
        trainer = make(tmp_path, compute_metrics=compute, **settings)
        metrics = trainer.evaluate()
        assert seen["losses"].shape == (4,)
        assert metrics["eval_mean"] == pytest.approx(seen["losses"].mean())
        prompt = trainer.eval_dataset[0]["chosen_input_ids"][: trainer.eval_dataset[0]["chosen_prompt_tokens"]]
        assert seen["inputs"][0][: len(prompt)].tolist() == prompt
        assert set(seen["inputs"][0][len(prompt) :].tolist()) <= {-100}

    @pytest.mark.parametrize(("kind", "width"), [(ORPOTrainer, 2), (OwnPredictions, 3)], ids=["ours", "own step"])
    def test_batch_eval_metrics(self, tmp_path, kind, width):
        calls = []

        def compute(prediction, compute_result):
            calls.append((prediction.predictions.shape, compute_result))
            return {"pairs": sum(shape[0] for shape, _ in calls)} if compute_result else {}

        trainer = make(tmp_path, kind, compute_metrics=compute, batch_eval_metrics=True, per_device_eval_batch_size=3)
        assert trainer.evaluate()["eval_pairs"] == 4
        assert calls == [((3, width), False), ((1, width), True)]

    def test_batches_that_are_not_joined(self, tmp_path):
        def compute(prediction):
            return {"batches": len(prediction.predictions), "pairs": sum(map(len, prediction.label_ids))}

        settings = {"eval_do_concat_batches": False, "per_device_eval_batch_size": 3}
        metrics = make(tmp_path, compute_metrics=compute, **settings).evaluate()
        assert (metrics["eval_batches"], metrics["eval_pairs"]) == (2, 4)

    def test_metrics_in_numpy_are_saved(self, tmp_path):
        settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        trainer = make(tmp_path, compute_metrics=lambda prediction: {"mine": np.float32(0.5)}, max_steps=1, **settings)
        trainer.train()
        state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
        assert [line["eval_mine"] for line in state["log_history"] if "eval_mine" in line] == [0.5]

    def test_prediction_loss_only(self, tmp_path):
        trainer = make(tmp_path, compute_metrics=lambda prediction: {"mine": 1.0}, prediction_loss_only=True)
        predicted = trainer.predict(trainer.eval_dataset)
        assert predicted.predictions is predicted.label_ids is None
        assert "test_loss" in predicted.metrics
        assert "test_mine" not in predicted.metrics

    def test_early_stopping(self, tmp_path):
        stopping = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
        trainer = make(
            tmp_path, callbacks=[stopping], max_steps=9, eval_strategy="steps", eval_steps=1, save_strategy="steps",
            save_steps=1, load_best_model_at_end=True, metric_for_best_model="rewards/margins",
        )  # fmt: skip
        trainer.train()
        assert trainer.state.global_step == 2

    def test_the_best_is_saved(self, tmp_path):
        settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
        trainer = make(tmp_path, **settings, metric_for_best_model="loss")
        trainer.train()
        assert trainer.state.best_model_checkpoint is not None
        assert (tmp_path / f"checkpoint-{trainer.state.best_global_step}" / "manifest.json").is_file()


@pytest.mark.parametrize("counted", ["all", "non_padding"])
@pytest.mark.parametrize("settings", [{}, {"prefix_forest": False}], ids=["packed", "padded"])
def test_input_tokens_are_counted(tmp_path, counted, settings):
    trainer = make(tmp_path, include_num_input_tokens_seen=counted, per_device_train_batch_size=3, **settings)
    trainer.train()
    rows = trainer.train_dataset.select(range(9))
    without_padding = sum(rows["chosen_end"]) + sum(rows["rejected_end"])
    seen = trainer.state.num_input_tokens_seen
    if settings:
        assert seen == without_padding if counted == "non_padding" else seen > without_padding
    else:
        assert 0 < seen < without_padding  # a shared prompt is computed once
    assert trainer.state.log_history[-2]["num_input_tokens_seen"] == seen
    assert [event["step"] for event in read_events(tmp_path) if "loss" in event] == [1, 2, 3]


def test_hyperparameter_search(tmp_path):
    pytest.importorskip("optuna")
    trainer = make(tmp_path, model_init=lambda: tiny_model(), is_encoder_decoder=False)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)}, n_trials=2,
        direction="minimize", backend="optuna", compute_objective=lambda metrics: metrics["eval_loss"],
    )  # fmt: skip
    assert best.run_id in ("0", "1")
    assert 1e-4 <= best.hyperparameters["learning_rate"] <= 1e-2


def test_one_of_several_gpus_is_used_and_a_line_names_the_command_for_all(tmp_path, monkeypatch, caplog):
    """transformers would multiply the batch sizes, and wrap the model in DataParallel."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 4))
    trainer = make(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, per_device_eval_batch_size=5)
    (said,) = [record.getMessage() for record in caplog.records if "GPUs" in record.getMessage()]
    assert said.startswith(
        "This process sees 4 GPUs and uses one, cpu. To use all of them, start one process for each:"
    )
    assert "oddsmith train --num-processes 4, or accelerate launch --num_processes 4 SCRIPT" in said
    trainer.train()
    assert trainer.model_wrapped is trainer.model
    assert (trainer.pairs_per_step, trainer.args.eval_batch_size, trainer.state.train_batch_size) == (6, 5, 2)
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)


def test_a_model_over_several_gpus_uses_padded_batches_and_no_line_asks_for_processes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    model = tiny_model()
    model.hf_device_map = {"model.layers.0": 0, "": 1}
    trainer = make_trainer(tmp_path, model)
    assert not any("GPUs" in record.getMessage() for record in caplog.records)
    assert trainer.path.reason == "device_map spreads its layers over several devices"


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_model_that_is_partly_not_on_the_gpu_is_refused(place, tmp_path):
    model = tiny_model()
    model.hf_device_map = {"model.layers.0": 0, "": place}
    with pytest.raises(ConfigError, match=rf"device_map has left a part of the model on the {place}, where it cannot"):
        make_trainer(tmp_path, model)


def test_a_cpu_is_not_warned_of_pinned_memory(tmp_path, recwarn):
    make(tmp_path, use_cpu=False).train()
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]
