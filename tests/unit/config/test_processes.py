"""What settings and environment ask of several processes, where accelerate would do something else and not say so."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from oddsmith import ORPOConfig
from oddsmith.config.processes import require_sharding
from oddsmith.errors import ConfigError
from oddsmith.system.launchers import NAMES
from tests.tiny_runs import PLAIN, make_trainer


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_would_train_alone_is_refused(tmp_path, monkeypatch, rank):
    """accelerate takes no process on a GPU for one of several without LOCAL_RANK, as some schedulers start them."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ConfigError) as refused:
        ORPOConfig(output_dir=str(tmp_path), **{**PLAIN, "use_cpu": False})
    assert str(refused.value) == (
        f"this is process {rank} of 2 by its launcher, and would train as process 0 of 1: set LOCAL_RANK for each"
        " process, as torchrun does"
    )


def test_accelerate_launch_says_that_the_cpu_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert ORPOConfig(output_dir=str(tmp_path), **{**PLAIN, "use_cpu": False}).use_cpu


@pytest.mark.parametrize("wished", ["fp16", "bf16", "fp8"])
def test_the_precision_is_that_of_the_settings(tmp_path, monkeypatch, caplog, wished):
    """transformers would take it from accelerate launch, and fail on a CPU."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", wished)
    trainer = make_trainer(tmp_path)
    assert trainer.accelerator.mixed_precision == "no"
    assert f"ACCELERATE_MIXED_PRECISION is {wished}; it has no effect" in caplog.text
    assert "this run computes in float32" in caplog.text


@pytest.mark.parametrize("asked", [{"fsdp": True}, {"fsdp": "full_shard"}, {"fsdp": True, "use_cpu": False}])
def test_no_trainer_shards_on_a_cpu(tmp_path, asked):
    with pytest.raises(
        ConfigError, match=r"fsdp is on, which takes an accelerator for each process, and there is none"
    ):
        make_trainer(tmp_path, **asked)


def asking(device: str = "cuda", **more: Any) -> Any:
    """Return settings of a process without a launcher."""
    state = SimpleNamespace(distributed_type=more.pop("kind", DistributedType.NO))
    return SimpleNamespace(
        **{"fsdp": False, "deepspeed": None, "device": torch.device(device), "distributed_state": state, **more}
    )


@pytest.mark.parametrize(("name", "value"), [("fsdp", True), ("deepspeed", "zero3.json")])
def test_nothing_is_sharded_without_a_launcher(name, value):
    settings = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is on, which takes processes that a launcher has started"):
        require_sharding(asking(**settings))
    require_sharding(asking(**settings), is_launched_later=True)
    require_sharding(asking(**settings, kind=DistributedType.MULTI_GPU))
    require_sharding(asking())


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_accelerate_launch_asks_for_counts_as_settings_do(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    for device in ("cpu", "cuda"):
        with pytest.raises(ConfigError, match=f"{variable} is on, which takes"):
            require_sharding(asking(device))
    monkeypatch.setenv(variable, "false")
    require_sharding(asking())


def test_megatron_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(ConfigError, match="Megatron-LM is not supported"):
        require_sharding(asking(kind=DistributedType.MULTI_GPU))
