"""Shards of FSDP: the path is chosen when the model is prepared, on the device it trains on."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import state
from accelerate.utils import DistributedType

from oddsmith import ORPOTrainer
from oddsmith.model.logprobs.paths import ForestPath
from oddsmith.training import trainer as trainer_module
from oddsmith.training.transformers_adapter import TransformersAdapter
from tests.command import run_two_processes
from tests.tiny import tiny_model
from tests.tiny_runs import make_trainer

STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 0.01, "optim": "sgd"}


def losses(trainer: ORPOTrainer) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_path_of_a_sharded_model_is_chosen_when_it_is_prepared(tmp_path, monkeypatch):
    plain = losses(make_trainer(tmp_path / "plain", pairs=16, **STEPS))
    monkeypatch.setattr(TransformersAdapter, "sharded_by", property(lambda trainer: "FSDP"))
    order = []
    choose = trainer_module.choose_path
    monkeypatch.setattr(trainer_module, "choose_path", lambda *a, **k: order.append("chosen") or choose(*a, **k))
    trainer = make_trainer(tmp_path, pairs=16, **STEPS)
    prepare = trainer.accelerator.prepare_model
    trainer.accelerator.prepare_model = lambda *a, **k: order.append("prepared") or prepare(*a, **k)
    assert losses(trainer) == pytest.approx(plain, rel=1e-6)
    assert order == ["prepared", "chosen"]
    assert isinstance(trainer.path, ForestPath)
    order.clear()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
    assert order == []


def test_a_sharded_model_that_is_only_evaluated_is_not_checked_before(tmp_path, monkeypatch):
    plain = make_trainer(tmp_path, evaluate=None).evaluate(make_trainer(tmp_path).train_dataset)
    monkeypatch.setattr(TransformersAdapter, "sharded_by", property(lambda trainer: "FSDP"))
    monkeypatch.setattr(trainer_module, "choose_path", None)
    trainer = make_trainer(tmp_path)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_fsdp_2_packs_and_trains_as_one_process_does(tmp_path):
    """Over gloo: accelerate would not shard on a CPU, so that it is told of GPUs whose device is the CPU."""
    plain = losses(make_trainer(tmp_path / "plain", pairs=16, prefix_forest=False, **STEPS))
    run_two_processes(__name__, tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert found["path"] == "prefix forest"
        assert found["kinds"] == ["DTensor"]
        assert found["max_tokens"] == 1024
        assert found["losses"] == pytest.approx(plain, rel=1e-5)


def main(folder: str) -> None:
    """One of two processes that share the weights of a model."""
    state.PartialState._prepare_backend = lambda self, *_, **__: ("gloo", DistributedType.MULTI_GPU)
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    os.environ["ACCELERATE_USE_CPU"] = "false"
    settings = {**STEPS, "per_device_train_batch_size": 2, "use_cpu": False}
    sharding = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
    trainer = make_trainer(Path(folder) / "run", tiny_model(), 16, fsdp=True, fsdp_config=sharding, **settings)
    found = {
        "losses": losses(trainer),
        "path": trainer.path.name,
        "max_tokens": trainer.path.max_tokens,
        "kinds": sorted({type(parameter).__name__ for parameter in trainer.model.parameters()}),
    }
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
