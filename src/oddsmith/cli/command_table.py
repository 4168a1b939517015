"""List the commands and groups of ``oddsmith``; nothing is imported of them here."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """The module and function of a command.

    The module also defines what ``--help`` shows: ``USAGE``, ``INTRO``, ``OPTIONS`` (its own flags) and, where settings
    are flags of the command, ``SETTINGS_IN_HELP`` (their names, or ``None`` for all of them).
    """

    module: str  # under oddsmith.cli.commands
    function: str  # takes the words after the command's name; terminal.outcome.run says what it returns
    summary: str  # one line for `oddsmith --help`


COMMANDS = {
    "train": Command("train.command", "train", "Align a model on preference pairs."),
    "recipes": Command(
        "recipes", "recipes", "List recipes to start from, with what was measured or where they are from."
    ),
    "convert": Command("convert", "convert", "Translate another trainer's ORPO recipe into one of ours."),
    "advise": Command("advise", "advise", "Write a recipe for a model and its pairs, each setting with why."),
    "plan": Command("plan", "plan", "Predict memory, step time and balance of a run before it is started."),
    "tune": Command("tune.command", "tune", "Search learning rate and beta with short trainings, before a long one."),
    "eval": Command("evaluate", "evaluate", "Measure a model on preference pairs."),
    "demo": Command("demo", "demo", "Align a small chat model on this machine, and show the difference."),
    "chat": Command("chat", "chat", "Talk to a model."),
    "export": Command("export", "export", "Turn a run into an ordinary model folder, or GGUF files."),
    "serve": Command("serve", "serve", "Serve a model to OpenAI-compatible clients."),
    "compare": Command("compare", "compare", "Show the answers of two models side by side."),
    "diagnose": Command("diagnose", "diagnose", "Say what is wrong with a run, ours or another trainer's."),
    "monitor": Command("monitor", "monitor", "Watch runs on a page in the browser."),
    "doctor": Command("doctor", "doctor", "Say what this machine and this installation have, for a report."),
    "completion": Command("completion", "completion", "Print what lets a shell complete commands and flags."),
    "data make": Command("data_make", "data_make", "Make preference pairs: ask a model, judge its answers, pair them."),
    "data check": Command("data_check", "data_check", "Find faults in preference pairs, before training on them."),
}
GROUPS = {"data": "Make and check preference data."}
