"""What the package offers by name, and that it is TRL's interface with ours added to it."""

import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
import trl

import oddsmith
from oddsmith.config import catalogue
from tests.test_architecture import ERRORS

with warnings.catch_warnings(action="ignore"):  # it warns that its place may change
    import trl.experimental.orpo as trl_orpo

SETTINGS = ("ORPOConfig", "ModelConfig", "ScriptArguments")

# A debugging switch of torch's DistributedDataParallel for buffers of masks that today's models no longer have.
LEFT_OUT = {"ScriptArguments": {"ignore_bias_buffers"}}

# Defaults that are not TRL's. Each is explained in its class's docstring.
OTHER_DEFAULTS = {
    "ORPOConfig": {"gradient_checkpointing", "logging_nan_inf_filter"},
    "ModelConfig": {"dtype", "lora_task_type", "use_bnb_nested_quant"},
    "ScriptArguments": set(),
}


def theirs(name: str) -> type:
    return trl_orpo.ORPOConfig if name == "ORPOConfig" else getattr(trl, name)


def defaults(settings: type) -> dict[str, object]:
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(settings)
    }


def test_dir_lists_exactly_the_public_names():
    assert dir(oddsmith) == oddsmith.__all__ == sorted(oddsmith.__all__)


@pytest.mark.parametrize("name", oddsmith.__all__)
def test_a_public_name_can_be_imported(name):
    value = getattr(oddsmith, name)
    if name != "__version__":
        assert value.__name__ == name
        assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'oddsmith' has no attribute 'ORPOTrainr'"):
        _ = oddsmith.ORPOTrainr


def test_importing_the_package_loads_nothing_heavy_and_prints_nothing():
    code = (
        "import sys, oddsmith\n"
        "from oddsmith import ConfigError\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    result = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_error_is_public():
    assert set(ERRORS) - set(oddsmith.__all__) == set()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_ours_is_documented(name):
    """In the docstring's list, or in its words about defaults, and for the command line as ``help``."""
    settings = getattr(oddsmith, name)
    ours = [field for field in dataclasses.fields(settings) if field.name in settings.__annotations__]
    documented = documented_names(settings) | set(re.findall(r"``(\w+)``", settings.__doc__))
    assert {field.name for field in ours} <= documented
    assert [field.name for field in ours if not field.metadata.get("help")] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_whether_it_decides_on_the_weights(name):
    """Inherited ones, too: a new version of transformers may bring one."""
    missing = {field.name for field in dataclasses.fields(getattr(oddsmith, name))} - set(catalogue.SETTINGS)
    assert not missing, f"add {missing} to config/catalogue.py with decides(...), by_result(...) or free(...)"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_documented_setting_exists(name):
    settings = getattr(oddsmith, name)
    assert documented_names(settings) <= {field.name for field in dataclasses.fields(settings)}


def documented_names(settings: type) -> set[str]:
    """The names in the ``Args`` section of a docstring; ``a, b: ...`` names two."""
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", inspect.getdoc(settings), flags=re.MULTILINE | re.DOTALL)[1]
    entries = re.findall(r"^(\w+(?:, \w+)*):", textwrap.dedent(section), flags=re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_trl_is_there(name):
    ours, trls = (set(defaults(settings)) for settings in (getattr(oddsmith, name), theirs(name)))
    assert trls - ours == LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_are_those_of_trl_but_for_the_known_ones(name):
    ours, trls = defaults(getattr(oddsmith, name)), defaults(theirs(name))
    assert {setting for setting in ours.keys() & trls.keys() if ours[setting] != trls[setting]} == OTHER_DEFAULTS[name]


def test_the_trainer_takes_the_arguments_of_trl_in_their_order():
    ours = list(inspect.signature(oddsmith.ORPOTrainer.__init__).parameters.values())
    trls = list(inspect.signature(trl_orpo.ORPOTrainer.__init__).parameters.values())
    assert [p.name for p in ours[: len(trls)]] == [p.name for p in trls]
    assert [p.default for p in ours[: len(trls)]] == [p.default for p in trls]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(trls) :])
