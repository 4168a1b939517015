"""What is measured, in which unit, under which name. The names are TRL's where TRL has one.

All quantities of a training log line are averaged over the optimizer steps since the last line, as ``loss`` is: each
step's value is exact over its pairs (a mean over pairs; over tokens for the NLL), whatever its split, so that
``loss = nll_loss + beta * or_loss`` on every line. An evaluation averages once over its whole set.

``logits/chosen`` and ``logits/rejected``, which TRL logs, are left out: a mean of raw logits over vocabulary, positions
and padding says nothing, and needs the full logits in memory.

Shape suffixes: B pairs of a micro-batch, P pairs of a set, Q quantities, K tokens of an answer that are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, nan
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback, TrainerState

from ..loss import log_odds
from ..model.logprobs.padded import PairLogps

# Sums over pairs, divided by the number of pairs of the step or the set.
PAIR_QUANTITIES = ("or_loss", "logp_chosen", "logp_rejected", "accuracy", "log_odds", "aux_loss")
# "nll" is divided by NLL target tokens; the rest stay sums.
QUANTITIES = (*PAIR_QUANTITIES, "nll", "nll_tokens", "pairs", "chosen_nll", "chosen_tokens", "tokens")
# What the lengths of responses follow from.
LENGTH_COLUMNS = ["chosen_end", "chosen_prompt_tokens", "rejected_end", "rejected_prompt_tokens"]
LEAST_CORRELATED_PAIRS = 8


def pair_sums(logps: PairLogps, batch: Mapping[str, Tensor]) -> Tensor:
    """Sums over the pairs of a micro-batch that count, [Q] in the order of ``QUANTITIES``, detached.

    Units: nats for log-probabilities and losses, 1 for accuracy. float64, because thousands of them are added.
    """
    dtype = torch.float32 if logps.nll_sum_B.device.type == "mps" else torch.float64  # mps has no float64
    chosen_B, rejected_B = logps.logp_chosen_B.detach().to(dtype), logps.logp_rejected_B.detach().to(dtype)
    odds_B = log_odds(chosen_B) - log_odds(rejected_B)
    aux = chosen_B.new_zeros(()) if logps.aux_loss is None else logps.aux_loss.detach().to(dtype)
    values = {
        "or_loss": -F.logsigmoid(odds_B),
        "logp_chosen": chosen_B,
        "logp_rejected": rejected_B,
        "accuracy": (chosen_B > rejected_B).to(dtype),
        "log_odds": odds_B,
        "aux_loss": aux.expand_as(chosen_B),
        "nll": logps.nll_sum_B.detach().to(dtype),
        "nll_tokens": logps.nll_tokens_B.to(dtype),
        "pairs": torch.ones_like(chosen_B),
        "chosen_nll": -chosen_B * logps.chosen_tokens_B,
        "chosen_tokens": logps.chosen_tokens_B.to(dtype),
        "tokens": logps.tokens_B.to(dtype),
    }
    weight_B = batch["weight"].to(dtype)
    return torch.stack([(values[name] * weight_B).sum() for name in QUANTITIES])


def divide(sums_Q: Tensor, num_pairs: Tensor | float, num_nll_tokens: Tensor | float) -> Tensor:
    """Pair quantities over the number of pairs, ``nll`` over the number of NLL tokens; the rest stay sums. [Q]"""
    divisor_Q = torch.ones_like(sums_Q)
    divisor_Q[: len(PAIR_QUANTITIES)] = num_pairs
    divisor_Q[QUANTITIES.index("nll")] = num_nll_tokens
    return sums_Q / divisor_Q


def named_metrics(values_Q: Tensor, beta: float, router_loss: bool = False) -> dict[str, float]:
    """Metrics under their public names, from what :func:`divide` made (averaged over steps in training)."""
    value = dict(zip(QUANTITIES, values_Q.tolist(), strict=True))
    perplexity = _exp(value["chosen_nll"] / value["chosen_tokens"])
    metrics = {
        "nll_loss": value["nll"],
        "or_loss": value["or_loss"],
        "rewards/chosen": beta * value["logp_chosen"],
        "rewards/rejected": beta * value["logp_rejected"],
        "rewards/accuracies": value["accuracy"],
        "rewards/margins": beta * (value["logp_chosen"] - value["logp_rejected"]),
        "logps/chosen": value["logp_chosen"],
        "logps/rejected": value["logp_rejected"],
        "log_odds_chosen": value["log_odds"],
        "log_odds_ratio": -value["or_loss"],
        "perplexity/chosen": perplexity,
    }
    return metrics | ({"aux_loss": value["aux_loss"]} if router_loss else {})


def _exp(x: float) -> float:
    return exp(x) if x < 700 else inf


def length_correlation(rows: Mapping[str, Sequence[int]], logps: Tensor) -> float | None:
    """How far the margin of a pair follows from its lengths alone: near 1 or -1 the model may have learned only those.

    Pearson's correlation, over the pairs of an evaluation, of ``chosen tokens - rejected tokens`` and
    ``logp_w - logp_l``. Both are responses' own: prompts do not count.

    Args:
        rows: The columns ``LENGTH_COLUMNS`` of the pairs.
        logps: ``[pairs, 2]``, what :meth:`EvaluationMeter.read` returns.

    Returns:
        The correlation, -1 to 1; ``None`` for fewer than ``LEAST_CORRELATED_PAIRS`` pairs or where either is constant.
    """
    chosen_end, chosen_start, rejected_end, rejected_start = (torch.tensor(rows[name]) for name in LENGTH_COLUMNS)
    chosen, rejected = chosen_end - chosen_start, rejected_end - rejected_start
    if len(chosen) != len(logps) or len(logps) < LEAST_CORRELATED_PAIRS:
        return None
    both_2P = torch.stack([(chosen - rejected).double(), (logps[:, 0] - logps[:, 1]).double()])
    if (both_2P.std(dim=1) == 0).any():
        return None
    return torch.corrcoef(both_2P)[0, 1].item()


def memory_gib() -> float:
    """Memory of this process in GiB: the most it has held of its GPU, or its resident memory where it has none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return psutil.Process().memory_info().rss / 2**30


class TrainingMeter(TrainerCallback):
    """Collects the micro-batches of a process between two log lines, and the seconds its steps took.

    As a callback of the trainer it keeps its own clock: the time of evaluations and saves does not count.
    """

    def __init__(self) -> None:
        self._total_Q: Tensor | None = None
        self._seconds = 0.0
        self._mark = 0.0
        self._last_step = 0
        self._skipped_steps = 0

    def add(self, sums_Q: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch: its sums, as a share of its step's averages."""
        share_Q = divide(sums_Q, batch["num_pairs"], batch["num_nll_tokens"])
        self._total_Q = share_Q if self._total_Q is None else self._total_Q.to(share_Q.device) + share_Q

    def state(self) -> dict[str, Any]:
        """What was added so far: for :meth:`restore`, which takes back what is added after this call."""
        return {
            "total": self._total_Q,
            "seconds": self._seconds,
            "last_step": self._last_step,
            "skipped_steps": self._skipped_steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to an earlier :meth:`state`, or take up that of a run that was interrupted."""
        self._total_Q, self._seconds = state["total"], state["seconds"]
        self._last_step, self._skipped_steps = state["last_step"], state["skipped_steps"]
        self._skipped_steps = state["skipped_steps"]

    def leave_out_step(self, before: dict[str, Any]) -> None:
        """Take a step that is skipped out of the averages; ``before`` is the :meth:`state` in which it began."""
        self.restore(before)
        self._last_step += 1
        self._skipped_steps += 1

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start at the first step, or where a checkpoint was taken."""
        self._total_Q, self._seconds, self._last_step, self._skipped_steps = None, 0.0, state.global_step, 0
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """An optimizer step is done: its seconds count."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The time of an evaluation does not count."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Nor does that of a save."""
        self._mark = time.perf_counter()

    def read(self, step: int, beta: float, reduce: Callable[[Tensor], Tensor], router_loss: bool) -> dict[str, float]:
        """Metrics since the last call, over all processes, and start anew.

        Args:
            step: Optimizer steps done so far.
            beta: Weight of the odds-ratio term.
            reduce: Sums a tensor over processes.
            router_loss: Whether the model has one.

        Returns:
            The metrics by name; nothing where no micro-batch was seen.
        """
        if self._total_Q is None:
            return {}
        total_Q = reduce(self._total_Q)
        steps = max(step - self._last_step, 1)
        mean_Q = total_Q.clone()
        mean_Q[: QUANTITIES.index("nll") + 1] /= steps
        metrics = named_metrics(mean_Q, beta, router_loss)
        if self._seconds > 0:
            for name, per_second in (("tokens", "tokens_per_second"), ("pairs", "pairs_per_second")):
                metrics[per_second] = total_Q[QUANTITIES.index(name)].item() / self._seconds
        if self._skipped_steps:
            metrics["skipped_steps"] = self._skipped_steps
        self._total_Q, self._seconds, self._last_step, self._skipped_steps = None, 0.0, step, 0
        return metrics | {"memory_gib": memory_gib()}


class EvaluatedPairs(NamedTuple):
    """What an evaluation found of each pair, in the order of the dataset.

    Args:
        logps_P2: Mean log-probability of chosen and rejected, nats a token, float32.
        tokens_P2K: Log-probability of the first K tokens of both, float16, on the CPU; 0 behind the end.
    """

    logps_P2: Tensor
    tokens_P2K: Tensor


class EvaluationMeter:
    """Collects one evaluation of a process: sums, and the log-probabilities of each pair.

    Args:
        kept_tokens: Of how many tokens of an answer the log-probabilities are kept (K).
    """

    def __init__(self, kept_tokens: int = 0) -> None:
        self._kept_tokens = kept_tokens
        self._sums_Q: Tensor | None = None
        self._pairs: list[tuple[int, float, float, np.ndarray]] = []

    def add(self, sums_Q: Tensor, logps: PairLogps, batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch."""
        self._sums_Q = sums_Q if self._sums_Q is None else self._sums_Q + sums_Q
        if batch["weight"][0] > 0:  # a filler's pairs belong to another process
            kept_SK = logps.response_logp_SL[:, : self._kept_tokens]
            kept_SK = F.pad(kept_SK, (0, self._kept_tokens - kept_SK.shape[1])).to("cpu", torch.float16)
            self._pairs += zip(
                batch["position"].tolist(),
                logps.logp_chosen_B.tolist(),
                logps.logp_rejected_B.tolist(),
                torch.stack(kept_SK.chunk(2), dim=1).numpy(),  # a tensor's view would be sent with all it is a view of
                strict=True,
            )

    def read(
        self,
        beta: float,
        aux_coefficient: float | None,
        reduce: Callable[[Tensor], Tensor],
        gather: Callable[[list], list],
    ) -> tuple[dict[str, float], EvaluatedPairs]:
        """Metrics over the whole set and all processes, and its pairs.

        Args:
            beta: Weight of the odds-ratio term.
            aux_coefficient: Weight of the router loss; ``None`` without one.
            reduce: Sums a tensor over processes.
            gather: Concatenates lists over processes.

        Returns:
            Metrics by name, ``loss`` included, and the pairs.
        """
        pairs = self.pairs(gather)
        if self._sums_Q is None:
            return {}, pairs
        sums_Q = reduce(self._sums_Q)
        num_pairs, num_nll_tokens = (sums_Q[QUANTITIES.index(name)] for name in ("pairs", "nll_tokens"))
        metrics = named_metrics(divide(sums_Q, num_pairs, num_nll_tokens), beta, aux_coefficient is not None)
        loss = metrics["nll_loss"] + beta * metrics["or_loss"]
        if aux_coefficient is not None:
            loss += aux_coefficient * metrics["aux_loss"]
        if not sums_Q.isfinite().all():  # a mean without the pairs that are no numbers would be of another set
            loss, metrics = nan, dict.fromkeys(metrics, nan)
        return {"loss": loss} | metrics, pairs

    def pairs(self, gather: Callable[[list], list]) -> EvaluatedPairs:
        """The pairs of all processes.

        Args:
            gather: Concatenates lists over processes.

        Returns:
            Them, in the order of the dataset.
        """
        found = sorted(gather(self._pairs), key=lambda pair: pair[0])
        if not found:
            return EvaluatedPairs(torch.zeros(0, 2), torch.zeros(0, 2, self._kept_tokens, dtype=torch.float16))
        return EvaluatedPairs(
            torch.tensor([logps for _, *logps, _ in found]),
            torch.from_numpy(np.stack([kept_2K for *_, kept_2K in found])),
        )
