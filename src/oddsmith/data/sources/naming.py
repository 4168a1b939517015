"""Give the columns of a dataset the names that formats read: the setting ``columns``.

    columns     prompt=question,chosen=responses.best.text,rejected=responses.worst.text
                (text; a mapping in YAML and Python, and in JSON for names with a comma)
    row         {"question": "Why?", "responses": {"best": {"text": "So."}, "worst": {"text": "No."}}, "id": 7}
    named       {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "id": 7}

A path leads into objects and lists (``responses.0.text``), also into those that are written as JSON. A name with a dot
in it is taken before a path. What is read from is left out of the named row, with all that is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import Any

from ...errors import ConfigError, DataError
from ...system.strict_json import read_json
from ...system.words import enumerated
from ..formats import NOWHERE, READ_COLUMNS
from ..formats.layouts import is_read
from ..formats.values import kind_of
from ..formats.written import read_text

Row = Mapping[str, Any]
Columns = Mapping[str, str]  # name that formats read -> column, or path to it

EXAMPLE = "prompt=question,chosen=good,rejected=bad"
_NEXT_NAME = re.compile(r",(?=\s*\w+\s*=)")


def parse_columns(value: Any, where: str = "columns") -> dict[str, str]:
    """Read the setting ``columns``, a mapping or text; None is an empty one.

    A name that no format reads, one that is given twice, or two for one column, is a ``ConfigError``.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        value = _of_text(value, where)
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{where} is {'empty' if value == {} else kind_of(value)}; expected {EXAMPLE} or a mapping")
    for name, column in value.items():
        if isinstance(column, bool) or not isinstance(column, str | int) or column == "":
            raise ConfigError(f"{where}: {name} is {kind_of(column)}; expected the name of a column")
        if name not in READ_COLUMNS and not is_read(str(name)):
            raise ConfigError(f"{where} names {name!r}, which no format reads; {_hint(str(name), str(column))}")
    columns = {name: str(column) for name, column in value.items()}
    for column in columns.values():
        names = [name for name, other in columns.items() if other == column]
        if len(names) > 1:
            raise ConfigError(f"{where}: {enumerated(names)} are both read from {column!r}; give each its own column")
    return columns


def text_of_columns(columns: Columns) -> str:
    """Return the setting as text, which ``parse_columns`` reads: as JSON where a name is odd."""
    text = ",".join(f"{name}={column}" for name, column in columns.items())
    try:
        is_same = text.isprintable() and parse_columns(text) == columns
    except ConfigError:
        is_same = False
    return text if is_same else json.dumps(columns)


@contextmanager
def offering(columns: Any, *, of_one_dataset: bool = True) -> Iterator[None]:
    """Add the setting to the columns that an error in the block offers, which then are all that have to be given.

    Where the setting is not that ``of_one_dataset``, but of a mixture, nothing is offered.
    """
    try:
        yield
    except DataError as error:
        if error.columns:
            error.offering({**parse_columns(columns), **error.columns} if of_one_dataset else {})
        raise


def _of_text(text: str, where: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return read_json(text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{where} is no JSON at character {error.pos}: {error.msg}; expected {EXAMPLE}"
            ) from error
    found: dict[str, str] = {}
    for part in _NEXT_NAME.split(text):
        name, equals, column = (word.strip() for word in part.partition("="))
        if not (name and equals and column):
            raise ConfigError(f"{where} has {part!r}; expected NAME=COLUMN, as in {EXAMPLE}")
        if name in found:
            raise ConfigError(f"{where} gives {name} twice, {found[name]!r} and {column!r}; keep one")
        found[name] = column
    return found


def _hint(name: str, column: str) -> str:
    if column in READ_COLUMNS:
        return f"the name comes first: {column}={name}"
    nearest = get_close_matches(name.lower(), READ_COLUMNS, n=1)
    return f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(READ_COLUMNS)}"


def with_names(rows: Any, columns: Columns, source: str, *, where_there: bool = False) -> Any:
    """Return rows of any kind with the columns under their names.

    Args:
        rows: A list of rows, a ``Dataset`` or an ``IterableDataset``; or an iterable, of which a list is made.
        columns: As ``parse_columns`` returns them.
        source: Name of the dataset, for the message.
        where_there: Whether a dataset that has none of the columns is left as it is.

    Returns:
        A list where an ordinary ``Dataset`` has to be read by paths; else what was given.

    Raises:
        DataError: There is no such column.
    """
    columns = columns_there(rows, columns, source, where_there=where_there)
    if not columns:
        return rows
    names = _names(rows, columns)
    is_stream = hasattr(rows, "remove_columns") and not hasattr(rows, "__len__")
    is_swapped = any(column != name and column in columns for name, column in columns.items())
    is_plain = all(column in names for column in columns.values())
    # A stream of datasets cannot rename a column to one that is renamed as well.
    if is_plain and getattr(rows, "column_names", None) and not (is_stream and is_swapped):
        replaced = [name for name in columns if name in names and name not in columns.values()]
        rows = rows.remove_columns(replaced) if replaced else rows
        return rows.rename_columns({column: name for name, column in columns.items() if name != column})
    if hasattr(rows, "take"):  # a stream, or a dataset
        rows = rows.with_format(None)
    if is_stream:
        replaced = [*columns, *filter(None, (_root(column, names) for column in columns.values()))]
        return rows.map(partial(named_row, columns=columns), remove_columns=sorted(set(replaced)))
    return [named_row(row, columns) for row in rows]


def columns_there(rows: Any, columns: Columns, source: str, *, where_there: bool) -> Columns:
    """Return the columns, none of them where that is right (``with_names``); raise its ``DataError``."""
    names = _names(rows, columns) if columns else []
    if where_there and not any(_root(column, names) for column in columns.values()):
        return {}
    for name, column in columns.items():
        if _root(column, names) is None:
            nearest = get_close_matches(column.partition(".")[0], names, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            hint = f"; the name comes first: {column}={name}" if name in names and column in READ_COLUMNS else hint
            raise DataError(
                f"{source}: there is no column {column!r} for {name}; found the columns"
                f" {', '.join(names) or 'none'}{hint}"
            )
    return columns


def named_row(row: Any, columns: Columns) -> Any:
    """Return a row with the columns under their names; one that leads nowhere is told in the column ``NOWHERE``."""
    if not isinstance(row, Mapping):
        return row
    found: dict[str, Any] = {}
    faults = []
    for name, column in columns.items():
        try:
            found[name] = _value_at(row, column, "")
        except LookupError as error:
            faults.append(f"{name}={column} leads nowhere: {error.args[0]}")
    gone = {_root(column, row) for column in columns.values()} | columns.keys()
    named = found | {key: value for key, value in row.items() if key not in gone}
    return named | {NOWHERE: "; ".join(faults)} if faults else named


def _value_at(value: Any, path: str, before: str) -> Any:
    """Return the value that a path leads to; a ``LookupError`` says where it ends."""
    if isinstance(value, str) and before and value.lstrip()[:1] in ("{", "["):
        try:
            value = read_text(value)
        except ValueError:
            raise LookupError(f"{before} is text that is no JSON") from None
    if isinstance(value, Mapping):
        key = _root(path, value)
        if key is None:
            what = f"{before} has the keys" if before else "the row has the columns"
            raise LookupError(f"{what} {', '.join(map(str, value)) or 'none'}")
    elif isinstance(value, list | tuple):
        key = path.partition(".")[0]
        if not re.fullmatch(r"-?\d{1,9}", key) or not -len(value) <= int(key) < len(value):
            raise LookupError(f"{before} is a list of {len(value)}, counted from 0")
    else:
        raise LookupError(f"{before} is {kind_of(value)}")
    item = value[key] if isinstance(value, Mapping) else value[int(key)]
    rest = path[len(key) + 1 :]
    return _value_at(item, rest, f"{before}.{key}" if before else key) if rest else item


def _root(path: str, names: Collection[str]) -> str | None:
    """Return the longest of the names that is a path or begins it; None where none does."""
    if path in names:
        return path
    fitting = [name for name in names if path == name or path.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def _names(rows: Any, columns: Columns) -> list[str]:
    """Return the names of the columns of a sequence's rows, up to the row with which all ``columns`` are there.

    Of other rows, those of the first.
    """
    names = getattr(rows, "column_names", None)
    if names:
        return list(names)
    found: dict[str, None] = {}
    for row in rows if isinstance(rows, Sequence) else islice(rows, 1):
        if isinstance(row, Mapping) and not row.keys() <= found.keys():
            found |= dict.fromkeys(row)
            if all(_root(column, found) is not None for column in columns.values()):
                break
    return list(found)
