"""Apply the rules of ``oddsmith diagnose`` while a run goes on, and report each finding to logs and trackers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..diagnose.findings import Finding, Verdict
from ..diagnose.readers import EventLogHistory
from ..diagnose.rules import judge
from ..system.run_folder import Event, append_event, read_events
from .trackers import tracker_may_fail

logger = logging.getLogger(__name__)

MAX_SHARE = 0.01  # of the time of a run; judging a long one takes some 20 ms


def log_finding(finding: Finding) -> None:
    """Log a finding as a warning."""
    logger.warning("%s", one_line(finding))


def one_line(finding: Finding) -> str:
    """Return a finding in one line."""
    return f"{title_of(finding)}: {text_of(finding)}"


def title_of(finding: Finding) -> str:
    """Return the verdict and the rule of a finding."""
    return f"{finding.verdict}: {finding.rule.replace('_', ' ')}"


def text_of(finding: Finding) -> str:
    """Return what shows a finding, what it means, and what to change."""
    return f"{finding.evidence}; {finding.meaning} -> {finding.change}"


class Watch(TrainerCallback):
    """Judges a run at its log lines and evaluations, on the main process only.

    A finding is reported when it first appears, and once more if it gets worse: through ``tell``, as the event
    ``finding`` (its own ``step`` there as ``from_step``), and as an alert of trackers with alerts (W&B and Trackio).
    What is healthy, or cannot be told yet, is not reported. It must be added after ``EventWriter``, because it reads
    the event log.

    Args:
        tell: Called with each finding.
    """

    only_looks_on = True

    def __init__(self, tell: Callable[[Finding], None] = log_finding):
        self._tell = tell
        self._history = EventLogHistory()
        self._reported: dict[str, Verdict] = {}
        self._in_training = False  # an evaluation without training may be of a model that is trained already
        self._judged_at, self._took_s = 0.0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Read the event log, which after a resume holds the steps before."""
        self._reported.clear()
        self._in_training = True
        self._history = EventLogHistory()
        for event in read_events(args.output_dir) if state.is_world_process_zero else ():
            self._history.add(event)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """Judge after a log line, and once more after the summary of the training."""
        if logs and "loss" in logs:
            self._add(args, state, Event.LOG, logs)
        elif logs and "train_runtime" in logs and state.is_world_process_zero:
            self._judge(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: Any, metrics: dict | None = None, **kwargs: Any
    ) -> None:
        """Judge after an evaluation."""
        self._add(args, state, Event.EVALUATE, metrics or {})

    def _add(self, args: TrainingArguments, state: TrainerState, kind: Event, values: dict[str, Any]) -> None:
        if not (state.is_world_process_zero and self._in_training):
            return
        self._history.add({**values, "event": kind, "step": state.global_step})
        if (time.monotonic() - self._judged_at) * MAX_SHARE >= self._took_s:
            self._judge(args, state)

    def _judge(self, args: TrainingArguments, state: TrainerState) -> None:
        started_at = time.monotonic()
        for finding in judge(self._history.build()):
            before = self._reported.get(finding.rule, Verdict.HEALTHY)
            if finding.verdict.asks_for_a_look and finding.verdict.severity > before.severity:
                self._reported[finding.rule] = finding.verdict
                self._tell(finding)
                fields = finding.to_dict()
                append_event(args.output_dir, Event.FINDING, state.global_step, from_step=fields.pop("step"), **fields)
                send_alert(args.report_to or [], finding)
        self._judged_at = time.monotonic()
        self._took_s = self._judged_at - started_at


def send_alert(trackers: list[str] | str, finding: Finding) -> None:
    """Send a finding to the trackers of a run that have alerts.

    Sources: docs.wandb.ai, "Send an alert" (``wandb.alert``); Trackio's documentation, "Alerts" (``trackio.alert``).
    Comet, MLflow, TensorBoard and the others of ``report_to`` have none that a program can send.

    Args:
        trackers: ``report_to`` of the run.
        finding: The finding.
    """
    title, text = title_of(finding), text_of(finding)
    is_bad = finding.verdict is Verdict.ACT
    if "wandb" in trackers:
        with tracker_may_fail("wandb"):
            import wandb

            if wandb.run is not None:
                level = wandb.AlertLevel.ERROR if is_bad else wandb.AlertLevel.WARN
                wandb.run.alert(title=title, text=text, level=level)
    if "trackio" in trackers:
        with tracker_may_fail("trackio"):
            import trackio

            level = trackio.AlertLevel.ERROR if is_bad else trackio.AlertLevel.WARN
            with redirect_stdout(StringIO()):  # it prints the alert, which was told already
                trackio.alert(title=title, text=text, level=level)
