"""Each parallelism but that over the data is refused, wherever it is asked for."""

import json

import pytest
from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState

from oddsmith.config import ORPOConfig
from oddsmith.config.parallelism import require_data_parallel_deepspeed, require_sizes
from oddsmith.config.spellings import under_todays_names
from oddsmith.errors import ConfigError

LAUNCHED = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}


def settings(folder, **given):
    return ORPOConfig(str(folder), use_cpu=True, bf16=False, report_to="none", **given)


@pytest.mark.parametrize(("name", "kind"), [("tp_size", "tensor"), ("cp_size", "context"), ("sp_size", "sequence")])
@pytest.mark.parametrize("form", [lambda sizes: ParallelismConfig(**sizes), dict, json.dumps])
def test_a_size_of_another_parallelism(tmp_path, name, kind, form):
    with pytest.raises(ConfigError, match=rf"parallelism_config has {name} 2 \({kind} parallelism\); each process"):
        settings(tmp_path, parallelism_config=form({name: 2}))


@pytest.mark.parametrize("name", ["TP", "CP", "SP"])
def test_what_a_launcher_asks_for(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "2")
    settings(tmp_path)  # nobody reads it
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ConfigError, match=rf"PARALLELISM_CONFIG_{name}_SIZE is 2 \(\w+ parallelism\) in the environ"):
        settings(tmp_path)


def test_megatron(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_MEGATRON_LM is on"):
        settings(tmp_path)


def test_an_accelerator_that_exists_already(tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    try:
        monkeypatch.setitem(AcceleratorState._shared_state, "parallelism_config", ParallelismConfig(tp_size=2))
        with pytest.raises(ConfigError, match="the Accelerator that exists already has tp_size 2"):
            settings(tmp_path)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "options", [{"tp_plan": "auto"}, {"tp_size": 2}, {"device_mesh": [2]}, {"distributed_config": {"ep_size": 2}}]
)
@pytest.mark.parametrize("form", [dict, json.dumps])
def test_arguments_of_from_pretrained(tmp_path, options, form):
    with pytest.raises(ConfigError, match=f"model_init_kwargs has {next(iter(options))}, which splits the model over"):
        settings(tmp_path, model_init_kwargs=form(options))


@pytest.mark.parametrize("name", ["tp_size", "sp_size", "pipeline_parallel_size", "parallelism_config_cp_size"])
def test_names_of_other_projects(name):
    assert under_todays_names({name: 1}, ["beta"]).settings == {}
    with pytest.raises(ConfigError, match=f"{name} is 2; each process trains on pairs of its own"):
        under_todays_names({name: 2}, ["beta"])


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, r"autotp_size 2 \(tensor"),
        ({"tensor_parallel": {"tp": {"tp_size": 4}}}, r"tp_size 4 \(tensor"),
        ({"sequence_parallel_size": 2}, r"sequence_parallel_size 2 \(sequence"),
        ({"pipeline": {"stages": 2}}, r"stages 2 \(pipeline"),
        ({"expert_parallel": {"enabled": True}}, r"expert_parallel {'enabled': True} \(expert"),
        ({"moe": {"ep_size": 2}}, r"ep_size 2 \(expert"),
        ({"compile": {"deepcompile": True, "passes": ["z1", "autosp"]}}, r"passes \['z1', 'autosp'\] \(sequence"),
    ],
)
def test_settings_of_deepspeed(config, line):
    with pytest.raises(ConfigError, match=f"deepspeed has {line} parallelism"):
        require_data_parallel_deepspeed({"zero_optimization": {"stage": 1}, **config})


def test_deepspeed_without_another_parallelism():
    require_data_parallel_deepspeed(
        {
            "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 4},
            "tensor_parallel": {"autotp_size": 1},
            "pipeline": {"stages": "auto", "activation_checkpoint_interval": 2},
            "compile": {"passes": ["z3"]},
        }
    )


def test_sizes_of_data_parallelism(tmp_path, monkeypatch):
    one = settings(tmp_path, parallelism_config={"dp_replicate_size": 1}).parallelism_config
    assert (one.dp_replicate_size, one.total_size) == (1, 1)
    with pytest.raises(ConfigError, match="dp_replicate_size 2, dp_shard_size 2: 4 processes, and there are 1"):
        settings(tmp_path, parallelism_config={"dp_replicate_size": 2, "dp_shard_size": 2})
    for name, value in {**LAUNCHED, "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="dp_shard_size 2: 2 processes, and there are 1"):
        settings(tmp_path)


@pytest.mark.parametrize("sizes", [{"dp_replicate_size": 2}, {"dp_shard_size": 2}, {"dp_replicate_size": 1}])
def test_fsdp_shards_over_dp_shard_size(sizes):
    config, wants_fsdp = ParallelismConfig(**sizes), "dp_shard_size" in sizes
    require_sizes(config, 2, is_fsdp=wants_fsdp, is_deepspeed=False)
    if config.total_size > 1:
        with pytest.raises(ConfigError, match="and fsdp is" + (" not set" if wants_fsdp else ":")):
            require_sizes(config, 2, is_fsdp=not wants_fsdp, is_deepspeed=False)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"dp_size": 2}, " is {'dp_size': 2}; expected a mapping of dp_replicate_size, dp_shard_size"),
        ("two", " is 'two'; expected a mapping"),
        ({"dp_shard_size": 0}, ": dp_shard_size must be at least 1"),
        ({"dp_shard_size": "2"}, ""),
    ],
)
def test_what_is_no_parallelism_config(tmp_path, given, line):
    with pytest.raises(ConfigError, match=f"parallelism_config{line}"):
        settings(tmp_path, parallelism_config=given)
