"""Strict YAML: what PyYAML would read in silence is an error that names the line."""

from __future__ import annotations

import pytest

from oddsmith.cli.parsing.config_file import MAX_ALIASES, MAX_BYTES, read_config
from oddsmith.errors import ConfigError


def write(tmp_path, text: str | bytes):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(tmp_path, text: str | bytes) -> dict:
    return {name: setting.value for name, setting in read_config(write(tmp_path, text)).items()}


def error(tmp_path, text: str | bytes) -> str:
    """The message, without the folder in front of the file's name."""
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text))
    return str(caught.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("8e-6", 8e-6),
        ("2e-4", 2e-4),
        ("1E3", 1000.0),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("12", 12),
        ("-1", -1),
        ("010", 10),
        ("0x10", 16),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("yes", "yes"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1e-5'", "1e-5"),
        ("[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ("{min_lr: 1e-7}", {"min_lr": 1e-7}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path, text, value):
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))


def test_settings_know_their_line(tmp_path):
    path = write(tmp_path, "# a comment\nbeta: 0.1\n\nmax-length: 512\n")
    settings = read_config(path)
    assert settings["beta"].where == f"{path}:2"
    assert (settings["max_length"].value, settings["max_length"].where) == (512, f"{path}:4")


def test_bom_and_crlf_are_fine(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfbeta: 0.2\r\nmax_length: 64\r\n") == {"beta": 0.2, "max_length": 64}


def test_a_few_aliases_are_fine(tmp_path):
    assert read(tmp_path, "a: &names [x, y]\nb: *names\n") == {"a": ["x", "y"], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 1\nseed: 1\nbeta: 2\n", "config.yaml:3: beta is given twice, first in line 1; remove one"),
        ("max-length: 1\nmax_length: 2\n", "config.yaml:2: max_length is given twice, first in line 1; remove one"),
        ("a: {x: 1,\n  x: 2}\n", "config.yaml:2: x is given twice, first in line 1; remove one"),
        ("- beta\n- 1\n", "config.yaml:1: found a list; expected lines such as `beta: 0.1`"),
        ("just words\n", "config.yaml:1: found a single value; expected lines such as `beta: 0.1`"),
        ("# nothing\n", "config.yaml: is empty; expected lines such as `beta: 0.1`"),
        ("beta: !!float 3\n", "config.yaml:1: found the tag !!float; plain values need no tag, remove it"),
        (
            "seed: 1\nbeta: !!python/object/apply:os.system ['true']\n",
            "config.yaml:2: found the tag !!python/object/apply:os.system; plain values need no tag, remove it",
        ),
        ("a: !mine x\n", "config.yaml:1: found the tag !mine; plain values need no tag, remove it"),
        ("? [a]\n: 1\n", "config.yaml:1: a key must be a name, not a list or mapping"),
        ("a: &a [*a]\n", "config.yaml:1: a value contains itself"),
        ("beta: 1\n---\nbeta: 2\n", "config.yaml:2: not valid YAML: but found another document"),
        ("a: 1\nb: [1, 2\n", "config.yaml:3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- b\n", "config.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        (b"beta: 1\nrun_name: caf\xe9\n", "config.yaml:2: byte 21 is not UTF-8; save the file as UTF-8"),
        ("a: *unknown\n", "config.yaml:1: not valid YAML: found undefined alias 'unknown'"),
        ('a: 1\nb: "x\\0y"\n', r"config.yaml:2: found '\x00', which no file name can have; remove it"),
        ('a: "\\ud800"\n', r"config.yaml:1: found '\ud800', which no file name can have; remove it"),
        ("a: " + "[" * 40 + "]" * 40, "config.yaml:1: nested more than 32 levels deep"),
    ],
)
def test_what_is_refused_names_the_line(tmp_path, text, message):
    assert error(tmp_path, text) == message


def test_alias_bombs_are_refused_before_they_grow(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    assert error(tmp_path, "\n".join(lines)) == (
        f"config.yaml:2: more than {MAX_ALIASES} aliases (*a0); write the values out"
    )


def test_a_huge_file_is_no_settings_file(tmp_path):
    assert "is larger than" in error(tmp_path, b"#" * (MAX_BYTES + 1))


def test_a_control_character_is_named(tmp_path):
    assert error(tmp_path, b"beta: \x00\n").startswith("config.yaml: not valid YAML: unacceptable character #x0000")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file or directory; expected a YAML file"):
        read_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a directory; expected a YAML file"):
        read_config(tmp_path)
