"""``oddsmith data make``: from prompts to preference pairs; what is asked and scored is kept in a log beside them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, DataError, Interrupted, ServerError, WorkerError
from ...system.own_processes import run_module
from ...system.signals import RESUMABLE
from ...system.strict_json import strict
from ..parsing.resolve import Option, Resolved, resolve
from ..parsing.values import number, seconds_of, whole_number
from ..terminal.console import quiet_libraries, say, working
from ..terminal.counting import counting
from ..terminal.outcome import COLUMNS, JSON, TRACEBACK, termination_as_interruption

if TYPE_CHECKING:
    from ...making.answers.drawing import Drawing
    from ...making.log import Log
    from ...making.making import Progress, Source
    from ...making.pairing import PairingRules
    from ...making.questions import Questions
    from ...making.records import Judge

USAGE = "oddsmith data make PROMPTS --model M --judge J --output pairs.jsonl"
INTRO = (
    "Makes preference pairs: a model answers each prompt several times, judges score the answers, and the better is"
    " paired with the worse. Every answer and score is kept in a log beside the pairs as it comes, so the same command"
    " goes on where it was ended.",
    "PROMPTS is a text file (a prompt a line), JSONL, Parquet, CSV, a hub dataset, pairs in any format, MT-Bench's or"
    " IFEval's questions. Judges: docs/data-make.md.",
)
OPTIONS = (
    Option("model", "value", "Who answers: run, model folder, adapter, hub id, GGUF file; may be repeated.", "MODEL"),
    Option("server", "value", "Ask an OpenAI-compatible server, which knows MODEL by that name.", "URL"),
    Option("answers", "value", "Take answers from a file: rows with prompt and answers.", "FILE"),
    Option("judge", "value", "Who scores, as in rule, reward:MODEL, python:mine:score; may be repeated.", "JUDGE"),
    Option("output", "value", "File for the pairs; the log stands beside it.", "PAIRS.jsonl"),
    Option("samples", "value", "Answers of each model to a prompt. [8]", "N"),
    Option("temperature", "value", "How freely answers are drawn; 0 is greedy. [0.8]", "X"),
    Option("top_p", "value", "Draw from the likeliest tokens that have this probability together. [0.95]", "X"),
    Option("max_new_tokens", "value", "Where an answer is cut that does not end by itself. [512]", "N"),
    Option("limit", "value", "Take so many prompts, drawn with the seed.", "N"),
    Option("seed", "value", "Of all that is drawn. [0]", "N"),
    Option("column", "value", "Column with the prompt.", "NAME"),
    COLUMNS,
    Option("split", "value", "Split of a dataset, or a slice such as train[:20], of a file too. [train]", "SPLIT"),
    Option("dataset_config", "value", "Configuration of a hub dataset.", "TEXT"),
    Option("system_prompt", "value", "System message for prompts that have none.", "TEXT"),
    Option("batch_size", "value", "Answers written at once on this machine. [32]", "N"),
    Option("concurrency", "value", "Requests to a server at once. [8]", "N"),
    Option("timeout", "value", "How long one request to a server may take. [10m]", "TIME"),
    Option("pairing", "value", "Which answers become a pair. [best-worst]", "best-worst|best-random|all"),
    Option("margin", "value", "The scores of a pair differ by more than this. [0]", "X"),
    Option("pairs_per_prompt", "value", "Most pairs of a prompt. [1; any number with all]", "K"),
    Option("match_length", "switch", "Choose pairs so that longer is not the lesson."),
    Option("choose_unfinished", "switch", "Let answers that were cut be chosen, too."),
    Option("pair_only", "switch", "Ask for no more answers: judge and pair what the log has."),
    Option("rounds", "value", "Train on the pairs, and make pairs again with the trained model. [1]", "N"),
    Option("recipe", "value", "How to train between rounds, as for oddsmith train.", "NAME|FILE"),
    Option("overwrite", "switch", "Replace pairs that were made otherwise."),
    JSON,
    TRACEBACK,
)
DEFAULT_BATCH_SIZE, DEFAULT_CONCURRENCY, DEFAULT_TIMEOUT_S = 32, 8, 600.0


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    questions: Questions
    sources: list[Source]
    models: list[str]  # whose answers there may be, in the order in which they are shown
    judges: list[str]
    rules: PairingRules
    drawing: Drawing
    settings: dict[str, str]  # what the log is begun with
    output: Path
    pair_only: bool
    concurrency: int

    @property
    def expected(self) -> int | None:
        """Return how many answers there will be; None where they are given."""
        counts = [source.samples for source in self.sources]
        return None if None in counts else sum(filter(None, counts)) * len(self.questions.asked)


def data_make(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith data make``; return what was made as JSON values."""
    quiet_libraries()
    resolved = resolve(arguments, {}, OPTIONS, max_positional=1)
    output = _output(resolved)
    rounds = _rounds(resolved)
    for current in range(1, rounds):
        pairs, run = (output.with_name(f"{output.stem}.round-{current}{ending}") for ending in (".jsonl", ""))
        if not _log_of(output, current + 1, rounds).exists():
            say(f"round {current} of {rounds}", "bold")
            _make(resolved, pairs)
            _train(resolved, pairs, run)
        resolved = replace(resolved, repeated={**resolved.repeated, "model": [str(run)]})
    if rounds > 1:
        say(f"round {rounds} of {rounds}", "bold")
    return {"command": "data make", **_make(resolved, output)}


def _make(resolved: Resolved, output: Path) -> dict[str, Any]:
    """Make one set of pairs."""
    from ...making.log import SUFFIX, Log

    path = output.with_suffix(SUFFIX)
    if output.exists() and not path.exists() and "overwrite" not in resolved.options:
        raise ConfigError(f"{output}: is there already; choose another name, or replace it with --overwrite")
    with termination_as_interruption(), working("reading the prompts"):
        order = _order(resolved, output)
    judges = _opened(order)  # before there is a log: names that lead nowhere leave nothing behind
    with Log(path, order.settings) as log, _kept(order, log), termination_as_interruption():
        _complete(order, judges, log)
        document = _pair(order, log, as_json="json" in resolved.options)
    return {"output": str(output), "log": str(path), **document}


def _rounds(resolved: Resolved) -> int:
    rounds = whole_number(resolved.options, "rounds", 1, minimum=1)
    if "recipe" in resolved.options and rounds == 1:
        raise ConfigError("--recipe is for the training between rounds; give --rounds 2 or more, or leave it out")
    if rounds > 1 and ({"server", "answers"} & resolved.options.keys() or len(resolved.repeated["model"]) > 1):
        raise ConfigError(
            "--rounds trains the model that answers, so it needs one --model, and no --server or --answers"
        )
    return rounds


def _log_of(output: Path, current: int, rounds: int) -> Path:
    """Return the log of a round."""
    from ...making.log import SUFFIX

    return output.with_name(f"{output.stem}{'' if current == rounds else f'.round-{current}'}{SUFFIX}")


def _train(resolved: Resolved, pairs: Path, run: Path) -> None:
    """Train the model of a round on its pairs, in a process of its own, or go on with that."""
    words = ["--recipe", resolved.options["recipe"]] if "recipe" in resolved.options else []
    words += ["--model-name-or-path", resolved.repeated["model"][0], "--dataset-name", str(pairs)]
    words += ["--output-dir", str(run), "--resume", "auto"]
    say(shlex.join(["oddsmith", "train", *words]), "bold")
    process = subprocess.Popen([*run_module("oddsmith"), "train", *words], stdout=2)  # stderr: stdout is for the result
    with termination_as_interruption():
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # heard once if the terminal has interrupted it as well
            process.wait()
            raise Interrupted(f"the training in {run} was stopped; the same command goes on") from None
    if code == RESUMABLE:
        raise Interrupted(f"the training in {run} was stopped; the same command goes on")
    if code:
        raise WorkerError(
            f"the training in {run} ended with exit code {code}; mend what it says above, and start again"
        )


def _output(resolved: Resolved) -> Path:
    given = resolved.options
    if not resolved.positional and "answers" not in given:
        raise ConfigError(f"no prompts are given; expected {USAGE}")
    if not {"model", "answers"} & given.keys():
        raise ConfigError("nobody answers; name a model with --model MODEL, or give answers with --answers FILE")
    if "judge" not in given:
        raise ConfigError(
            "nobody judges; expected --judge rule, reward:MODEL, judge:MODEL@SERVER or python:MODULE:NAME"
        )
    aside = next((name for name in ("limit", "split", "dataset_config") if name in given), None)
    if aside and not resolved.positional:
        raise ConfigError(f"--{aside.replace('_', '-')} is for PROMPTS, and none are given beside --answers")
    if "output" not in given:
        raise ConfigError("--output is missing; expected --output PAIRS.jsonl")
    if "server" in given and "model" not in given:
        raise ConfigError("--server needs the name that the model has there; give it with --model NAME")
    if {"column", "columns"} <= given.keys():
        raise ConfigError("--column and --columns are both given; put the column into --columns prompt=NAME")
    output = Path(given["output"]).expanduser()
    if output.suffix != ".jsonl" or output.is_dir():
        raise ConfigError(f"--output {output}: expected the name of a file that ends in .jsonl")
    return output


def _order(resolved: Resolved, output: Path) -> _Order:
    """Read the command line and the prompts; nothing is loaded yet."""
    from ...data.sources import offering
    from ...making.answers.drawing import Drawing
    from ...making.judges.opening import weights_of
    from ...making.pairing import PairingRules

    given = resolved.options
    weights_of(resolved.repeated["judge"])  # raises for names that are none, before anything is read or asked
    drawing = Drawing(
        whole_number(given, "samples", 8),
        float(number(given.get("temperature", "0.8"), "--temperature", float)),
        float(number(given.get("top_p", "0.95"), "--top-p", float)),
        whole_number(given, "max_new_tokens", 512),
        whole_number(given, "seed", 0),
    )
    rules = PairingRules(
        pairing=given.get("pairing", "best-worst"),
        margin=float(number(given.get("margin", "0"), "--margin", float)),
        pairs_per_prompt=whole_number(given, "pairs_per_prompt", 1) if "pairs_per_prompt" in given else None,
        match_length="match_length" in given,
        choose_unfinished="choose_unfinished" in given,
        seed=drawing.seed,
    )
    names = resolved.repeated.get("model", [])
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--model {twice} is given twice; raise --samples to get more answers of it")
    if len(names) == 1 and "answers" not in given and drawing.samples == 1:
        raise ConfigError("one answer to a prompt makes no pair; give --samples 2 or more, or several models")
    columns = {"prompt": given["column"]} if "column" in given else given.get("columns")
    with offering(columns):
        questions, sources, settings = _questions_and_sources(resolved, drawing, columns)
    models = [source.name for source in sources]
    return _Order(
        questions,
        sources,
        models,
        resolved.repeated["judge"],
        rules,
        drawing,
        settings,
        output,
        "pair_only" in given,
        whole_number(given, "concurrency", DEFAULT_CONCURRENCY, minimum=1),
    )


def _questions_and_sources(
    resolved: Resolved, drawing: Drawing, columns: Any
) -> tuple[Questions, list[Source], dict[str, str]]:
    from ...making.answers.given import GivenAnswers
    from ...making.making import Source, stated
    from ...making.questions import read_questions

    given, sources = resolved.options, []
    system_prompt = given.get("system_prompt")
    settings = {f"--{name.replace('_', '-')}": stated(value) for name, value in vars(drawing).items()}
    there = None
    if "answers" in given:
        labels = [stated(name) for name in resolved.repeated.get("model", [])]
        there = GivenAnswers(given["answers"], columns=columns, system_prompt=system_prompt, models=labels)
        settings["--answers"] = f"{stated(given['answers'])} ({there.digest()})"
    if resolved.positional:
        questions = read_questions(
            resolved.positional[0],
            split=given.get("split", "train"),
            columns=columns,
            config=given.get("dataset_config"),
            system_prompt=system_prompt,
            limit=whole_number(given, "limit", 1, minimum=1) if "limit" in given else None,
            seed=drawing.seed,
        )
    elif there is not None:
        questions = there.questions
    settings["prompts"] = f"{len(questions.asked):,} ({questions.digest()})"
    for name in resolved.repeated.get("model", []):
        sources.append(_source(name, given, drawing, settings))
    if there is not None:
        answers = there
        sources.append(Source(answers.name, lambda: answers, None))
    return questions, sources, settings


def _source(name: str, given: dict[str, str], drawing: Drawing, settings: dict[str, str]) -> Source:
    """Return a model that answers, and state in the settings which it is."""
    from ...making.making import Source, stated

    label = stated(name)
    opened: Callable[[], Any]
    if "server" in given:
        from ...making.answers.served import ServedAnswers
        from ...making.openai_client import ChatServer

        concurrency = whole_number(given, "concurrency", DEFAULT_CONCURRENCY, minimum=1)
        timeout_s = seconds_of(given["timeout"], "--timeout") if "timeout" in given else DEFAULT_TIMEOUT_S
        server = ChatServer(given["server"], concurrency=concurrency, timeout_s=timeout_s)
        settings[f"--model {label}"] = f"at {server.name}"
        opened = lambda: ServedAnswers(name, server, drawing)  # noqa: E731
    else:
        from ...model.loading.first_look import look_at_model

        batch_size = whole_number(given, "batch_size", DEFAULT_BATCH_SIZE, minimum=1)
        look_at_model(name)
        from ...making.answers.local import identity_of, open_model

        settings[f"--model {label}"] = f"with the weights {identity_of(name)}"
        opened = lambda: open_model(name, drawing, batch_size)  # noqa: E731
    return Source(label, opened, drawing.samples, is_here="server" not in given)


@contextmanager
def _kept(order: _Order, log: Log) -> Iterator[None]:
    """Say what is kept, and how to go on, where the block is interrupted or a server is gone."""
    try:
        yield
    except (KeyboardInterrupt, ServerError) as error:
        of = f" of {order.expected:,}" if order.expected is not None else ""
        kept = f"{log.path} keeps {len(log.answers) + len(log.unanswered):,}{of} answers"
        if isinstance(error, ServerError):
            raise ServerError(f"{error}; {kept}: the same command goes on, --pair-only pairs what there is") from error
        raise Interrupted(f"{kept} and what was scored; the same command goes on") from None


def _opened(order: _Order) -> list[Judge]:
    """Open the judges; none of them where a server is gone and what there is is to be paired."""
    from ...making.judges.opening import open_judges

    try:
        with working("opening the judges"), termination_as_interruption():
            return [one.judge for one in open_judges(order.judges, concurrency=order.concurrency)]
    except ServerError as error:
        if not order.pair_only:
            raise
        say(f"warning: {error}; pairs are made of what is scored", "yellow")
        return []


def _complete(order: _Order, judges: Sequence[Judge], log: Log) -> None:
    """Ask for the answers and scores that are missing."""
    from ...making.making import ask, judge_all

    try:
        with _Shown() as show:
            if not order.pair_only:
                ask(order.questions.asked, order.sources, log, show)
            judge_all(order.questions.asked, order.models, judges, log, show)
    except ServerError as error:
        if not order.pair_only:
            raise
        say(f"warning: {error}; pairs are made of what is scored", "yellow")


class _Shown:
    """Shows how far each model and each judge is; a context manager."""

    def __init__(self) -> None:
        self._current, self._done = ("", ""), 0
        self._stack = ExitStack()
        self._count: Callable[[int], None] = lambda count: None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def __call__(self, progress: Progress) -> None:
        if progress.doing == "loading":
            self.end()
            say(f"{progress.who} answers")
            return
        if (progress.doing, progress.who) != self._current:
            self.end()
            if progress.doing == "judging":
                say(f"{progress.who} judges")
            self._current, self._done = (progress.doing, progress.who), progress.done - 1
            what = "answers" if progress.doing == "answering" else "prompts"
            self._count = self._stack.enter_context(counting(progress.doing, what, progress.total, self._done))
        self._count(progress.done - self._done)
        self._done = progress.done

    def end(self) -> None:
        """End the line that is shown."""
        self._stack.close()
        self._current = ("", "")


def _pair(order: _Order, log: Log, *, as_json: bool) -> dict[str, Any]:
    """Pair what the log has, write the pairs, check them, and show all of it."""
    from ...data.checks.survey import survey
    from ...data.sources import open_rows
    from ...export.atomic import write_file
    from ...making.card import SetFacts, counts_of, write_card
    from ...making.combining import combined
    from ...making.judges.opening import weights_of
    from ...making.making import Counts, judged
    from ...making.pairing import pair_up, settings_of
    from ..terminal.made_table import Made, print_made

    weights = weights_of(order.judges)
    found = judged(order.questions.asked, order.models, list(weights), log)
    paired = pair_up(found, weights, order.rules)
    counts = Counts.of(log)
    if not paired.pairs:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in paired.dropped.most_common())
        reasons += "".join(f"; {count:,} {reason}" for reason, count in counts.unanswered.items())
        met = sum(counts_of(found).values(), Counter())
        reasons += "".join(f"; {count:,} {what}" for what, count in met.most_common(3))
        raise DataError(f"none of {len(found):,} prompts gives a pair: {reasons}; {log.path} keeps the answers")
    is_drawn = any(source.samples is not None for source in order.sources)  # not given
    drawn = asdict(order.drawing) if is_drawn else {}
    # Without an empty object: a column of those cannot be written as Parquet.
    settings = settings_of(order.rules, weights) | ({"drawn": drawn} if drawn else {})
    with write_file(order.output, overwrite=True) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(strict(pair.row(**settings)), ensure_ascii=False) + "\n" for pair in paired.pairs)
    facts = SetFacts(order.output, len(found), order.models, weights, order.rules, drawn, counts.unanswered)
    card = write_card(facts, found, paired)
    with working("checking the pairs"):
        checked = survey(open_rows(str(order.output)))
    scores = [score for one in combined(found, weights) for score in one if score is not None]
    made = Made(str(order.output), order.questions, counts, paired, scores, counts_of(found), checked)
    if not as_json:
        print_made(made, order.models, [source.name for source in order.sources if source.is_here])
    return {"card": str(card), **made.to_dict(), "settings": settings}
