"""``oddsmith demo``: print what ``oddsmith.cli.demo`` does while it runs. Nothing is computed here."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...model.loading.builtin import SMALL_CHAT_MODEL
from ...model.loading.first_look import look_at_model
from ...system.output import printing_may_fail
from ...system.run_folder import CONSOLE_FILE
from ...system.words import counted
from ..parsing.config_file import Setting
from ..parsing.first_look import look_at_values
from ..parsing.resolve import Option, Resolved, Settings, resolve
from ..parsing.schema import fields_for_run
from ..terminal.console import STARTING, quiet_libraries, record_into, recording, say, show, stdout_console, working
from ..terminal.counting import count_in_place
from ..terminal.outcome import JSON, TRACEBACK
from .train.run_folder import check_folder, clear_folder, write_settings

if TYPE_CHECKING:
    from ...training.trainer import ORPOTrainer
    from ..demo import DemoResult, Standing
    from ..terminal.gap_chart import GapChart

USAGE = "oddsmith demo [--output-dir FOLDER] [--model MODEL] [--any-training-setting VALUE ...]"
INTRO = (
    "Aligns SmolLM2-135M-Instruct, a real chat model, with short answers to simple questions, on this machine's CPU"
    " or GPU, draws how it comes to prefer them, shows its answers to other questions before and after, and ends"
    " with a 4-bit file for llama.cpp.",
)
FOLDER = "oddsmith-demo"
PAIRS = "builtin:house-style"
OPTIONS = (
    Option("output_dir", "value", f"Run folder; a demo that it holds is replaced. [{FOLDER}]", "FOLDER"),
    Option("model", "value", "Another chat model: hub id, folder or GGUF file.", "MODEL"),
    JSON,
    TRACEBACK,
)
SHOWN_QUESTIONS = 4
MAX_WIDTH = 100

# Row of the table -> (attribute of a standing, format).
ROWS = {
    "answers that keep the style": ("style_share", "{:.0%}"),
    "answers with the right fact": ("facts_share", "{:.0%}"),
    "accuracy on held-out pairs": ("accuracy", "{:.0%}"),
    "margin on held-out pairs": ("margin", "{:.3f}"),
    "perplexity of good answers": ("perplexity", "{:.2f}"),
}


def demo(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith demo``; return its outcome as JSON values."""
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    resolved.tell()
    foreign = [given.where for name, given in resolved.settings.items() if resolved.fields[name].owner != "ORPOConfig"]
    if foreign:
        raise ConfigError(f"{foreign[0]} is no setting of the demo, which brings its pairs and its adapter")
    folder = Path(resolved.options.get("output_dir", FOLDER))
    check_folder(folder, resume=False, overwrite=True)
    model = resolved.options.get("model", SMALL_CHAT_MODEL)
    look_at_values(resolved)
    look_at_model(model)
    clear_folder(folder)

    with working(STARTING):
        from ..demo import run_demo
        from ..terminal.gap_chart import GapChart
        from ..terminal.progress import ShowProgress

    chart = GapChart()
    with printing_may_fail(), recording(), ShowProgress(above=chart) as progress:
        story = _Story(resolved, folder, model, chart)
        given = resolved.of("ORPOConfig")
        result = run_demo(folder, model=model, callbacks=[chart, progress], on_stage=story.tell, **given)
    _print_table(result)
    _print_file(result)
    return {"command": "demo", **asdict(result)}


class _Story:
    """Prints the stages of the demo: facts and answers on stdout, what it is doing on stderr."""

    def __init__(self, resolved: Resolved, folder: Path, model: str, chart: GapChart):
        self._resolved, self._folder, self._model, self._chart = resolved, folder, model, chart

    def tell(self, stage: str, detail: Any) -> None:
        """Print a stage; ``run_demo`` calls this as its ``on_stage``."""
        if stage == "load":
            say(f"loading {detail}")
        elif stage == "answer":
            done, total, when = detail
            count_in_place(f"answered {done} of {total} held-out questions, {when} training", is_last=done >= total)
        elif stage == "standing":
            when, standing = detail
            if when == "after":
                _print_chart(self._chart)
            _print_answers(when, standing)
        elif stage == "train":
            self._write_settings(detail)
            record_into(self._folder / CONSOLE_FILE)
            pairs = len(detail.train_dataset)
            count = counted(pairs, "pair")
            say(f"\ntraining on {count} of the model's own answers: a short one to prefer, a long one to avoid")
        elif stage == "save":
            say(f"\nsaved in {detail}")
        elif stage == "deploy":
            say("merging the adapter, writing a 4-bit file for llama.cpp and Ollama, and comparing them")

    def _write_settings(self, trainer: ORPOTrainer) -> None:
        """Write a ``run.yaml``, so that ``oddsmith eval`` and ``oddsmith train`` take the demo's folder as a run."""
        from ...config import ModelConfig, ScriptArguments
        from ..demo import ADAPTER, SETTINGS

        names = {"model_name_or_path": self._model, "output_dir": str(self._folder), "dataset_name": PAIRS}
        for name, value in {**names, **ADAPTER, **SETTINGS}.items():
            self._resolved.settings.setdefault(name, Setting(value, "the demo"))
        # The trainer's own settings: a second ORPOConfig would reset the state that accelerate shares with it.
        settings = Settings(trainer.args, ModelConfig(**ADAPTER), ScriptArguments(dataset_name=PAIRS))
        write_settings(self._folder, self._resolved, settings)


def _print_chart(chart: GapChart) -> None:
    """Print the picture of the training."""
    show("")
    stdout_console(MAX_WIDTH).print(chart)


def _print_answers(when: str, standing: Standing) -> None:
    """Print the model's answers to the first held-out questions."""
    from ...data.builtin import demo_pairs

    show(f"\nThe model {when} training:")
    for pair, answer in list(zip(demo_pairs("heldout"), standing.answers, strict=True))[:SHOWN_QUESTIONS]:
        _print_answer(pair["prompt"][-1]["content"], answer)


def _print_answer(question: str, answer: str) -> None:
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    show(f"\n  {question}")
    text = " ".join(answer.split())
    text += "" if text.endswith((".", "!", "?")) else " ..."
    show(textwrap.fill(text, width, initial_indent="    > ", subsequent_indent="      "))


def _print_table(result: DemoResult) -> None:
    show(f"\n{'':<28}{'before':>10}{'after':>10}")
    for row, (name, pattern) in ROWS.items():
        before, after = (pattern.format(getattr(standing, name)) for standing in (result.before, result.after))
        show(f"{row:<28}{before:>10}{after:>10}")
    low, high = result.facts_change
    show(
        f"facts, 95% of the change: {low * 100:+.0f} to {high * 100:+.0f} points, on {len(result.questions)} questions"
    )


def _print_file(result: DemoResult) -> None:
    """Print the size and an answer of the GGUF file."""
    if result.deployed is None:
        show(f"\nNot made into a file for llama.cpp: {result.not_deployed}")
        return
    file = result.deployed
    show(f"\n{file.path}: {file.size_bytes / 1e6:.0f} MB, KL {file.kl:.2g} a token from the model in 16 bits.")
    show("It says, run by llama.cpp:")
    _print_answer(result.questions[0], file.answer)
    show(f"\n  next: oddsmith chat {shlex.quote(file.path)}")
