"""``oddsmith chat``: talk to a model in the terminal, or get one answer."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, OddsmithError
from ...system.words import counted
from ..parsing.resolve import Option, resolve_word
from ..parsing.schema import flag_of
from ..parsing.values import number
from ..terminal.console import (
    can_redraw,
    is_live,
    quiet_libraries,
    say,
    say_error,
    show,
    stdout_console,
    visible,
    working,
)
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
SAMPLING: dict[str, type[int] | type[float]] = {"temperature": float, "max_new_tokens": int, "seed": int}
PROMPT = "> "
HELP = """\
/system TEXT      give the model a system message; without TEXT take it away
/temperature X    0 is greedy, higher is more varied; without X what the model's own settings say
/reset            forget the conversation; the system message stays
/save FILE        write the conversation as JSON
/help             this list
Ctrl-C stops an answer, Ctrl-D ends. A line that begins with a blank is no command."""


def chat(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith chat``; return the conversation as JSON values."""
    quiet_libraries()
    name, given = resolve_word(arguments, OPTIONS, "model", "oddsmith chat MODEL")
    prompt = given.get("prompt")
    if prompt is None and not sys.stdin.isatty():
        prompt = _piped()
    if prompt is None and "json" in given:
        raise ConfigError("--json is for one answer; give the question with --prompt TEXT, or pipe it in")
    if prompt is not None and not prompt.strip():
        raise ConfigError("the prompt is empty; give the question with --prompt TEXT, or pipe it in")
    numbers: dict[str, Any] = {
        option: number(given[option], flag_of(option), kind) for option, kind in SAMPLING.items() if option in given
    }

    from ...inference.chat.backends import Sampling, open_backend
    from ...inference.chat.conversation import Conversation
    from ...model.loading.first_look import look_at_model

    sampling = Sampling(**numbers)  # checked before the model is loaded
    look_at_model(name)
    with working(f"loading {name}"):
        conversation = Conversation(open_backend(name), sampling, given.get("system"))
    with conversation:
        model = conversation.backend.name
        if not conversation.backend.has_template:
            say(f"{model} has no chat template: your text is continued as it stands")
        elif "system" not in given and (trained := _trained_system(name)):
            say(f"{model} was trained with the system message {trained!r}: --system, or /system, gives it", hang=4)
        if prompt is None:
            _talk(conversation)
            return {"command": "chat", "model": model, "messages": conversation.messages}
        answer = conversation.ask(prompt.strip("\n"))
        _show(answer, as_json="json" in given)
        return {
            "command": "chat",
            "model": model,
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.tokens,
            "seconds": round(answer.seconds, 3),
            "messages": conversation.messages,
        }


def _trained_system(name: str) -> str | None:
    """Return the system message that a run gave its rows (``system_prompt``)."""
    from ...system.run_folder import read_events
    from ...training.card_record import system_prompt_of

    starts = [event for event in read_events(name) if event.get("event") == "start"]
    return system_prompt_of(starts[-1]) if starts else None


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(f"what is piped in is no {error.encoding} text (byte {error.start}); pipe text in") from error
    except OSError as error:  # a folder, or a descriptor that is open for writing alone
        raise ConfigError(f"standard input cannot be read ({error.strerror or error}); pipe text in") from error


def _show(answer: Answer, as_json: bool = False) -> None:
    """Print an answer as it is generated: Markdown on a terminal, plain text elsewhere, nothing with ``--json``.

    Ctrl-C ends the answer; a second one ends the program.
    """
    if answer.dropped_turns:
        turns = "the oldest turn" if answer.dropped_turns == 1 else f"the {answer.dropped_turns} oldest turns"
        say(f"(the conversation is longer than the model's context: {turns} forgotten)")
    console = stdout_console()
    with _interrupting(answer):
        if as_json:
            for _ in answer:
                pass
            return
        if can_redraw(console):
            from ..terminal.markdown import MarkdownStream

            with MarkdownStream(console) as stream:
                for piece in answer:
                    stream.add(visible(piece))
        else:
            for piece in answer:
                if sys.stdout.isatty():
                    show(piece, end="")
                else:  # into a file or another program: as the model wrote it
                    print(piece, end="", flush=True)
            show()
    remarks = {"length": f"(cut after {counted(answer.tokens, 'token')})", "interrupted": "(stopped)"}
    if answer.finish_reason in remarks:
        say(remarks[answer.finish_reason], "dim" if is_live() else "")


@contextlib.contextmanager
def _interrupting(answer: Answer) -> Iterator[None]:
    """Let the first Ctrl-C in the block end the answer; the next one has its usual effect."""
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        answer.stop()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _talk(conversation: Conversation) -> None:
    """Read lines and answer them, until Ctrl-D."""
    with contextlib.suppress(ImportError):  # lets arrow keys edit the line; some builds of Python lack it
        import_module("readline")
    say(f"{conversation.backend.name}, {_temperature(conversation)}; /help lists the commands, Ctrl-D ends")
    commands = _Commands(conversation)
    while True:
        try:
            line = _read_line()
        except (EOFError, OSError):  # OSError: the terminal is gone
            show()
            return
        except UnicodeDecodeError as error:
            say_error(f"this is no {error.encoding} text (byte {error.start})")
            continue
        except KeyboardInterrupt:
            show()
            continue  # as in a shell: the line is dropped
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                commands.run(line)
            else:
                _show(conversation.ask(line.strip()))
        except OddsmithError as error:
            say_error(str(error))


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return input()


def _temperature(conversation: Conversation) -> str:
    """Describe the temperature, and say whether it comes from the model's generation settings."""
    chosen = conversation.sampling.temperature
    value = conversation.backend.own_temperature if chosen is None else chosen
    words = f"temperature {value:g}" if value > 0 else "greedy"
    return f"{words} (the model's own settings)" if chosen is None and value > 0 else words


class _Commands:
    """The commands of the chat, in lines that begin with a slash."""

    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self._written: set[Path] = set()
        self._by_name: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(HELP),
            "/reset": self._reset,
            "/system": self._system,
            "/temperature": self._set_temperature,
            "/save": self._save,
        }

    def run(self, line: str) -> None:
        """Run the command in a line; ``ConfigError`` if there is no such command."""
        name, _, rest = line.strip().partition(" ")
        if name not in self._by_name:
            raise ConfigError(f"no command {name}; /help lists them, and a line that begins with a blank is none")
        self._by_name[name](rest.strip())

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        say("(forgotten)")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        say("(system message set)" if text else "(no system message)")

    def _set_temperature(self, text: str) -> None:
        value = number(text, "/temperature", float) if text else None
        self._conversation.sampling = replace(self._conversation.sampling, temperature=value)
        say(f"({_temperature(self._conversation)})")

    def _save(self, text: str) -> None:
        if not text:
            raise ConfigError("/save has no file; expected /save FILE")
        file = Path(text).expanduser().absolute()
        if file.exists() and file not in self._written:
            raise ConfigError(f"{file}: is there already; expected the name of a new file")
        document = {"model": self._conversation.backend.name, "messages": self._conversation.messages}
        from ...export.atomic import write_file

        with write_file(file, overwrite=True) as partial:
            partial.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        self._written.add(file)
        say(f"(saved in {file})")
