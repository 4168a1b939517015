"""Read a command line into settings: defaults, then the YAML file, then the flags, with the origin of each value.

    oddsmith train [CONFIG.yaml] [--any-setting value | --any-setting=value | --switch | --no-switch]

A flag may use dashes or underscores. A list takes several values (``--lora-target-modules q_proj v_proj``, or
``q_proj,v_proj``), a mapping takes JSON. The last of repeated flags wins, as on every command line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ...config.inherited import refuse_of_python
from ...config.meant import meant_by, question
from ...config.spellings import OLDER, Place, refuse_unknown, under_todays_names
from ...errors import ConfigError, MissingExtraError
from ..command_table import COMMANDS
from .config_file import SCRIPTS, Setting, read_config
from .recipes import recipe_file
from .schema import Field, flag_of, load_fields
from .values import FALSE_WORDS, TRUE_WORDS, check, from_flag

if TYPE_CHECKING:
    from ...config import ModelConfig, ORPOConfig, ScriptArguments

logger = logging.getLogger(__name__)

# The setting that only the command line can turn on, never a file.
TYPED_ONLY = "trust_remote_code"


@dataclass(frozen=True)
class Option:
    """A flag of a command itself, beside the settings."""

    name: str  # with underscores
    kind: str  # "switch" (no value), "value" (one) or "optional" (none or one)
    help: str
    metavar: str = ""  # what the help calls the value

    @property
    def flag(self) -> str:
        return flag_of(self.name)


@dataclass
class Resolved:
    """The settings and flags of a command line."""

    settings: dict[str, Setting]  # what was given: name -> value and origin (``config.yaml:12`` or ``--beta``)
    options: dict[str, str]  # the command's own flags that were given: name -> text, "" without one
    positional: list[str]  # words without a flag, other than the configuration file
    fields: Mapping[str, Field] = field(repr=False)  # the known settings
    lines: list[str] = field(default_factory=list)  # what to say about older names of settings
    repeated: dict[str, list[str]] = field(default_factory=dict)  # as options, with each value that was given

    def get(self, name: str) -> Any:
        """Return the value of a setting, its default where none was given."""
        return self.settings[name].value if name in self.settings else self.fields[name].default

    def of(self, owner: str) -> dict[str, Any]:
        """Return the given values of one dataclass, as its keyword arguments."""
        return {name: given.value for name, given in self.settings.items() if self.fields[name].owner == owner}

    def changed(self) -> dict[str, Setting]:
        """Return what was given and differs from the default, in the order of the help."""
        return {
            name: self.settings[name]
            for name, known in self.fields.items()
            if name in self.settings and self.settings[name].value != known.default
        }

    def tell(self) -> None:
        """Warn of older names. Not when they are read: a command that starts processes has it read again by each."""
        for line in self.lines:
            logger.warning(line)


class Settings(NamedTuple):
    """The dataclasses of a run."""

    orpo: ORPOConfig
    model: ModelConfig
    data: ScriptArguments


def resolve(
    arguments: Sequence[str], fields: Mapping[str, Field], options: Iterable[Option] = (), max_positional: int = 0
) -> Resolved:
    """Read a command line; check every value, and record where it was given.

    ``max_positional`` is how many words without a flag the command takes; with 0 it takes one, the configuration file.
    Raises ``ConfigError`` for an unknown flag or setting, a value of the wrong type, a second configuration file.
    """
    words = _Words(arguments, {**_older_fields(fields), **fields}, {option.name: option for option in options})
    words.read()
    configs = words.configs + ([] if max_positional else words.positional)
    if "recipe" in words.options and fields:  # for others it names the recipe of a training that they start
        configs = [recipe_file(words.options["recipe"]), *configs]
    if len(configs) > 1:
        raise ConfigError(f"found {' and '.join(configs)}; expected one configuration file, and flags after it")
    if max_positional and len(words.positional) > max_positional:
        example = "--dataset-name" if fields else next(iter(words.options_known.values())).flag
        raise ConfigError(f"found {words.positional[max_positional]!r}; expected a flag such as {example} there")
    in_file, unknown, lines = _read_file(configs[0], words) if configs else ({}, {}, [])
    _refuse_unknown(unknown, words.unknown, has_settings=bool(fields))
    resolved = Resolved({}, words.options, words.positional if max_positional else [], fields, lines, words.repeated)
    for given, place in ((in_file, _in_file(in_file)), (words.settings, _as_flags(words.settings))):
        today = under_todays_names({name: setting.value for name, setting in given.items()}, fields, place)
        for name, value in today.settings.items():
            resolved.settings[name] = Setting(value, given[today.origin.get(name, name)].where)
        resolved.lines += today.lines
    _require_typed(resolved.settings)
    return resolved


def resolve_word(
    arguments: Sequence[str], options: Iterable[Option], what: str, usage: str
) -> tuple[str, dict[str, str]]:
    """Read the command line of a command that takes one word and no settings; return the word and the flags.

    ``what`` the word names (``"model"``) and the ``usage`` of the command are for the message if it is missing.
    """
    resolved = resolve(arguments, {}, options, max_positional=1)
    if not resolved.positional:
        raise ConfigError(f"no {what} is given; expected {usage}")
    return resolved.positional[0], resolved.options


def build(resolved: Resolved) -> Settings:
    """Make the dataclasses, which check ranges and contradictions; an error ends with where the values were given."""
    from ...config import ModelConfig, ORPOConfig, ScriptArguments

    resolved.tell()
    refuse_of_scripts(resolved)
    with with_origins(resolved):
        settings = Settings(
            ORPOConfig(**resolved.of("ORPOConfig")),
            ModelConfig(**resolved.of("ModelConfig")),
            ScriptArguments(**resolved.of("ScriptArguments")),
        )
        require_length(settings.orpo.max_steps, settings.data)
        return settings


def refuse_of_scripts(resolved: Resolved) -> None:
    """Refuse settings that only a script in Python can use."""
    refuse_of_python(resolved.changed(), lambda name: resolved.settings[name].where)


def require_length(max_steps: int, data: ScriptArguments) -> None:
    """Refuse a run on a stream that does not say how long it is."""
    if data.dataset_streaming and max_steps <= 0:
        raise ConfigError("dataset_streaming does not know how many rows there are; set max_steps, the run's length")


@contextmanager
def with_origins(resolved: Resolved) -> Iterator[None]:
    """Let what is refused of the settings in the block end with where the values were given."""
    try:
        yield
    except MissingExtraError:
        raise
    except ConfigError as error:
        raise ConfigError(_with_origin(str(error), resolved)) from error
    except (ValueError, TypeError, ArithmeticError, ImportError, OSError) as error:  # transformers' own checks
        raise ConfigError(_with_origin(" ".join(str(error).split()) or type(error).__name__, resolved)) from error


def _with_origin(message: str, resolved: Resolved) -> str:
    """Add the origins of the settings that a message names."""
    words = dict.fromkeys(re.findall(r"\w+", message))
    places = [f"{word}: {resolved.settings[word].where}" for word in words if word in resolved.settings]
    return f"{message} ({', '.join(places)})" if places else message


class _Words:
    """Walks over the words of a command line and sorts them into settings, options and the rest."""

    def __init__(self, arguments: Sequence[str], fields: Mapping[str, Field], options: dict[str, Option]):
        self.arguments, self.fields, self.options_known = list(arguments), fields, options
        self.position = 0
        self.settings: dict[str, Setting] = {}  # under the names that were given
        self.unknown: dict[str, str | None] = {}  # flag -> what was probably meant
        self.options: dict[str, str] = {}
        self.repeated: dict[str, list[str]] = {}
        self.configs: list[str] = []
        self.positional: list[str] = []

    def read(self) -> None:
        while self.position < len(self.arguments):
            word = self.arguments[self.position]
            self.position += 1
            if word.startswith("--") and len(word) > 2:
                self._read_flag(word)
            elif word.startswith("-") and len(word) > 1:
                raise ConfigError(f"unknown flag {word}; every flag begins with two dashes")
            elif "=" in word and self.arguments[: self.position - 1][-2:-1] == ["--columns"]:
                given = self.arguments[self.position - 2]
                raise ConfigError(f"found {word!r} after --columns {given}; join them with commas: {given},{word},...")
            else:
                self.positional.append(word)

    def _read_flag(self, word: str) -> None:
        flag, has_value, attached = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name == "config":
            self.configs.append(attached if has_value else self._one_value(flag))
        elif name in self.options_known:
            self.options[name] = self._option_value(self.options_known[name], flag, attached if has_value else None)
            self.repeated.setdefault(name, []).append(self.options[name])
        elif name in self.fields:
            known = self.fields[name]
            texts = [attached] if has_value else self._values(known, flag)
            self.settings[name] = Setting(from_flag(known, texts, flag), flag)
        elif name.startswith("no_") and "bool" in getattr(self.fields.get(name[3:]), "types", ()) and not has_value:
            self.settings[name[3:]] = Setting(False, flag)
        elif name.removeprefix("no_") in self.fields:
            raise ConfigError(f"{flag}: {name[3:]} is no switch; expected --{name[3:].replace('_', '-')} VALUE")
        else:
            self.unknown[flag] = self._hint(name)
            while not has_value and self._peek() is not None and not _is_config(self._peek() or ""):
                self.position += 1

    def _hint(self, name: str) -> str | None:
        """Word what was probably meant by an unknown flag: another one, a setting of a training, or a command."""
        if name in COMMANDS:
            return f"`oddsmith {name}` is a command of its own"
        if not self.fields and name in load_fields():
            return f"{name} is a setting of a training: `oddsmith train {flag_of(name)} ...`"
        return question(meant_by(name, [*self.fields, *self.options_known]), _as_flag, " ")

    def _values(self, known: Field, flag: str) -> list[str]:
        """Take the words that belong to a setting's flag."""
        if "bool" in known.types:
            following = self._peek()
            takes = following is not None and (
                following.lower() in TRUE_WORDS | FALSE_WORDS | ({"none", "null"} if known.nullable else set())
                or following in known.choices
                or ("str" in known.types and not _is_config(following))
            )
            return [self._one_value(flag)] if takes else []
        texts = [self._one_value(flag)]
        if {"list", "list[dict]"} & set(known.types):
            while (following := self._peek()) is not None and not _is_config(following):
                texts.append(self._one_value(flag))
        return texts

    def _option_value(self, option: Option, flag: str, attached: str | None) -> str:
        if option.kind == "switch":
            if attached is not None:
                raise ConfigError(f"{flag} takes no value; found {attached!r}")
            return ""
        if attached is not None:
            return attached
        if option.kind == "optional" and (self._peek() is None or _is_config(self._peek() or "")):
            return ""
        return self._one_value(flag)

    def _peek(self) -> str | None:
        """Return the next word if it is no flag."""
        word = self.arguments[self.position] if self.position < len(self.arguments) else None
        return None if word is not None and word.startswith("--") else word

    def _one_value(self, flag: str) -> str:
        word = self._peek()
        if word is None:
            raise ConfigError(f"{flag} has no value; expected one after it, as in {flag} VALUE")
        self.position += 1
        return word


def _as_flag(name: str, value: Any) -> str:
    """Write a setting as flags: ``--use-peft``, ``--no-bf16``, ``--report-to wandb``, ``--max-length``."""
    if value is False:
        return f"--no-{flag_of(name)[2:]}"
    return flag_of(name) if value in (..., True) else f"{flag_of(name)} {value}"


def _as_line(name: str, value: Any) -> str:
    """Write a setting as in a file; without a value that is the user's own."""
    return name if value is ... else f"{name}: {_text(value)}"


def _is_config(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _read_file(path: str, words: _Words) -> tuple[dict[str, Setting], dict[str, str | None], list[str]]:
    """Read a configuration file, and check each value.

    Return the settings, the unknown ones with their hints, and what to say where it was another trainer's.
    """
    settings: dict[str, Setting] = {}
    unknown: dict[str, str | None] = {}
    if path.endswith(SCRIPTS):
        raise ConfigError(
            f"{path} is a script; `oddsmith convert {path} > recipe.yaml` writes what it sets as a recipe"
        )
    in_file = read_config(path)
    from .foreign_files import translated  # not needed for the help, which has to be there at once

    if "learning_rate" in words.fields and (foreign := translated(path, in_file, words.fields)):
        return foreign.settings, {}, foreign.lines
    for key, given in in_file.items():
        if key in words.options_known and key not in OLDER:
            flag = words.options_known[key].flag
            raise ConfigError(f"{given.where}: {key} is a flag of the command, no setting; give {flag}")
        if key in words.fields:
            settings[key] = Setting(check(words.fields[key], given.value, given.where), given.where)
        else:
            unknown[f"{given.where}: {key}"] = question(meant_by(key, words.fields), _as_line, " and ")
    return settings, unknown, []


def _refuse_unknown(in_file: Mapping[str, str | None], flags: Mapping[str, str | None], has_settings: bool) -> None:
    """Raise one ``ConfigError`` for all unknown settings of a file, and all unknown flags."""
    otherwise = "`oddsmith train --help-all` lists all settings" if has_settings else "--help lists all flags"
    if len(in_file) == 1 and not flags:
        ((name, hint),) = in_file.items()
        where, _, key = name.rpartition(" ")
        raise ConfigError(f"{where} unknown setting {key}; {hint or otherwise}")
    refuse_unknown("setting" if in_file else "flag", {**in_file, **flags}, otherwise)


def _older_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return the older names of settings as settings of their own, so that their values can be read."""
    found = {}
    for name, older in OLDER.items():
        new = fields.get(older.new[0]) if older.new else None
        if fields and (new or not older.new):
            types = older.kind or (new.types if new else ())
            choices = new.choices if new and not older.kind else ()
            found[name] = Field(name, "", "", False, False, types, True, None, "", choices)
    return found


def _in_file(given: Mapping[str, Setting]) -> Place:
    return Place(lambda name: f"{given[name].where}: ", value=lambda name, value: f"{name}: {_text(value)}")


def _as_flags(given: Mapping[str, Setting]) -> Place:
    def written(name: str, value: Any) -> str:
        return flag_of(name) if value is True else f"{flag_of(name)} {_text(value)}"

    return Place(name=lambda name: given[name].where if name in given else flag_of(name), value=written)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _require_typed(settings: Mapping[str, Setting]) -> None:
    """Refuse a file that allows a model to run code; only a flag on the command line may."""
    given = settings.get(TYPED_ONLY)
    if given is not None and given.value and not given.where.startswith("--"):
        raise ConfigError(
            f"{given.where}: a file cannot allow a model to run code of its own;"
            " read that code, then give --trust-remote-code on the command line"
        )
    for name, setting in settings.items():
        if TYPED_ONLY in _keys_inside(setting.value):
            raise ConfigError(
                f"{setting.where}: {name} holds {TYPED_ONLY}; give --trust-remote-code on the command line"
            )


def _keys_inside(value: Any) -> set[str]:
    """Return the keys of nested mappings and lists."""
    if isinstance(value, dict):
        return {str(key).replace("-", "_") for key in value}.union(*map(_keys_inside, value.values()))
    return set().union(*map(_keys_inside, value)) if isinstance(value, list) else set()
