"""The rules of ``oddsmith diagnose`` while a run goes on: what they find is told once, written down, and passed on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..diagnose.findings import Finding, Verdict
from ..diagnose.readers import EventLogHistory
from ..diagnose.rules import judge
from ..system.run_folder import Event, append_event, read_events

logger = logging.getLogger(__name__)

# Rules take some 20 ms over a long run; they are not asked more often than keeps them below this share of its time.
MOST_SHARE = 0.01


def log_finding(finding: Finding) -> None:
    """Tell a finding through Python's logging, as a warning."""
    logger.warning("%s", one_line(finding))


def one_line(finding: Finding) -> str:
    """A finding in one line."""
    rule = finding.rule.replace("_", " ")
    return f"{finding.verdict}: {rule}: {finding.evidence}; {finding.meaning} -> {finding.change}"


class Watch(TrainerCallback):
    """Judges a run at its log lines and evaluations, on the main process alone.

    A finding is told when it first appears, and once more if it gets worse: through ``tell``, as the event ``finding``
    of the diary (its own ``step`` there as ``from_step``), and as an alert of the trackers that have alerts (W&B and
    Trackio). Healthy findings are not told. It stands behind ``EventWriter``, whose diary it continues.

    Args:
        tell: Gets each finding.
    """

    def __init__(self, tell: Callable[[Finding], None] = log_finding):
        self._tell = tell
        self._diary = EventLogHistory()
        self._told: dict[str, Verdict] = {}
        self._in_training = False  # an evaluation before it, or without one, is of a model that may be trained already
        self._judged_at, self._took_s = 0.0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take up the diary, which after a resume has the steps before."""
        self._told.clear()
        self._in_training = True
        self._diary = EventLogHistory()
        for event in read_events(args.output_dir) if state.is_world_process_zero else ():
            self._diary.add(event)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """Judge after a log line, and the whole after the last, which sums the run up."""
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
        self._diary.add({**values, "event": kind, "step": state.global_step})
        if (time.monotonic() - self._judged_at) * MOST_SHARE >= self._took_s:
            self._judge(args, state)

    def _judge(self, args: TrainingArguments, state: TrainerState) -> None:
        started_at = time.monotonic()
        for finding in judge(self._diary.build()):
            before = self._told.get(finding.rule, Verdict.HEALTHY)
            if finding.verdict.severity > before.severity:
                self._told[finding.rule] = finding.verdict
                self._pass_on(args, state, finding)
        self._judged_at = time.monotonic()
        self._took_s = self._judged_at - started_at

    def _pass_on(self, args: TrainingArguments, state: TrainerState, finding: Finding) -> None:
        self._tell(finding)
        told = finding.to_dict()
        append_event(args.output_dir, Event.FINDING, state.global_step, from_step=told.pop("step"), **told)
        send_alert(args.report_to or [], finding)


def send_alert(trackers: list[str] | str, finding: Finding) -> None:
    """Send a finding to the trackers of a run that have alerts.

    Sources: docs.wandb.ai, "Send an alert" (``wandb.alert``); Trackio's documentation, "Alerts" (``trackio.alert``).
    Comet, MLflow, TensorBoard and the others of ``report_to`` have none that a program can send.

    Args:
        trackers: ``report_to`` of the run.
        finding: The finding.
    """
    title, text = f"{finding.verdict}: {finding.rule.replace('_', ' ')}", one_line(finding)
    is_bad = finding.verdict is Verdict.ACT
    if "wandb" in trackers:
        import wandb

        if wandb.run is not None:
            level = wandb.AlertLevel.ERROR if is_bad else wandb.AlertLevel.WARN
            wandb.run.alert(title=title, text=text, level=level)
    if "trackio" in trackers:
        import trackio

        level = trackio.AlertLevel.ERROR if is_bad else trackio.AlertLevel.WARN
        trackio.alert(title=title, text=text, level=level)
