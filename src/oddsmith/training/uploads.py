"""Upload checkpoints to the hub while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import upload_folder
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..checkpoint.store import step_of
from ..errors import in_a_line
from .checkpointing import STATE_FILES

logger = logging.getLogger(__name__)


def upload_checkpoint(run: Any, checkpoint_folder: str) -> None:
    """Upload a complete checkpoint: its model as the repository's, and all of it if ``hub_strategy`` says so.

    ``run`` is the trainer, whose ``push_in_progress`` holds the uploads that are not done.
    """
    args = run.args
    is_busy = run.push_in_progress is not None and not run.push_in_progress.is_done()
    is_left_out = is_busy and not args.hub_always_push
    if not run.is_world_process_zero() or args.hub_strategy == HubStrategy.END or is_left_out:
        return
    common: dict[str, Any] = {
        "repo_id": run.hub_model_id,
        "folder_path": checkpoint_folder,
        "token": args.hub_token,
        "revision": args.hub_revision,
        "run_as_future": True,
    }
    message = f"Training in progress, step {step_of(Path(checkpoint_folder))}"
    jobs = [upload_folder(commit_message=message, ignore_patterns=STATE_FILES, **common)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        name = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
        jobs.append(upload_folder(commit_message=f"{message}, checkpoint", path_in_repo=name, **common))
    _warn_of_failures(jobs)
    run.push_in_progress = PushInProgress([*(run.push_in_progress.jobs if is_busy else []), *jobs])


def _warn_of_failures(uploads: Iterable[Future[Any]]) -> None:
    """Warn, when an upload of a checkpoint ends, that it has failed; the next checkpoint is uploaded all the same."""
    for upload in uploads:
        upload.add_done_callback(_warn_of_upload)


def _warn_of_upload(upload: Future[Any]) -> None:
    error = None if upload.cancelled() else upload.exception()
    if error is not None:
        logger.warning("a checkpoint was not uploaded; the run goes on (%s)", in_a_line(error))
