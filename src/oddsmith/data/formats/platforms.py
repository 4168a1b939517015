"""Turn rows of other trainers, platforms and well-known sets into rows with ``chosen`` and ``rejected``.

    OpenAI, Azure, Fireworks, Together      input: {messages, tools}, preferred_output, non_preferred_output
    ms-swift                                messages (with the chosen answer), or query and response, or instruction and
                                            output; rejected_response or rejected_messages
    Amazon Nova                             messages, of which the last has two candidates with a preferenceLabel
    Gemini                                  contents, completions of two: {score, completion: {role, parts}}
    Stack Exchange, paired                  question, response_j (the better), response_k
    OpenAI's summaries                      info: a post or an article; summaries: [{text}, {text}]; choice: 0 or 1

Source: the documentation of each; of the last, openai/summarize_from_feedback and the prompts of Stiennon et al.,
arXiv 2009.01325.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RowError, UndecidedRow
from .families import Prompt, prompt_of
from .judged import Restated, Row, preferring
from .messages import Message, messages_of_text
from .values import checked_text, kind_of, number_of, parsed
from .verdicts import extremes

PREFERRED, NOT_PREFERRED = "preferred_output", "non_preferred_output"


def from_openai(row: Row) -> Restated:
    """Restate a row of OpenAI's preference fine-tuning."""
    given = parsed(row["input"], "input") if _looks_like_json(row["input"]) else row["input"]
    columns: dict[str, Any] = {}
    if isinstance(given, Mapping):
        if "messages" not in given:
            keys = ", ".join(map(str, given)) or "none"
            raise RowError("malformed input", f"input has the keys {keys}; expected messages, and maybe tools")
        columns = {"prompt": given["messages"], "tools": given.get("tools")}
    elif isinstance(given, str):
        columns = {"question": given}
    elif isinstance(given, list | tuple):
        columns = {"prompt": given}
    else:
        raise RowError("malformed input", f"input is {kind_of(given)}; expected an object with messages")
    always = prompt_of({name: row[name] for name in ("system", "chat_template_kwargs") if name in row}, ())
    prompt = Prompt({**always.columns, **columns}, ("input", *always.read))
    return preferring(prompt, (row[PREFERRED], row[NOT_PREFERRED]), (PREFERRED, NOT_PREFERRED))


def _looks_like_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "{"


def is_swift(row: Row) -> bool:
    """Return whether a row has a rejected answer, and the chosen one at the end of its messages or as a response."""
    rejected = "rejected_response" in row or "rejected_messages" in row
    return rejected and (
        "messages" in row or {"query", "response"} <= row.keys() or {"instruction", "output"} <= row.keys()
    )


def from_swift(row: Row) -> Restated:
    """Restate a row of ms-swift."""
    name = "rejected_response" if row.get("rejected_response") is not None else "rejected_messages"
    rejected = row.get(name)
    if row.get("messages") is None:
        answer = "response" if "response" in row else "output"
        return preferring(prompt_of(row, (answer, name)), (row[answer], rejected), (answer, name))
    messages = row["messages"]
    if isinstance(messages, str):
        messages = messages_of_text(messages, "messages")
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    if not isinstance(last, Mapping) or "assistant" not in (last.get("role"), last.get("from")):
        raise RowError(
            "last turn is not the assistant's", "messages does not end with the chosen answer of 'assistant'"
        )
    always = {key: row[key] for key in ("system", "tools", "chat_template_kwargs") if key in row}
    prompt = Prompt({**always, "prompt": list(messages[:-1])}, ("messages", *always))
    if name == "rejected_messages" and isinstance(rejected, list | tuple) and len(rejected) > 1:  # the whole again
        prompt = Prompt(always, prompt.read)
        return preferring(prompt, (list(messages), list(rejected)), ("messages", name))
    return preferring(prompt, ([dict(last)], rejected), ("messages", name))


def is_nova(row: Row) -> bool:
    """Return whether the last message of a row has candidates."""
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list | tuple) and messages else None
    return isinstance(last, Mapping) and last.get("candidates") is not None


def from_nova(row: Row) -> Restated:
    """Restate a row of Amazon Nova's preference tuning."""
    *before, last = row["messages"]
    labelled: dict[str, Any] = {}
    for candidate in last["candidates"] if isinstance(last["candidates"], list | tuple) else ():
        if isinstance(candidate, Mapping):
            labelled.setdefault(str(candidate.get("preferenceLabel")), candidate.get("content"))
    found = ", ".join(labelled) or "none"
    if not {"preferred", "non-preferred"} <= labelled.keys():
        raise RowError(
            "malformed candidates", f"the candidates have the labels {found}; expected preferred and non-preferred"
        )
    sides = [_turn("assistant", labelled[label]) for label in ("preferred", "non-preferred")]
    columns = {**_system(row.get("system")), "prompt": before, "tools": row.get("tools")}
    return preferring(Prompt(columns, ("messages", "system", "tools")), sides, ())


def from_gemini(row: Row) -> Restated:
    """Restate a row of Gemini's preference tuning."""
    completions = row["completions"]
    if not isinstance(completions, list | tuple) or not all(isinstance(item, Mapping) for item in completions):
        raise RowError("malformed completions", f"completions is {kind_of(completions)}; expected a list of objects")
    numbers = {place: number_of(item.get("score")) for place, item in enumerate(completions)}
    scores = {place: number for place, number in numbers.items() if number is not None}
    best, worst = extremes(scores)
    contents = row["contents"]
    if not isinstance(contents, list | tuple):
        raise RowError("malformed message", f"contents is {kind_of(contents)}; expected a list of turns")
    system = next((name for name in ("systemInstruction", "system_instruction") if row.get(name) is not None), None)
    given = row[system] if system is not None else None
    columns = {
        **_system(given.get("parts") if isinstance(given, Mapping) else given),
        "prompt": [_content(turn, f"contents[{place}]") for place, turn in enumerate(contents)],
    }
    sides = [
        [_content(completions[place].get("completion"), f"completions[{place}].completion", "model")]
        for place in (best, worst)
    ]
    read = ("contents", "completions", *filter(None, (system,)))
    return preferring(Prompt(columns, read), sides, (), (scores[best], scores[worst]))


def _content(turn: Any, where: str, author: str = "user") -> Message:
    """Return a turn of Gemini as a message."""
    if isinstance(turn, str):
        turn = {"parts": [{"text": turn}]}
    if not isinstance(turn, Mapping) or "parts" not in turn:
        raise RowError("malformed message", f"{where} is {kind_of(turn)} without parts; expected a role and parts")
    role = turn.get("role") or author
    return {"role": "assistant" if role == "model" else role, "content": turn["parts"]}


def _turn(role: str, content: Any) -> list[Message] | None:
    return None if content is None else [{"role": role, "content": content}]


def _system(parts: Any) -> dict[str, Any]:
    """Return the column of a system message that is given in parts."""
    if not parts:
        return {}
    if isinstance(parts, str):
        return {"system": parts}
    parts = parts if isinstance(parts, list | tuple) else [parts]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return {"system": "".join(checked_text(text, "the system message", "prompt is not text") for text in texts)}


def from_paired_answers(row: Row) -> Restated:
    """Restate a row of lvwerra/stack-exchange-paired, of which response_j is the better answer."""
    names = ("response_j", "response_k")
    return preferring(prompt_of(row, names), [row[name] for name in names], names)


def from_summaries(row: Row) -> Restated:
    """Restate a comparison of openai/summarize_from_feedback, of which ``choice`` counts from 0."""
    info, summaries = (parsed(row[column], column) for column in ("info", "summaries"))
    if not isinstance(info, Mapping):
        raise RowError("malformed info", f"info is {kind_of(info)}; expected an object with a post or an article")
    if not isinstance(summaries, list | tuple) or not all(isinstance(item, Mapping) for item in summaries):
        raise RowError("malformed summaries", f"summaries is {kind_of(summaries)}; expected a list of two objects")
    if row["choice"] is None:
        raise UndecidedRow("no judgement", "choice is null; expected 0 or 1")
    choice = number_of(row["choice"])
    if len(summaries) != 2 or choice not in (0, 1):
        found = f"{row['choice']!r:.40} of {len(summaries)} summaries"
        raise RowError("unknown winner", f"choice is {found}; expected 0 or 1 of two")
    texts = [item.get("text") for item in (summaries if choice == 0 else reversed(summaries))]
    sides = [text.strip() if isinstance(text, str) else text for text in texts]
    return preferring(Prompt({"question": _summarised(info)}, ("info",)), sides, ("summaries", "choice"))


def _summarised(info: Mapping[str, Any]) -> str:
    """Return the text to be summarised as the models of the paper were asked."""
    key = "article" if info.get("post") is None else "post"
    body = checked_text(info.get(key), f"info.{key}", "prompt is not text").strip()
    title, forum = (
        value.strip() if isinstance(value := info.get(name), str) else "" for name in ("title", "subreddit")
    )
    if key == "article":
        parts = [title, body]
    else:
        parts = [forum and f"SUBREDDIT: r/{forum}", title and f"TITLE: {title}", f"POST: {body}"]
    return "\n\n".join((*filter(None, parts), "TL;DR:"))
