"""Watch a probe from within its training: shorten it, report its evaluations, and say how it ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..diagnose.findings import Finding, Verdict, overall
from ..diagnose.readers import read_history
from ..diagnose.rules import judge
from ..loss import pair_log_odds
from .objective import mean_cost
from .results import Evaluation

EVALUATIONS = 4  # of a probe, evenly spaced, the last after its last step
FEWEST_STEPS = 10  # of which the diagnosis says that nothing is learned
ANCHOR = "anchor"  # an evaluation set of text that has nothing to do with the pairs
DIGESTED = ("chosen_input_ids", "rejected_input_ids", "prompt_input_ids")


class ProbedRun(Protocol):
    """What is needed of the trainer of a probe."""

    args: Any
    eval_dataset: Any
    evaluation_meter: Any  # of the last evaluation


class Reporter(TrainerCallback):
    """Reports each evaluation of a probe, and stops the training where the answer says so.

    Args:
        run: The trainer.
        tell_step: Called with the steps done and those of the probe.
        tell_evaluation: Called with the figures of an evaluation; returns whether to go on.
    """

    def __init__(
        self, run: ProbedRun, tell_step: Callable[[int, int], None], tell_evaluation: Callable[[Evaluation], bool]
    ):
        self._run, self._tell_step, self._tell_evaluation = run, tell_step, tell_evaluation
        self.evaluations: list[Evaluation] = []
        self.log_odds: list[float] = []
        self.logp_chosen: list[float] = []
        self.is_pruned = False
        self._sets: dict[str, Tensor] = {}  # of this evaluation, by the prefix of their metrics

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell how far the probe is."""
        self._tell_step(state.global_step, state.max_steps)

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Report an evaluation once all its sets are measured."""
        names = _sets_of(self._run)
        name = next((one for one in names if f"{one}_loss" in (metrics or {})), None)
        if name is None:
            return
        self._sets[name] = self._run.evaluation_meter.pairs(list).logps_P2.double()
        if len(self._sets) < len(names):
            return
        logps_P2 = [self._sets[one] for one in names]
        self._sets = {}
        self.logp_chosen = [value for one in logps_P2 for value in one[:, 0].tolist()]
        self.log_odds = [value for one in logps_P2 for value in pair_log_odds(one[:, 0], one[:, 1]).tolist()]
        pairs = max(len(self.log_odds), 1)
        evaluation = Evaluation(
            state.global_step,
            mean_cost(self.log_odds, self.logp_chosen),
            sum(self.log_odds) / pairs,
            -sum(self.logp_chosen) / pairs,
        )
        self.evaluations.append(evaluation)
        is_last = state.global_step >= state.max_steps
        if not is_last and not self._tell_evaluation(evaluation):
            self.is_pruned = control.should_training_stop = True


def shorten(args: Any, steps_of_run: int, wanted: int) -> int:
    """Make the run of a trainer a probe: fewer steps, with the warm-up and the schedule of the run in the same shape.

    Args:
        args: The settings of the trainer, which are changed.
        steps_of_run: Steps of the recipe's run.
        wanted: Steps of a probe; a shorter run is not made longer, but for the fewest that can be judged.

    Returns:
        The steps of the probe.
    """
    steps = max(FEWEST_STEPS, min(wanted, steps_of_run))
    if args.warmup_steps >= 1:
        args.warmup_steps = max(1, round(args.warmup_steps * steps / steps_of_run))
    args.max_steps = steps
    args.eval_steps = math.ceil(steps / EVALUATIONS)
    return steps


def diagnosed(folder: str | Path) -> tuple[Verdict, str]:
    """Return the verdict on the run in a folder, and its worst finding in a line."""
    findings: list[Finding] = judge(read_history(folder))
    verdict = overall(finding.verdict for finding in findings)
    worst = next((one for one in findings if one.verdict is verdict and verdict.asks_for_a_look), None)
    return verdict, "" if worst is None else f"{worst.rule.replace('_', ' ')}: {worst.evidence}"


def digest_of(rows: Any) -> str:
    """Return a digest of the tokens of the held-out pairs: two probes with the same one were judged on the same."""
    digest = hashlib.sha256()
    for one in rows.values() if isinstance(rows, Mapping) else [rows]:
        for row in one:
            digest.update(json.dumps([list(row.get(name) or ()) for name in DIGESTED]).encode())
    return digest.hexdigest()[:32]


def _sets_of(run: ProbedRun) -> list[str]:
    """Return the prefixes of the evaluation sets that count."""
    if not isinstance(run.eval_dataset, Mapping):
        return ["eval"]
    return [f"eval_{name}" for name in run.eval_dataset if name != ANCHOR or len(run.eval_dataset) == 1]
