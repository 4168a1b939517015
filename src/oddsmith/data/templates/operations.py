"""The operators, methods and filters that make much out of little, with a look first at how much."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sized
from functools import wraps
from typing import Any

from .budget import FREE_CHARACTERS, ITEM_WORK, Budget, LimitReached

MOST_BITS = 4096
MOST_STRIPPED = 1000
MOST_INDENT = 64
LONGEST_DATE_FORMAT = 200

# Widths that a format asks for: '%100000d', '%*d', '{:100000}', '{:{width}}'.
WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(\*|[0-9]{4})")
WIDE_BRACES = re.compile(r"\{[^{}]*(\{|:[^}]*[0-9]{4})")
WIDE_DATE = re.compile(r"%[^%a-zA-Z]*[0-9]")

# What a template may call of the values it gets. Others (center, ljust, encode, translate, to_bytes, ...) no known
# template calls, and they make much out of little.
# fmt: off
METHODS_OF_TEXTS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
    "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper",
))
# Filters that hand on or pick, whatever the value holds. All others look at it whole, and may write it out.
SHALLOW_FILTERS = frozenset((
    "abs", "attr", "batch", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "slice",
))
# fmt: on
METHODS: dict[type, frozenset[str]] = {
    str: METHODS_OF_TEXTS,
    bytes: frozenset(),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(("is_integer",)),
}

# Filters of Jinja that no chat template needs: layout of pages, links, chance.
REFUSED_FILTERS = ("center", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
# Those that go through what another filter has yet to make; it is made first, to see how much it is.
CONSUMING_FILTERS = frozenset(("groupby", "join", "sort", "sum", "unique"))


class Operations:
    """Guarded operators, methods and filters.

    Args:
        budget: What they use up.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.before_filter: dict[str, Callable[..., None]] = {
            "batch": lambda value, count, *_, **__: self._require_small(count),
            "format": lambda text, *args, **kwargs: self._before_percent(str(text), (args, kwargs)),
            "indent": self._before_indent,
            "join": lambda items, between="", *_, **__: self._before_join(str(between), items),
            "replace": lambda text, old, new, *_, **__: self._before_replace(str(text), str(old), str(new)),
            "round": lambda value, precision=0, *_, **__: self._require_small(precision),
            "slice": lambda value, slices, *_, **__: self._require_small(slices),
            "sum": self._before_sum,
            "tojson": self._before_json,
            "trim": lambda text, chars="", *_: self._before_strip(str(text), chars),
        }

    # ---- Operators

    def made(self, value: Any) -> Any:
        """A sum, a list or mapping that the template writes out, or a value on its way into the text."""
        if type(value) is not str or len(value) > FREE_CHARACTERS:
            self.budget.spend_on(value)
        return value

    def joined(self, *parts: Any) -> str:
        """``a ~ b ~ c``."""
        for part in parts:
            if type(part) is not str:
                self.budget.spend_on(part)
        text = "".join(map(str, parts))
        self.budget.spend(self.budget.light(len(text)))
        return text

    def multiplied(self, left: Any, right: Any) -> Any:
        """``left * right``."""
        if isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() + right.bit_length())
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                self.budget.spend(self.budget.light((self.budget.weigh(value) + 1) * max(times, 0)))
        return left * right

    def raised(self, left: Any, right: Any) -> Any:
        """``left ** right``."""
        if isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() * max(right, 0))
        return left**right

    def remainder(self, left: Any, right: Any) -> Any:
        """``left % right``, which formats where ``left`` is a text."""
        if not isinstance(left, str):
            return left % right
        self._before_percent(left, right)
        result = left % right
        self.budget.spend_on(result)
        return result

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``."""
        part = value[start:stop:step]
        self.budget.spend(len(part) * (1 if isinstance(part, str) else ITEM_WORK))
        return part

    def concatenated(self, pieces: Any) -> str:
        """The text of a block, a macro or the whole."""
        pieces = list(pieces)
        if (length := sum(map(len, pieces))) > FREE_CHARACTERS:
            self.budget.spend(self.budget.light(length))
        return "".join(pieces)

    # ---- Methods and filters

    def _before_percent(self, text: str, values: Any) -> None:
        if WIDE_PERCENT.search(text):
            raise LimitReached("it formats to a width of thousands")
        self.budget.light(text.count("%") * self.budget.weigh(values))

    def before_braces(self, text: str, values: Any) -> None:
        if WIDE_BRACES.search(text):
            raise LimitReached("it formats to a width of thousands, or to one that it computes")
        self.budget.light(text.count("{") * self.budget.weigh(values))

    def _before_replace(self, text: str, old: str, new: str, *_: Any) -> None:
        self.budget.light(len(text) + text.count(old) * len(new))

    def _before_strip(self, text: str, characters: str | None = None) -> None:
        if len(characters or "") > MOST_STRIPPED:  # each of the text's is looked for among them
            raise LimitReached(f"it strips more than {MOST_STRIPPED} different characters")

    def method_arguments(self, text: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Look at a call of a text's method, and hand its arguments on; what is yet to be made is made first."""
        if method == "join" and len(arguments) == 1:
            items = arguments[0] if isinstance(arguments[0], Sized) else list(arguments[0])
            self._before_join(text, items)
            return (items,)
        if method == "replace" and len(arguments) > 1:
            self._before_replace(text, *arguments)
        elif method in ("strip", "lstrip", "rstrip") and arguments:
            self._before_strip(text, arguments[0])
        return arguments

    def _before_join(self, text: str, items: Any) -> None:
        if isinstance(items, Sized):
            self.budget.light(self.budget.weigh(items) + len(text) * len(items))

    def _before_sum(self, items: Any, attribute: Any = None, start: Any = 0) -> None:
        if isinstance(start, list | tuple):  # each list is copied once for every one after it
            self.budget.spend(ITEM_WORK * len(items) ** 2)

    def _before_indent(self, text: str, width: int | str = 4, *_: Any, **__: Any) -> None:
        one = len(width) if isinstance(width, str) else width
        self.budget.light(len(text) + (text.count("\n") + 1) * max(one, 0))

    def _before_json(self, value: Any, ensure_ascii: bool = False, indent: Any = None, *_: Any, **__: Any) -> None:
        one = len(indent) if isinstance(indent, str) else indent or 0
        if one > MOST_INDENT:
            raise LimitReached(f"it indents JSON by more than {MOST_INDENT} characters a level")
        self.budget.light(self.budget.weigh(value) * (1 + one))

    def _require_small(self, number: Any) -> None:
        if isinstance(number, int) and abs(number) > MOST_BITS:
            raise LimitReached(f"it asks a filter for {number:.1e} places, parts or items")

    def _require_bits(self, bits: int) -> None:
        if bits > MOST_BITS:
            raise LimitReached(f"it computes with numbers of more than {MOST_BITS} bits")

    def guarded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that looks first, and uses up what it makes.

        Args:
            name: Its name.
            function: Jinja's or transformers'.

        Returns:
            The function in its place; marks that Jinja put on it (what else it is handed) stay.
        """
        before = self.before_filter.get(name)
        is_shallow, is_consuming, budget = name in SHALLOW_FILTERS, name in CONSUMING_FILTERS, self.budget
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or the environment stands in front

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_consuming and isinstance(args[first], Iterator):
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            if not is_shallow and type(args[first]) is not str:
                budget.spend_on(args[first])
            if before is not None:
                before(*args[first:], **kwargs)
            result = function(*args, **kwargs)
            budget.spend_on(result)
            return result

        return guarded

    def guarded_date(self, function: Callable[[str], str]) -> Callable[[str], str]:
        """``strftime_now`` for formats without widths."""

        @wraps(function)
        def strftime_now(format: str) -> str:
            if len(format) > LONGEST_DATE_FORMAT or WIDE_DATE.search(format):
                raise LimitReached("it formats the date to a width")
            return function(format)

        return strftime_now
