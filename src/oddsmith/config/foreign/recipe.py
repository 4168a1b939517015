"""Collect what the translation of a recipe says: settings of ours, changes of meaning, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import ConfigError
from ..catalogue import SETTINGS
from ..inherited import FIELDS, WITHOUT_USE
from ..spellings import OLDER, Place, Verdict, under_todays_names

MAX_COUNT = 2**31
PROCESSES = "NPROC_PER_NODE"  # a variable of shell scripts

# What every trainer but this one does, and no setting changes.
LOSS_OF_A_STEP = (
    "loss",
    "of a step: the mean over all its tokens, however it is split into micro-batches, not a mean of means",
)


class Placed(Protocol):
    """A value with its place, such as ``recipe.yaml:12``."""

    @property
    def value(self) -> Any: ...

    @property
    def where(self) -> str: ...


Given = Mapping[str, Placed]


@dataclass(frozen=True)
class Line:
    """A setting of the translated recipe.

    Attributes:
        value: Its value.
        source: The other trainer's name of it; empty where the recipe was silent, and its default is meant.
        where: The place of that.
        note: What has changed in meaning; empty for nothing.
    """

    value: Any
    source: str
    where: str
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """What has no counterpart here, or another meaning.

    Attributes:
        name: The other trainer's name.
        value: Its value.
        where: Its place; empty for what holds whatever is given.
        text: What happens here, and what to do instead.
        decides: Whether the training would be another one, so that somebody has to decide.
    """

    name: str
    value: Any
    where: str
    text: str
    decides: bool = False


@dataclass
class Recipe:
    """A recipe that is being translated: each given setting is taken, set or left out once.

    Attributes:
        trainer: The other trainer.
        given: Its settings.
        lines: The settings of ours, in the order of the recipe.
        changed: What means something else here.
        missing: What has no counterpart.
    """

    trainer: str
    given: Given
    lines: dict[str, Line] = field(default_factory=dict)
    changed: list[Difference] = field(default_factory=list)
    missing: list[Difference] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Return whether a setting has a value; an empty line of YAML gives none."""
        return name in self.given and self.given[name].value is not None

    def take(self, name: str, default: Any = None) -> Any:
        """Return the value of a setting, and count it as translated."""
        self._taken.add(name)
        return self.given[name].value if self.has(name) else default

    def number(self, name: str, default: float) -> float:
        """Return a setting as a number, also where it is written as a text (``1e-5`` is one in YAML 1.1)."""
        value = self.take(name, default)
        try:
            if isinstance(value, bool):
                raise ValueError
            return value if isinstance(value, int) else float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{self._where(name)}{name} is {value!r}; expected a number") from None

    def count(self, name: str, default: int) -> int:
        """Return a setting as a whole number from 1 upwards."""
        value = self.number(name, default)
        if not 1 <= value < MAX_COUNT or value != int(value):
            raise ConfigError(f"{self._where(name)}{name} is {value}; expected a whole number from 1 upwards")
        return int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a switch."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where(name)}{name} is {value!r}; expected true or false")
        return value

    def set(self, name: str, value: Any, source: str = "", note: str = "") -> None:
        """Give a setting of ours a value; ``source`` is the one that it comes from, none for a default."""
        before = self.lines.get(name)
        if before and before.value != value and before.source and source:
            raise ConfigError(
                f"{self._where(source)}{source} and {before.source} both say {name}, and not the same; remove one"
            )
        if before and before.source and not source:
            return
        where = self.given[source].where if source in self.given else ""
        self.lines[name] = Line(value, source, where, note)
        if note:
            self.changed.append(
                Difference(source or name, value, where, f"{name}: {note}" if source not in ("", name) else note)
            )

    def rename(self, name: str, new: str, default: Any = None, note: str = "") -> None:
        """Take a setting under its name here; without it, the other trainer's default, where there is one."""
        if self.has(name):
            self.set(new, self.take(name), name, note)
        else:
            self._taken.add(name)
            if default is not None:
                self.set(new, default)

    def change(self, name: str, text: str) -> None:
        """Say that a setting, or what holds without one, means something else here."""
        self.changed.append(Difference(name, self.take(name), self._place(name), text))

    def leave(self, name: str, text: str, decides: bool = False) -> None:
        """Say that a setting has no counterpart; ``decides`` says that the training would be another one."""
        self.missing.append(Difference(name, self.take(name), self._place(name), text, decides))

    def leave_all(self, names: Mapping[str, str], decides: bool = False, off: tuple[Any, ...] = ()) -> None:
        """Leave out settings that were not taken, by a table of names (several to a key); what is off needs no word."""
        for keys, text in names.items():
            for name in [name for name in keys.split() if name not in self._taken]:
                if self.has(name) and self.given[name].value not in (*off, False, 0, "", "none", "no", [], {}):
                    self.leave(name, text, decides)
                else:
                    self._taken.add(name)

    def take_rest(self) -> None:
        """Take what is left under its own name where that is ours; whatever remains then is unknown, and is said."""
        rest = {name: placed.value for name, placed in self.given.items() if name not in self._taken and self.has(name)}
        rest.pop(PROCESSES, None)
        if self.has(PROCESSES):
            self.leave(PROCESSES, "give oddsmith train --num-processes so many")
        if rest.pop("trust_remote_code", None):
            self.leave("trust_remote_code", "read the model's code, then give --trust-remote-code on the command line")
        self._take_known(rest)
        for name in rest:
            if name not in SETTINGS and name not in OLDER:
                self.leave(name, f"is not known of {self.trainer}; look up what it does", decides=True)

    def _take_known(self, rest: Mapping[str, Any]) -> None:
        """Take settings of ours and their older names; say what of them has no effect or is refused."""
        known = {}
        for name, value in rest.items():
            older = OLDER.get(name) if name not in SETTINGS else None
            if name in WITHOUT_USE:
                if value not in (*FIELDS[name].accepted, None, False) and name != "do_train":
                    self.leave(name, FIELDS[name].note.replace("`", ""))
            elif older and older.verdict is not Verdict.WORKS:
                if value not in older.unset:
                    self.leave(name, older.note, decides=older.verdict is Verdict.REFUSED)
            elif older or name in SETTINGS:
                known[name] = value
        today = under_todays_names(known, SETTINGS, Place(self._where))
        for name, value in today.settings.items():
            self.set(name, value, today.origin.get(name, name))

    def first(self, names: str) -> str:
        """Return the first of some names that is given; the first of all if none is."""
        found = [name for name in names.split() if self.has(name)]
        return found[0] if found else names.split()[0]

    def require(self, name: str, wanted: str) -> Any:
        """Return a setting without which the recipe is damaged."""
        if not self.has(name):
            raise ConfigError(f"{name} is missing, without which {self.trainer} does not train; expected {wanted}")
        return self.take(name)

    def refuse_method(self, name: str, found: Any, expected: str) -> None:
        """Refuse a recipe of another method than ORPO."""
        what = (
            f"{name} is {found}" if found is not None else f"{name} is missing, and {self.trainer} then takes another"
        )
        raise ConfigError(
            f"{self._where(name)}{what}: not ORPO, the only method that is trained here; expected {expected}"
        )

    def _place(self, name: str) -> str:
        return self.given[name].where if name in self.given else ""

    def _where(self, name: str) -> str:
        return f"{self.given[name].where}: " if name in self.given else ""


def names_of(value: Any) -> list[str]:
    """Return names that are given as a list, or as a text with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(part).strip() for part in parts if str(part).strip()]


def part_of_rows(split: str, rows: int | None) -> str:
    """Return a split, or its first rows: ``train[:100]``."""
    return split if rows is None else f"{split}[:{rows}]"


def set_held_out(recipe: Recipe, parts: list[dict[str, Any]], source: str, note: str = "") -> None:
    """Set the datasets to evaluate on, after the training data; leave them out where our settings cannot say them."""
    trained = {name: line.value for name, line in recipe.lines.items()}
    splits = [part.get("split") or "train" for part in parts]
    for part in parts:
        config = trained.get("dataset_config") if part["path"] == trained.get("dataset_name") else None
        has_columns = part.get("columns") in (None, {}, trained.get("columns"))
        if part.get("name") != config or not has_columns or splits.count(splits[0]) < len(splits):
            text = (
                f"{part['path']}: here evaluation rows have one split, no subset and the training rows' columns; write"
                " them into a file, and name it in eval_dataset_name"
            )
            recipe.leave(source, text, decides=True)
            return
    if parts:
        recipe.set("eval_dataset_name", ",".join(str(part["path"]) for part in parts), source, note)
        recipe.set("dataset_test_split", splits[0], source)


def set_datasets(recipe: Recipe, parts: list[dict[str, Any]], source: str, note: str = "") -> None:
    """Set the training data: a single dataset by the settings of one, several as a mixture of all their rows."""
    if len(parts) != 1:
        recipe.set("datasets", parts, source, note)
        return
    names = {
        "path": "dataset_name",
        "name": "dataset_config",
        "split": "dataset_train_split",
        "columns": "columns",
    }
    for key, new in names.items():
        if parts[0].get(key) not in (None, "train", {}):
            recipe.set(new, parts[0][key], source, note if key == "path" else "")
