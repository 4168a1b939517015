"""``oddsmith train``: settings -> checks -> rows -> tokens -> model -> training -> run folder.

The order is from cheap to expensive: a typing mistake costs no loading, and an invalid row no loaded weights.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....checkpoint.lock import held
from ....checkpoint.space import require_writable
from ....checkpoint.store import AUTO, verify_named, wanted_checkpoint
from ....data.sources import offering
from ....errors import ConfigError, Interrupted
from ....system.files import dispensable
from ....system.launchers import join_processes, local_processes
from ....system.memory import clear_memory_errors
from ....system.names import require_folder_name
from ....system.output import printing_may_fail
from ....system.own_processes import run_module
from ....system.run_folder import REPORT_FILE, SETTINGS_FILE
from ....system.signals import StopSignals
from ...parsing.config_file import Setting
from ...parsing.first_look import first_look
from ...parsing.resolve import Option, Resolved, Settings, build, resolve
from ...parsing.schema import fields_for_run
from ...parsing.values import seconds_of
from ...terminal.console import (
    STARTING,
    is_main_process,
    keep,
    quiet_libraries,
    recording,
    say,
    show_line,
    working,
)
from ...terminal.outcome import JSON, RECIPE, TRACEBACK
from .launch import join_launcher, launch
from .run_folder import changed_settings, check_folder, clear_folder, require_elsewhere, settings_lines
from .weights import take_weights

if TYPE_CHECKING:
    from ....training.trainer import ORPOTrainer

USAGE = "oddsmith train [CONFIG.yaml | --recipe NAME] [--any-setting VALUE ...]"
INTRO = (
    "Trains on preference pairs (prompt, chosen, rejected) by ORPO. Settings come from a YAML file, from flags, or"
    " both; a flag beats the file. A flag may be written with dashes or underscores, a list as `--flag a b` or"
    " `--flag a,b`, a switch as --flag or --no-flag, a mapping as JSON.",
    "Example: oddsmith train --model-name-or-path builtin:smollm2-135m-instruct --dataset-name pairs.jsonl --use-peft"
    " --learning-rate 2e-4",
)
OPTIONS = (
    RECIPE,
    Option("dry_run", "switch", "Read and tokenize the data, show a pair and the settings, say what would be refused."),
    Option("full", "switch", "With --dry-run: tokenize all rows, not a sample; a run finds their tokens in the cache."),
    Option("resume", "optional", "Go on from the last checkpoint in output_dir, or from this one.", "[auto|PATH]"),
    Option(
        "from_weights",
        "value",
        "Start a new run from the weights of this checkpoint or run, ours or another trainer's, with its tokenizer.",
        "PATH",
    ),
    Option("allow_changed", "switch", "Go on from a checkpoint although settings, pairs or base model have changed."),
    Option("overwrite_output_dir", "switch", "Replace the run that output_dir holds; everything in it is removed."),
    Option("time_limit", "value", "Stop with a checkpoint before so much time has passed: 3h50m, 90s, ...", "TIME"),
    Option("num_processes", "value", "Train in so many processes on this machine, one for each device.", "N"),
    Option("report", "switch", f"Write the monitor's page into output_dir at the end, as {REPORT_FILE} (5 MB)."),
    Option("verbose", "switch", "Say by which figures the layout of the batches was chosen."),
    JSON,
    TRACEBACK,
)
SETTINGS_IN_HELP = None  # all of them
STARTED_AT = time.monotonic()  # about when the process started
MAX_PROCESSES = 256
# Source: huggingface_hub.utils.validate_repo_id, which runs too late: at the first upload.
REPOSITORY = re.compile(r"(?=.{1,96}\Z)(\w[\w.-]*/)?\w(?:[\w.-]*\w)?", re.ASCII)
FINDING_STYLES = {"watch": "yellow", "act": "bold red"}


def train(arguments: Sequence[str]) -> dict[str, Any] | int:
    """Run ``oddsmith train``; return its result, or the exit code of the processes that it started."""
    quiet_libraries()
    launched = join_processes()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    if "from_weights" in resolved.options:
        take_weights(resolved)
    require_names(resolved)
    processes, limit = _processes(resolved, launched), resolved.options.get("time_limit")
    is_dry = "dry_run" in resolved.options
    time_limit_s = None if limit is None else seconds_of(limit, "--time-limit")
    folder = Path(resolved.get("output_dir"))
    if "full" in resolved.options and not is_dry:
        raise ConfigError("--full is about --dry-run; give both, or neither")
    if is_main_process():
        _look_at_folders(resolved, folder)
    if is_dry:
        for line in [*settings_lines(changed_settings(resolved)), ""]:
            show_line(line)
    first_look(resolved)
    if "report" in resolved.options:
        from ....monitor.report import plotly_script

        plotly_script()  # fails without the extra `monitor`: better now than after hours of training
    if processes > 1 and launched == 1 and not is_dry:
        return launch([*run_module("oddsmith.cli.main"), "train", *arguments], processes)
    if is_dry:
        from .dry_run import show

        with working(STARTING):
            settings = build(resolved)
            require_trackers(settings)
        with offering_columns(settings):
            return show(resolved, settings, processes, full="full" in resolved.options)
    join_launcher()
    with printing_may_fail(), recording(), StopSignals() as signals:
        with working(STARTING):
            settings = build(resolved)
            require_trackers(settings)
        with clear_memory_errors(), offering_columns(settings), held(folder) if is_main_process() else nullcontext():
            return _run(resolved, settings, signals, time_limit_s)


def _look_at_folders(resolved: Resolved, folder: Path) -> None:
    """Refuse a run folder that may not be written, and a checkpoint that is none."""
    wanted, overwrite = _wanted_checkpoint(resolved), "overwrite_output_dir" in resolved.options
    check_folder(folder, resume=wanted is not None, overwrite=overwrite)
    if overwrite:
        require_elsewhere(folder, resolved)
    require_writable(folder)
    if wanted not in (None, AUTO):
        verify_named(Path(str(wanted)), contents=False)  # with its contents once torch is there


def require_trackers(settings: Settings) -> None:
    """Refuse a tracker whose package is broken, before a model is loaded; a dry run makes none otherwise."""
    from ....training.trackers import make_trackers

    make_trackers(settings.orpo.report_to)


def offering_columns(settings: Settings) -> AbstractContextManager[None]:
    """Let an error for unknown columns offer them beside those that were given."""
    return offering(settings.data.columns, of_one_dataset=not settings.data.datasets)


def require_names(resolved: Resolved) -> None:
    """Refuse a run without model or dataset; name the run folder after the model where none is given."""
    if resolved.get("model_name_or_path") is None:
        raise ConfigError("model_name_or_path is missing; give a hub id, a folder, a GGUF file or builtin:...")
    if resolved.get("dataset_name") is None and resolved.get("datasets") is None:
        raise ConfigError("dataset_name is missing; give a hub id, a file, a folder or builtin:house-style")
    if resolved.get("output_dir") is None:
        name = str(resolved.get("model_name_or_path")).rstrip("/").rpartition("/")[2].rpartition(":")[2]
        resolved.settings["output_dir"] = Setting(f"runs/{name.removesuffix('.gguf')}-orpo", "named after the model")
    folder = resolved.settings["output_dir"]
    require_folder_name(str(folder.value), f"output_dir ({folder.where})")
    resolved.settings["output_dir"] = Setting(str(Path(str(folder.value)).expanduser()), folder.where)
    repository = resolved.get("hub_model_id")
    if repository is not None and not REPOSITORY.fullmatch(str(repository)):
        raise ConfigError(f"hub_model_id is {repository!r}; expected user/name, of letters, digits, '-', '_' and '.'")


def _processes(resolved: Resolved, launched: int) -> int:
    """Return how many processes ``--num-processes`` asks for on this machine, 1 by default."""
    text = resolved.options.get("num_processes", "1")
    if not text.isdecimal() or len(text) > 4 or int(text) < 1:
        raise ConfigError(f"--num-processes is {text!r}; expected a whole number from 1 upwards")
    if int(text) > MAX_PROCESSES:
        raise ConfigError(f"--num-processes is {int(text):,}; expected at most {MAX_PROCESSES} on one machine")
    here = local_processes(launched)
    if launched > 1 and "num_processes" in resolved.options and int(text) != here:
        raise ConfigError(
            f"--num-processes is {text}, but a launcher has started {here} processes on this machine; leave it out"
        )
    return int(text)


def _wanted_checkpoint(resolved: Resolved) -> str | None:
    """Return ``"auto"``, a path, or ``None`` where the run starts from the beginning."""
    wanted = wanted_checkpoint(resolved.options.get("resume", resolved.get("resume_from_checkpoint")))
    return None if wanted is None else str(wanted)


def _run(resolved: Resolved, settings: Settings, signals: StopSignals, time_limit_s: float | None) -> dict[str, Any]:
    from ....config.processes import require_sharding
    from ....training.agreement import require_shared_folder
    from ....training.evaluation import EvaluateAtEnd
    from ....training.live_diagnosis import Watch, one_line
    from ....training.stopping import StopOnRequest
    from ...terminal.progress import ShowProgress
    from .assembly import WriteSettings, make_trainer, read_rows
    from .banner import banner
    from .summary import result, result_lines

    require_sharding(settings.orpo)
    require_shared_folder(Path(str(settings.orpo.output_dir)), settings.orpo)
    allow_changed = "allow_changed" in resolved.options
    checkpoint = _checkpoint(_wanted_checkpoint(resolved), settings, allow_changed)
    stop = StopOnRequest(time_limit_s, started_at=STARTED_AT, signals=signals, tell=_warn)

    def show_banner(state: Any) -> None:
        is_verbose = "verbose" in resolved.options
        say("\n".join(banner(trainer, settings, state, shares, time_limit_s, verbose=is_verbose)), hang=15)

    progress = ShowProgress(before=show_banner)
    if "from_weights" in resolved.options:
        say(f"starting anew from the weights of {settings.model.model_name_or_path}")
    train_rows, eval_rows, shares = read_rows(settings)
    trainer = make_trainer(settings, train_rows, eval_rows, callbacks=[stop, progress])
    trainer.remove_callback(Watch)  # here its warnings are printed beside the progress line
    trainer.add_callback(Watch(tell=lambda finding: say(one_line(finding), FINDING_STYLES[finding.verdict], hang=4)))
    if trainer.eval_dataset is not None:
        trainer.add_callback(EvaluateAtEnd())
    if trainer.is_world_process_zero() and "overwrite_output_dir" in resolved.options:
        clear_folder(Path(settings.orpo.output_dir))
    trainer.add_callback(WriteSettings(resolved, settings))
    started_at = time.monotonic()
    with progress, redirect_stdout(sys.stderr):  # trackers print what is no result
        trainer.train(resume_from_checkpoint=checkpoint, allow_changed=allow_changed)
    if trainer.is_unfinished:
        _leave_together(trainer)
        raise Interrupted(_how_it_stopped(trainer, str(stop.stopped)))
    _save(trainer, settings)
    document = result(trainer, settings, shares, time.monotonic() - started_at)
    keep("\n".join(result_lines(document)), hang=4)
    if "report" in resolved.options and trainer.is_world_process_zero():
        _write_report(Path(settings.orpo.output_dir))
    _leave_together(trainer)
    return document


def _warn(line: str) -> None:
    say(line, "yellow", hang=4)


def _how_it_stopped(trainer: ORPOTrainer, reason: str) -> str:
    step, steps = trainer.state.global_step, trainer.state.max_steps
    command = f"oddsmith train {shlex.quote(str(Path(str(trainer.args.output_dir)) / SETTINGS_FILE))} --resume"
    if step == 0:
        return f"stopped by {reason} before the first step, so nothing is lost; start again with: {command}"
    return f"stopped by {reason} after step {step} of {steps}, which is saved; go on with: {command}"


def _leave_together(trainer: ORPOTrainer) -> None:
    """Wait for the other processes, because gloo may abort a process when a peer of its has ended."""
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.state.destroy_process_group()


def _checkpoint(wanted: str | None, settings: Settings, allow_changed: bool) -> Path | None:
    """Choose the checkpoint to resume from, ``None`` for none, and compare it with the settings.

    This is done before rows or a model are loaded. ``wanted`` is ``"auto"``, a path, or ``None``.
    """
    from ....model.loading.place import is_adapter_folder
    from ....training.choosing import choose_checkpoint
    from ....training.identity import require_same_settings

    folder = Path(str(settings.orpo.output_dir))
    settings.orpo.resume_from_checkpoint = None
    if wanted is None:
        return None
    with working("verifying the checkpoint"):
        named, on_each_node = wanted if wanted == AUTO else Path(wanted), settings.orpo.save_on_each_node
        last = choose_checkpoint(named, folder, warn=_warn, on_each_node=on_each_node)
    if last is None:
        say(f"no checkpoint in {folder} yet: starting from the beginning")
        return None
    is_adapter = settings.model.use_peft or is_adapter_folder(Path(str(settings.model.model_name_or_path)))
    require_same_settings(last, settings.orpo, adapter=is_adapter, allow_changed=allow_changed)
    say(f"going on from {last}")
    return last


def _save(trainer: ORPOTrainer, settings: Settings) -> None:
    """Save the model and the trainer's state; with ``push_to_hub`` upload them."""
    run = Path(str(settings.orpo.output_dir))
    with working("saving"):
        trainer.save_model(_internal_call=True)  # else it would be uploaded here, before its card is written
        with dispensable(run, "the model is saved, but not trainer_state.json or the card beside it"):
            trainer.save_state()
            trainer.create_model_card(dataset_name=settings.data.dataset_name)
    if settings.orpo.push_to_hub:
        from ....export.publish import upload_failures

        with working("uploading"), upload_failures(run, str(trainer.hub_model_id)):
            trainer.push_to_hub(dataset_name=settings.data.dataset_name)


def _write_report(run: Path) -> None:
    from ....monitor.report import write_report

    file = run / REPORT_FILE
    with dispensable(file, f"there is no {REPORT_FILE}"):
        write_report(run, file)
        say(f"report: {file}")
