"""``oddsmith advise``: write a recipe for a model and its pairs, each setting with why; no weights are loaded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError, RowError
from ...system.files import replacing
from ...usual import FULL, LORA, LORA_4BIT, rule_for
from ..parsing.config_file import Setting
from ..parsing.first_look import first_look
from ..parsing.resolve import Option, Resolved, resolve
from ..parsing.schema import fields_for_run, flag_of
from ..terminal.console import STARTING, quiet_libraries, working
from ..terminal.counting import counting
from ..terminal.outcome import JSON, TRACEBACK, Judged
from .plan import OF_DEVICE, OF_SHARDING, as_of_a_run, given_gpus, machine_of, settings_on
from .train.command import offering_columns, require_names

if TYPE_CHECKING:
    from ...data.checks.survey import Survey
    from ...data.limits import ModelLimits
    from ...planning.advice import Advised, Lengths, OwnSplit
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
    first_look(resolved, only_plans=True)
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
    with working(STARTING):
        from ...planning.advice import Advised, advise_settings, best_ways, chosen_way, pairs_per_step
        from ..terminal.advice_table import Advice

        asked = {name: resolved.get(name) for name in (*OF_SHARDING, *OF_DEVICE)}
        resolved.settings["max_length"] = Setting(None, ADVISED)  # lengths are those of whole pairs
        settings = settings_on(resolved, gpu, asked)
        machine = machine_of(gpu, settings, gpus=gpus, nodes=1)
    train, own, lengths, max_length, survey = _read(settings, given)
    resolved.settings["max_length"] = Setting(max_length, ADVISED)
    kept = _kept(train)
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
    if plan.stored is not None:
        training = LORA if ways[LORA].fits else None
        why = f"its weights are stored quantised ({plan.stored}), so an adapter is all that can be trained"
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
            own=own,
        )
        if train.refusal is not None and "bad_rows" not in given:
            found.append(
                Advised("bad_rows", "drop", f"rows that are no pairs are left out and counted: {train.refusal}")
            )
    model, data = (str(resolved.settings[name].value) for name in NAMED)
    words = ["oddsmith", "train", str(output)] + (["--num-processes", str(gpus)] if gpus > 1 else [])
    return Advice(
        model, data, train, kept, survey, lengths, max_length, plan, ways,
        settings.orpo.per_device_train_batch_size, training, found, given, output, shlex.join(words),
    )  # fmt: skip


class _Read(NamedTuple):
    """What the pairs are like."""

    train: Rehearsed  # as the run will have them
    own: OwnSplit | None
    lengths: Lengths  # before anything is cut
    max_length: int
    survey: Survey


def _read(settings: Settings, given: Mapping[str, Setting]) -> _Read:
    """Tokenize the pairs, once, and choose ``max_length``; invalid rows are to be left out, and counted."""
    from ...data.checks.survey import survey
    from .train.assembly import read_rows
    from .train.rehearsal import rehearse

    found: list[Lengths] = []

    def choose(tokens: Any, limits: ModelLimits | None) -> int:
        found.append(_lengths(tokens, None if limits is None else limits.positions))
        asked = given["max_length"].value if "max_length" in given else None
        return int(asked or found[0].max_length)

    with offering_columns(settings):
        rows = read_rows(settings)
        own = _own_rows(settings, given)
        sets = rehearse(settings, full=False, rows=rows._replace(evaluation=own) if own else rows, choose_length=choose)
    train = sets[0]["train"]
    if not found:
        raise train.refusal or ConfigError(f"{settings.data.dataset_name}: no pair is kept; {train.lines()[0]}")
    if train.refusal is not None and not isinstance(train.refusal, RowError):
        raise train.refusal
    checked = rows.train if len(rows.train) <= CHECKED_ROWS else _first(rows.train, CHECKED_ROWS)
    with counting("checking", "rows", len(checked)) as on_rows:
        faults = survey(checked, on_rows=on_rows, processes=1 if len(checked) < ROWS_FOR_PROCESSES else None)
    split = _own_split(settings, sets[0]["eval"]) if own else None
    return _Read(train, split, found[0], train.report.max_length or found[0].max_length, faults)


def _lengths(tokens: Any, positions: int | None) -> Lengths:
    import numpy as np

    from ...planning.advice import Lengths

    ends = np.maximum(np.asarray(tokens["chosen_end"]), np.asarray(tokens["rejected_end"]))
    if "prompt_input_ids" in tokens.column_names:  # an encoder's, which max_length bounds
        ends = np.asarray([len(ids) for ids in tokens["prompt_input_ids"]])
    return Lengths(np.sort(ends), positions)


def _own_rows(settings: Settings, given: Mapping[str, Setting]) -> Any:
    """Return the rows of the data set's own test split; ``None`` where it has none, or others are named."""
    from ...data.sources import has_split, load_rows

    data = settings.data
    name, split = str(data.dataset_name), data.dataset_test_split
    if {"test_split_size", "eval_dataset_name", "eval_strategy"} & set(given):
        return None
    if not has_split(name, split, data.dataset_config):
        return None
    with working("reading the test split"):
        return load_rows(name, config=data.dataset_config, split=split, columns=data.columns)


def _own_split(settings: Settings, found: Rehearsed) -> OwnSplit:
    from ...planning.advice import OwnSplit

    return OwnSplit(settings.data.dataset_test_split, _kept(found), str(found.refusal or ""))


def _kept(found: Rehearsed) -> int:
    """Return how many pairs a run will keep, of a sample about how many."""
    return round((found.rows or 0) * found.report.kept / max(found.report.rows, 1))


def _first(rows: Any, count: int) -> Any:
    return rows[:count] if isinstance(rows, list) else rows.select(range(count))


def _plan(settings: Settings, given: Mapping[str, Setting], train: Rehearsed, machine: Machine, rows: int) -> Plan:
    """Plan all ways to train; with gradient checkpointing where it does not fit without."""
    from ...planning.advice import LORA_DROPOUT
    from ...planning.ranks import ALONE, DDP, Sharing
    from ...planning.recipe import plan_recipe, stored_base

    adapter = settings.model.use_peft or "use_peft" not in given
    stored = stored_base(settings.orpo, settings.model, machine, adapter=adapter)
    base = replace(settings.model, use_peft=stored is not None, load_in_4bit=False, load_in_8bit=False)
    if "lora_dropout" not in given:
        base = replace(base, lora_dropout=LORA_DROPOUT)
    sharing = Sharing(DDP if machine.ranks > 1 else ALONE, machine.ranks, on_gpu=machine.on_gpu)
    total = None if train.is_whole else rows
    return plan_recipe(
        settings.orpo, base, train.tokens, machine, sharing, stored=stored, total=total, is_fixed=False,
        may_split={"per_device_train_batch_size", "gradient_accumulation_steps"}.isdisjoint(given),
    )  # fmt: skip


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
