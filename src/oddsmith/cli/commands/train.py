"""``oddsmith train``: settings -> checks -> rows -> tokens -> model -> training -> run folder.

What can go wrong is met in this order, so that a typing mistake costs no loading, and a faulty row no loaded weights.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint.lock import held
from ...checkpoint.space import require_writable
from ...errors import ConfigError, Interrupted, MissingExtraError
from ...system.files import dispensable
from ...system.memory_errors import clear_memory_errors
from ...system.names import require_folder_name
from ...system.run_folder import REPORT_FILE, SETTINGS_FILE
from ...system.signals import StopSignals
from ..parsing.build import Settings, build
from ..parsing.config_file import Setting
from ..parsing.duration import seconds_of
from ..parsing.resolve import Option, Resolved, resolve
from ..parsing.schema import fields_for_run
from ..setup.run_folder import check_folder, clear_folder
from ..terminal.console import is_main_process, quiet_libraries, say, working
from ..terminal.outcome import JSON, TRACEBACK
from .launch import end_with_launcher, launch

if TYPE_CHECKING:
    from ...training.trainer import ORPOTrainer

USAGE = "oddsmith train [CONFIG.yaml] [--any-setting VALUE ...]"
INTRO = (
    "Trains on preference pairs (prompt, chosen, rejected) by ORPO. Settings come from a YAML file, from flags, or"
    " both; a flag beats the file. A flag may be written with dashes or underscores, a list as `--flag a b` or"
    " `--flag a,b`, a switch as --flag or --no-flag, a mapping as JSON.",
    "Example: oddsmith train --model-name-or-path builtin:smollm2-135m-instruct --dataset-name pairs.jsonl --use-peft"
    " --learning-rate 2e-4",
)
OPTIONS = (
    Option("dry_run", "switch", "Check everything, show every setting that is not a default, train nothing."),
    Option("resume", "optional", "Go on from the last checkpoint in output_dir, or from this one.", "[auto|PATH]"),
    Option("allow_changed", "switch", "Go on from a checkpoint although settings, pairs or base model have changed."),
    Option("overwrite_output_dir", "switch", "Replace the run that output_dir holds; everything in it is removed."),
    Option("time_limit", "value", "Stop with a checkpoint before so much time has passed: 3h50m, 90s, ...", "TIME"),
    Option("num_processes", "value", "Train in so many processes on this machine, one for each device.", "N"),
    JSON,
    TRACEBACK,
)
STARTED_AT = time.monotonic()  # of the process, but for a moment
# Source: huggingface_hub.utils.validate_repo_id, which is asked too late: at the first upload.
REPOSITORY = re.compile(r"(?=.{1,96}\Z)(\w[\w.-]*/)?\w(?:[\w.-]*\w)?", re.ASCII)
FINDING_STYLES = {"healthy": "", "watch": "yellow", "act": "bold red"}


def train(arguments: Sequence[str]) -> dict[str, Any] | int:
    """Run the command.

    Args:
        arguments: The words after ``oddsmith train``.

    Returns:
        The result as JSON values, or the exit code of the processes that ``--num-processes`` started.

    Raises:
        OddsmithError: Bad input, or a run that failed or was stopped.
    """
    quiet_libraries()
    resolved = resolve(arguments, fields_for_run(), OPTIONS)
    _require_names(resolved)
    processes, dry_run, time_limit_s = _processes(resolved), "dry_run" in resolved.options, _time_limit_s(resolved)
    if not dry_run and os.environ.get("RANK", "0") == "0":
        check_folder(
            Path(resolved.get("output_dir")),
            resume=_wanted_checkpoint(resolved) is not None,
            overwrite="overwrite_output_dir" in resolved.options,
        )
        require_writable(Path(resolved.get("output_dir")))
    if processes > 1 and "RANK" not in os.environ and not dry_run:
        return launch([sys.executable, "-m", "oddsmith.cli.main", "train", *arguments], processes)
    if dry_run:
        from .dry_run import show

        with working("starting"):
            settings = build(resolved)
        return show(resolved, settings, processes)
    end_with_launcher()
    with StopSignals() as signals:
        with working("starting"):
            settings = build(resolved)
        with clear_memory_errors(), _held(settings):
            return _run(resolved, settings, signals, time_limit_s)


def _held(settings: Settings) -> AbstractContextManager[None]:
    """The run folder, kept from other runs by the main process."""
    return held(Path(str(settings.orpo.output_dir))) if is_main_process() else nullcontext()


def _require_names(resolved: Resolved) -> None:
    """What no run can do without; and a run folder named after the model where none is given."""
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


def _processes(resolved: Resolved) -> int:
    text = resolved.options.get("num_processes", "1")
    if not text.isdecimal() or len(text) > 4 or int(text) < 1:
        raise ConfigError(f"--num-processes is {text!r}; expected a whole number from 1 upwards")
    return int(text)


def _time_limit_s(resolved: Resolved) -> float | None:
    text = resolved.options.get("time_limit")
    return None if text is None else seconds_of(text, "--time-limit")


def _wanted_checkpoint(resolved: Resolved) -> str | None:
    """``"auto"``, a path, or ``None`` where the run starts from the beginning."""
    given = resolved.get("resume_from_checkpoint")
    wanted = resolved.options.get("resume", given)
    return wanted if wanted is None else ("auto" if wanted.lower() in ("", "auto", "true") else wanted)


def _run(resolved: Resolved, settings: Settings, signals: StopSignals, time_limit_s: float | None) -> dict[str, Any]:
    from ...training.evaluation import EvaluateAtEnd
    from ...training.live_diagnosis import Watch, one_line
    from ...training.stopping import StopOnRequest
    from ..setup.assembly import make_trainer, read_rows
    from ..setup.begin import WriteSettings
    from ..terminal.progress import ShowProgress
    from ..terminal.summary import banner, result, result_lines

    checkpoint = _checkpoint(_wanted_checkpoint(resolved), settings, "allow_changed" in resolved.options)
    stop = StopOnRequest(
        time_limit_s, started_at=STARTED_AT, signals=signals, tell=lambda line: say(line, "yellow", hang=4)
    )
    progress = ShowProgress(before=lambda state: say("\n".join(banner(trainer, settings, state)), hang=15))
    trainer = make_trainer(settings, *read_rows(settings), callbacks=[stop, progress])
    trainer.tell = lambda line: say(line, "yellow", hang=4)
    trainer.remove_callback(Watch)  # its warnings go beside the progress line here
    trainer.add_callback(Watch(tell=lambda finding: say(one_line(finding), FINDING_STYLES[finding.verdict], hang=4)))
    if trainer.eval_dataset is not None:
        trainer.add_callback(EvaluateAtEnd())
    if trainer.is_world_process_zero() and "overwrite_output_dir" in resolved.options:
        clear_folder(Path(settings.orpo.output_dir))
    trainer.add_callback(WriteSettings(resolved, settings))
    started_at = time.monotonic()
    with progress:
        trainer.train(resume_from_checkpoint=checkpoint, allow_changed="allow_changed" in resolved.options)
    if trainer.is_unfinished:
        _let_go_of_peers(trainer)
        raise Interrupted(_how_it_stopped(trainer, str(stop.stopped)))
    _finish(trainer, settings)
    document = result(trainer, settings, time.monotonic() - started_at)
    say("\n".join(result_lines(document)), hang=4)
    if trainer.is_world_process_zero():
        _write_report(Path(settings.orpo.output_dir))
    _let_go_of_peers(trainer)
    return document


def _how_it_stopped(trainer: ORPOTrainer, reason: str) -> str:
    step, steps = trainer.state.global_step, trainer.state.max_steps
    command = f"oddsmith train {shlex.quote(str(Path(str(trainer.args.output_dir)) / SETTINGS_FILE))} --resume"
    if step == 0:
        return f"stopped by {reason} before the first step, so nothing is lost; start again with: {command}"
    return f"stopped by {reason} after step {step} of {steps}, which is saved; go on with: {command}"


def _let_go_of_peers(trainer: ORPOTrainer) -> None:
    """Gloo may abort a process whose peers are gone before it lets go of them."""
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.state.destroy_process_group()


def _checkpoint(wanted: str | None, settings: Settings, allow_changed: bool) -> Path | None:
    """The checkpoint folder to go on from, compared with the settings before rows or a model are loaded.

    Args:
        wanted: ``"auto"``, a path, or ``None``.
        settings: The settings of the run.
        allow_changed: Whether settings may be others than those of the checkpoint.

    Returns:
        The folder; ``None`` to start from the beginning.

    Raises:
        CheckpointError: The one that was asked for is no checkpoint, none is whole, or it is of another run.
    """
    from ...model.loading.place import is_adapter_folder
    from ...training.identity import require_same_settings
    from ...training.resuming import choose_checkpoint

    folder = Path(str(settings.orpo.output_dir))
    settings.orpo.resume_from_checkpoint = None
    if wanted is None:
        return None
    with working("verifying the checkpoint"):
        last = choose_checkpoint(
            wanted if wanted == "auto" else Path(wanted), folder, tell=lambda line: say(line, "yellow", hang=4)
        )
    if last is None:
        say(f"no checkpoint in {folder} yet: starting from the beginning")
        return None
    is_adapter = settings.model.use_peft or is_adapter_folder(Path(str(settings.model.model_name_or_path)))
    require_same_settings(last, settings.orpo, adapter=is_adapter, allow_changed=allow_changed)
    say(f"going on from {last}")
    return last


def _write_report(folder: Path) -> None:
    """The page of ``oddsmith monitor`` as one file; it is an extra's, and a run is complete without it."""
    try:
        from ...monitor.report import write_report

        with dispensable(folder, "there is no report.html"):
            write_report(folder, folder / REPORT_FILE)
            say(f"report: {folder / REPORT_FILE}")
    except MissingExtraError as error:
        say(f"no report.html: {error}", "dim")


def _finish(trainer: ORPOTrainer, settings: Settings) -> None:
    """Save the model and its state, and upload it if asked to."""
    run = Path(str(settings.orpo.output_dir))
    with working("saving"):
        trainer.save_model(_internal_call=True)  # which would upload it, before its card is there
        with dispensable(run, "the model is saved, but not trainer_state.json or the card beside it"):
            trainer.save_state()
            trainer.create_model_card(dataset_name=settings.data.dataset_name)
    if settings.orpo.push_to_hub:
        from ...export.publish import upload_failures

        with working("uploading"), upload_failures(run, str(trainer.hub_model_id)):
            trainer.push_to_hub(dataset_name=settings.data.dataset_name)
