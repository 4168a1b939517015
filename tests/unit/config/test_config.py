"""Settings: what contradicts itself or is out of range is refused before anything is loaded."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys

import pytest
import torch
from transformers import HfArgumentParser
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from oddsmith import ModelConfig, ORPOConfig, ScriptArguments
from oddsmith.config.trackers import TRACKERS
from oddsmith.errors import ConfigError, MissingExtraError
from oddsmith.system import precision as precision_module
from oddsmith.system.machine import processor_flags
from oddsmith.system.precision import best_precision


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0; expected a number above 0"),
        ({"learning_rate": -1e-5}, "learning_rate is -1e-05"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"beta": -0.1}, "beta is -0.1; expected a number from 0 upwards"),
        ({"max_length": 1}, "max_length is 1; expected at least 2"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16 are both on"),
        ({"fp16": True, "use_cpu": True}, "fp16 is on, but it needs a GPU; leave it out, or take bf16"),
        ({"max_skipped_steps": 0}, "max_skipped_steps is 0; expected at least 1"),
        ({"loss_spikes": "off"}, "loss_spikes is 'off'; expected 'warn' or 'skip' or 'ignore'"),
        ({"num_train_epochs": 0, "max_steps": 0}, "both 0 or less"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; expected at least 1"),
        ({"nll_on": "prompt"}, "nll_on is 'prompt'; expected 'sequence' or 'response'"),
        ({"bad_rows": "skip"}, "bad_rows is 'skip'"),
        ({"beta": 0.3, "orpo_alpha": 1.0}, "beta is given together with orpo_alpha"),
        ({"model_init_kwargs": "bf16"}, "model_init_kwargs is 'bf16'; expected a mapping"),
        ({"model_init_kwargs": {"dtype": 16}}, "model_init_kwargs: dtype is 16; expected one of"),
        ({"model_init_kwargs": {"torch_dtype": "bf-16"}}, "model_init_kwargs: torch_dtype is 'bf-16'; expected one of"),
        (
            {"model_init_kwargs": {"dtype": "float32", "torch_dtype": "bf16"}},
            "model_init_kwargs: dtype is 'float32' and torch_dtype 'bfloat16'; give one of them",
        ),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError) as error:
        ORPOConfig(output_dir=str(tmp_path), **settings)
    assert message in str(error.value)


@pytest.mark.parametrize("nobody", [None, "none", ["none"], []])
def test_reporting_to_nobody_may_be_said_in_any_way(tmp_path, nobody):
    assert ORPOConfig(output_dir=str(tmp_path), report_to=nobody, use_cpu=True).report_to == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["os"], "'os' is no tracker; expected azure_ml, "),
        ("json", "'json' is no tracker"),
        ("TensorBoard", "did you mean tensorboard?"),
        ([""], "'' is no tracker"),
        ("", "'' is no tracker"),
        ("wandb,os", "did you mean wandb?"),
        (["none", "os"], "none beside other trackers"),
        (["all", "none"], "all beside other trackers"),
        ({"wandb": 1}, "expected a tracker, a list of trackers, none or all"),
        ([None], "expected a tracker"),
        (5, "expected a tracker"),
    ],
)
def test_what_is_no_tracker_is_refused(tmp_path, given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ORPOConfig(output_dir=str(tmp_path), report_to=given, use_cpu=True)


def test_a_tracker_that_is_not_installed_is_named_with_its_install_line(tmp_path):
    line = "report_to: dagshub needs an optional dependency; install it with: pip install dagshub mlflow"
    with pytest.raises(MissingExtraError, match=re.escape(line)):
        ORPOConfig(output_dir=str(tmp_path), report_to="dagshub", use_cpu=True)


def test_all_of_transformers_trackers_are_known():
    assert set(INTEGRATION_TO_CALLBACK) == set(TRACKERS)


def test_no_token_budget_may_be_said_in_words(tmp_path):
    assert ORPOConfig(output_dir=str(tmp_path), max_tokens_per_microbatch="none").max_tokens_per_microbatch is None


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("spelling", ["bfloat16", "bf16", "torch.bfloat16", "BF16", torch.bfloat16], ids=str)
def test_types_in_every_spelling(tmp_path, spelling, key):
    """In settings, and in the keyword arguments of ``from_pretrained`` under transformers' new and old key."""
    args = ORPOConfig(str(tmp_path), use_cpu=True, model_init_kwargs={key: spelling, "revision": "v1"})
    assert args.model_init_kwargs == {"dtype": "bfloat16", "revision": "v1"}
    config = ModelConfig(dtype=spelling, bnb_4bit_quant_storage=spelling)
    assert (config.dtype, config.bnb_4bit_quant_storage) == ("bfloat16", "bfloat16")


def test_types_that_are_not_one_name(tmp_path):
    kwargs = {"dtype": {"text_config": "bfloat16"}}
    assert ORPOConfig(str(tmp_path), use_cpu=True, model_init_kwargs=kwargs).model_init_kwargs == kwargs
    assert ORPOConfig(str(tmp_path), use_cpu=True, model_init_kwargs={"dtype": None}).model_init_kwargs == {}
    assert ModelConfig(dtype="auto").dtype == "auto"


def test_the_smol_course_names_give_beta(tmp_path):
    args = ORPOConfig(output_dir=str(tmp_path), orpo_alpha=0.5, orpo_beta=0.4)
    assert args.beta == pytest.approx(0.2)
    assert args.orpo_alpha is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}, "both on"),
        ({"load_in_4bit": True}, "trains nothing without an adapter; add use_peft"),
        ({"lora_r": 0}, "lora_r is 0"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
    ],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        ModelConfig(**settings)
    assert message in str(error.value)


def test_trl_s_parser_takes_all_three_together(tmp_path):
    parser = HfArgumentParser((ScriptArguments, ORPOConfig, ModelConfig))
    words = ["--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", str(tmp_path), "--use_peft"]
    data, training, model = parser.parse_args_into_dataclasses([*words, "--beta", "0.2", "--lora_target_modules", "q"])
    assert (data.dataset_name, training.beta, model.use_peft, model.lora_target_modules) == ("d", 0.2, True, "q")


def test_trl_s_own_dataclasses_parse_beside_our_config(tmp_path):
    from trl import ModelConfig as TRLModelConfig
    from trl import ScriptArguments as TRLScriptArguments

    parser = HfArgumentParser((TRLScriptArguments, ORPOConfig, TRLModelConfig))
    words = ["--dataset_name", "d", "--output_dir", str(tmp_path)]
    assert parser.parse_args_into_dataclasses(words)[1].max_length == 1024


@pytest.mark.parametrize(("unit", "bf16"), [("AMX", True), ("AVX512-BF16", True), (None, False)])
def test_precision_follows_the_cpu_and_says_why(tmp_path, monkeypatch, unit, bf16):
    monkeypatch.setattr(precision_module, "_cpu_bf16_unit", lambda: unit)
    args = ORPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.bf16 is bf16
    assert (unit or "neither AVX512-BF16 nor AMX") in args.precision_reason
    assert ORPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).bf16 is False


@pytest.mark.parametrize("setting", ["bf16", "bf16_full_eval"])
@pytest.mark.parametrize("unit", ["AVX512-BF16", None])
def test_bf16_is_computed_in_float32_where_the_cpu_would_emulate_it(tmp_path, monkeypatch, caplog, setting, unit):
    monkeypatch.setattr(precision_module, "_cpu_bf16_unit", lambda: unit)
    args = ORPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=setting == "bf16", bf16_full_eval=setting != "bf16")
    assert getattr(args, setting) is (unit is not None)
    assert args.bf16 is (setting == "bf16" and unit is not None)
    said = "bf16 is asked for, but this CPU has neither AVX512-BF16 nor AMX and would take several times as long"
    assert args.precision_reason.startswith("set by hand" if unit else said)
    assert [record.getMessage() for record in caplog.records] == ([] if unit else [f"float32: {said}; float32 is used"])


def test_torch_held_to_older_instructions_computes_as_an_older_cpu():
    code = "from oddsmith.system.precision import best_precision; print(best_precision(use_cpu=True).name)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if platform.machine() in ("x86_64", "AMD64"):
        assert run.stdout == "fp32\n"


def test_the_cpu_s_own_answer_agrees_with_its_flags():
    flags = processor_flags()
    if not flags:
        pytest.skip("no /proc/cpuinfo here")
    expected = any(flags.get(flag) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    if torch.backends.cpu.get_cpu_capability() == "AVX2" or os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        expected = False  # torch does not use what the CPU has
    assert (best_precision(use_cpu=True).name == "bf16") == expected
    assert torch.finfo(torch.bfloat16).bits == 16


@pytest.mark.parametrize("name", ["logging_steps", "save_steps", "eval_steps", "warmup_steps"])
def test_endless_steps_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"{name} is inf; expected a number of steps, or a share of them below 1"):
        ORPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: float("inf")})


def test_numbers_may_be_texts(tmp_path):
    config = ORPOConfig(output_dir=str(tmp_path), learning_rate="1e-5", max_length="512", max_prompt_length="64")
    assert (config.learning_rate, config.max_length, config.max_prompt_length) == (1e-5, 512, 64)
    for given, message in {
        "weight_decay": "weight_decay is 'big'; expected a number",
        "max_length": "max_length is 'big'; expected a number",
    }.items():
        with pytest.raises(ConfigError, match=message):
            ORPOConfig(output_dir=str(tmp_path), **{given: "big"})
    for name in ("beta", "learning_rate"):
        with pytest.raises(ConfigError, match=f"{name} is None; expected a number"):
            ORPOConfig(output_dir=str(tmp_path), **{name: None})
