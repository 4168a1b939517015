"""Read tools, and calls of them, in the forms that datasets use.

Chat templates expect calls as OpenAI's interface has them, but with the arguments as an object:

    {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Rome"}}}

Arguments, calls and tools may be written as text (JSON or Python), because the columns of a table have one type. A
template that expects the arguments as text gets them so (tokens/call_arguments.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import RowError
from .values import kind_of, parsed, without_nulls
from .written import read_text

# Turns of the assistant that hold nothing but a call, as text. Source: the dataset formats of LLaMA-Factory.
CALL_ROLES = ("function_call", "tool_call")
END_OF_THOUGHT = "</think>"
SCHEMA_KEYS = ("function", "parameters")  # of a tool, that may be written as text


def read_tools(value: Any) -> list[Any] | None:
    """Return the tools of a row as JSON schemas; None where it has none."""
    tools = without_nulls(parsed(value, "tools"))
    if tools is not None and not isinstance(tools, list):
        raise RowError("malformed tools", f"tools is {kind_of(tools)}; expected a list of JSON schemas")
    return [_tool(tool, f"tools[{position}]") for position, tool in enumerate(tools or [])] or None


def _tool(value: Any, where: str) -> Any:
    if isinstance(value, str):
        value = _read(value, where, "malformed tools")
    if not isinstance(value, Mapping):
        return value
    return {key: _tool(item, f"{where}.{key}") if key in SCHEMA_KEYS else item for key, item in value.items()}


def read_tool_calls(value: Any, where: str) -> list[Any]:
    """Return the calls of a message; one that cannot be read is a ``RowError`` that names it by ``where``."""
    if isinstance(value, str):
        value = (_read(value, where) if value.strip() else None) or []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise RowError("malformed tool call", f"{where} is {kind_of(value)}; expected a list of calls")
    return [_call(call, f"{where}[{position}]") for position, call in enumerate(value)]


def calls_of_turn(content: Any, where: str) -> tuple[str, list[Any]]:
    """Return the thought in front of the calls of a turn that holds nothing else, and the calls."""
    thought = ""
    if isinstance(content, str):
        thought, end, content = content.rpartition(END_OF_THOUGHT)
        thought += end
    calls = [as_function(call, where) for call in read_tool_calls(content, where)]
    if not calls:
        raise RowError("malformed tool call", f"{where} is empty; expected a call with name and arguments")
    return thought, calls


def as_function(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a call that has name and arguments alone as ``tool_calls`` hold it."""
    if "function" in call:
        return dict(call)
    if not isinstance(call.get("name"), str):
        raise RowError("malformed tool call", f"{where} has no name; expected a call with name and arguments")
    return {"type": "function", "function": dict(call)}


def _call(value: Any, where: str) -> dict[str, Any]:
    """Return a call with its arguments as an object; any other keys stay, as a template of its own may read them."""
    if isinstance(value, str):
        value = _read(value, where)
    if not isinstance(value, Mapping):
        raise RowError("malformed tool call", f"{where} is {kind_of(value)}; expected a call with name and arguments")
    if "function" not in value:
        return _with_object(value, where)
    function, place = value["function"], f"{where}.function"
    if isinstance(function, str):
        function = _read(function, place)
    if not isinstance(function, Mapping):
        found = kind_of(function)
        raise RowError("malformed tool call", f"{place} is {found}; expected an object with name and arguments")
    return {**value, "function": _with_object(function, place)}


def _with_object(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments, place = function.get("arguments"), f"{where}.arguments"
    if isinstance(arguments, str):
        arguments = _read(arguments, place) if arguments.strip() else {}
        if not isinstance(arguments, Mapping):
            raise RowError("malformed tool call", f"{place} is {kind_of(arguments)}; expected an object")
        function = {**function, "arguments": arguments}
    return dict(function)


def _read(text: str, where: str, reason: str = "malformed tool call") -> Any:
    try:
        return read_text(text)
    except ValueError as error:
        raise RowError(reason, f"{where} is no JSON: {error}") from None
