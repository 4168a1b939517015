"""Refuse settings of an adapter that would run or grow without end, whether the user or a stranger's file has them.

Sizes are compared with the largest that any model has. Patterns of module names are tried in a process of their own, as
a regular expression with nested repetitions may search for years, and nothing interrupts PEFT meanwhile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftConfig

from ..config.model import MAX_ITERATIONS, MAX_RANK
from ..errors import ModelError

MAX_NUMBER = 2**24  # a token's id, a number of rows
MAX_SEED = 2**64
MAX_ENTRIES = 2**17
MAX_PATTERN_CHARACTERS = 20_000
SEARCH_SECONDS = 10

_RANKS = re.compile(r"(^|\.)(r|rank_pattern|num_virtual_tokens)(\.|$)")
_ITERATIONS = re.compile(r"iter")
_SEEDS = re.compile(r"seed|prng")
_LIMITS = ((_RANKS, MAX_RANK), (_ITERATIONS, MAX_ITERATIONS), (_SEEDS, MAX_SEED))
_OF_NAMES = re.compile(r"modules|pattern|parameters|layers")
_REPEATS = re.compile(r"[*+{]")
_SEARCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in (pattern, rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."):
        try:
            matches = re.compile(form).match
        except re.error:
            if form is pattern:
                raise
            continue  # flags such as (?i) stand at the beginning alone
        for name in names:
            matches(name)
    matches = re.compile(pattern).fullmatch
    for name in names:
        matches(name)
"""


def require_bounded_adapter(where: str, peft_config: PeftConfig, model: Any = None) -> None:
    """Raise ``ModelError`` for sizes that no adapter has, and patterns that take seconds for the modules of a model.

    Args:
        where: What the settings belong to, for the message.
        peft_config: The settings.
        model: The model that the adapter will be on; without it only the sizes are checked.
    """
    settings = vars(peft_config)
    for path, value in _entries(settings):
        name = ".".join(path)
        if isinstance(value, dict | list | tuple | set):
            most = MAX_ENTRIES
            value = len(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            most = next((most for pattern, most in _LIMITS if pattern.search(name)), MAX_NUMBER)
        elif isinstance(value, str) and (found := re.search(r"niter_(\d+)$", value)):
            most, value = MAX_ITERATIONS, int(found[1][:9])
        else:
            continue
        if value > most:
            raise ModelError(f"{where}: {name[:100]} is {value:,}; expected at most {most:,}")
    if model is not None:
        _require_quick_patterns(where, settings, [name for name, _ in model.named_modules()])


def _entries(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value and what is inside it, with the keys that lead there."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((str(key),), value) for key, value in settings.items()]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            waiting += [((*path, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, list | tuple | set):
            waiting += [(path, inner) for inner in value]


def _require_quick_patterns(where: str, settings: Mapping[str, Any], names: list[str]) -> None:
    patterns: list[str] = []
    for path, value in _entries(settings):
        if _OF_NAMES.search(path[0]):
            patterns += [text for text in (*path[1:], value) if isinstance(text, str) and _REPEATS.search(text)]
    if not patterns:
        return
    if longest := max((pattern for pattern in patterns if len(pattern) > MAX_PATTERN_CHARACTERS), default=""):
        raise ModelError(f"{where}: the pattern {longest[:60]!r}... has {len(longest):,} characters; shorten it")
    try:
        search = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SEARCH],
            input=json.dumps([patterns, names]),
            capture_output=True,
            encoding="ascii",
            errors="replace",
            timeout=SEARCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{where}: the pattern {patterns[0][:100]!r} takes more than {SEARCH_SECONDS} s to compare with the names"
            " of the model's modules; write one without repetitions in repetitions, or list the names"
        ) from None
    if search.returncode:
        reason = (search.stderr.strip().splitlines() or ["it cannot be compiled"])[-1]
        raise ModelError(f"{where}: {patterns[0][:100]!r} is no regular expression of module names: {reason}")
