"""Turn a row of any known format into a ``PreferencePair``.

A format is recognised by its columns, the first of these that fits; other columns are ignored:

    columns                                format           becomes
    prompt, chosen, rejected               standard         text, if prompt and answers are text
                                           conversational   messages, if any of them is
    conversations, chosen, rejected        ShareGPT         messages
    messages or conversation, chosen,      messages         messages
      rejected
    question or query [history], chosen,   question         messages
      rejected
    instruction [input] [history],         Alpaca           messages; instruction and input are the lines of one
      chosen, rejected or output of two
    input [history], chosen, rejected      input            messages
    chosen, rejected                       implicit prompt  prompt: the leading messages, or the text up to a turn
                                                            boundary, else to a space, that both share
    others, without chosen or rejected     layouts.py       what these columns say, once they are restated as above

Anthropic HH transcripts ("\\n\\nHuman: ...") become messages in any of these columns, and keep their text for models
without a chat template. Messages that are written as text (written.py) become messages, too. A column ``system`` puts a
system message in front, and so makes a conversation of text; ``tools`` and ``chat_template_kwargs`` go to the chat
template. A prompt of text that both sides share is refused where another column may hold the prompt (columns.py). An
invalid row raises a ``RowError`` with a reason that can be counted.
Empty and identical answers are valid here: the tokenizer drops and counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

from ...errors import DataError, RowError
from ...system.words import enumerated
from .columns import ANSWERS, is_prompt, is_repeated, squeezed, text_of, unread_texts
from .conversations import Conversation, reconciled, shared_prompt, shown
from .judged import answers_without_verdict
from .layouts import Layout, layout_of
from .messages import SYSTEM_ROLES, Message, messages_of_text, to_messages
from .offer import offered_columns, unknown_columns
from .scores import scores_of_sides
from .tool_calls import read_tools
from .transcripts import (
    ANY_TURN,
    ends_with_marker,
    is_hh_dialogue,
    is_hh_prompt,
    parse_hh_dialogue,
    split_hh_dialogues,
    split_shared_prompt,
    split_shared_words,
    strip_repeated_prompt,
)
from .values import checked_text, kind_of, parsed, without_nulls

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, the preferred answer to it, and another answer."""

    prompt: str | list[Message]  # text, or messages with ``role`` and ``content``
    chosen: str | list[Message]  # text, or the messages after the prompt, the last of them the assistant's
    rejected: str | list[Message]
    tools: list[Any] | None = None  # functions that the model may call, as JSON schemas, for the chat template
    template_kwargs: dict[str, Any] = field(default_factory=dict)  # further variables of the chat template
    # Whether the prompt is no more than the words that both answers begin with
    is_prompt_shared_words: bool = field(default=False, compare=False)
    # How much the score of the chosen answer exceeds that of the rejected one; None where the row has none
    score_margin: float | None = field(default=None, compare=False)
    # Prompt and answers as the row has them, where it holds a transcript as text; None: it holds more, or messages
    transcript: tuple[str, str, str] | None = field(default=None, compare=False)

    @property
    def is_conversational(self) -> bool:
        """Return whether prompt and answers are messages, to be rendered by a chat template."""
        return not isinstance(self.prompt, str)


def to_pair(row: Row) -> PreferencePair:
    """Return the preference pair of a row; an invalid row raises a ``RowError`` with a reason to count."""
    known = _recognise(row)
    if known is None:
        raise RowError("missing column", _unknown(row)).offering(offered_columns(row))
    pair = known.convert(_with_messages(row, known.columns))
    scores = next(scores_of_sides(row), None) if known.layout is None else None
    return pair if scores is None else replace(pair, score_margin=scores[1] - scores[2])


def format_of(row: Row) -> str:
    """Return the name of a row's format, such as ``"ShareGPT"`` or ``"conversational, implicit prompt"``.

    Columns that fit no format raise a ``DataError``.
    """
    known = _recognise(row)
    if known is None:
        raise DataError(_unknown(row)).offering(offered_columns(row))
    if known.columns not in (_STANDARD, ANSWERS):
        return known.name
    row = _with_messages(row, known.columns)
    texts = [row[column] for column in known.columns]
    if not all(isinstance(text, str) for text in texts):
        name = "conversational"
    else:
        name = "HH dialogue" if is_hh_dialogue(texts[0]) else "standard"
    return name if known.columns == _STANDARD else f"{name}, implicit prompt"


def restated(row: Row) -> Row:
    """Return a row with the columns ``chosen`` and ``rejected``, and the scores of both where it has them."""
    known = _recognise(row)
    return row if known is None or known.layout is None else known.layout.restate(row).row


def unread_columns(row: Row, pair: PreferencePair) -> list[str]:
    """Return the columns of a row that may hold a part of the prompt, are not read, and say more than the prompt."""
    known = _recognise(row)
    if known is None:
        return []
    read = known.layout.restate(row).read if known.layout is not None else {*known.columns, *known.optional}
    texts = unread_texts(row, {*read, *_FOR_TEMPLATE})
    prompt = text_of(pair.prompt) if texts else ""
    # A system message that the messages outrank is not read, either.
    names = [name for name in texts if is_prompt(name) or name == "system"]
    return [name for name in names if not is_repeated(texts[name], prompt)]


def _with_messages(row: Row, columns: Sequence[str]) -> Row:
    """Return a row whose messages are lists and objects, where they are written as text.

    An answer is only read so if the other one is messages, too, or the prompt is; else one of them might be meant
    literally, and the row is refused. Messages of unknown roles are read, to be refused later, where all columns hold
    such.
    """
    texts = {column: row[column] for column in columns if isinstance(row[column], str)}
    found = {column: messages_of_text(text, column) for column, text in texts.items()}
    if None in found.values():
        any_role = {column: messages_of_text(text, column, any_role=True) for column, text in texts.items()}
        found = found if None in any_role.values() else any_role
    found = {column: messages for column, messages in found.items() if messages is not None}
    for side, other in (ANSWERS, ANSWERS[::-1]):
        text = texts.get(other, "").strip()
        if side in found and other not in found and text and (text[0] in "[{" or not found.keys() - {side}):
            raise RowError(
                "malformed message",
                f"{side} is a message or a list of messages written as text, and {other} is ordinary text; write both"
                ' in the same way (text that is meant literally as {"role": ..., "content": TEXT})',
            )
    if found and texts.get("prompt", "").strip() == "[]":
        found["prompt"] = []
    return {**row, **found} if found else row


def _from_standard(row: Row) -> PreferencePair:
    prompt, chosen, rejected = _required(row, *_STANDARD)
    if not isinstance(prompt, str):
        return _from_messages(row, "prompt")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return _answered(row, prompt, chosen, rejected)
    if is_hh_prompt(prompt) or (is_hh_dialogue(chosen) and is_hh_dialogue(rejected)):
        return _answered(row, prompt, chosen, rejected)
    return _text_pair(row, prompt, *strip_repeated_prompt(prompt, chosen, rejected))


def _from_messages(row: Row, column: str) -> PreferencePair:
    """Read a column of messages, or of the text of one, and answers of any kind."""
    value, chosen, rejected = _required(row, column, *ANSWERS)
    if isinstance(value, str):
        if ANY_TURN.search(value) and not is_hh_prompt(value):
            raise RowError(
                "malformed message",
                f"{column} holds turns as text, {shown(value)}; expected a list of messages with role and content",
            )
        return _answered(row, value, chosen, rejected)
    sides = to_messages(chosen, "chosen"), to_messages(rejected, "rejected")
    is_other_form = isinstance(value, list | tuple) and not any(map(_is_turn, value)) and column != "prompt"
    if not value or (is_other_form and all(map(_is_whole, sides))):  # the answers have the turns, too
        return _shared_prompt(row, *sides)
    prompt = to_messages(value, column, "user")
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt[-1]["role"] == "user":
        answers = _without_question(prompt[-1]["content"], chosen, rejected)
        sides = to_messages(answers[0], "chosen"), to_messages(answers[1], "rejected")
    pair = _conversation(row, prompt, *sides)
    last = pair.prompt[-1]
    if column != "prompt" and isinstance(last, dict) and last["role"] == "assistant":
        raise RowError(
            "prompt and answers disagree",
            f"{column} ends with the assistant's turn {shown(last['content'])}, which neither chosen nor rejected is;"
            " remove it, or give messages whose last turn the answers continue in a column prompt",
        )
    return pair


def _is_turn(value: Any) -> bool:
    """Return whether a value is likely to be a message, or one written as text."""
    if isinstance(value, str):
        return value.lstrip()[:1] == "{"
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _from_implicit(row: Row) -> PreferencePair:
    chosen, rejected = _required(row, *ANSWERS)
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return _shared_prompt(row, to_messages(chosen, "chosen"), to_messages(rejected, "rejected"))
    if is_hh_dialogue(chosen) and is_hh_dialogue(rejected):
        return _from_transcripts(row, chosen, rejected)
    of_turn = split_shared_prompt(chosen, rejected)
    parts = of_turn or split_shared_words(chosen, rejected)
    is_marked = parts is not None and ends_with_marker(parts[0])
    texts = unread_texts(row, {*ANSWERS, *(_ALWAYS_READ if is_marked else _FOR_TEMPLATE)})
    names = [name for name, found in texts.items() if not is_repeated(found, parts[0] if parts else "")]
    names = [name for name in names if is_prompt(name) or not is_marked]
    if names:
        raise _prompt_elsewhere(parts[0] if parts else None, names)
    if parts is None:
        raise _no_prompt(row, "chosen and rejected do not begin with the same words")
    return replace(_text_pair(row, *parts), is_prompt_shared_words=of_turn is None)


def _from_question(row: Row, column: str) -> PreferencePair:
    question, chosen, rejected = _required(row, column, *ANSWERS)
    is_list = isinstance(question, list) and bool(question) and all(map(_is_turn, question))
    if is_list or isinstance(question, Mapping):
        return _from_messages(row, column)
    return _answered(row, checked_text(question, column, "prompt is not text"), chosen, rejected, _history(row))


def _from_alpaca(row: Row) -> PreferencePair:
    texts = [row["instruction"], row.get("input") or ""]
    instruction, more = (checked_text(text, "instruction", "prompt is not text") for text in texts)
    # Joined by one line break, as LLaMA-Factory does, which defined this format. So are the earlier turns in `history`.
    question = "\n".join(part for part in (instruction, more) if part)
    if "chosen" in row and "rejected" in row:
        chosen, rejected = _required(row, *ANSWERS)
    else:
        (output,) = _required(row, "output")
        if isinstance(output, str) and output.lstrip()[:1] in ("[", "("):
            output = parsed(output, "output")
        if not isinstance(output, list | tuple) or len(output) != 2:
            found = f"a list of {len(output)}" if isinstance(output, list | tuple) else kind_of(output)
            raise RowError("no preference", f"output is {found}; expected the chosen and the rejected answer in a list")
        sides = _with_messages(dict(zip(ANSWERS, output, strict=True)), ANSWERS)
        chosen, rejected = (sides[side] for side in ANSWERS)
    return _answered(row, question, chosen, rejected, _history(row))


def _history(row: Row) -> list[Message]:
    """Read the earlier turns of an Alpaca row: a list of [question, answer]."""
    messages: list[Message] = []
    history = row.get("history") or []
    if isinstance(history, str):
        history = parsed(history, "history") or []
    for turns in history if isinstance(history, list | tuple) else [history]:
        if not isinstance(turns, list | tuple) or len(turns) != 2:
            raise RowError(
                "malformed history", f"history holds {kind_of(turns)}; expected lists of question and answer"
            )
        for role, text in zip(("user", "assistant"), turns, strict=True):
            messages.append({"role": role, "content": checked_text(text, "history", "malformed history")})
    return messages


class _Format(NamedTuple):
    name: str
    columns: tuple[str, ...]  # all of which a row has
    convert: Callable[[Row], PreferencePair]
    optional: tuple[str, ...] = ()  # further columns that are read
    layout: Layout | None = None  # how its rows are restated before they are read


_STANDARD = ("prompt", *ANSWERS)
_FOR_TEMPLATE = ("tools", "chat_template_kwargs")
_ALWAYS_READ = ("system", *_FOR_TEMPLATE)
_HISTORY = ("history",)
_FORMATS = (
    _Format("standard or conversational", _STANDARD, _from_standard),
    _Format("ShareGPT", ("conversations", *ANSWERS), partial(_from_messages, column="conversations")),
    _Format("messages", ("messages", *ANSWERS), partial(_from_messages, column="messages")),
    _Format("messages", ("conversation", *ANSWERS), partial(_from_messages, column="conversation")),
    _Format("question", ("question", *ANSWERS), partial(_from_question, column="question"), _HISTORY),
    _Format("question", ("query", *ANSWERS), partial(_from_question, column="query"), _HISTORY),
    _Format("Alpaca", ("instruction", *ANSWERS), _from_alpaca, ("input", *_HISTORY)),
    _Format("input", ("input", *ANSWERS), partial(_from_question, column="input"), _HISTORY),
    _Format("implicit prompt", ANSWERS, _from_implicit),
    _Format("Alpaca", ("instruction", "output"), _from_alpaca, ("input", *_HISTORY)),
)
_NAMED = (
    *((known.name, known.columns) for known in _FORMATS[:-1]),
    *(("UltraFeedback", (prompt, "completions")) for prompt in ("instruction", "prompt")),
    *((known.name, known.columns) for known in _FORMATS[-1:]),
)
# All columns that are read, in the order of the formats.
READ_COLUMNS = tuple(
    dict.fromkeys(chain(*(columns for _, columns in _NAMED), *(known.optional for known in _FORMATS), _ALWAYS_READ))
)
# A column in which a row says that a column of the setting ``columns`` is not in it (sources/naming.py).
NOWHERE = "columns that lead nowhere"


def _recognise(row: Row) -> _Format | None:
    """Return the first format whose columns a row has, if possible one of which no prompt is null."""
    if not isinstance(row, Mapping):
        raise RowError("malformed row", f"found {kind_of(row)}; expected an object with columns such as prompt, chosen")
    if row.get(NOWHERE):
        raise RowError("column not found", row[NOWHERE])
    if not set(ANSWERS) <= row.keys() and (layout := layout_of(row)) is not None:
        return _Format(layout.name, (), lambda row: to_pair(layout.restate(row).row), layout=layout)
    fitting = _fitting(tuple(row))
    given = (known for known in fitting if known.columns != ANSWERS and row[known.columns[0]] is not None)
    return next(given, fitting[0] if fitting else None)


@lru_cache(maxsize=256)
def _fitting(names: tuple[str, ...]) -> list[_Format]:
    """Return the formats of which all columns are there."""
    return [known for known in _FORMATS if all(column in names for column in known.columns)]


def _unknown(row: Row) -> str:
    """Return what is wrong with the columns of a row."""
    return answers_without_verdict(row) or unknown_columns(row, _NAMED)


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
    The text only repeats a turn of theirs then, and is ignored, as TRL does; one that does not is refused.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        if is_hh_prompt(question):
            texts = (question + answer for answer in strip_repeated_prompt(question, chosen, rejected))
            return _from_transcripts(row, *texts)
        chosen, rejected = _without_question(question, chosen, rejected)
        if is_hh_dialogue(chosen) and is_hh_dialogue(rejected):
            pair = _answered(row, question, parse_hh_dialogue(chosen), parse_hh_dialogue(rejected), before)
            return _with_transcript(row, pair, chosen, rejected)
    sides = to_messages(chosen, "chosen"), to_messages(rejected, "rejected")
    if not all(_is_whole(side) for side in sides):
        return _conversation(row, [*before, {"role": "user", "content": question}], *sides)
    found = _shared(row, *sides)
    asked, turns = squeezed(question), [squeezed(message["content"]) for message in found.prompt]
    if asked and not any(turn and (turn in asked or asked in turn) for turn in turns):
        raise RowError(
            "prompt and answers disagree",
            f"the prompt {shown(question)} is none of the turns that chosen and rejected share; remove what is wrong",
        )
    return _finished(row, found)


def _from_transcripts(row: Row, chosen: str, rejected: str) -> PreferencePair:
    """Make a conversation of two whole HH transcripts."""
    pair = _shared_prompt(row, parse_hh_dialogue(chosen), parse_hh_dialogue(rejected))
    return _with_transcript(row, pair, chosen, rejected)


def _with_transcript(row: Row, pair: PreferencePair, chosen: str, rejected: str) -> PreferencePair:
    """Add to a pair that was read from HH transcripts their text, unless it lacks something that the row has."""
    if any(row.get(column) for column in _ALWAYS_READ):
        return pair
    return replace(pair, transcript=split_hh_dialogues(chosen, rejected))


def _without_question(question: str, chosen: str, rejected: str) -> tuple[str, str]:
    """Return two answers without the question and the blanks after it, where both repeat it in front."""
    answers = strip_repeated_prompt(question, chosen, rejected)
    return answers if answers == (chosen, rejected) else (answers[0].lstrip(), answers[1].lstrip())


def _is_whole(messages: Sequence[Message]) -> bool:
    """Return whether messages begin with a user's turn, after those of the system."""
    return next((message["role"] for message in messages if message["role"] not in SYSTEM_ROLES), "") == "user"


def _shared_prompt(row: Row, chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    """Make a conversation with the messages that both sides share as its prompt; each side keeps its last message."""
    return _finished(row, _shared(row, chosen, rejected))


def _shared(row: Row, chosen: list[Message], rejected: list[Message]) -> Conversation:
    _require_answer(chosen, rejected)
    found = shared_prompt(chosen, rejected)
    if found is None:
        raise _no_prompt(row, "chosen and rejected do not begin with the same user turn")
    return found


def _conversation(row: Row, prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> PreferencePair:
    """Make a conversation of a prompt, and answers that may repeat turns of it."""
    empty = [{"role": "assistant", "content": ""}]
    chosen, rejected = chosen or empty, rejected or empty
    _require_answer(chosen, rejected)
    return _finished(row, reconciled(prompt, chosen, rejected))


def _finished(row: Row, found: Conversation) -> PreferencePair:
    """Make a pair, with the system message of its column in front."""
    prompt, chosen, rejected = found
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


def _prompt_elsewhere(shared: str | None, names: Sequence[str]) -> RowError:
    """Return the error for answers whose common beginning, if they have one, is not likely to be the prompt."""
    share = "nothing that could be the prompt" if shared is None else f"{shown(shared)}, where both answers may begin"
    columns = f"column{'s' if len(names) > 1 else ''} {enumerated(names)}"
    prompts = [name for name in names if is_prompt(name)] or names
    return RowError(
        "no prompt",
        f"chosen and rejected share {share}, and text in the {columns} would not be read; rename the column of the"
        " prompt to prompt (of the system message to system), and remove others",
    ).offering({"prompt": prompts[0]} if len(prompts) == 1 and prompts[0] != "system" else {})


def _for_template(row: Row) -> dict[str, Any]:
    """Read tools and further template variables, without the nulls that Arrow fills in."""
    variables = without_nulls(parsed(row.get("chat_template_kwargs"), "chat_template_kwargs")) or {}
    if not isinstance(variables, dict):
        raise RowError("malformed chat_template_kwargs", f"it is {kind_of(variables)}; expected an object")
    return {"tools": read_tools(row.get("tools")), "template_kwargs": variables}
