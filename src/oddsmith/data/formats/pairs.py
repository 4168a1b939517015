"""Turn a row of any known format into a ``PreferencePair``.

A format is recognised by its columns, the first of these that fits; other columns are ignored:

    columns                                format           becomes
    prompt, chosen, rejected               standard         text, if prompt and answers are text
                                           conversational   messages, if any of them is
    conversations, chosen, rejected        ShareGPT         messages
    question, chosen, rejected             question         messages
    instruction [input] [history],         Alpaca           messages; instruction and input are the lines of one
      chosen, rejected or output of two
    chosen, rejected                       implicit prompt  prompt: the leading messages, or the text up to a turn
                                                            boundary, that both share
    instruction or prompt, completions     UltraFeedback    messages; the best completion against the worst

Anthropic HH transcripts ("\\n\\nHuman: ...") become messages in any of these columns. A column ``system`` puts a system
message in front, and so makes a conversation of text; ``tools`` and ``chat_template_kwargs`` go to the chat template.
An invalid row raises a ``RowError`` with a reason that can be counted. Empty and identical answers are valid here: the
tokenizer drops and counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

from ...errors import DataError, RowError
from .messages import SYSTEM_ROLES, Message, to_messages, without_prompt
from .transcripts import is_hh_dialogue, parse_hh_dialogue, split_shared_prompt, strip_repeated_prompt
from .values import checked_text, common_prefix_length, kind_of, parsed, without_nulls

Row = Mapping[str, Any]

# UltraFeedback: names of a completion's score and of its text. The first score that two completions have counts.
SCORE_KEYS = ("overall_score", "fine-grained_overall_score", "score", "rating")
TEXT_KEYS = ("response", "completion", "content", "text")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, the preferred answer to it, and another answer."""

    prompt: str | list[Message]  # text, or messages with ``role`` and ``content``
    chosen: str | list[Message]  # text, or the messages after the prompt, the last of them the assistant's
    rejected: str | list[Message]
    tools: list[Any] | None = None  # functions that the model may call, as JSON schemas, for the chat template
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # further variables of the chat template

    @property
    def is_conversational(self) -> bool:
        """Return whether prompt and answers are messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


def to_pair(row: Row) -> PreferencePair:
    """Return the preference pair of a row; an invalid row raises a ``RowError`` with a reason to count."""
    known = _recognise(row)
    if known is None:
        raise RowError("missing column", _unknown_columns(row))
    return known.convert(row)


def format_of(row: Row) -> str:
    """Return the name of a row's format, such as ``"ShareGPT"`` or ``"conversational, implicit prompt"``.

    Columns that fit no format raise a ``DataError``.
    """
    known = _recognise(row)
    if known is None:
        raise DataError(_unknown_columns(row))
    if known.columns not in (_STANDARD, _IMPLICIT):
        return known.name
    texts = [row[column] for column in known.columns]
    if not all(isinstance(text, str) for text in texts):
        name = "conversational"
    else:
        name = "HH dialogue" if is_hh_dialogue(texts[0]) else "standard"
    return name if known.columns == _STANDARD else f"{name}, implicit prompt"


def _from_standard(row: Row) -> PreferencePair:
    prompt, chosen, rejected = _required(row, *_STANDARD)
    if not isinstance(prompt, str):
        messages = to_messages(prompt, "prompt", "user")
        sides = to_messages(chosen, "chosen"), to_messages(rejected, "rejected")
        return _conversation(row, messages, *sides) if messages else _shared_prompt(row, *sides)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return _answered(row, prompt, chosen, rejected)
    chosen, rejected = strip_repeated_prompt(prompt, chosen, rejected)
    if is_hh_dialogue(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        return _shared_prompt(row, parse_hh_dialogue(prompt + chosen), parse_hh_dialogue(prompt + rejected))
    return _text_pair(row, prompt, chosen, rejected)


def _from_implicit(row: Row) -> PreferencePair:
    chosen, rejected = _required(row, *_IMPLICIT)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return _shared_prompt(row, to_messages(chosen, "chosen"), to_messages(rejected, "rejected"))
    if is_hh_dialogue(chosen) and is_hh_dialogue(rejected):
        return _shared_prompt(row, parse_hh_dialogue(chosen), parse_hh_dialogue(rejected))
    parts = split_shared_prompt(chosen, rejected)
    if parts is None:
        raise _no_prompt(row, "chosen and rejected share no role marker or line break that could end it")
    return _text_pair(row, *parts)


def _from_sharegpt(row: Row) -> PreferencePair:
    conversations, chosen, rejected = _required(row, "conversations", "chosen", "rejected")
    prompt = to_messages(conversations, "conversations", "user")
    return _conversation(row, prompt, to_messages(chosen, "chosen"), to_messages(rejected, "rejected"))


def _from_question(row: Row) -> PreferencePair:
    question, chosen, rejected = _required(row, "question", "chosen", "rejected")
    return _answered(row, checked_text(question, "question", "prompt is not text"), chosen, rejected)


def _from_alpaca(row: Row) -> PreferencePair:
    texts = [row["instruction"], row.get("input") or ""]
    instruction, more = (checked_text(text, "instruction", "prompt is not text") for text in texts)
    # Joined by one line break, as LLaMA-Factory does, which defined this format. So are the earlier turns in `history`.
    question = "\n".join(part for part in (instruction, more) if part)
    if "chosen" in row and "rejected" in row:
        chosen, rejected = _required(row, "chosen", "rejected")
    else:
        (output,) = _required(row, "output")
        if not isinstance(output, list | tuple) or len(output) != 2:
            found = f"a list of {len(output)}" if isinstance(output, list | tuple) else kind_of(output)
            raise RowError("no preference", f"output is {found}; expected the chosen and the rejected answer in a list")
        chosen, rejected = output
    return _answered(row, question, chosen, rejected, _history(row))


def _history(row: Row) -> list[Message]:
    """Read the earlier turns of an Alpaca row: a list of [question, answer]."""
    messages: list[Message] = []
    history = row.get("history") or []
    for turns in history if isinstance(history, list | tuple) else [history]:
        if not isinstance(turns, list | tuple) or len(turns) != 2:
            raise RowError(
                "malformed history", f"history holds {kind_of(turns)}; expected lists of question and answer"
            )
        for role, text in zip(("user", "assistant"), turns, strict=True):
            messages.append({"role": role, "content": checked_text(text, "history", "malformed history")})
    return messages


def _from_ultrafeedback(row: Row) -> PreferencePair:
    """Take the completion with the highest score against the one with the lowest.

    Completions without a number for a score are left out ("4.5" is a number, "N/A" is not). Of several with the same
    score the first one counts. Where all scores are equal there is no preference, and the row is refused.

    Source: Cui et al., "UltraFeedback", arXiv 2310.01377; openbmb/UltraFeedback.
    """
    column = "instruction" if row.get("instruction") is not None else "prompt"
    prompt = to_messages(row.get(column), column, "user")
    completions = parsed(row["completions"], "completions")
    if completions is None:
        raise RowError("null value", "completions is null; expected a list of completions with scores")
    if not isinstance(completions, list | tuple) or not all(isinstance(item, Mapping) for item in completions):
        raise RowError("malformed completions", f"completions is {kind_of(completions)}; expected a list of objects")
    scores = _scores(completions)
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    if scores[best] == scores[worst]:
        raise RowError("no preference", f"all {len(scores)} scored completions have the score {scores[best]:g}")
    sides = []
    for position in (best, worst):
        key = next((key for key in TEXT_KEYS if key in completions[position]), TEXT_KEYS[0])
        where = f"completions[{position}].{key}"
        text = checked_text(completions[position].get(key), where, "response is not text")
        sides.append([{"role": "assistant", "content": text}])
    return _conversation(row, prompt, *sides)


def _scores(completions: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the scores by the positions of their completions."""
    for key in SCORE_KEYS:
        numbers = {position: _number(item.get(key)) for position, item in enumerate(completions)}
        scores = {position: number for position, number in numbers.items() if number is not None}
        if len(scores) >= 2:
            return scores
    raise RowError(
        "no preference",
        f"completions holds {len(completions)}, fewer than two of them with a score ({', '.join(SCORE_KEYS)})",
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class _Format(NamedTuple):
    name: str
    columns: tuple[str, ...]
    convert: Callable[[Row], PreferencePair]


_STANDARD, _IMPLICIT = ("prompt", "chosen", "rejected"), ("chosen", "rejected")
_FORMATS = (
    _Format("standard or conversational", _STANDARD, _from_standard),
    _Format("ShareGPT", ("conversations", "chosen", "rejected"), _from_sharegpt),
    _Format("question", ("question", "chosen", "rejected"), _from_question),
    _Format("Alpaca", ("instruction", "chosen", "rejected"), _from_alpaca),
    _Format("implicit prompt", _IMPLICIT, _from_implicit),
    _Format("UltraFeedback", ("instruction", "completions"), _from_ultrafeedback),
    _Format("UltraFeedback", ("prompt", "completions"), _from_ultrafeedback),
    _Format("Alpaca", ("instruction", "output"), _from_alpaca),
)


def _recognise(row: Row) -> _Format | None:
    if not isinstance(row, Mapping):
        raise RowError("malformed row", f"found {kind_of(row)}; expected an object with columns such as prompt, chosen")
    return next((known for known in _FORMATS if all(column in row for column in known.columns)), None)


def _unknown_columns(row: Row) -> str:
    found = f"found the columns {', '.join(map(str, row)) or 'none'}"
    nearest = max(_FORMATS, key=lambda known: (sum(column in row for column in known.columns), -len(known.columns)))
    missing = [column for column in nearest.columns if column not in row]
    if len(missing) < len(nearest.columns):
        are = "is" if len(missing) == 1 else "are"
        return f"{found}; {' and '.join(missing)} {are} missing ({nearest.name} format)"
    return f"{found}; expected one of these sets: {'; '.join(dict.fromkeys(', '.join(f.columns) for f in _FORMATS))}"


def _required(row: Row, *columns: str) -> list[Any]:
    """Return the values of the columns, none of them null."""
    for column in columns:
        if row[column] is None:
            raise RowError("null value", f"{column} is null; expected text or messages")
    return [row[column] for column in columns]


def _text_pair(row: Row, prompt: str, chosen: str, rejected: str) -> PreferencePair:
    """Make a pair of texts, or a conversation where a column gives a system message."""
    if "system" in row:
        return _answered(row, prompt, chosen, rejected)
    return PreferencePair(prompt, chosen, rejected, **_for_template(row))


def _answered(row: Row, question: str, chosen: Any, rejected: Any, before: Sequence[Message] = ()) -> PreferencePair:
    """Make a conversation of the text of a question, and answers that may be text or messages.

    Messages that begin with a user's turn hold the whole conversation (as in HuggingFaceH4/ultrafeedback_binarized).
    The text only repeats their first turn then, and is ignored, as TRL does.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        answers = strip_repeated_prompt(question, chosen, rejected)
        if answers != (chosen, rejected):
            chosen, rejected = (answer.lstrip() for answer in answers)
    sides = to_messages(chosen, "chosen"), to_messages(rejected, "rejected")
    shared = takewhile(lambda pair: pair[0] == pair[1] and pair[0]["role"] in SYSTEM_ROLES, zip(*sides, strict=False))
    system = [message for message, _ in shared]
    if any(message["role"] == "user" for side in sides for message in side[len(system) :][:1]):
        return _shared_prompt(row, *sides)
    prompt = [*system, *before, {"role": "user", "content": question}]
    return _conversation(row, prompt, *(side[len(system) :] for side in sides))


def _shared_prompt(row: Row, chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    """Make a conversation with the messages that both sides share as its prompt; each side keeps its last message."""
    _require_answer(chosen, rejected)
    end = common_prefix_length(chosen[:-1], rejected[:-1])
    if all(message["role"] in SYSTEM_ROLES for message in chosen[:end]):
        raise _no_prompt(row, "chosen and rejected do not begin with the same user turn")
    return _conversation(row, chosen[:end], chosen[end:], rejected[end:])


def _conversation(row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    """Make a checked pair of messages, with the system message of its column in front."""
    empty = [{"role": "assistant", "content": ""}]
    chosen, rejected = (without_prompt(side or empty, prompt) for side in (chosen, rejected))
    _require_answer(chosen, rejected)
    if not prompt:
        raise _no_prompt(row, "the prompt has no messages")
    system = row.get("system")
    if system and prompt[0]["role"] not in SYSTEM_ROLES:
        prompt = [{"role": "system", "content": checked_text(system, "system", "prompt is not text")}, *prompt]
    return PreferencePair(prompt, chosen, rejected, **_for_template(row))


def _require_answer(chosen: list[Message], rejected: list[Message]) -> None:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side and side[-1]["role"] != "assistant":
            raise RowError(
                "last turn is not the assistant's",
                f"{name} ends with the turn of {side[-1]['role']!r}; expected an answer of 'assistant' at the end",
            )


def _no_prompt(row: Row, found: str) -> RowError:
    columns = ", ".join(map(str, row))
    return RowError("no prompt", f"{found}; give it in a column prompt (found the columns {columns})")


def _for_template(row: Row) -> dict[str, Any]:
    """Read tools and further template variables, without the nulls that Arrow fills in."""
    tools = without_nulls(parsed(row.get("tools"), "tools"))
    if tools is not None and not isinstance(tools, list):
        raise RowError("malformed tools", f"tools is {kind_of(tools)}; expected a list of JSON schemas")
    variables = without_nulls(parsed(row.get("chat_template_kwargs"), "chat_template_kwargs")) or {}
    if not isinstance(variables, dict):
        raise RowError("malformed chat_template_kwargs", f"it is {kind_of(variables)}; expected an object")
    return {"tools": tools or None, "template_kwargs": variables}
