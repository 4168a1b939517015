"""Describe every setting as data: name, type, default, help; readable without importing torch.

``schema.json`` is generated (``python -m oddsmith.cli.parsing.schema``) and checked in; a test holds it to the
dataclasses and to ``config/catalogue.py``. It describes the fields for one version of transformers. With another
version a run reads the dataclasses instead, as that version may have other settings; the help still shows the file.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...config.catalogue import COMMON, GROUPS, OTHER, SETTINGS
from ...config.inherited import WITHOUT_USE

SCHEMA_FILE = Path(__file__).with_name("schema.json")

# Mappings that may also be given as text: as the path of a JSON file, or as NAME=COLUMN,...
TEXT_OR_MAPPING = frozenset({"accelerator_config", "deepspeed", "fsdp_config", "columns"})

_SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict"}


@dataclass(frozen=True)
class Field:
    """One setting."""

    name: str
    owner: str  # the name of its dataclass
    group: str  # heading of the help
    common: bool  # whether the short help lists it
    listed: bool  # whether the long help does: not what is refused, has no effect, or is for scripts
    types: tuple[str, ...]  # what it takes, of: bool, int, float, str, list (of texts), dict, list[dict]
    nullable: bool
    default: Any
    help: str
    choices: tuple[str, ...] = ()  # the texts it takes; any where empty

    @property
    def flag(self) -> str:
        return flag_of(self.name)


def flag_of(name: str) -> str:
    """Return the flag of a setting or option, with dashes."""
    return "--" + name.replace("_", "-")


def load_fields() -> dict[str, Field]:
    """Read the checked-in file, for the help."""
    entries = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["fields"]
    return {e["name"]: Field(**{**e, "types": tuple(e["types"]), "choices": tuple(e["choices"])}) for e in entries}


def fields_for_run() -> dict[str, Field]:
    """Return the settings of the installed transformers; from the file where it describes this version."""
    made_with = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["transformers"]
    return load_fields() if made_with == version("transformers") else describe()


def describe() -> dict[str, Field]:
    """Read the settings from the dataclasses. Imports torch."""
    from ...config import ModelConfig, ORPOConfig, ScriptArguments

    found: dict[str, Field] = {}
    for owner in (ORPOConfig, ModelConfig, ScriptArguments):
        hints = get_type_hints(owner)
        for field in dataclasses.fields(owner):
            found[field.name] = _field(owner, field, hints[field.name])
    order = list(SETTINGS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in SETTINGS else len(order)))


def _field(owner: type, field: dataclasses.Field, hint: Any) -> Field:
    facts = SETTINGS.get(field.name)
    kinds, nullable, choices = _read_type(hint)
    if field.metadata.get("const") is True:  # `--fsdp` alone, as well as `--fsdp full_shard`
        kinds.add("bool")
    if "dict" in kinds and field.name not in TEXT_OR_MAPPING:
        kinds.discard("str")
    default = field.default_factory() if callable(field.default_factory) else field.default
    return Field(
        name=field.name,
        owner=owner.__name__,
        group=GROUPS.get(field.name, OTHER),
        common=facts is not None and COMMON in facts.traits,
        listed=field.name not in WITHOUT_USE,
        types=tuple(sorted(kinds)),
        nullable=nullable,
        default=default.value if isinstance(default, Enum) else default,
        help=(facts.help if facts else "") or _first_sentence(field.metadata.get("help", "")),
        choices=tuple(field.metadata.get("choices") or choices),
    )


def _read_type(hint: Any) -> tuple[set[str], bool, list[str]]:
    """Return the kinds of value that a type annotation allows, whether None is allowed, and the allowed texts."""
    kinds: set[str] = set()
    nullable, choices = False, []
    for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if part is type(None):
            nullable = True
        elif get_origin(part) is Literal:
            for value in get_args(part):
                nullable |= value is None
                kinds |= {_SIMPLE[type(value)]} if value is not None else set()
                choices += [value] if isinstance(value, str) else []
        elif isinstance(part, type) and issubclass(part, Enum):
            kinds.add("str")
            choices += [member.value for member in part]
        elif get_origin(part) is list:
            kinds.add("list[dict]" if (get_origin(get_args(part)[0]) or get_args(part)[0]) is dict else "list")
        else:
            kinds.add(_SIMPLE[get_origin(part) or part])
    if "list[dict]" in kinds:
        kinds.discard("str")
    return kinds, nullable, choices


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.replace("`", "").split()).split(". ")[0].split(" (e.g.")[0].strip()
    return sentence if not sentence or sentence.endswith(".") else sentence + "."


def main() -> None:
    """Write ``schema.json`` anew."""
    SCHEMA_FILE.write_text(as_json(describe(), version("transformers")), encoding="utf-8")


def as_json(fields: dict[str, Field], transformers_version: str) -> str:
    """Format the file: one setting a line, so that a change of one is a change of one line."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(field), ensure_ascii=False) for field in fields.values())
    return f'{{"transformers": "{transformers_version}", "fields": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
