"""The command ``oddsmith``: its subcommands, each loaded when it runs. Nothing here imports torch."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer

from .. import __version__
from ..system.signals import ENDED_AT_ONCE
from .parsing.resolve import Option
from .terminal.console import say_error
from .terminal.outcome import run

# The words after a command reach it as they are: its flags are the settings, which Typer does not know.
RAW: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}

# Click's class of its own; which Click it is depends on Typer's version.
_USAGE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    help="One-step preference alignment of language models (ORPO).",
    epilog="`oddsmith COMMAND --help` tells more. Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 a check failed,"
    " 75 interrupted and resumable, 130 interrupted twice.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


data = typer.Typer(
    help="Look at preference data.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.add_typer(data, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"oddsmith {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command(context_settings=RAW, add_help_option=False)
def train(context: typer.Context) -> None:
    """Align a model on preference pairs."""
    from .commands import train as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS):
        raise typer.Exit(run(command.train, context.args))


@app.command(name="eval", context_settings=RAW, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Measure a model on preference pairs."""
    from .commands import evaluate as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, command.HELPED):
        raise typer.Exit(run(command.evaluate, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Align a small chat model on this machine, and show the difference."""
    from .commands import demo as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.demo, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def chat(context: typer.Context) -> None:
    """Talk to a model."""
    from .commands import chat as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.chat, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def export(context: typer.Context) -> None:
    """Make a run an ordinary model folder, or GGUF files."""
    from .commands import export as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.export, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def serve(context: typer.Context) -> None:
    """Serve a model to OpenAI-compatible clients."""
    from .commands import serve as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.serve, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def compare(context: typer.Context) -> None:
    """Show two models side by side."""
    from .commands import compare as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.compare, context.args))


@data.command(name="check", context_settings=RAW, add_help_option=False)
def data_check(context: typer.Context) -> None:
    """Find what is wrong with preference pairs, before training on them."""
    from .commands import data_check as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.data_check, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def diagnose(context: typer.Context) -> None:
    """Say what is wrong with a run, ours or another trainer's."""
    from .commands import diagnose as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.diagnose, context.args))


@app.command(context_settings=RAW, add_help_option=False)
def monitor(context: typer.Context) -> None:
    """Watch runs on a page in the browser."""
    from .commands import monitor as command

    if not _helped(context.args, command.USAGE, command.INTRO, command.OPTIONS, ()):
        raise typer.Exit(run(command.monitor, context.args))


def _helped(
    arguments: Sequence[str],
    usage: str,
    intro: Sequence[str],
    options: Sequence[Option],
    names: Collection[str] | None = None,
) -> bool:
    """Print the help if it is asked for, and say whether it was."""
    if not {"--help", "--help-all", "-h"} & set(arguments):
        return False
    from .parsing.help import print_help
    from .parsing.schema import load_fields

    fields = {name: field for name, field in load_fields().items() if names is None or name in names}
    print_help(usage, intro, options, fields, everything="--help-all" in arguments or names is not None)
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command ``oddsmith``.

    Args:
        arguments: The words after ``oddsmith``; those of this process by default.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="oddsmith", standalone_mode=False)
    except _USAGE_ERROR as error:
        text = error.format_message()
        if error.ctx is not None and text == error.ctx.get_help():  # a group of commands without one
            sys.stderr.write(f"{text}\n")
        else:
            say_error(f"{text} `oddsmith --help` tells which commands and flags there are.")
        code = error.exit_code
    except typer.Abort:
        code = ENDED_AT_ONCE
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
