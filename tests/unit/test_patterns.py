"""No regular expression of the source takes time by squares: many are applied to texts of strangers, of any length.

Each is searched for in long texts that repeat pieces of what it matches, where backtracking shows.
"""

import ast
import re
import time
from functools import cache
from pathlib import Path

import pytest

import oddsmith

SOURCE = Path(oddsmith.__file__).parent
FUNCTIONS = {"compile", "search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer"}
FLAGS = ("IGNORECASE", "MULTILINE", "VERBOSE", "DOTALL", "ASCII")
LENGTHS = (200, 1_000, 5_000, 25_000)  # so that a bad one is found before it takes for ever
LIMIT_S = 0.5  # by squares it would be a second and more, on any machine
PIECES = [
    "a",
    "1",
    " ",
    "\n",
    ".",
    "a.",
    "a b",
    "a,",
    "-",
    "_",
    "/",
    ":",
    "=",
    "<",
    "{",
    "|",
    '"',
    "'a'",
    "[",
    "(",
    "é",
]


ANCHORED = {"match", "fullmatch"}


@cache
def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


@cache
def matched_only(path: str, name: str) -> bool:
    """Whether the pattern of that name is applied to the beginning of a text alone, not searched for in it."""
    users = [trees()[path]] if name.startswith("_") else trees().values()
    nodes = [node for tree in users for node in ast.walk(tree)]
    anchored = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr in ANCHORED}
    uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)]
    return all(id(use) in anchored for use in uses)


@cache
def patterns() -> dict[str, tuple[re.Pattern, bool]]:
    """Every pattern that stands in the source as text, by its place, and whether it is searched for."""
    found = {}
    for path, tree in trees().items():
        named = {
            id(node.value): node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args):
                continue
            is_re = isinstance(call.func.value, ast.Name) and call.func.value.id == "re" and call.func.attr in FUNCTIONS
            first = call.args[0]
            if is_re and isinstance(first, ast.Constant) and isinstance(first.value, str):
                flags = sum(getattr(re, name) for name in FLAGS if name in ast.unparse(call))
                is_anchored = call.func.attr in ANCHORED or (id(call) in named and matched_only(path, named[id(call)]))
                found[f"{path}:{call.lineno}"] = re.compile(first.value, flags), not is_anchored
    return found


def sample(parsed) -> str:
    """A text that a parsed pattern begins to match: each part once, or one time more than it must be."""
    text = ""
    for kind, value in parsed:
        name = str(kind)
        if name == "LITERAL":
            text += chr(value)
        elif name == "NOT_LITERAL":
            text += "a" if value != ord("a") else "b"
        elif name == "ANY":
            text += "a"
        elif name == "IN":
            text += in_class(value)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = value
            text += sample(inner) * min(least + 1, most)
        elif name == "SUBPATTERN":
            text += sample(value[-1])
        elif name == "ATOMIC_GROUP":
            text += sample(value)
        elif name == "BRANCH":
            text += sample(value[1][0])
    return text


def in_class(members) -> str:
    negated = str(members[0][0]) == "NEGATE"
    for candidate in [*"a1 .-_/:=x\n\"'<é", *map(chr, range(32, 127))]:
        if any(has(member, candidate) for member in members[negated:]) != negated:
            return candidate
    return ""


def has(member, char: str) -> bool:
    kind, value = str(member[0]), member[1]
    if kind == "LITERAL":
        return ord(char) == value
    if kind == "RANGE":
        return value[0] <= ord(char) <= value[1]
    classes = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
    name = str(value).removeprefix("CATEGORY_")
    return bool(re.match(classes[name.removeprefix("NOT_")], char)) != name.startswith("NOT_")


def seconds(pattern: re.Pattern, is_searched: bool, text: str) -> float:
    began_at = time.process_time()
    if is_searched:
        pattern.sub("", text)
    pattern.match(text)
    pattern.fullmatch(text)
    return time.process_time() - began_at


def test_patterns_are_found():
    assert len(patterns()) > 60


@pytest.mark.parametrize("place", patterns())
def test_the_time_of_a_pattern_grows_with_the_length_alone(place):
    pattern, is_searched = patterns()[place]
    likely = sample(re._parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
    pieces = {*PIECES, likely, likely[:-1], likely[1:], *likely} - {""}
    for piece in sorted(pieces):
        for length in LENGTHS:
            text = piece * (length // len(piece)) + "\0"
            taken_s = seconds(pattern, is_searched, text)
            if taken_s > LIMIT_S:  # once more: the machine may have been busy
                taken_s = seconds(pattern, is_searched, text)
            assert taken_s < LIMIT_S, (piece, length, pattern.pattern)
