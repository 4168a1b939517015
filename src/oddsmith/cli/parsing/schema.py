"""The settings as data: every field of the three dataclasses, readable without importing torch.

``schema.json`` is generated (``python -m oddsmith.cli.parsing.schema``) and checked in; a test holds it to the
dataclasses. It describes the fields for one version of transformers. Under another version a run reads the dataclasses
themselves, so that a setting which that version has, or lacks, is known; the help then still shows the file.
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

from .layout import GROUPS, PREFIXES, WORDS

SCHEMA_FILE = Path(__file__).with_name("schema.json")

# An object of accelerate, which neither YAML nor a flag can express.
NOT_SETTABLE = frozenset({"parallelism_config"})
# Where a text is the path of a JSON file. In every other mapping a text would be a mistake.
PATH_OR_MAPPING = frozenset({"accelerator_config", "deepspeed", "fsdp_config"})

_SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", dict: "dict"}


@dataclass(frozen=True)
class Field:
    """One setting.

    Args:
        name: Its name in Python and YAML; a flag may spell it with dashes.
        owner: Dataclass that has it: ``ORPOConfig``, ``ModelConfig`` or ``ScriptArguments``.
        group: Heading of the help.
        common: Whether the short help lists it.
        types: What it takes, of ``bool``, ``int``, ``float``, ``str``, ``list`` (of texts), ``dict``, ``list[dict]``.
        nullable: Whether it takes null.
        default: Its default.
        help: One sentence.
        choices: The texts it takes; any where empty.
    """

    name: str
    owner: str
    group: str
    common: bool
    types: tuple[str, ...]
    nullable: bool
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def load_fields() -> dict[str, Field]:
    """The settings of the checked-in file, for the help."""
    entries = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["fields"]
    return {e["name"]: Field(**{**e, "types": tuple(e["types"]), "choices": tuple(e["choices"])}) for e in entries}


def fields_for_run() -> dict[str, Field]:
    """The settings of the installed transformers; the file where its version is the one the file was made with."""
    made_with = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["transformers"]
    return load_fields() if made_with == version("transformers") else describe()


def describe() -> dict[str, Field]:
    """Read the settings from the dataclasses. Imports torch."""
    from ...config import ModelConfig, ORPOConfig, ScriptArguments

    places = _places()
    found: dict[str, Field] = {}
    for owner in (ORPOConfig, ModelConfig, ScriptArguments):
        hints = get_type_hints(owner)
        for field in dataclasses.fields(owner):
            if field.name not in NOT_SETTABLE:
                found[field.name] = _field(owner, field, hints[field.name], places)
    order = list(places)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in places else len(order)))


def _places() -> dict[str, tuple[str, bool]]:
    """Name -> (group, common) of the settings that the layout names, in its order."""
    return {
        name: (group, common)
        for group, parts in GROUPS.items()
        for names, common in zip(parts, (True, False), strict=True)
        for name in names
    }


def _field(owner: type, field: dataclasses.Field, hint: Any, places: dict[str, tuple[str, bool]]) -> Field:
    prefixed = next((group for prefix, group in PREFIXES.items() if field.name.startswith(prefix)), "Other")
    group, common = places.get(field.name, (prefixed, False))
    kinds, nullable, choices = _read_type(hint)
    if field.metadata.get("const") is True:  # `--fsdp` alone, as well as `--fsdp full_shard`
        kinds.add("bool")
    if "dict" in kinds and field.name not in PATH_OR_MAPPING:
        kinds.discard("str")
    described = field.metadata.get("help", "")
    default = field.default_factory() if callable(field.default_factory) else field.default
    return Field(
        name=field.name,
        owner=owner.__name__,
        group=group,
        common=common,
        types=tuple(sorted(kinds)),
        nullable=nullable,
        default=default.value if isinstance(default, Enum) else default,
        help=WORDS.get(field.name)
        or (described if field.name in vars(owner)["__annotations__"] else _first_sentence(described)),
        choices=tuple(field.metadata.get("choices") or choices),
    )


def _read_type(hint: Any) -> tuple[set[str], bool, list[str]]:
    """Kinds of value that a type annotation allows, whether None is one, and the texts it is limited to."""
    kinds: set[str] = set()
    nullable, choices = False, []
    for part in _union_members(hint):
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


def _union_members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.replace("`", "").split()).split(". ")[0].split(" (e.g.")[0].strip()
    return sentence if not sentence or sentence.endswith(".") else sentence + "."


def main() -> None:
    """Write ``schema.json`` anew."""
    SCHEMA_FILE.write_text(as_json(describe(), version("transformers")), encoding="utf-8")


def as_json(fields: dict[str, Field], transformers_version: str) -> str:
    """The file's text: one setting a line, so that a change of one is a change of one line."""
    lines = ",\n".join(json.dumps(dataclasses.asdict(field), ensure_ascii=False) for field in fields.values())
    return f'{{"transformers": "{transformers_version}", "fields": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    main()
