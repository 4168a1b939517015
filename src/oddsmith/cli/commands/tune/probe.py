"""Make one probe, in a process of its own: ``tuning/channel.py`` has what it is told, and what it answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ....errors import ConfigError, OddsmithError
from ....tuning.channel import Steps
from ...parsing.config_file import Setting
from ...parsing.resolve import Resolved, Settings, build
from ...parsing.schema import fields_for_run
from ...terminal.console import quiet_libraries
from ..train.command import offering_columns

if TYPE_CHECKING:
    from ....tuning.results import Evaluation

# DeepSpeed, where it is installed: accelerate imports it to unwrap a model.
PRELOADED = ("oddsmith.cli.commands.tune.preloaded", "deepspeed")
# What a probe sets whatever the recipe says: it saves and uploads nothing, and it is evaluated often. How many steps it
# has, and when it is evaluated, is known once its pairs are.
OF_A_PROBE: dict[str, Any] = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "early_stopping_patience": None,
    "resume_from_checkpoint": None,
    "push_to_hub": False,
    "report_to": "none",
    "generate_during_eval": False,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_delay": 0,
    "eval_on_start": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
HELD_OUT_SHARE = 0.2  # of the training rows, where the recipe names nothing to evaluate on
MOST_HELD_OUT = 256  # pairs: gains of 0.02 nats are told from noise, and an evaluation takes little of a probe's time


def make_probe(connection: Connection, task: Mapping[str, Any]) -> None:
    """Make the probe of a task; send how far it is, its evaluations, and at the end its result or its error."""
    quiet_libraries()
    try:
        connection.send(_run(task, connection))
    except OddsmithError as error:
        verdict, finding = _diagnosed(task["folder"])
        connection.send({"error": str(error), "code": error.exit_code, "verdict": verdict, "finding": finding})


def _run(task: Mapping[str, Any], connection: Connection) -> dict[str, Any]:
    from ....system.memory import clear_memory_errors
    from ....training.preflight import steps_of_run
    from ....tuning.reporter import Reporter, diagnosed, digest_of, shorten
    from ..train.assembly import WriteSettings, make_trainer, read_rows

    for values in task["checks"]:  # what the search may try; here, as building settings takes the libraries
        build(_resolved(task, values))
    resolved = _resolved(task, task["values"])
    settings = build(resolved)

    def tell_evaluation(evaluation: Evaluation) -> bool:
        connection.send(evaluation)
        return bool(connection.recv())

    with clear_memory_errors(), offering_columns(settings):
        train_rows, eval_rows, _ = read_rows(settings)
        if task["holds_out"] and settings.data.dataset_streaming and next(iter(train_rows), None) is None:
            raise ConfigError(
                f"the stream has no more than the {MOST_HELD_OUT} rows that are held out for the probes; give fewer"
                " with test_split_size, or leave dataset_streaming out"
            )
        seed = settings.orpo.seed
        _reseed(settings, int(task["seed"]))  # after the split, which is that of the recipe's seed in all probes
        trainer = make_trainer(settings, train_rows, _drawn(eval_rows, seed))
        reporter = Reporter(trainer, lambda step, of: connection.send(Steps(step, of)), tell_evaluation)
        trainer.add_callback(reporter)
        trainer.add_callback(WriteSettings(resolved, settings))
        is_stream = settings.data.dataset_streaming
        of_run = trainer.args.max_steps
        if not is_stream:
            of_run = steps_of_run(trainer.args, len(trainer.train_dataset), trainer.pairs_per_step)
        steps = shorten(trainer.args, of_run, int(task["steps"]))
        pairs = digest_of(_rows_of(trainer.eval_dataset))
        trainer.train(resume_from_checkpoint=False)
    verdict, finding = diagnosed(str(settings.orpo.output_dir))
    return {
        "state": "pruned" if reporter.is_pruned else "finished",
        "verdict": verdict,
        "finding": finding,
        "steps": steps,
        "steps_of_run": of_run,
        "pairs": pairs,
        "evaluations": [asdict(one) for one in reporter.evaluations],
        "log_odds": reporter.log_odds,
        "logp_chosen": reporter.logp_chosen,
    }


def _diagnosed(folder: str) -> tuple[str, str]:
    """Return the verdict on a probe that has failed, and its worst finding, as far as it came."""
    from ....tuning.reporter import diagnosed

    try:
        return diagnosed(folder)
    except (OddsmithError, OSError):  # it had not begun
        return "", ""


def _resolved(task: Mapping[str, Any], values: Mapping[str, Any]) -> Resolved:
    """Return the settings of the recipe, with values that are tried, and what every probe sets."""
    settings = {name: Setting(value, where) for name, (value, where) in task["settings"].items()}
    for name, value in values.items():
        settings[name] = Setting(value, "--search" if name in task["searched"] else "the recipe")
    for name, value in {**OF_A_PROBE, "output_dir": task["folder"]}.items():
        settings[name] = Setting(value, "a probe")
    if task["holds_out"]:
        is_stream = settings.get("dataset_streaming", Setting(False, "")).value
        settings["test_split_size"] = Setting(MOST_HELD_OUT if is_stream else HELD_OUT_SHARE, "a probe")
    return Resolved(settings, {}, [], fields_for_run())


def _reseed(settings: Settings, seed: int) -> None:
    """Change the seed of a training, and with it that of the order of its pairs, where it has its own."""
    orpo = settings.orpo
    if orpo.data_seed is not None:
        orpo.data_seed += seed - orpo.seed
    orpo.seed = seed


def _drawn(rows: Any, seed: int) -> Any:
    """Return rows of each evaluation set, drawn by the seed of the recipe: no more than are needed."""
    if isinstance(rows, Mapping):
        return {name: _drawn(one, seed) for name, one in rows.items()}
    if not hasattr(rows, "__len__"):
        return rows.take(MOST_HELD_OUT)
    if len(rows) <= MOST_HELD_OUT:
        return rows
    drawn = sorted(random.Random(seed).sample(range(len(rows)), MOST_HELD_OUT))
    return [rows[place] for place in drawn] if isinstance(rows, list) else rows.select(drawn)


def _rows_of(rows: Any) -> Any:
    if isinstance(rows, Mapping):
        return {name: _rows_of(one) for name, one in rows.items()}
    return getattr(rows, "rows", rows)
