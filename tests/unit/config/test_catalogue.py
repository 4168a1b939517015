"""The setting catalogue has every setting, and says of each whether it decides on the weights."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import HfArgumentParser

from oddsmith.cli.parsing.schema import SCHEMA_FILE
from oddsmith.config import ModelConfig, ORPOConfig, ScriptArguments
from oddsmith.config.catalogue import (
    BY_RESULT,
    CATALOGUE,
    DECIDES,
    DECIDING_SETTINGS,
    EVAL_SETTINGS,
    FREE,
    LENGTH_SETTINGS,
    SETTINGS,
    SUMMARY_SETTINGS,
    own_fields,
)
from oddsmith.training.identity import ADAPTER_SETTINGS, decisive_settings

OWNERS = (ORPOConfig, ModelConfig, ScriptArguments)
FIELDS = {field.name: owner for owner in OWNERS for field in dataclasses.fields(owner)}
RELIABILITY = Path(__file__).parents[3] / "docs" / "reliability.md"


def test_every_entry_is_a_setting():
    names = [facts.name for group in CATALOGUE.values() for facts in group]
    assert len(names) == len(set(names))
    if version("transformers") == json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["transformers"]:
        assert set(names) == set(FIELDS)


@pytest.mark.parametrize("owner", OWNERS)
def test_the_fields_of_ours_have_the_help_of_the_catalogue(owner):
    for field in own_fields(owner):
        assert field.metadata["help"] == SETTINGS[field.name].help != ""


def test_argparse_takes_the_fields():
    assert HfArgumentParser(OWNERS).format_help()


def test_what_logs_saves_or_evaluates_does_not_decide():
    prefixes = ("log", "save", "hub_", "push", "report", "eval", "per_device_eval", "trackio", "include_", "run_name")
    watching = {name for name, owner in FIELDS.items() if owner is ORPOConfig and name.startswith(prefixes)}
    assert {name for name in watching if SETTINGS[name].effect is not FREE} == set()
    for name in ("gradient_checkpointing", "padding_value", "use_liger_kernel", "deepspeed", "fsdp", "prefix_forest"):
        assert SETTINGS[name].effect is FREE, name


def test_what_trains_decides():
    prefixes = ("adam_", "optim", "lr_scheduler", "weight_decay", "warmup", "max_", "num_train", "seed", "data_seed")
    training = {name for name, owner in FIELDS.items() if owner is ORPOConfig and name.startswith(prefixes)}
    early = {"early_stopping_patience", "early_stopping_threshold"}
    others = {"max_tokens_per_microbatch", *LENGTH_SETTINGS} - early
    assert {name for name in training if SETTINGS[name].effect is not DECIDES} == others
    assert set(LENGTH_SETTINGS) == {"num_train_epochs", "max_steps", *early}
    for name in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "label_smoothing_factor"):
        assert SETTINGS[name].effect is DECIDES, name


def test_a_setting_of_model_or_data_is_compared_by_what_it_makes():
    free = {name for name, owner in FIELDS.items() if owner is not ORPOConfig and SETTINGS[name].effect is FREE}
    assert free == {"attn_implementation", "lora_task_type"}
    assert not {name for name, owner in FIELDS.items() if owner is not ORPOConfig} & set(DECIDING_SETTINGS)


def test_a_checkpoint_records_the_settings_of_the_adapter_that_decide():
    adapter = {name for name in FIELDS if name.startswith(("lora_", "use_rslora", "use_dora", "init_lora"))}
    decisive = {name for name in adapter if SETTINGS[name].effect is BY_RESULT}
    recorded = {*ADAPTER_SETTINGS, "target_modules"}
    assert {name for name in decisive if not {name, name.removeprefix("lora_")} & recorded} == set()
    assert recorded <= set(LoraConfig().to_dict())


def test_a_checkpoint_records_the_values_of_the_settings_that_decide(tmp_path):
    decided = decisive_settings(ORPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    assert {"beta", "learning_rate", "seed", "max_length", "num_train_epochs", "weight_decay"} <= decided.keys()
    assert not {"logging_steps", "save_steps", "output_dir", "hub_token", "report_to"} & decided.keys()
    assert decided.keys() == set(DECIDING_SETTINGS)


def test_the_summary_holds_no_path_name_or_secret():
    for name in SUMMARY_SETTINGS:
        assert FIELDS[name] is ORPOConfig
        assert not re.search(r"dir|path|name|token|hub|run", name), name


def test_evaluation_takes_what_its_metrics_depend_on():
    assert {"beta", "max_length", "nll_on", "seed", "load_in_4bit", "dataset_name"} <= EVAL_SETTINGS
    assert not {"output_dir", "dtype", "per_device_eval_batch_size", "trust_remote_code"} & EVAL_SETTINGS


def test_the_page_on_reliability_lists_the_settings_that_a_resume_compares():
    text = RELIABILITY.read_text(encoding="utf-8")
    for effect, start in ((DECIDES, "Compared by value:"), (BY_RESULT, "Compared by their result")):
        paragraph = re.search(rf"^ *{start}(.*?)\n\n", text, flags=re.MULTILINE | re.DOTALL)[1]
        listed = re.findall(r"`(\w+)`", paragraph)
        assert listed == [name for name, facts in SETTINGS.items() if facts.effect is effect], start


def test_the_catalogue_needs_no_torch():
    code = "import sys, oddsmith.config.catalogue\nsys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
