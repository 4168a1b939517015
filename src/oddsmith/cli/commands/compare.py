"""``oddsmith compare``: show the answers of two models to the same prompts side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ...errors import ConfigError
from ...system.words import counted
from ..parsing.resolve import Option, resolve
from ..parsing.values import number, whole_number
from ..terminal.console import STARTING, quiet_libraries, say, stdout_console, working
from ..terminal.counting import count_in_place
from ..terminal.outcome import COLUMNS, JSON, TRACEBACK

if TYPE_CHECKING:
    from ...inference.compare.comparison import Comparison, PromptResult

USAGE = "oddsmith compare BASE TUNED --prompts FILE [--html FILE] [--format alpaca_eval|mt_bench --output FOLDER]"
INTRO = (
    "Shows what two models answer to the same prompts, how long and how repetitive they are, and, where the prompts"
    " come from preference pairs, the log-odds of each pair under both. Models are named as for `oddsmith train`; an"
    " adapter on BASE is loaded once.",
)
FORMATS = ("alpaca_eval", "mt_bench")
OPTIONS = (
    Option("prompts", "value", "Text (a prompt a line), JSONL, pairs in any format, MT-Bench's question file.", "FILE"),
    Option("split", "value", "Split of a dataset, or a slice such as test[:20], of a file too. [test]", "SPLIT"),
    COLUMNS,
    Option("max_new_tokens", "value", "Where an answer is cut that does not end by itself. [256]", "N"),
    Option("temperature", "value", "0 is greedy. [0]", "X"),
    Option("seed", "value", "Of the drawing, with a temperature. [0]", "N"),
    Option("batch_size", "value", "Prompts answered at once. [16]", "N"),
    Option("html", "value", "Write a page that can be sent to someone.", "FILE"),
    Option("format", "value", "Write the answers for an official evaluator, into --output.", "|".join(FORMATS)),
    Option("output", "value", "Folder for --format.", "FOLDER"),
    Option("overwrite", "switch", "Replace files that are there."),
    JSON,
    TRACEBACK,
)
# Row of the table -> (attribute of a summary, pattern).
ROWS = {
    "words in an answer": ("words", "{:.1f}"),
    "tokens in an answer": ("tokens", "{:.1f}"),
    "repeated four-word sequences": ("repetition", "{:.1%}"),
    "answers that end by themselves": ("finished", "{:.0%}"),
    "log-odds, chosen against rejected": ("log_odds", "{:+.3f}"),
    "pairs whose chosen answer is likelier": ("prefers_chosen", "{:.0%}"),
}
MAX_WIDTH = 160


def compare(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith compare``; return the comparison as JSON values."""
    quiet_libraries()
    resolved = resolve(arguments, {}, OPTIONS, max_positional=2)
    given = resolved.options
    if len(resolved.positional) < 2:
        raise ConfigError("two models are needed; expected oddsmith compare BASE TUNED --prompts FILE")
    if "prompts" not in given:
        raise ConfigError("no prompts are given; expected --prompts FILE")
    base, tuned = resolved.positional
    temperature = float(number(given.get("temperature", "0"), "--temperature", float))
    max_new_tokens, seed = whole_number(given, "max_new_tokens", 256), whole_number(given, "seed", 0)
    batch_size = whole_number(given, "batch_size", 16, minimum=1)
    _require_format(given)

    from ...data.prompts import read_prompts
    from ...data.sources import offering
    from ...inference.chat.backends import Sampling
    from ...inference.compare import files as comparison_files
    from ...model.loading.first_look import look_at_model

    sampling = Sampling(temperature, max_new_tokens, seed)
    with working("reading the prompts"), offering(given.get("columns")):
        prompts = read_prompts(given["prompts"], given.get("split", "test"), given.get("columns"))
    layout = given.get("format")
    files = {"html": Path(given["html"])} if "html" in given else {}
    if layout is not None:
        comparison_files.check_prompts(prompts, layout)
        files |= comparison_files.evaluator_paths(base, tuned, layout, Path(given["output"]))
    _require_new(files.values(), "overwrite" in given)
    for name in (base, tuned):
        look_at_model(name)
    with working(STARTING):
        from ...inference.compare import comparison
    result = comparison.compare(base, tuned, prompts, sampling=sampling, batch_size=batch_size, on_stage=_say_stage)
    _write(result, files, layout)  # first: whoever reads the table may leave
    if "json" not in given:
        _print(result)
    return {"command": "compare", **result.to_dict(), "files": {name: str(file) for name, file in files.items()}}


def _require_format(given: dict[str, str]) -> None:
    layout = given.get("format")
    if layout is not None and layout not in FORMATS:
        raise ConfigError(f"--format is {layout!r}; expected {' or '.join(FORMATS)}")
    if (layout is None) != ("output" not in given):
        raise ConfigError("--format and --output go together; expected --format alpaca_eval|mt_bench --output FOLDER")


def _require_new(files: Any, overwrite: bool) -> None:
    """Refuse files that could not be written, before minutes are spent on answers."""
    for file in files:
        if file.is_dir():
            raise ConfigError(f"{file}: is a folder; expected the name of a file")
        if file.exists() and not overwrite:
            raise ConfigError(f"{file}: is there already; choose another name, or replace it with --overwrite")


def _write(result: Comparison, files: dict[str, Path], layout: str | None) -> None:
    from ...export.atomic import write_file
    from ...inference.compare.files import comparison_page, evaluator_file

    for name, file in files.items():
        text = comparison_page(result) if name == "html" else evaluator_file(result, name, str(layout), file.stem)
        with write_file(file, overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
        say(f"written: {file}")


def _say_stage(stage: str, detail: Any) -> None:
    if stage == "load":
        say(f"loading {detail}")
        return
    side, done, total = detail
    what = "answered {} of {}" if stage == "answer" else "measured {} of {}"
    count_in_place(
        f"{side}: {what.format(done, counted(total, 'question' if stage == 'answer' else 'pair'))}",
        is_last=done >= total,
    )


def _print(result: Comparison) -> None:
    from ...inference.compare.files import short_name

    console = stdout_console(MAX_WIDTH)
    names = {"base": short_name(result.base), "tuned": short_name(result.tuned)}
    for row in result.rows:
        for turn, question in enumerate(row.prompt.questions):
            count = f"{row.prompt.number + 1}" + (f".{turn + 1}" if row.prompt.follow_ups else "")
            console.print()
            for message in row.prompt.before if turn == 0 else ():
                console.print(Text(f"{message['role']}: {message['content']}", "dim"))
            console.print(Text(f"{count}  {question}", "bold"))
            table = Table(expand=True, show_edge=False, padding=(0, 1))
            for name in names.values():
                table.add_column(Text(name), ratio=1, overflow="fold")
            table.add_row(*(Text(getattr(row, side).answers[turn].text) for side in names))
            table.add_row(*(Text(_figures(getattr(row, side), turn), "dim") for side in names))
            console.print(table)
    console.print()
    table = Table(show_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name in names.values():
        table.add_column(Text(name), justify="right", overflow="fold")
    summaries = result.summaries
    for label, (attribute, pattern) in ROWS.items():
        values = [getattr(summaries[side], attribute) for side in names]
        if None not in values:
            table.add_row(label, *map(pattern.format, values))
    console.print(table)
    sys.stdout.flush()


def _figures(result: PromptResult, turn: int) -> str:
    answer = result.answers[turn]
    parts = [f"{answer.words} words"]
    parts += [f"{answer.repetition:.0%} repeated"] if answer.repetition else []
    parts += [] if answer.is_finished else ["cut"]
    parts += [f"log-odds {result.log_odds:+.3f}"] if result.log_odds is not None and turn == 0 else []
    return ", ".join(parts)
