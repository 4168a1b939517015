"""The conversation of ``oddsmith chat``: lines that are typed, commands among them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, OddsmithError
from ..parsing.values import number
from ..terminal.chat_answer import show
from ..terminal.console import say, say_error

if TYPE_CHECKING:
    from ...inference.chat.conversation import Conversation

PROMPT = "> "
HELP = """\
/system TEXT      give the model a system message; without TEXT take it away
/temperature X    0 is greedy, higher is more varied; without X what the model's own settings say
/reset            forget the conversation; the system message stays
/save FILE        write the conversation as JSON
/help             this list
Ctrl-C stops an answer, Ctrl-D ends. A line that begins with a blank is no command."""


def talk(conversation: Conversation) -> dict[str, Any]:
    """Read, answer, repeat, until Ctrl-D.

    Args:
        conversation: Where it takes place.

    Returns:
        What was said, as JSON values.
    """
    line_editing()
    say(f"{conversation.backend.name}, {temperature_in_words(conversation)}; /help lists the commands, Ctrl-D ends")
    commands = _Commands(conversation)
    while True:
        try:
            line = _read_line()
        except EOFError:
            print()
            break
        except KeyboardInterrupt:
            print()
            continue  # as in a shell: the line is dropped
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                commands.run(line)
            else:
                show(conversation.ask(line.strip()))
        except OddsmithError as error:
            say_error(str(error))
    return {"command": "chat", "model": conversation.backend.name, "messages": conversation.messages}


def line_editing() -> None:
    """Arrow keys edit the line and bring earlier ones back, where Python was built with that."""
    with suppress(ImportError):  # Windows, whose console does it itself
        import_module("readline")


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    sys.stderr.write(PROMPT)
    sys.stderr.flush()
    return input()


def temperature_in_words(conversation: Conversation) -> str:
    """``greedy``, or the temperature, and whose choice it was."""
    chosen = conversation.sampling.temperature
    value = conversation.backend.own_temperature if chosen is None else chosen
    words = f"temperature {value:g}" if value > 0 else "greedy"
    return f"{words} (the model's own settings)" if chosen is None and value > 0 else words


class _Commands:
    """What begins with a slash."""

    def __init__(self, conversation: Conversation):
        self._conversation = conversation
        self._written: set[Path] = set()
        self._known: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/system": self._system,
            "/temperature": self._temperature,
            "/save": self._save,
        }

    def run(self, line: str) -> None:
        """Do what a line says, or say why not (``ConfigError``)."""
        name, _, rest = line.strip().partition(" ")
        if name not in self._known:
            raise ConfigError(f"no command {name}; /help lists them, and a line that begins with a blank is none")
        self._known[name](rest.strip())

    def _help(self, _: str) -> None:
        say(HELP)

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        say("(forgotten)")

    def _system(self, text: str) -> None:
        self._conversation.system = text or None
        say("(system message set)" if text else "(no system message)")

    def _temperature(self, text: str) -> None:
        value = number(text, "/temperature", float) if text else None
        self._conversation.sampling = replace(self._conversation.sampling, temperature=value)
        say(f"({temperature_in_words(self._conversation)})")

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
