"""What a stranger has put into a file, a name or a model steers no terminal when it is printed."""

import json
import time

import pytest
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from oddsmith.cli.main import main
from oddsmith.cli.terminal import console
from oddsmith.cli.terminal.console import say, say_error, show, show_line, stderr_console, stdout_console, visible
from oddsmith.cli.terminal.counting import count_in_place
from oddsmith.system.run_folder import EVENTS_FILE

# Sets the title of a window, clears the screen (in 7 and 8 bits), goes back over the line, turns the text round.
STEERING = "\x1b]0;mine\x07", "\x1b[2J", "\x9b2J", "good\rbad", "a\x08b", "\x7f", "\u202egnp.exe"


def table(text):
    found = Table(text)
    found.add_row(Text(text))
    return found


WAYS = {
    "a message": say,
    "an error": say_error,
    "an error's label": lambda text: say_error("", label=text),
    "a result": show,
    "a line of a result": show_line,
    "a count": lambda text: count_in_place(text, is_last=True),
    "a text": lambda text: stdout_console().print(text),
    "a styled text": lambda text: stderr_console().print(Text(text, style="bold")),
    "a table": lambda text: stdout_console().print(table(text)),
    "markdown": lambda text: stdout_console().print(Markdown(f"# {text}\n[{text}](http://{text})\n```\n{text}\n```")),
}


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_is_printed_steers_a_terminal(way, is_terminal, capsys, monkeypatch):
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(console, "is_live", lambda: True)
    stderr_console.cache_clear()
    try:
        for text in STEERING:
            WAYS[way](f"the name {text} of a model")
            printed = "".join(capsys.readouterr())
            assert "the name" in printed
            for sequence in (text, *(char for char in text if not char.isprintable() and char != "\x1b")):
                assert sequence not in printed
            assert "\x1b]0" not in printed
            assert "\x1b[2J" not in printed
    finally:
        stderr_console.cache_clear()


def test_what_steers_is_shown_and_the_rest_stays():
    assert visible("\x1b[2J\x9b\x00\x7f\r\u202e") == "\\x1b[2J\\x9b\\x00\\x7f\\r\\u202e"
    assert visible("two\nlines\tÄ \u200d \ud800") == "two\nlines\tÄ \u200d \ud800"


@pytest.mark.parametrize("command", [["diagnose"], ["monitor", "--once"], ["monitor", "--once", "--json"]])
def test_an_event_log_steers_no_terminal(command, tmp_path, capsys):
    folder = tmp_path / "\x1b[2Jrun\x9b2J"
    folder.mkdir()
    lines = [{"event": "start", "time": 1e9, "step": 0, "max_steps": 9, "unit": "\x1b[2J\x9b2J"}]
    lines += [{"event": "log", "time": 1e9 + step, "step": step, "loss": 2.0, "x\x1b[2J": 1.0} for step in (1, 2, 3)]
    lines += [{"event": "\x1b[2J", "time": 1e9, "step": 3, "reason": "\x9b2J"}]
    (folder / EVENTS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main([*command, str(folder)])
    assert ended.value.code in (0, 3, 4)
    printed = "".join(capsys.readouterr())
    assert "run" in printed
    assert not {"\x1b", "\x9b"} & set(printed)
    if "--json" in command:
        assert json.loads(printed)["runs"][0]["name"] == folder.name


def test_what_takes_long_is_said_without_a_terminal_and_what_does_not_is_not(monkeypatch, capsys):
    monkeypatch.setattr(console, "SILENT_S", 0.05)
    with console.working("loading much"):
        time.sleep(0.5)
    assert capsys.readouterr() == ("", "loading much\n")
    monkeypatch.setattr(console, "SILENT_S", 60.0)
    with console.working("loading little"):
        pass
    assert capsys.readouterr() == ("", "")


def test_the_record_of_what_was_printed_holds_no_secret(tmp_path, capsys):
    token, file = "hf_" + "aB" * 17, tmp_path / "_console.log"

    def fail():
        with console.recording():
            say(f"before there is a file: {token}")
            console.record_into(file)
            say(f"a model of {token}")
            say_error(f"no access with {token}")
            raise ValueError(token)

    with pytest.raises(ValueError, match=token):
        fail()
    written = file.read_text()
    assert token not in written
    assert [line.split("  ", 1)[1] for line in written.splitlines()] == [
        "before there is a file: ***",
        "a model of ***",
        "error: no access with ***",
        "ValueError: ***",
    ]


def test_an_outcome_goes_to_stdout_where_that_is_no_terminal(capsys):
    console.keep("done: 4 steps")
    assert capsys.readouterr() == ("done: 4 steps\n", "")


@pytest.mark.parametrize("variables", [{}, {"JPY_PARENT_PID": "1"}])
def test_no_line_is_redrawn_in_a_notebook(variables, monkeypatch):
    """Its kernel gives a command a terminal, and keeps every drawing."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    stderr_console.cache_clear()
    try:
        assert console.is_live() == (not variables)
    finally:
        stderr_console.cache_clear()
