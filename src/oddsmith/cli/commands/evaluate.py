"""``oddsmith eval``: measure a model on preference pairs, and print the metrics as a small table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...config.catalogue import CATALOGUE, EVAL_SETTINGS
from ...errors import ConfigError, DataError
from ...metrics import Place, shown_in
from ...system.launchers import join_processes
from ...system.run_folder import SETTINGS_FILE, require_plain_run
from ..parsing.config_file import Setting, read_config
from ..parsing.first_look import first_look
from ..parsing.resolve import Resolved, Settings, build, resolve
from ..parsing.schema import fields_for_run
from ..parsing.values import check
from ..terminal.console import STARTING, is_main_process, quiet_libraries, say, show, working
from ..terminal.outcome import JSON, TRACEBACK

if TYPE_CHECKING:
    from ...training.trainer import ORPOTrainer

USAGE = "oddsmith eval MODEL [--dataset-name DATASET] [--any-setting VALUE ...]"
INTRO = (
    "Measures a model, an adapter or a run on preference pairs. A run folder brings its own settings and, where it held"
    " pairs out for evaluation, these pairs; flags beat them.",
)
OPTIONS = (JSON, TRACEBACK)
# The settings that the help lists; all others are accepted too.
SETTINGS_IN_HELP = {
    *(
        "dataset_name",
        "dataset_config",
        "dataset_test_split",
        "columns",
        "max_length",
        "max_prompt_length",
        "beta",
        "nll_on",
    ),
    *("bad_rows", "per_device_eval_batch_size", "bf16", "use_cpu", "dtype", "trust_remote_code"),
}
# The settings of a run that determine its held-out pairs.
DATA_SETTINGS = EVAL_SETTINGS & {facts.name for facts in CATALOGUE["Data"]}


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith eval``; return metrics and data reports as JSON values."""
    quiet_libraries()
    join_processes()
    resolved = resolve(arguments, fields_for_run(), OPTIONS, max_positional=1)
    if resolved.positional:
        resolved.settings["model_name_or_path"] = Setting(resolved.positional[0], "MODEL")
    if resolved.get("model_name_or_path") is None:
        raise ConfigError("no model is given; expected oddsmith eval MODEL --dataset-name DATASET")
    has_own_data = _inherit(resolved)
    if resolved.get("dataset_name") is None and not resolved.get("datasets"):
        raise ConfigError("dataset_name is missing; give the pairs to measure on with --dataset-name DATASET")
    first_look(resolved, only_measures=not has_own_data)
    with TemporaryDirectory(prefix="oddsmith-eval-") as folder:
        resolved.settings["output_dir"] = Setting(folder, "temporary")
        with working(STARTING):
            settings = build(resolved)
        return _measure(settings, has_own_data)


def _inherit(resolved: Resolved) -> bool:
    """Add settings of a run's ``run.yaml`` that were not given; return whether it held out the pairs to measure on."""
    run = Path(str(resolved.get("model_name_or_path"))) / SETTINGS_FILE
    require_plain_run(run.parent)
    if not run.is_file():
        return False
    given = set(resolved.settings)
    own_data = not given & DATA_SETTINGS
    inherited = EVAL_SETTINGS if own_data else EVAL_SETTINGS - DATA_SETTINGS
    for name, setting in read_config(run).items():
        if name in inherited - given and name in resolved.fields:
            value = check(resolved.fields[name], setting.value, setting.where)
            resolved.settings[name] = Setting(value, setting.where)
    return own_data


def _measure(settings: Settings, has_own_data: bool) -> dict[str, Any]:
    from ...config.processes import require_sharding
    from ...data.sources import offering
    from ...system.memory import clear_memory_errors
    from ..terminal.progress import ShowProgress
    from .train.assembly import make_trainer

    require_sharding(settings.orpo)
    rows = _rows(settings, has_own_data)
    data = settings.data
    with ShowProgress() as progress, offering(data.columns, of_one_dataset=not data.datasets):
        trainer = make_trainer(settings, None, rows, callbacks=[progress])
        for report in trainer.data_reports.values():
            for line in report.lines():
                say(line)
        with clear_memory_errors():
            metrics = trainer.evaluate()
    if is_main_process():
        _print_table(trainer, metrics)
    return {
        "command": "eval",
        "model": settings.model.model_name_or_path,
        "metrics": metrics,
        "data": {name: report.to_dict() for name, report in trainer.data_reports.items()},
    }


def _rows(settings: Settings, has_own_data: bool) -> Any:
    """Read the pairs to measure on."""
    from ...data.sources import load_datasets, load_rows

    data = settings.data
    with working("reading the pairs"):
        if has_own_data or data.datasets:
            rows = load_datasets(data, seed=settings.orpo.seed, evaluate=True).evaluation
            if rows is None:
                raise DataError("the run held no pairs out; give the pairs to measure on with --dataset-name DATASET")
            return rows
        return load_rows(
            str(data.dataset_name), config=data.dataset_config, split=data.dataset_test_split, columns=data.columns
        )


def _print_table(trainer: ORPOTrainer, metrics: Mapping[str, Any]) -> None:
    """Print one column for each dataset and one row for each metric."""
    several = isinstance(trainer.eval_dataset, Mapping)
    columns = {name: f"eval_{name}" if several else "eval" for name in trainer.data_reports}
    widths = {name: max(10, len(name)) for name in columns}
    if several:
        show(" " * 12 + "  ".join(f"{name:>{widths[name]}}" for name in columns))
    show("pairs       " + "  ".join(f"{trainer.data_reports[name].kept:>{widths[name]},}" for name in columns))
    for metric in shown_in(Place.TABLE):
        row = metric.label if "/" in metric.name else metric.name
        cells = [
            f"{metric.format.format(metrics[f'{prefix}_{metric.name}']):>{widths[name]}}"
            for name, prefix in columns.items()
            if isinstance(metrics.get(f"{prefix}_{metric.name}"), int | float)
        ]
        show(f"{row:<12}" + "  ".join(cells))
