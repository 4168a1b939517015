"""run.yaml can be read back as what was given, holds no secret, and no folder is used that should not be."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.cli.commands.train.run_folder import (
    check_folder,
    clear_folder,
    settings_text,
    to_yaml,
    without_secrets,
    write_settings,
)
from oddsmith.cli.parsing.config_file import read_config
from oddsmith.cli.parsing.resolve import build, resolve
from oddsmith.cli.parsing.schema import fields_for_run
from oddsmith.errors import ConfigError

WORDS = ("--model-name-or-path", "m", "--dataset-name", "d", "--use-cpu", "--no-bf16")


def text_of(*words: str) -> str:
    resolved = resolve([*WORDS, *words], fields_for_run())
    return settings_text(resolved, build(resolved))


def test_run_yaml_is_a_configuration_that_means_the_same(tmp_path):
    words = [*WORDS, "--beta", "1e-05", "--run-name", "no", "--lora-target-modules", "q", "v", "--max-length", "none"]
    words += ["--lr_scheduler_kwargs", '{"min_lr": 1e-07, "note": "a: b # c"}', "--hub-revision", "1e5"]
    before = resolve(words, fields_for_run())
    write_settings(tmp_path, before, build(before))
    after = resolve([str(tmp_path / "run.yaml")], fields_for_run())
    assert set(after.settings) == set(fields_for_run())
    assert all(after.get(name) == before.get(name) for name in fields_for_run())
    build(after)


def test_origins_and_what_the_machine_chose_stand_beside_the_values():
    lines = text_of("--beta", "0.25").splitlines()
    assert "beta: 0.25  # --beta" in lines
    assert "lora_r: 16" in lines
    assert "max_prompt_length: null" in lines
    assert any(line.startswith("optim: ") for line in lines)
    reason = next(line for line in text_of().splitlines() if line.startswith("precision") or "bf16: " in line)
    assert reason == "bf16: false  # --no-bf16"


def test_plain_yaml_readers_see_the_same_numbers():
    loaded = yaml.safe_load(text_of("--learning-rate", "8e-6"))
    assert (loaded["learning_rate"], loaded["adam_epsilon"], loaded["eval_strategy"]) == (8e-6, 1e-8, "no")


def test_secrets_are_masked_wherever_they_are():
    text = text_of(
        "--hub-token", "hf_secret", "--model-init-kwargs", '{"token": "hf_secret", "x": [{"api_key": "hf_s"}]}'
    )
    assert "hf_s" not in text
    assert "hub_token: null  # --hub-token, masked" in text
    assert without_secrets("max_tokens", 5) == (5, False)
    assert without_secrets("padding", {"hub_token": None}) == ({"hub_token": None}, False)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_comes_back_from_yaml(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(f"key: {to_yaml(value)}\n", encoding="utf-8")
    assert read_config(path)["key"].value == value


def test_a_new_and_an_empty_folder_are_fine(tmp_path):
    check_folder(tmp_path / "new", resume=False, overwrite=False)
    check_folder(tmp_path, resume=False, overwrite=False)


def test_a_folder_with_a_run_is_continued_or_replaced_but_not_mixed(tmp_path):
    (tmp_path / "run.yaml").write_text("beta: 1\n")
    with pytest.raises(ConfigError, match=r"already holds a run; choose another folder, continue it with --resume,"):
        check_folder(tmp_path, resume=False, overwrite=False)
    check_folder(tmp_path, resume=True, overwrite=False)
    check_folder(tmp_path, resume=False, overwrite=True)
    clear_folder(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_never_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        check_folder(tmp_path, resume=False, overwrite=True)
    clear_folder(tmp_path)
    assert (tmp_path / "thesis.tex").is_file()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file; expected a folder"):
        check_folder(tmp_path / "out", resume=False, overwrite=True)
