"""What must answer at once, and what the command says of itself."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest

import oddsmith
from oddsmith.cli.main import COMMANDS, MEANT
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.cli.terminal.console import stderr_console
from tests.command import START, environment, run_apart, run_here


@pytest.mark.parametrize(
    "words", ["--help", "--version", "train --help-all", *(f"{command} --help" for command in COMMANDS)]
)
def test_help_and_version_load_nothing_heavy(words):
    code = (
        "import atexit, sys\n"
        "from oddsmith.cli.main import main\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'numpy'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        f"main({words.split()!r})\n"
    )
    done = run_apart(start=[sys.executable, "-c", code])
    assert (done.code, done.err) == (0, "")
    assert done.out.rstrip().endswith("LOADED []")


@pytest.mark.parametrize("code", ["import oddsmith.cli.main", "from oddsmith import ORPOTrainer"])
def test_windows_is_refused_in_one_line(code):
    run = run_apart(start=[sys.executable, "-c", f"import sys; sys.platform = 'win32'\n{code}"])
    assert run.code == 1
    assert run.err.splitlines()[-1] in (f"error: {oddsmith.NOT_ON_WINDOWS}", f"ImportError: {oddsmith.NOT_ON_WINDOWS}")
    assert ("Traceback" in run.err) == ("cli" not in code)


def test_help_takes_less_than_half_a_second():
    """Of processor time, which is what it takes on a machine with nothing else to do."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([*START, "train", "--help"], stdout=subprocess.DEVNULL, check=True, env=environment())
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("word", ["--version", "version"])
def test_version(capsys, word):
    assert run_here(capsys, word) == (0, f"oddsmith {oddsmith.__version__}\n", "")


def test_the_package_is_the_command():
    """Launchers take a module: torchrun -m oddsmith train ..."""
    done = subprocess.run([sys.executable, "-P", "-m", "oddsmith", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"oddsmith {oddsmith.__version__}\n", "")


def test_help_lists_the_common_settings_and_help_all_every_one_of_use(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    short, long = run_here(capsys, "train", "--help").out, run_here(capsys, "train", "--help-all").out
    for name, field in load_fields().items():
        flag = f"--no-{field.flag[2:]}" if field.types == ("bool",) and field.default is True else field.flag
        assert bool(re.search(rf"^  {flag}\b(?!-)", long, flags=re.MULTILINE)) == field.listed, name
        assert (f"  {flag}" in short) == field.common, name
    for flag in ("--dry-run", "--resume", "--num-processes", "--json", "--traceback", "--overwrite-output-dir"):
        assert f"  {flag}" in short
    headings = [line for line in short.splitlines() if line and not line.startswith(" ")]
    assert headings.index("ORPO") < headings.index("Model") < headings.index("Training")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_help_fits_the_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    longest = max(map(len, run_here(capsys, "train", "--help").out.splitlines()))
    assert longest <= min(columns, 120)


def test_an_unknown_command_names_the_nearest(capsys):
    outcome = run_here(capsys, "trian")
    assert outcome.code == 2
    assert "Did you mean 'train'?" in outcome.err
    assert "Did you mean" not in run_here(capsys, "xyzzy").err
    message = "No such command 'chek'. Did you mean 'check'? `oddsmith --help` lists the commands and flags."
    assert run_here(capsys, "data", "chek").err == f"error: {message}\n"
    assert run_here(capsys, "--foo") == (
        2,
        "",
        "error: No such flag --foo. `oddsmith --help` lists the commands and flags.\n",
    )


def test_a_group_of_commands_alone_prints_its_help_on_stderr(capsys):
    bare, helped = run_here(capsys, "data"), run_here(capsys, "data", "--help")
    assert (bare.code, bare.out) == (2, "")
    assert helped == (0, bare.err, "")


@pytest.mark.parametrize("words", [[], ["data"]])
def test_help_lists_all_commands(capsys, words):
    helped = run_here(capsys, *words, "--help")
    assert helped.code == 0
    assert [run_here(capsys, *words, "-h"), run_here(capsys, "help", *words)] == [helped, helped]
    listed = {" ".join([*words, name]) for name in re.findall(r"^  ([a-z]+) ", helped.out, flags=re.MULTILINE)}
    within = {name for name in COMMANDS if " " in name}
    assert listed == (within if words else set(COMMANDS) - within | {"data"})


@pytest.mark.parametrize("name", ["train", "data check"])
def test_help_with_a_command_is_that_command_s(capsys, name):
    assert run_here(capsys, "help", *name.split()) == run_here(capsys, *name.split(), "--help")
    message = "No such command 'trian'. Did you mean 'train'? `oddsmith --help` lists the commands and flags."
    assert run_here(capsys, "help", "trian") == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_without_arguments_five_commands_to_begin_with_are_shown(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stderr_console.cache_clear()  # it is as wide as when it was made
    bare = run_here(capsys)
    stderr_console.cache_clear()
    assert (bare.code, bare.out) == (2, "")
    shown = re.findall(r"^  oddsmith (data check|[a-z]+)", bare.err, flags=re.MULTILINE)
    assert shown == ["demo", "data check", "advise", "train", "chat"]
    assert set(shown) <= set(COMMANDS)
    assert "`oddsmith help` lists all commands" in bare.err
    assert max(map(len, bare.err.splitlines())) <= columns


def test_names_that_others_have_for_a_command_are_understood(capsys):
    for word, meant in MEANT.items():
        assert word not in COMMANDS
        assert meant in COMMANDS
        assert f"Did you mean '{meant}'?" in run_here(capsys, word).err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function_and_its_help(capsys, name):
    command = COMMANDS[name]
    module = import_module(f"oddsmith.cli.commands.{command.module}")
    assert callable(getattr(module, command.function))
    assert module.USAGE.startswith(f"oddsmith {name} ")
    assert " ".join(run_here(capsys, *name.split(), "--help").out.split()).startswith(f"Usage: oddsmith {name} ")


BROKEN = """
import oddsmith.cli.commands.train.command as command
def broken(arguments):
    raise RuntimeError("the first line\\nand a second")
command.train = broken
from oddsmith.cli.main import main
main({words!r})
"""


def test_an_unforeseen_error_is_one_line_and_traceback_shows_it():
    codes = [BROKEN.format(words=["train", *words]) for words in ([], ["--traceback"])]
    short, long = (run_apart(start=[sys.executable, "-c", code]) for code in codes)
    assert (short.code, long.code) == (1, 1)
    assert short.err.splitlines() == [
        "error: RuntimeError: the first line",
        "This was not foreseen; run again with --traceback to see where it came from.",
    ]
    assert "Traceback (most recent call last)" in long.err
    assert "and a second" in long.err


def test_an_error_made_on_purpose_shows_its_traceback_on_request(capsys):
    short, long = run_here(capsys, "train", "--beta", "x"), run_here(capsys, "train", "--beta", "x", "--traceback")
    assert short == (2, "", "error: --beta is 'x'; expected a number\n")
    assert long.code == 2
    assert "Traceback" in long.err
    assert long.err.endswith(short.err)


def test_with_json_an_error_is_a_document_too(capsys):
    outcome = run_here(capsys, "train", "--json", "--beta", "x")
    assert json.loads(outcome.out) == {
        "error": "--beta is 'x'; expected a number",
        "kind": "ConfigError",
        "exit_code": 2,
    }
    assert outcome.err == "error: --beta is 'x'; expected a number\n"
