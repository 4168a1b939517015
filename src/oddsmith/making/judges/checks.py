"""What can be checked about an answer, by the column, or the key of a file of rules, that asks for it.

    column                                  the answer meets the check if
    instruction_id_list, kwargs             it follows the instruction: one check each (ifeval.py)
    json_schema                             it is JSON, or one fenced block of JSON, of this schema (an object, or text)
    regex, not_regex                        the pattern is found in it, or is not; several in a list
    answer, reference                       it gives this result: see below; one of several in a list
    min_words, max_words, min_characters,   it is within these bounds
      max_characters, min_tokens, max_tokens
    language                                it is in this language: ISO 639-1 (``fr``, ``pt-BR``) or a name (``French``)

A result that is a number (``42``, ``$1,234.50``, ``3/4``, ``\\frac{3}{4}``, and what follows ``####`` as in GSM8K) is
compared with the last number of the answer: after its last ``####``, in its last ``\\boxed{}``, else anywhere; and with
what any other result is compared with, where that is a number: the whole answer, its last line, what is in its last
``\\boxed{}``, and what follows its last ``####``, ``answer is`` or ``answer:``. Texts are compared without regard to
case, and to blanks and punctuation around them. Reasoning in ``<think>`` is no part of an answer.

All of this runs in a process of its own (check_process.py), because patterns and schemas are those of strangers.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

from ...data.checks.language import ALIKE, language_identifier, language_of
from ...data.formats.values import without_nulls
from ...data.formats.written import read_text
from ...system.strict_json import read_json
from .ifeval import LeftOutError, follows

BOUNDS = tuple(f"{end}_{unit}" for unit in ("words", "characters", "tokens") for end in ("min", "max"))
COLUMNS = (
    *("instruction_id_list", "kwargs", "json_schema", "regex", "not_regex", "answer", "reference", "language"),
    *BOUNDS,
)
LONGEST_RESULT = 200  # characters; a longer reference is a text, which no answer gives word for word
RELATIVE_TOLERANCE = Fraction(1, 10**9)
# Of short texts: the probability that the likeliest language must have at least, and the share of it from which on
# another is the language, and below which it is not. In between nobody can tell ("Yes.", "Paris").
LIKELY, LIKELY_SHARE, UNLIKELY_SHARE = 0.05, 0.5, 0.05

# A minus behind a word or a number is none: 10-5, 2024-05-12.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])-)?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d)|\s?/\s?\d+)?"
)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\}){0,200})\}")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
# What stands around a result and is no part of it; signs are (-3, .5, C++, C#).
_BEFORE = re.compile(r"^(?:[\s,;:!?'\"`*_$#>“”‘’«»¿¡\\]|\.(?!\d)|- )+")
_AFTER = " .,;:!?'\"`*_$“”‘’«»\\"
_BRACKETS = re.compile(r"[(\[{<]?(\w[\w ]*)[)\]}>]")
_GIVEN = re.compile(r"####|\banswer(?:\s+is\b|\s*:)", re.IGNORECASE)
_FENCED = re.compile(r"```[ \t]{0,9}[\w-]{0,20}[ \t]{0,9}\r?\n(.*)\n```", re.DOTALL)
_NAMES = {
    "english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt",
    "dutch": "nl", "swedish": "sv", "polish": "pl", "russian": "ru", "ukrainian": "uk", "turkish": "tr",
    "arabic": "ar", "hebrew": "he", "persian": "fa", "hindi": "hi", "bengali": "bn", "chinese": "zh",
    "japanese": "ja", "korean": "ko", "vietnamese": "vi", "thai": "th", "indonesian": "id", "greek": "el",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing to check, for all answers to a question."""

    name: str
    is_met: Callable[[str, int | None], bool]  # of a text and its tokens, if they are known


def checks_of(row: Mapping[str, Any], prompt: str) -> tuple[list[Check], list[str]]:
    """Return the checks that a row asks for, and the names of those that are left out, with the reason.

    ``prompt`` is the text of the question, which some instructions repeat.
    """
    checks: list[Check] = []
    left_out: list[str] = []
    asked = {name: value for name in COLUMNS if (value := row.get(name)) not in (None, "", [], {})}
    for name, make in _makers(asked, prompt):
        try:
            checks.append(Check(name, make()))
        except LeftOutError as error:
            left_out.append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - of packages that a stranger's row steers
            left_out.append(f"{name}: {type(error).__name__}")
    return checks, left_out


def answer_in(text: str) -> str:
    """Return what a text says after its reasoning."""
    _, found, after = text.rpartition("</think>")
    if found:
        return after.strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _makers(asked: Mapping[str, Any], prompt: str) -> Iterator[tuple[str, Callable[[], Callable[..., bool]]]]:
    """Yield the name of each check that is asked for, with what makes it."""
    for name, value in asked.items():
        if name == "instruction_id_list":
            ids, kwargs = (one if isinstance(one, list) else [one] for one in map(_value, (value, asked.get("kwargs"))))
            for place, one in enumerate(ids):
                given = _value(kwargs[place]) if place < len(kwargs) else {}
                yield str(one), partial(follows, one, given, prompt)
        elif name in ("regex", "not_regex"):
            for pattern in value if isinstance(value, list) else [value]:
                yield name, partial(_pattern, pattern, name == "regex")
        elif name == "json_schema":
            yield name, partial(_schema, value)
        elif name in ("answer", "reference"):
            yield name, partial(_result, value)
        elif name == "language":
            yield name, partial(_language, value)
        elif name in BOUNDS:
            yield name, partial(_bound, name, value)


def _value(given: Any) -> Any:
    """Return a list or an object also where a file, such as CSV, holds it as text, of JSON or of Python."""
    if isinstance(given, str) and given.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            return read_text(given)
    return given


def _pattern(pattern: Any, is_wanted: bool) -> Callable[..., bool]:
    try:
        search = re.compile(pattern).search
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise LeftOutError("no regular expression") from error
    return lambda text, tokens: (search(text) is not None) is is_wanted


def _schema(schema: Any) -> Callable[..., bool]:
    import jsonschema
    import referencing

    try:
        # Parquet gives each object the keys of all the others, as null.
        schema = read_text(schema) if isinstance(schema, str) else without_nulls(schema)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, TypeError, AttributeError, jsonschema.SchemaError) as error:
        raise LeftOutError("no JSON schema") from error
    validator = kind(schema, registry=referencing.Registry())  # fetches nothing that a schema refers to

    def is_met(text: str, tokens: int | None) -> bool:
        fenced = _FENCED.fullmatch(text)
        try:
            value = read_json(fenced[1] if fenced else text)
            json.dumps(value, allow_nan=False)  # Python reads NaN, which is no JSON
        except ValueError:
            return False
        return validator.is_valid(value)

    return is_met


def _result(wanted: Any) -> Callable[..., bool]:
    results = [str(one) for one in (wanted if isinstance(wanted, list) else [wanted]) if one is not None]
    results = [one.rpartition("####")[2].strip() if "####" in one else one.strip() for one in results]
    results = [one for one in results if one]
    if not results:
        raise LeftOutError("empty")
    if any(len(one) > LONGEST_RESULT for one in results):
        raise LeftOutError(f"longer than {LONGEST_RESULT} characters, so no result")
    results = [_typed(one) for one in results]
    numbers = [number for one in results if (number := _number(_without_units(one))) is not None]
    texts = {_plain(one) for one in results if _number(_without_units(one)) is None}

    def is_met(text: str, tokens: int | None) -> bool:
        text = _typed(text)
        given = [_plain(one) for one in _given_results(text)]
        found = [_last_number(text), *(_number(_without_units(one)) for one in given)] if numbers else []
        if any(
            abs(one - number) <= RELATIVE_TOLERANCE * abs(number)
            for one in found
            if one is not None
            for number in numbers
        ):
            return True
        return not texts.isdisjoint(given)

    return is_met


def _given_results(text: str) -> Iterator[str]:
    """Yield the texts that an answer may give as its result."""
    lines = text.strip().splitlines() or [""]
    yield text[: 10 * LONGEST_RESULT] if len(text) < 10 * LONGEST_RESULT else ""
    yield lines[-1]
    if boxed := _BOXED.findall(text):
        yield boxed[-1]
    if marks := list(_GIVEN.finditer(text)):
        after = text[marks[-1].end() :].strip().splitlines() or [""]
        yield after[0]
        yield re.split(r"[.,;](?:\s|$)", after[0], maxsplit=1)[0]


def _plain(text: str) -> str:
    """Return a result without case, and without blanks, punctuation and markup around it."""
    plain = _BEFORE.sub("", " ".join(text.casefold().split())).rstrip(_AFTER)
    inner = _BRACKETS.fullmatch(plain)
    return (inner[1] if inner else plain) or text.strip()


def _typed(text: str) -> str:
    """Return a text with the signs that typesetting writes otherwise as they are typed: minus, percent, fractions."""
    text = text.replace("\N{MINUS SIGN}", "-").replace(r"\%", "%").replace("{,}", ",")
    return _FRACTION.sub(r"\1/\2", text)


def _without_units(text: str) -> str:
    return text.replace("$", "").rstrip("%. ").strip().removeprefix("+")


def _number(text: str) -> Fraction | None:
    """Return a number if a text is one and no more."""
    if not (match := _NUMBER.fullmatch(text)) or len(text) > 100:
        return None
    above, _, below = match[0].replace(",", "").partition("/")
    if not below:
        return Fraction(above)
    return Fraction(above.strip()) / int(below) if int(below) else None


def _last_number(text: str) -> Fraction | None:
    """Return the number that an answer ends with."""
    if "####" in text:
        text = text.rpartition("####")[2]
    elif boxed := _BOXED.findall(text):
        text = boxed[-1]
    found = _NUMBER.findall(text.replace("$", ""))
    return _number(found[-1]) if found else None


def _bound(name: str, value: Any) -> Callable[..., bool]:
    try:
        bound = float(value)
    except (TypeError, ValueError) as error:
        raise LeftOutError("no number") from error
    if isinstance(value, bool) or math.isnan(bound):
        raise LeftOutError("no number")
    end, _, unit = name.partition("_")

    def is_met(text: str, tokens: int | None) -> bool:
        if unit == "tokens":
            if tokens is None:
                raise ValueError("the number of its tokens is not known")
            count = tokens
        else:
            count = len(text.split()) if unit == "words" else len(text)
        return count >= bound if end == "min" else count <= bound

    return is_met


def _language(value: Any) -> Callable[..., bool]:
    name = str(value).strip().lower()
    code = _NAMES.get(name, re.split("[-_]", name)[0])
    if code not in set(map(str, language_identifier().labels)):
        raise LeftOutError("no language that is known")
    code = ALIKE.get(code, code)

    def is_met(text: str, tokens: int | None) -> bool:
        found = language_of(text)
        if found is not None:
            return found == code
        probabilities: defaultdict[str, float] = defaultdict(float)
        for language, probability in language_identifier().rank(text):
            probabilities[ALIKE.get(str(language), str(language))] += float(probability)
        most = max(probabilities.values())
        if most >= LIKELY and not UNLIKELY_SHARE <= (share := probabilities[code] / most) < LIKELY_SHARE:
            return share >= LIKELY_SHARE
        raise ValueError("too short to tell its language")

    return is_met
