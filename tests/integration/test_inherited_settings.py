"""Settings of transformers that are tried nowhere else: they do what they do there, and leave the result as it is."""

import logging
import sys
from collections import Counter

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import ProgressCallback, TrainerCallback

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.batching.collate import PairCollator
from oddsmith.errors import ConfigError
from oddsmith.system import precision
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

SETTINGS = {"max_steps": 3, "learning_rate": 1e-2, "per_device_eval_batch_size": 2}
RECOMPUTE = "activation" if "activation_checkpointing" in ORPOConfig.__dataclass_fields__ else "gradient"
WITHOUT_EFFECT = {
    f"{RECOMPUTE}_checkpointing": True, f"{RECOMPUTE}_checkpointing_kwargs": {"use_reentrant": False}, "data_seed": 42,
    "ddp_broadcast_buffers": False, "ddp_bucket_cap_mb": 7, "ddp_find_unused_parameters": True,
    "ddp_static_graph": True, "ddp_timeout": 60, "do_train": True, "full_determinism": True, "log_level": "error",
    "log_level_replica": "critical", "log_on_each_node": False, "save_on_each_node": True,
    "skip_memory_metrics": False, "torch_empty_cache_steps": 1, "use_cache": True,
}  # fmt: skip


def make(folder, kind=ORPOTrainer, **more):
    rows, held_out = (Dataset.from_list(ragged_pairs(count, seed)) for count, seed in ((12, 1), (4, 2)))
    return make_trainer(folder, None, rows, held_out, kind=kind, **{**SETTINGS, **more})


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return trainer


@pytest.fixture
def as_before(verbosity):
    """Put back what some settings change in the libraries."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_they_leave_the_result_as_it_is(tmp_path, plain, monkeypatch, as_before):
    emptied = Counter()
    monkeypatch.setattr("transformers.trainer.clear_device_cache", lambda: emptied.update(["cache"]))
    recomputed = Counter()
    callback = TrainerCallback()
    callback.on_step_begin = lambda *_, model, **more: recomputed.update([model.is_gradient_checkpointing])
    trainer = make(tmp_path, callbacks=[callback], **WITHOUT_EFFECT)
    ended = trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-6)
    assert emptied["cache"] >= 3
    assert torch.are_deterministic_algorithms_enabled()
    assert "train_mem_cpu_alloc_delta" in ended.metrics
    assert trainer.model.config.use_cache
    assert recomputed == {True: 3}
    assert trainer.path.name == "prefix forest"
    handler = trainer.accelerator.ddp_handler
    assert (handler.broadcast_buffers, handler.bucket_cap_mb, handler.static_graph) == (False, 7, True)
    assert handler.find_unused_parameters
    assert trainer.args.ddp_timeout_delta.seconds == 60
    assert transformers.logging.get_verbosity() == logging.ERROR
    monkeypatch.setattr(ORPOConfig, "process_index", 1)  # on another machine
    assert trainer.args.get_process_log_level() == logging.CRITICAL
    trainer.save_model(str(tmp_path / "elsewhere"))
    plain.save_model(str(tmp_path / "nowhere"))
    assert (tmp_path / "elsewhere" / "model.safetensors").is_file()
    assert not (tmp_path / "nowhere" / "model.safetensors").exists()


def test_the_loader_has_its_settings(tmp_path):
    settings = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    trainer = make(tmp_path, dataloader_multiprocessing_context="spawn", dataloader_pin_memory=False, **settings)
    loader = trainer.get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (2, True, 3)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert not loader.pin_memory


def test_the_seed_of_the_data_alone_decides_on_their_order(tmp_path):
    def order(**seeds):
        sampler = make(tmp_path, **seeds).get_train_dataloader().batch_sampler
        return [batch.micro_batches[0].pairs for batch in sampler]

    assert order(seed=1, data_seed=5) == order(seed=2, data_seed=5) == order(seed=5) != order(seed=1, data_seed=6)


def test_optimizer_and_schedule_have_their_settings(tmp_path):
    trainer = make(
        tmp_path, weight_decay=0.25, adam_beta1=0.7, adam_beta2=0.8, adam_epsilon=1e-3, warmup_steps=2,
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 5e-3},
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.7, 0.8), 1e-3)
    schedule = trainer.create_scheduler(num_training_steps=4)
    rates = []
    for _ in range(5):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 5e-3, 1e-2, 7.5e-3, 5e-3])
    assert trainer.accelerator.state.dynamo_plugin.mode == "default"


def test_evaluations_and_log_lines_come_when_they_should(tmp_path, caplog):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2, "logging_steps": 9}
    trainer = make(tmp_path, logging_first_step=True, disable_tqdm=False, **settings)
    assert any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [2, 3]
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [1]


def test_a_run_is_resumed_where_the_settings_say_so(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    make(tmp_path, max_steps=2, resume_from_checkpoint="true", **settings).train()  # there is none yet
    resumed = make(tmp_path, max_steps=3, resume_from_checkpoint=True, **settings)
    resumed.train()
    assert [line["step"] for line in resumed.state.log_history if "loss" in line] == [1, 2, 3]
    assert resumed._initial_global_step == 2
    again = make(tmp_path, max_steps=3, resume_from_checkpoint=str(tmp_path / "checkpoint-1"), **settings)
    again.train(resume_from_checkpoint=False)
    assert again._initial_global_step == 0


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_16_bits(tmp_path, plain, monkeypatch, name):
    monkeypatch.setattr(precision, "_cpu_bf16_unit", lambda: "AVX512-BF16")
    trainer = make(tmp_path, **{name: True})
    metrics, exact = trainer.evaluate(), make(tmp_path).evaluate()
    assert metrics["eval_loss"] != exact["eval_loss"]
    assert metrics["eval_loss"] == pytest.approx(exact["eval_loss"], rel=1e-2)


def test_tf32_needs_an_nvidia_gpu(tmp_path):
    assert make(tmp_path, tf32=False).args.tf32 is False
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="tf32 requires Ampere"):
            make(tmp_path, tf32=True)


def test_activations_are_not_put_aside_without_a_gpu(tmp_path):
    with pytest.raises(ConfigError, match="activation_checkpointing_kwargs has offload on, which needs a GPU"):
        make(tmp_path, **{f"{RECOMPUTE}_checkpointing": True, f"{RECOMPUTE}_checkpointing_kwargs": {"offload": True}})


def test_the_batch_is_made_smaller_until_it_fits(tmp_path):
    class Full(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if trainer.pairs_per_step > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    trainer = make(tmp_path, auto_find_batch_size=True, per_device_train_batch_size=3, callbacks=[Full()])
    trainer.train()
    assert (trainer.pairs_per_step, trainer.state.global_step) == (2, 3)


class Watched(ORPOTrainer):
    """Remembers the pairs of each step."""

    def get_batch_samples(self, *arguments):
        items, number = super().get_batch_samples(*arguments)
        self.steps = [*getattr(self, "steps", []), [micro["position"].tolist() for micro in items[0]["micro_batches"]]]
        return items, number


def test_the_data_begin_anew_where_they_are_not_skipped(tmp_path):
    settings = {"ignore_data_skip": True, "save_strategy": "steps", "save_steps": 2}
    first = make(tmp_path, Watched, max_steps=2, **settings)
    first.train()
    resumed = make(tmp_path, Watched, max_steps=4, lr_scheduler_type="linear", **settings)
    resumed.train(resume_from_checkpoint=True, allow_changed=True)
    assert resumed.state.global_step == 4
    assert resumed.steps[:2] == first.steps[:2]


def test_numbers_that_overflow_are_looked_for(tmp_path, plain, capsys):
    trainer = make(tmp_path, debug="underflow_overflow", max_steps=1)
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain)[:1], rel=1e-6)
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.inf)
    broken = make_trainer(tmp_path, model, 2, debug="underflow_overflow", prefix_forest=False, max_steps=1)
    with pytest.raises(ValueError, match="inf/nan detected"):
        broken.train()


def test_a_tracker_gets_the_names(tmp_path, monkeypatch):
    lines = ["from unittest.mock import MagicMock", "made = MagicMock()", "def __getattr__(name):"]
    (tmp_path / "trackio.py").write_text("\n".join([*lines, "    return getattr(made, name)", ""]))
    monkeypatch.syspath_prepend(tmp_path)
    names = {"project": "a-project", "trackio_space_id": "me/space", "trackio_bucket_id": "me/bucket"}
    more = {"trackio_static_space_id": False, "hub_private_repo": True}
    make(tmp_path, report_to="trackio", run_name="a-run", max_steps=1, **names, **more).train()
    given = sys.modules.pop("trackio").made.init.call_args.kwargs
    assert (given["project"], given["name"], given["private"]) == ("a-project", "a-run", True)
    assert (given["space_id"], given["bucket_id"]) == ("me/space", "me/bucket")


def test_a_collator_gets_the_texts_where_columns_stay(tmp_path):
    seen = []

    class Collator(PairCollator):
        def __call__(self, features):
            texts = [{name: row.pop(name, None) for name in ("prompt", "chosen", "rejected")} for row in features]
            seen.extend(texts)
            return super().__call__(features)

    for stay in (True, False):
        make(tmp_path, data_collator=Collator(0), remove_unused_columns=not stay, max_steps=1).evaluate()
        assert all((text["prompt"] is not None) == stay for text in seen)
        seen.clear()


def test_a_kind_of_model_that_it_is_not_is_refused_and_a_setting_of_the_other_kind_is_told(tmp_path, caplog):
    with pytest.raises(ConfigError, match="is_encoder_decoder is True, but the model is none; leave it out"):
        make(tmp_path, is_encoder_decoder=True)
    make(tmp_path, max_completion_length=8)
    assert "max_completion_length is 8; it has no effect: it is for encoder-decoders" in caplog.text


def test_a_step_of_one_s_own_gives_its_predictions_to_the_cpu(tmp_path):
    class Own(ORPOTrainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            loss, *_ = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            gathered.append(self.gather_function.keywords)
            return loss, torch.ones(len(inputs["chosen_labels"]), 3), torch.zeros(len(inputs["chosen_labels"]))

    seen, gathered = [], []
    settings = {"eval_accumulation_steps": 1, "eval_use_gather_object": True}
    trainer = make(tmp_path, Own, compute_metrics=lambda prediction: seen.append(prediction) or {}, **settings)
    trainer.evaluate()
    assert seen[0].predictions.shape == (4, 3)
    assert gathered == 2 * [{"use_gather_object": True}]
