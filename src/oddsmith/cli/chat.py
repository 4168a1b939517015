"""``oddsmith chat``: talk to a model in the terminal, or get one answer."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import ConfigError
from .console import is_live, quiet_libraries, say, working
from .outcome import JSON, TRACEBACK
from .resolve import Option, resolve

if TYPE_CHECKING:
    from ..chat.conversation import Answer, Conversation

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
# What could move the cursor or worse, if a model wrote it to a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
        from ..chat.conversation import Conversation
        from ..chat.speaker import Sampling, open_speaker

        sampling = Sampling(**numbers)
        conversation = Conversation(open_speaker(resolved.positional[0]), sampling, given.get("system"))
    with conversation:
        if not conversation.speaker.has_template:
            say(f"{conversation.speaker.name} has no chat template: your text is continued as it stands")
        if prompt is None:
            from .chat_loop import talk

            return talk(conversation)
        answer = conversation.ask(prompt.strip("\n"))
        show(answer, as_json="json" in given)
        return {"command": "chat", "model": conversation.speaker.name} | outcome(conversation, answer)


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"what is piped in is no {error.encoding} text (byte {error.start}); pipe text in") from error


KINDS: dict[str, type[int] | type[float]] = {"temperature": float, "max_new_tokens": int, "seed": int}


def number(text: str, where: str, kind: type[int] | type[float]) -> int | float:
    """A number that was typed in.

    Args:
        text: As it was typed.
        where: Flag or command, for the message.
        kind: Which numbers are meant.

    Returns:
        The number.

    Raises:
        ConfigError: It is none.
    """
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{where} is {text!r}; expected a {'whole ' if kind is int else ''}number") from None


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


def show(answer: Answer, as_json: bool = False) -> None:
    """Print an answer as it comes: Markdown on a terminal, plain text elsewhere, nothing where JSON is owed.

    Ctrl-C ends the answer; a second one ends the program.
    """
    if answer.dropped_turns:
        turns = "the oldest turn" if answer.dropped_turns == 1 else f"the {answer.dropped_turns} oldest turns"
        say(f"(the conversation is longer than the model's context: {turns} forgotten)")
    console = Console(highlight=False)
    with _interrupting(answer):
        if as_json:
            for _ in answer:
                pass
        elif console.is_terminal and not console.is_dumb_terminal:
            from .markdown import MarkdownStream

            with MarkdownStream(console) as stream:
                for piece in answer:
                    stream.add(CONTROL.sub("", piece))
        else:
            for piece in answer:
                print(CONTROL.sub("", piece) if sys.stdout.isatty() else piece, end="", flush=True)
            print()
    remarks = {
        "length": f"(cut after {answer.tokens} tokens)",
        "interrupted": "(stopped)",
    }
    if answer.finish_reason in remarks and not as_json:
        say(remarks[answer.finish_reason], "dim" if is_live() else "")


@contextlib.contextmanager
def _interrupting(answer: Answer) -> Iterator[None]:
    """While inside, Ctrl-C ends the answer; once it has, Ctrl-C means again what it meant before."""
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        answer.stop()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
