"""Read a YAML file of settings strictly, with the line of each.

PyYAML reads YAML 1.1, where ``1e-5`` is a text, ``no`` is false, ``010`` is eight and ``12:30`` is 750; the last of two
equal keys silently wins, and tags and aliases can name Python objects or grow a small file without bound. Here scalars
are those of YAML 1.2's core schema, and the rest is an error with its line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ...errors import ConfigError
from ...system.outside import open_file

PYTHON, SHELL = (".py", ".ipynb"), (".sh", ".bash")
SCRIPTS = PYTHON + SHELL  # which only `oddsmith convert` reads
MAX_BYTES = 200_000
MAX_ALIASES = 8
MAX_DEPTH = 32


class Setting(NamedTuple):
    """A value of a configuration file with its place, e.g. ``config.yaml:12``."""

    value: Any
    where: str


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own attribute


_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # YAML can write them as escapes
_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), _first)


def read_config(path: str | Path) -> dict[str, Setting]:
    """Read the settings of a YAML file, by name (dashes made underscores), in the order of the file.

    Raises ``ConfigError`` for a file that cannot be read, is no mapping of settings, or holds what the module's
    docstring refuses. Names and types are not compared with the known settings here.
    """
    text = _read_text(Path(path))
    name = str(path)
    try:
        _check_events(text, name)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if root is None:
        raise ConfigError(f"{name}: is empty; expected lines such as `beta: 0.1`")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{name}:{_line(root)}: found {kind}; expected lines such as `beta: 0.1`")
    pairs = _pairs(root, name, normalize=True)
    return {key: Setting(_value(node, name), f"{name}:{line}") for key, (node, line) in pairs.items()}


def _read_text(path: Path) -> str:
    try:
        with open_file(path, typed=True) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: {(error.strerror or str(error)).lower()}; expected a YAML file of settings"
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES:,} bytes; expected a short YAML file of settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _check_events(text: str, name: str) -> None:
    """Refuse tags, many aliases, deep nesting and unusable characters, before anything is built from them."""
    aliases = depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = _line(event)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(
                f"{name}:{line}: found the tag {tag.replace(_TAG, '!!')}; plain values need no tag, remove it"
            )
        aliases += isinstance(event, yaml.AliasEvent)
        if aliases > MAX_ALIASES:
            anchor = getattr(event, "anchor", "")
            raise ConfigError(f"{name}:{line}: more than {MAX_ALIASES} aliases (*{anchor}); write the values out")
        if isinstance(event, yaml.ScalarEvent) and (found := _UNUSABLE.search(event.value)):
            raise ConfigError(f"{name}:{line}: found {found[0]!r}, which no file name can have; remove it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{name}:{line}: nested more than {MAX_DEPTH} levels deep")


def _pairs(node: yaml.MappingNode, name: str, normalize: bool = False) -> dict[str, tuple[yaml.Node, int]]:
    """Return key -> (value node, line) of a mapping; refuse a key that is given twice."""
    found: dict[str, tuple[yaml.Node, int]] = {}
    for key_node, value_node in node.value:
        line = _line(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key must be a name, not a list or mapping")
        key = key_node.value.replace("-", "_") if normalize else key_node.value
        if key in found:
            raise ConfigError(f"{name}:{line}: {key} is given twice, first in line {found[key][1]}; remove one")
        found[key] = (value_node, line)
    return found


def _value(node: yaml.Node, name: str, depth: int = 0) -> Any:
    """Return the Python value of a node."""
    if depth > MAX_DEPTH:  # an alias inside its own anchor
        raise ConfigError(f"{name}:{_line(node)}: a value contains itself")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, name, depth + 1) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key: _value(item, name, depth + 1) for key, (item, _) in _pairs(node, name).items()}
    return _scalar(node.tag.removeprefix(_TAG), node.value)


def scalar(text: str) -> Any:
    """Return the value that a plain text has in YAML."""
    return _scalar(_Loader("").resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG), text)


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        base = {"0x": 16, "0o": 8}.get(text[:2], 10)
        return int(text, base)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _line(node: yaml.Node | yaml.Event) -> int:
    mark = node.start_mark
    return mark.line + 1 if mark else 1
