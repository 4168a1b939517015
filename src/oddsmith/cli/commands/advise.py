"""``oddsmith advise``: write a recipe for a model and its pairs, each setting with why; no weights are loaded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, RowError
from ...system.files import replacing
from ...usual import FULL, LORA, LORA_4BIT, rule_for
from ..parsing.config_file import Setting
from ..parsing.resolve import Option, Resolved, resolve
from ..parsing.schema import fields_for_run, flag_of
from ..terminal.console import quiet_libraries, working
from ..terminal.counting import counting
from ..terminal.outcome import JSON, TRACEBACK, Judged
from .plan import OF_DEVICE, OF_SHARDING, as_of_a_run, given_gpus, machine_of, settings_on
from .train.command import offering_columns, require_names

if TYPE_CHECKING:
    from ...data.checks.survey import Survey
    from ...data.sources import RunRows
    from ...planning.advice import Advised, Lengths
    from ...planning.cards import Gpu
    from ...planning.recipe import Choice, Machine, Plan
    from ..parsing.resolve import Settings
    from ..terminal.advice_table import Advice
    from .train.rehearsal import Rehearsed

USAGE = "oddsmith advise MODEL DATA [--gpu h100 --gpus 8] [--output recipe.yaml] [--any-setting VALUE ...]"
INTRO = (
    "Reads a model's configuration and tokenizer and its pairs, and writes a recipe for `oddsmith train`: all weights,"
    " LoRA or 4 bits, with the memory that each would take, max_length from the pairs, learning rate, beta, pairs a"
    " step, epochs and evaluation, each with why and who says so. No weights are loaded, and nothing is trained.",
    "Without --gpu it is for this machine. A setting that is given as a flag is kept. Exit code 3: nothing fits.",
)
OPTIONS = (
    Option(
        "gpu", "value", "GPU to train on: h100, rtx4090, ..., or its memory, such as 24GB; h100x8: eight.", "NAME|SIZE"
    ),
    Option("gpus", "value", "GPUs of the machine; without --gpu the processes. [1]", "N"),
    Option("output", "value", "File for the recipe; one that exists is never replaced. [recipe.yaml]", "FILE"),
    JSON,
    TRACEBACK,
)
SETTINGS_IN_HELP = ()
NOTHING_FITS = 3
CHECKED_ROWS = 20_000  # for repeated and faulty pairs: some seconds
ROWS_FOR_PROCESSES = 2_000  # fewer are checked sooner by one process
NAMED = ("model_name_or_path", "dataset_name")  # by the words without a flag
COUNT = re.compile(r"x(\d{1,6})", re.IGNORECASE)
ADVISED = "advised"


def advise(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith advise``; the exit code is 3 where nothing fits."""
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS, max_positional=3)
    gpu, gpus = _read_words(resolved)
    output = _new_file(Path(resolved.options.get("output", "recipe.yaml")).expanduser())
    given = {name: setting for name, setting in resolved.settings.items() if name not in NAMED}
    require_names(resolved)
    found = _advice(resolved, given, output, gpu, gpus)

    from ..terminal.advice_table import document_of, print_advice, recipe_text

    if found.training is not None:
        with replacing(output) as partial:
            partial.write_text(recipe_text(found), encoding="utf-8")
    if "json" not in resolved.options:
        print_advice(found)
    return Judged(document_of(found), NOTHING_FITS if found.training is None else 0)


def _read_words(resolved: Resolved) -> tuple[Gpu | None, int]:
    """Take model and data from the words without a flag, and the GPUs; ``x8`` after ``--gpu h100`` counts them."""
    given = resolved.options
    words: list[str] = []
    counts: list[str] = []
    for word in resolved.positional:
        (counts if "gpu" in given and COUNT.fullmatch(word) and not Path(word).exists() else words).append(word)
    if len(words) != 2:
        missing = (
            "no model is given" if not words else "no pairs are given" if len(words) == 1 else f"found {words[2]!r}"
        )
        raise ConfigError(f"{missing}; expected oddsmith advise MODEL DATA")
    for name, word in zip(NAMED, words, strict=True):
        resolved.settings[name] = Setting(word, "given")
    for name in (*OF_SHARDING, "dataset_streaming"):
        if resolved.settings.pop(name, None) is not None:
            raise ConfigError(f"{flag_of(name)} is nothing that advise can take; add it to the recipe that it writes")
    return given_gpus(given, [int(word[1:]) for word in counts])


def _new_file(target: Path) -> Path:
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target}: is there already; give another name with --output NAME.yaml")
    if not target.absolute().parent.is_dir():
        raise ConfigError(f"--output {target}: there is no folder {target.absolute().parent}; make it first")
    return target


def _advice(resolved: Resolved, given: Mapping[str, Setting], output: Path, gpu: Gpu | None, gpus: int) -> Advice:
    with working("starting"):
        from ...planning.advice import Advised, advise_settings, best_ways, chosen_way, pairs_per_step
        from ..terminal.advice_table import Advice

        asked = {name: resolved.get(name) for name in (*OF_SHARDING, *OF_DEVICE)}
        resolved.settings["max_length"] = Setting(None, ADVISED)  # lengths are those of whole pairs
        settings = settings_on(resolved, gpu, asked)
        machine = machine_of(gpu, settings, gpus=gpus, nodes=1)
    lengths, survey, rows = _read(settings)
    max_length = given["max_length"].value if "max_length" in given else None
    max_length = max_length or lengths.max_length
    train = _rehearsed(resolved, settings, rows, max_length, gpu, asked)
    kept = round(len(rows[0]) * train.report.kept / max(train.report.rows, 1))
    if "per_device_train_batch_size" not in given:
        resolved.settings["per_device_train_batch_size"] = Setting(
            pairs_per_step(kept, machine.ranks * settings.orpo.gradient_accumulation_steps), ADVISED
        )
    settings = settings_on(resolved, gpu, asked)
    settings.orpo.use_cpu = not machine.on_gpu
    with working("planning"):
        machine = as_of_a_run(machine, settings)
        plan = _plan(settings, given, train, machine, kept)
    ways = best_ways(plan.choices)
    training, why = _training(settings, given, ways, kept, chosen_way(ways, kept, _usable(gpu)))
    found: list[Advised] = []
    if training is not None:
        found = advise_settings(
            parameters=plan.numbers,
            rows=kept,
            lengths=lengths,
            max_length=max_length,
            training=training,
            why_training=why,
            choice=ways[training],
            per_device=settings.orpo.per_device_train_batch_size,
            accumulation=settings.orpo.gradient_accumulation_steps,
            given={name: setting.value for name, setting in given.items()},
        )
        if train.refusal is not None and "bad_rows" not in given:
            found.append(
                Advised("bad_rows", "drop", f"rows that are no pairs are left out and counted: {train.refusal}")
            )
    model, data = (str(resolved.settings[name].value) for name in NAMED)
    words = ["oddsmith", "train", str(output)] + (["--num-processes", str(gpus)] if gpus > 1 else [])
    return Advice(
        model, data, train, kept, survey, lengths, max_length, plan, ways, training, found, given, output,
        shlex.join(words),
    )  # fmt: skip


def _read(settings: Settings) -> tuple[Lengths, Survey, RunRows]:
    """Return the lengths of the pairs before anything is cut, their faults, and the rows."""
    import numpy as np

    from ...data.checks.survey import survey
    from ...model.loading.outline import outlined_limits
    from ...planning.advice import Lengths
    from .train.assembly import load_its_tokenizer, read_rows
    from .train.rehearsal import rehearse

    with offering_columns(settings):
        rows = read_rows(settings)
        train = rehearse(settings, full=False, rows=rows)[0]["train"]
    if not train.report.kept:
        raise train.refusal or ConfigError(f"{settings.data.dataset_name}: no pair is kept; {train.lines()[0]}")
    tokens = train.tokens
    ends = np.maximum(np.asarray(tokens["chosen_end"]), np.asarray(tokens["rejected_end"]))
    if "prompt_input_ids" in tokens.column_names:  # an encoder's, which max_length bounds
        ends = np.asarray([len(ids) for ids in tokens["prompt_input_ids"]])
    limits = outlined_limits(str(settings.model.model_name_or_path), load_its_tokenizer(settings))
    checked = rows.train if len(rows.train) <= CHECKED_ROWS else _first(rows.train, CHECKED_ROWS)
    with counting("checking", "rows", len(checked)) as on_rows:
        found = survey(checked, on_rows=on_rows, processes=1 if len(checked) < ROWS_FOR_PROCESSES else None)
    return Lengths(np.sort(ends), limits.positions if limits is not None else None), found, rows


def _first(rows: Any, count: int) -> Any:
    return rows[:count] if isinstance(rows, list) else rows.select(range(count))


def _rehearsed(
    resolved: Resolved, settings: Settings, rows: RunRows, max_length: int, gpu: Gpu | None, asked: Mapping[str, Any]
) -> Rehearsed:
    """Tokenize as the run will; invalid rows are to be left out, and counted."""
    from .train.rehearsal import rehearse

    resolved.settings["max_length"] = Setting(max_length, ADVISED)
    train = rehearse(settings_on(resolved, gpu, asked), full=False, rows=rows)[0]["train"]
    if train.refusal is not None and not isinstance(train.refusal, RowError):
        raise train.refusal
    return train


def _plan(settings: Settings, given: Mapping[str, Setting], train: Rehearsed, machine: Machine, rows: int) -> Plan:
    """Plan all ways to train; with gradient checkpointing where it does not fit without."""
    from ...planning.advice import LORA_DROPOUT
    from ...planning.ranks import ALONE, DDP, Sharing
    from ...planning.recipe import plan_recipe

    base = replace(settings.model, use_peft=False, load_in_4bit=False, load_in_8bit=False)
    if "lora_dropout" not in given:
        base = replace(base, lora_dropout=LORA_DROPOUT)
    sharing = Sharing(DDP if machine.ranks > 1 else ALONE, machine.ranks, on_gpu=machine.on_gpu)
    total = None if train.is_whole else rows
    return plan_recipe(settings.orpo, base, train.tokens, machine, sharing, total=total, is_fixed=False)


def _usable(gpu: Gpu | None) -> list[str]:
    """Return the kinds of training that can be advised: on this machine only with what is installed."""
    return [FULL, LORA] + ([LORA_4BIT] if gpu is not None or find_spec("bitsandbytes") else [])


def _training(
    settings: Settings, given: Mapping[str, Setting], ways: Mapping[str, Choice], rows: int, advised: str | None
) -> tuple[str | None, str]:
    """Return the kind of training, and why: what the user has decided, else what is advised."""
    if {"use_peft", "load_in_4bit"} & set(given):
        asked = LORA_4BIT if settings.model.load_in_4bit else LORA if settings.model.use_peft else FULL
        return (asked if asked in ways and ways[asked].fits else None), "as asked"
    if advised is None:
        return None, ""
    rule = rule_for("training", rows=rows)
    return advised, rule.why if advised == rule.value[0] else "the first of these that fits: " + ", ".join(rule.value)
