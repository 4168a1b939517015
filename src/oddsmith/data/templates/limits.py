"""Limit the work, size and time of a chat template while it renders one conversation.

    work   a character that is made costs 1, an item of a list 16, a node of the template that runs 8; a short text
           costs no more than the node that makes it
    value  the weight of one value: its characters and items, with everything inside it counted each time
    time   processor time, as a last resort: apart from it the same template ends in the same way on every machine

A conversation of 32,768-token messages in the longest known templates uses less than a hundredth of the work.
Operators, methods, filters, tests and comparisons run in C, where nothing can interrupt them. So each is counted before
it runs: those that read values by the weight of these, those that make long values from short ones by that of the
result, and those whose time grows with a square by that square. One of them takes a fraction of a second at most.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import wraps
from string import Formatter
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MAX_WORK = 2**26
MAX_WEIGHT = 2**22
MAX_SECONDS = 1.0
NODE_WORK, ITEM_WORK = 8, 16
WORK_BETWEEN_CLOCKS = 2**13
FREE_CHARACTERS = 1024  # making a text this short costs no more than the node that makes it

LISTS: tuple[type, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
HEAVY = frozenset((dict, range, *LISTS))

WEIGHTLESS = frozenset((bool, float, type(None)))

MAX_BITS = 4096  # of what is multiplied
MAX_READ_BITS = 2**14  # of any number; Python reads none of more than 4,300 digits
MAX_STRIPPED = 1000
MAX_INDENT = 64
MAX_DATE_FORMAT = 200
MAX_PARTS = 16  # of the path to an attribute: "function.parameters.type"
NEEDLE = 64  # characters that are compared at each place of a text in the time of one step

# Widths that a format asks for: '%100000d', '%*d'; in braces they are found by Python's own parser.
WIDE_PERCENT = re.compile(r"%[^%a-zA-Z]*(\*|[0-9]{4})")
WIDE = re.compile(r"[0-9]{4}|\{")
WIDE_DATE = re.compile(r"%[^%a-zA-Z]*[0-9]")
BLANK = re.compile(r"\s")

# The methods that a template may call on the values that it gets. No known template calls the others (center, ljust,
# encode, translate, to_bytes, ...), and these make long values from short ones.
# fmt: off
METHODS_OF_TEXTS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
    "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
    "strip", "swapcase", "title", "upper",
))
# Filters that pass a value on or pick from it, and those that go through its items, whatever is inside them. All others
# read it completely, and may write it.
PICKING_FILTERS = frozenset((
    "abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "round",
))
SHALLOW_FILTERS = frozenset((
    "batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice",
))
# Filters that make an object of each character or word of a text.
CUTTING_FILTERS = frozenset((
    "batch", "groupby", "join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "slice",
    "sort", "sum", "title", "unique", "wordcount",
))
# Tests that look at no more than the type of a value, or at its place in memory.
SHALLOW_TESTS = frozenset((
    "boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping", "none",
    "number", "sameas", "sequence", "string", "test", "true", "undefined",
))
# fmt: on
ARITHMETIC_TESTS = frozenset(("divisibleby", "even", "odd"))  # of a text they would be formats
METHODS: dict[type, frozenset[str]] = {
    str: METHODS_OF_TEXTS,
    bytes: frozenset(),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
    int: frozenset(),
    float: frozenset(("is_integer",)),
}

# Filters of Jinja that no chat template needs: page layout, links, random choice.
REFUSED_FILTERS = ("center", "pprint", "random", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr")
# Filters that consume an iterator which another filter returned; its items are made first, to weigh them.
CONSUMING_FILTERS = frozenset(("groupby", "join", "sort", "sum", "unique"))


class LimitReached(TemplateRuntimeError):
    """Raised for a template that uses more than any conversation needs: its loops or texts may grow without end."""


class Budget(threading.local):
    """Count the work and time that a template uses, separately in each thread."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start a new conversation."""
        self.work_left = MAX_WORK
        self.next_clock = MAX_WORK - WORK_BETWEEN_CLOCKS
        self.started_at: float | None = None

    def spend(self, work: int) -> bool:
        """Count work; LimitReached where no work or time is left. Return True, for use in a condition."""
        self.work_left -= work
        if self.work_left < self.next_clock:
            self._check()
        return True

    def spend_on(self, value: Any) -> None:
        """Count the work that it took to make a value; LimitReached where the value is too heavy."""
        kind = type(value)
        if kind is str:
            if len(value) > FREE_CHARACTERS:
                self.spend(self.require_light(len(value)))
        elif kind is int:
            if value.bit_length() > MAX_READ_BITS:
                raise LimitReached(f"it computes with numbers of more than {MAX_READ_BITS:,} bits")
        elif kind in HEAVY or isinstance(value, str | dict | tuple):  # escaped text has a class of its own
            self.spend(self.weigh(value))

    def require_light(self, weight: int) -> int:
        """Return the weight of a value that is about to be made; LimitReached where it is too heavy."""
        if weight > MAX_WEIGHT:
            raise LimitReached(f"it makes a value of more than {MAX_WEIGHT:,} characters")
        return weight

    def weigh(self, value: Any) -> int:
        """Return the weight of a value with everything inside it, which is at most ``MAX_WEIGHT``.

        LimitReached where it is heavier. The weight doubles with every list that contains the list before it twice.
        """
        weight = 0
        waiting: list[Any] = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                weight += len(one)
            elif isinstance(one, dict | tuple) or type(one) in LISTS:
                weight += ITEM_WORK * (1 + len(one))
                waiting += (*one.keys(), *one.values()) if isinstance(one, dict) else one
            elif isinstance(one, range):
                weight += ITEM_WORK * len(one)
            else:
                weight += ITEM_WORK + (one.bit_length() // 3 if type(one) is int else 0)
            self.require_light(weight)
        return weight

    def _check(self) -> None:
        self.next_clock = self.work_left - WORK_BETWEEN_CLOCKS
        if self.work_left < 0:
            raise LimitReached("its loops or texts grow beyond what a conversation needs")
        # Processor time, not wall-clock time: a busy or sleeping machine is not the template's fault.
        now = time.thread_time()
        if self.started_at is None:
            self.started_at = now
        elif now - self.started_at > MAX_SECONDS:
            raise LimitReached(f"it computes for more than {MAX_SECONDS:g} s")


class Operations:
    """Operators, methods, filters and tests that count what they use in a budget."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.before_filter: dict[str, Callable[..., None]] = {
            "batch": lambda value, count, *_, **__: self._require_small(count),
            "format": lambda text, *args, **kwargs: self._before_percent(str(text), (args, kwargs)),
            "indent": self._before_indent,
            "join": lambda items, between="", *_, **__: self._before_join(str(between), items),
            "replace": lambda text, old, new, *_, **__: self._before_replace(str(text), str(old), str(new)),
            "round": self._before_round,
            "slice": lambda value, slices, *_, **__: self._require_small(slices),
            "sum": self._before_sum,
            "tojson": self._before_json,
            "trim": lambda text, chars="", *_: self._before_strip(str(text), chars),
            "unique": lambda items, *_, **__: self._before_hashing(len(items)),
        }

    def made(self, value: Any) -> Any:
        """Count a sum, a literal list or mapping, or a value on its way into the text, and return it."""
        kind = type(value)
        if kind is str:
            if len(value) > FREE_CHARACTERS:
                self.budget.spend(self.budget.require_light(len(value)))
        elif kind not in WEIGHTLESS:
            self.budget.spend_on(value)
        return value

    def searched(self, place: Any) -> Any:
        """Count a search for a value in a text or list, and return where it is sought; a mapping is not read."""
        return place if isinstance(place, dict) else self.made(place)

    def mapping(self, *pairs: Any) -> tuple[Any, ...]:
        """Return what a mapping is made of: another one, or pairs, which are made now."""
        if not pairs or isinstance(pairs[0], Mapping):
            return pairs
        items = list(pairs[0])
        self._before_hashing(len(items))
        return (items, *pairs[1:])

    def joined(self, *parts: Any) -> str:
        """Return ``a ~ b ~ c``."""
        for part in parts:
            if type(part) is not str:
                self.budget.spend_on(part)
        text = "".join(map(str, parts))
        self.budget.spend(self.budget.require_light(len(text)))
        return text

    def multiplied(self, left: Any, right: Any) -> Any:
        """Return ``left * right``."""
        if isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() + right.bit_length())
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                self.budget.spend(self.budget.require_light((self.budget.weigh(value) + 1) * max(times, 0)))
        return left * right

    def raised(self, left: Any, right: Any) -> Any:
        """Return ``left ** right``."""
        if isinstance(left, int) and isinstance(right, int):
            self._require_bits(left.bit_length() * max(right, 0))
        return left**right

    def remainder(self, left: Any, right: Any) -> Any:
        """Return ``left % right``, which formats where ``left`` is a text."""
        if not isinstance(left, str):
            return left % right
        self._before_percent(left, right)
        result = left % right
        self.budget.spend_on(result)
        return result

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return ``value[start:stop:step]``."""
        part = value[start:stop:step]
        self.budget.spend(len(part) * (1 if isinstance(part, str) else ITEM_WORK))
        return part

    def concatenated(self, pieces: Any) -> str:
        """Return the text of a block, a macro or the whole template."""
        pieces = list(pieces)
        if (length := sum(map(len, pieces))) > FREE_CHARACTERS:
            self.budget.spend(self.budget.require_light(length))
        return "".join(pieces)

    def _before_percent(self, text: str, values: Any) -> None:
        if WIDE_PERCENT.search(text):
            raise LimitReached("it formats to a width of thousands")
        self.budget.require_light(text.count("%") * self.budget.weigh(values))

    def before_braces(self, text: str, values: Any) -> None:
        """Check the widths that ``'{:9}'.format`` asks for, and the weight of its result."""
        self.budget.require_light(text.count("{") * self.budget.weigh(values))
        if any(WIDE.search(width or "") for _, _, width, _ in Formatter().parse(text)):
            raise LimitReached("it formats to a width of thousands, or to one that it computes")

    def _before_replace(self, text: str, old: str, new: str, *_: Any) -> None:
        self.budget.require_light(len(text) + text.count(old) * len(new))

    def _before_strip(self, text: str, characters: str | None = None) -> None:
        if len(characters or "") > MAX_STRIPPED:  # each character of the text is searched in them
            raise LimitReached(f"it strips more than {MAX_STRIPPED} different characters")

    def method_arguments(self, text: str, method: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Check a call of a text's method and return its arguments; items that an iterator has yet to make are made."""
        if len(text) > FREE_CHARACTERS:
            self.budget.spend(len(text))
        for argument in arguments:
            self.made(argument)
        if method == "join" and len(arguments) == 1:
            items = arguments[0] if isinstance(arguments[0], Sized) else list(arguments[0])
            self._before_join(text, items)
            return (items,)
        if method == "replace" and len(arguments) > 1:
            self._before_replace(text, *arguments)
        elif method in ("strip", "lstrip", "rstrip") and arguments:
            self._before_strip(text, arguments[0])
        elif method in ("rfind", "rindex", "rpartition", "rsplit") and arguments and isinstance(arguments[0], str):
            # Python compares the whole needle at each place when it searches from the end.
            self.budget.spend(self.budget.require_light(len(text) * (1 + len(arguments[0]) // NEEDLE)))
        if method in ("split", "rsplit", "splitlines"):
            self._before_cut(text, arguments[0] if arguments and method != "splitlines" else None)
        return arguments

    def _before_cut(self, text: str, between: str | None) -> None:
        if len(text) * ITEM_WORK > MAX_WEIGHT:
            count = text.count(between) if between else sum(1 for _ in BLANK.finditer(text))
            self.budget.require_light(len(text) + ITEM_WORK * count)

    def _before_hashing(self, count: int) -> None:
        self.budget.spend(count**2 // 2)  # numbers can be chosen so that all of them meet in one place of the table

    def _before_round(self, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
        self._require_small(precision)
        if isinstance(value, str | list | tuple):  # it would be repeated
            raise TypeError(f"a number is rounded, not a {type(value).__name__}")

    def _before_join(self, text: str, items: Any) -> None:
        if isinstance(items, Sized):
            self.budget.require_light(self.budget.weigh(items) + len(text) * len(items))

    def _before_sum(self, items: Any, attribute: Any = None, start: Any = 0) -> None:
        if isinstance(start, list | tuple):  # each list is copied once for every list after it
            self.budget.spend(ITEM_WORK * len(items) ** 2)

    def _before_indent(self, text: str, width: int | str = 4, *_: Any, **__: Any) -> None:
        one = len(width) if isinstance(width, str) else width
        self.budget.require_light(len(text) + (text.count("\n") + 1) * max(one, 0))

    def _before_json(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, *_: Any, **__: Any
    ) -> None:
        one = len(indent) if isinstance(indent, str) else indent or 0
        if one > MAX_INDENT:
            raise LimitReached(f"it indents JSON by more than {MAX_INDENT} characters a level")
        each = 1 + self.budget.weigh(separators) // ITEM_WORK if separators else 1
        if one > 0:
            each += one * _depth(value) // ITEM_WORK
        self.budget.require_light(self.budget.weigh(value) * each)

    def _require_small(self, number: Any) -> None:
        if isinstance(number, int) and abs(number) > MAX_BITS:
            raise LimitReached(f"it asks a filter for {number:.1e} places, parts or items")

    def _require_bits(self, bits: int) -> None:
        if bits > MAX_BITS:
            raise LimitReached(f"it computes with numbers of more than {MAX_BITS} bits")

    def guarded_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter of Jinja or transformers that checks its arguments and counts its result.

        Attributes that Jinja set on the function (which other arguments it gets) are kept.
        """
        before = self.before_filter.get(name)
        is_shallow, is_consuming, budget = name in SHALLOW_FILTERS, name in CONSUMING_FILTERS, self.budget
        is_picking, is_cutting = name in PICKING_FILTERS, name in CUTTING_FILTERS
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # after the context or the environment

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_consuming and isinstance(args[first], Iterator):
                args = (*args[:first], list(args[first]), *args[first + 1 :])
            value = args[first]
            if type(value) is not str and not is_picking and not is_shallow:
                budget.spend_on(value)
            if is_cutting:
                if isinstance(value, str):
                    budget.require_light(ITEM_WORK * len(value))
                elif is_shallow and isinstance(value, Sized):
                    budget.spend(NODE_WORK * len(value))
                _require_short_paths(args[first + 1 :], kwargs)
            if before is not None:
                before(*args[first:], **kwargs)
            result = function(*args, **kwargs)
            if type(result) is str:
                return self.made(result)
            if hasattr(type(result), "__next__"):
                return self._counted(result)
            budget.spend_on(result)
            return result

        return guarded

    def guarded_test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a test of Jinja that counts the values that it compares; those that compare nothing stay as they are.

        Attributes that Jinja set on the function are kept.
        """
        if name in SHALLOW_TESTS:
            return function
        is_arithmetic = name in ARITHMETIC_TESTS

        @wraps(function)
        def guarded(*args: Any) -> Any:
            self.budget.spend(NODE_WORK)
            *others, last = args
            for value in others:
                self.made(value)
            if name == "in":
                self.searched(last)
            else:
                self.made(last)
            if is_arithmetic and isinstance(args[0], str):
                raise TypeError(f"{name} is for numbers, not for texts")
            return function(*args)

        return guarded

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items of an iterator, counted as they are made."""
        for item in items:
            self.budget.spend(NODE_WORK)
            yield item

    def guarded_date(self, function: Callable[[str], str]) -> Callable[[str], str]:
        """Return ``strftime_now`` for formats without widths."""

        @wraps(function)
        def strftime_now(format: str) -> str:
            if len(format) > MAX_DATE_FORMAT or WIDE_DATE.search(format):
                raise LimitReached("it formats the date to a width")
            return function(format)

        return strftime_now


def _depth(value: Any) -> int:
    """Return how many lists and mappings lie in each other; the value has been weighed, so it ends."""
    depth, level = 0, [value]
    while level := [item for one in level if isinstance(one, dict | list | tuple) for item in _inside(one)]:
        depth += 1
    return depth


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _require_short_paths(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse a path of thousands of attributes, which would be walked for each item."""
    for path in (*arguments, *named.values()):
        if isinstance(path, str) and max(path.count("."), path.count(",")) > MAX_PARTS:
            raise LimitReached(f"it asks for an attribute by a path of more than {MAX_PARTS} parts")
