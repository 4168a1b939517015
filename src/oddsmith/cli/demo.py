"""``oddsmith demo``: shows what ``oddsmith.demo`` does. Nothing is computed here."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .console import quiet_libraries, say, stderr_console
from .outcome import JSON, TRACEBACK
from .resolve import Option, resolve
from .schema import fields_for_run

if TYPE_CHECKING:
    from ..demo import DemoResult, Standing

USAGE = "oddsmith demo [--output-dir FOLDER] [--model MODEL] [--any-training-setting VALUE ...]"
INTRO = (
    "Aligns SmolLM2-135M-Instruct on everyday questions, answered shortly and kindly, on this machine's CPU or GPU, and"
    " shows its answers to other questions before and after.",
)
OPTIONS = (
    Option("output_dir", "value", "Run folder; a demo that it holds is replaced. [oddsmith-demo]", "FOLDER"),
    Option("model", "value", "Another chat model: hub id, folder or GGUF file.", "MODEL"),
    JSON,
    TRACEBACK,
)
SHOWN_QUESTIONS = 4

# Row of the table -> (attribute of a standing, format).
ROWS = {
    "answers in the house style": ("style_share", "{:.0%}"),
    "accuracy on held-out pairs": ("accuracy", "{:.0%}"),
    "margin": ("margin", "{:.3f}"),
    "perplexity of good answers": ("perplexity", "{:.2f}"),
}


def demo(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command.

    Args:
        arguments: The words after ``oddsmith demo``.

    Returns:
        The demo's outcome as JSON values.
    """
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    foreign = [given.where for name, given in resolved.settings.items() if resolved.fields[name].owner != "ORPOConfig"]
    if foreign:
        raise ConfigError(
            f"{foreign[0]} is no setting of the demo, which brings its data and adapter; use oddsmith train"
        )
    folder = Path(resolved.options.get("output_dir", "oddsmith-demo"))

    from ..demo import MODEL, run_demo
    from .interrupt import StopOnRequest
    from .progress import ShowProgress

    story = _Story()
    with ShowProgress() as progress, StopOnRequest() as stop:
        result = run_demo(
            folder,
            model=resolved.options.get("model", MODEL),
            callbacks=[stop, progress],
            on_stage=story.tell,
            **resolved.of("ORPOConfig"),
        )
    _print_outcome(result)
    return {"command": "demo", **asdict(result)}


class _Story:
    """Tells on stderr what the demo is doing."""

    def tell(self, stage: str, detail: Any) -> None:
        if stage == "load":
            say(f"Loading {detail} ...")
        elif stage == "answer":
            done, total, when = detail
            self._count(done, total, f"answering {total} questions {when} training")
        elif stage == "train":
            say("Training on short, kind answers against the model's own ...")
        elif stage == "save":
            say(f"Saved in {detail}")

    def _count(self, done: int, total: int, what: str) -> None:
        """A line that counts on a terminal; elsewhere the last one only."""
        console = stderr_console()
        if console.is_terminal:
            console.print(f"{what}: {done}/{total}", end="\n" if done >= total else "\r")
        elif done >= total:
            say(f"{what}: done")


def _print_outcome(result: DemoResult) -> None:
    """Some answers before and after, and the figures."""
    for i, question in enumerate(result.questions[:SHOWN_QUESTIONS]):
        print(f"\nQ: {question}")
        for label, standing in (("before", result.before), ("after", result.after)):
            print(
                textwrap.fill(
                    " ".join(standing.answers[i].split()),
                    100,
                    initial_indent=f"  {label:<7} ",
                    subsequent_indent=" " * 10,
                )
            )
    print(f"\n{'':<28}{'before':>10}{'after':>10}")
    for row, (name, pattern) in ROWS.items():
        print(f"{row:<28}{_cell(result.before, name, pattern):>10}{_cell(result.after, name, pattern):>10}")


def _cell(standing: Standing, name: str, pattern: str) -> str:
    return pattern.format(getattr(standing, name))
