"""``oddsmith chat``: talk to a model in the terminal, or get one answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..parsing.resolve import Option, resolve
from ..parsing.values import number
from ..terminal.chat_answer import show
from ..terminal.console import quiet_libraries, say, working
from ..terminal.outcome import JSON, TRACEBACK

if TYPE_CHECKING:
    from ...inference.chat.conversation import Answer, Conversation

USAGE = "oddsmith chat MODEL [--prompt TEXT] [--system TEXT] [--temperature X]"
INTRO = (
    "Talks to a model: a run, a merged folder, an adapter, a hub id, or a GGUF file, which llama.cpp runs. With"
    " --prompt, or with text piped in, it gives one answer and ends.",
    "Without --temperature the model's own generation settings decide; where they say nothing, each token is the"
    " likeliest one.",
)
OPTIONS = (
    Option("prompt", "value", "Answer this and end.", "TEXT"),
    Option("system", "value", "System message.", "TEXT"),
    Option("temperature", "value", "0 is greedy; higher is more varied. [the model's own]", "X"),
    Option("max_new_tokens", "value", "Where an answer is cut that does not end by itself. [512]", "N"),
    Option("seed", "value", "The same conversation with the same seed gets the same answer. [0]", "N"),
    JSON,
    TRACEBACK,
)


def chat(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command.

    Args:
        arguments: The words after ``oddsmith chat``.

    Returns:
        The conversation as JSON values.

    Raises:
        ConfigError: No model, no prompt, a setting out of range, or ``--json`` in a conversation.
    """
    quiet_libraries()
    resolved = resolve(arguments, {}, OPTIONS, most_positional=1)
    if not resolved.positional:
        raise ConfigError("no model is given; expected oddsmith chat MODEL")
    given = resolved.options
    prompt = given.get("prompt")
    if prompt is None and not sys.stdin.isatty():
        prompt = _piped()
    if prompt is None and "json" in given:
        raise ConfigError("--json is for one answer; give the question with --prompt TEXT, or pipe it in")
    if prompt is not None and not prompt.strip():
        raise ConfigError("the prompt is empty; give the question with --prompt TEXT, or pipe it in")
    numbers: dict[str, Any] = {
        name: number(given[name], f"--{name.replace('_', '-')}", kind) for name, kind in KINDS.items() if name in given
    }

    with working("loading"):
        from ...inference.chat.backends import Sampling, open_backend
        from ...inference.chat.conversation import Conversation

        sampling = Sampling(**numbers)
        conversation = Conversation(open_backend(resolved.positional[0]), sampling, given.get("system"))
    with conversation:
        if not conversation.backend.has_template:
            say(f"{conversation.backend.name} has no chat template: your text is continued as it stands")
        if prompt is None:
            from .chat_loop import talk

            return talk(conversation)
        answer = conversation.ask(prompt.strip("\n"))
        show(answer, as_json="json" in given)
        return {"command": "chat", "model": conversation.backend.name} | outcome(conversation, answer)


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"what is piped in is no {error.encoding} text (byte {error.start}); pipe text in") from error


KINDS: dict[str, type[int] | type[float]] = {"temperature": float, "max_new_tokens": int, "seed": int}


def outcome(conversation: Conversation, answer: Answer) -> dict[str, Any]:
    """What ``--json`` says of an answer."""
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
        "messages": conversation.messages,
    }
