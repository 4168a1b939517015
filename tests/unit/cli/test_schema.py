"""The checked-in description of the settings is what the dataclasses say."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version

import pytest

from oddsmith.cli.parsing.schema import SCHEMA_FILE, as_json, describe, fields_for_run, load_fields
from oddsmith.config import ModelConfig, ORPOConfig, ScriptArguments
from oddsmith.config.catalogue import CATALOGUE, own_fields

OWNERS = {"ORPOConfig": ORPOConfig, "ModelConfig": ModelConfig, "ScriptArguments": ScriptArguments}
MADE_WITH = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["transformers"]
RENEW = "renew it: python -m oddsmith.cli.parsing.schema"


@pytest.mark.skipif(version("transformers") != MADE_WITH, reason=f"the file describes transformers {MADE_WITH}")
def test_schema_is_current():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == as_json(describe(), MADE_WITH), RENEW


@pytest.mark.parametrize("owner", OWNERS)
def test_our_own_settings_are_current_under_any_version_of_transformers(owner):
    ours = {field.name for field in own_fields(OWNERS[owner])}
    assert {name: field for name, field in load_fields().items() if name in ours} == {
        name: field for name, field in describe().items() if name in ours
    }, RENEW


@pytest.mark.parametrize("owner", OWNERS)
def test_every_field_of_the_dataclasses_is_a_setting(owner):
    names = {field.name for field in dataclasses.fields(OWNERS[owner])}
    assert names == {name for name, field in describe().items() if field.owner == owner}


def test_defaults_and_types_are_those_of_the_dataclasses():
    fields = load_fields()
    assert fields["beta"].default == ORPOConfig.beta
    assert (fields["beta"].types, fields["beta"].nullable) == (("float",), False)
    assert (fields["max_length"].types, fields["max_length"].nullable) == (("int",), True)
    assert fields["lora_target_modules"].types == ("list",)
    assert fields["datasets"].types == ("list[dict]",)
    assert fields["model_init_kwargs"].types == ("dict",)
    assert fields["nll_on"].choices == ("sequence", "response")
    assert "cosine" in fields["lr_scheduler_type"].choices
    assert fields["fsdp"].types == ("bool", "str")


def test_every_setting_has_a_help_and_a_group():
    for field in load_fields().values():
        assert field.help.strip(), field.name
        assert field.group in CATALOGUE, field.name


def test_another_version_of_transformers_is_described_afresh(monkeypatch):
    monkeypatch.setattr("oddsmith.cli.parsing.schema.version", lambda package: "0.0")
    assert fields_for_run() == describe()
