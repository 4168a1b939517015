"""Compute the metrics of ``metrics.py`` from the log-probabilities of micro-batches.

A training log line averages every quantity over the optimizer steps since the last line, as ``loss`` is averaged. The
value of a step is exact over its pairs (a mean over pairs; over tokens for the NLL), however the step was split, so
``loss = nll_loss + beta * or_loss`` holds on every line while beta stays as it is. An evaluation averages once over its
whole set.

``logits/chosen`` and ``logits/rejected``, which TRL logs, are left out: a mean of raw logits over vocabulary, positions
and padding says nothing, and needs the full logits in memory.

Shape suffixes: B pairs of a micro-batch, P pairs of a set, Q quantities, K tokens of a response that are kept.
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

from ..batching.plan import response_tokens
from ..checkpoint.values import figure, sums, whole
from ..data.tokens.tokenized import GAP_COLUMNS
from ..loss import odds_ratio_loss, pair_log_odds
from ..model.logprobs.padded import PairLogps
from .gpu_readings import GpuReadings

# Sums over pairs, divided by the number of pairs of the step or the set.
PAIR_QUANTITIES = (
    *("or_loss", "logp_chosen", "logp_rejected", "accuracy", "log_odds", "aux_loss"),
    # With the beta of their step. The first is what is added to the NLL: beta * L_OR, or a loss of one's own.
    *("pair_term", "reward_chosen", "reward_rejected"),
)
# "nll" is divided by NLL target tokens; the rest stay sums.
QUANTITIES = (*PAIR_QUANTITIES, "nll", "nll_tokens", "pairs", "chosen_nll", "chosen_tokens", "tokens")
# Beside them, of a loss of one's own: it and its metrics, as means over pairs.
OWN_LOSS = "pair_loss"
# The columns that give the lengths of both responses.
LENGTH_COLUMNS = ["chosen_end", "chosen_prompt_tokens", "rejected_end", "rejected_prompt_tokens"]
MIN_CORRELATED_PAIRS = 8


def quantities_of(logps: PairLogps) -> tuple[str, ...]:
    """Return the names of what :func:`pair_sums` sums: ``QUANTITIES``, and those of a loss of one's own."""
    return QUANTITIES if logps.own is None else (*QUANTITIES, OWN_LOSS, *logps.own.metrics)


def pair_sums(logps: PairLogps, batch: Mapping[str, Tensor], beta: float) -> Tensor:
    """Sum every quantity over the pairs of a micro-batch that count, detached: [Q] as :func:`quantities_of` names them.

    Log-probabilities and losses are in nats, accuracy is 0 or 1. float64, because thousands of them are added.
    ``beta`` is the weight of the odds-ratio term in this step.
    """
    dtype = torch.float32 if logps.nll_sum_B.device.type == "mps" else torch.float64  # mps has no float64
    chosen_B, rejected_B = logps.logp_chosen_B.detach().to(dtype), logps.logp_rejected_B.detach().to(dtype)
    aux = chosen_B.new_zeros(()) if logps.aux_loss is None else logps.aux_loss.detach().to(dtype)
    or_loss_B = odds_ratio_loss(chosen_B, rejected_B)
    values = {
        "or_loss": or_loss_B,
        "logp_chosen": chosen_B,
        "logp_rejected": rejected_B,
        "accuracy": (chosen_B > rejected_B).to(dtype),
        "log_odds": pair_log_odds(chosen_B, rejected_B),
        "aux_loss": aux.expand_as(chosen_B),
        "pair_term": beta * or_loss_B,
        "reward_chosen": beta * chosen_B,
        "reward_rejected": beta * rejected_B,
        "nll": logps.nll_sum_B.detach().to(dtype),
        "nll_tokens": logps.nll_tokens_B.to(dtype),
        "pairs": torch.ones_like(chosen_B),
        "chosen_nll": -chosen_B * logps.chosen_tokens_B,
        "chosen_tokens": logps.chosen_tokens_B.to(dtype),
        "tokens": logps.tokens_B.to(dtype),
    }
    summed = [values[name] for name in QUANTITIES]
    if logps.own is not None:
        own_B = logps.own.loss_B.detach().to(dtype)
        summed[QUANTITIES.index("pair_term")] = own_B
        summed += [own_B, *(value_B.detach().to(dtype) for value_B in logps.own.metrics.values())]
    return (torch.stack(summed) * batch["weight"].to(dtype)).sum(dim=1)  # not one by one: 30 kernels less to launch


def divide(sums_Q: Tensor, num_pairs: Tensor | float, num_nll_tokens: Tensor | float) -> Tensor:
    """Divide pair quantities by the number of pairs and ``nll`` by the number of NLL tokens; the rest stay sums. [Q]"""
    divisor_Q = torch.ones_like(sums_Q)
    divisor_Q[: len(PAIR_QUANTITIES)] = num_pairs
    divisor_Q[QUANTITIES.index("nll")] = num_nll_tokens
    divisor_Q[len(QUANTITIES) :] = num_pairs
    return sums_Q / divisor_Q


def named_metrics(
    values_Q: Sequence[float], router_loss: bool = False, names: Sequence[str] = QUANTITIES
) -> dict[str, float]:
    """Name what :func:`divide` returned (averaged over steps in training) as ``metrics.py`` does."""
    value = dict(zip(QUANTITIES, values_Q, strict=False))
    own = dict(zip(names[len(QUANTITIES) :], values_Q[len(QUANTITIES) :], strict=True))
    chosen_nll = value["chosen_nll"] / value["chosen_tokens"]
    metrics = {
        "nll_loss": value["nll"],
        "or_loss": value["or_loss"],
        "rewards/chosen": value["reward_chosen"],
        "rewards/rejected": value["reward_rejected"],
        "rewards/accuracies": value["accuracy"],
        "rewards/margins": value["reward_chosen"] - value["reward_rejected"],
        "logps/chosen": value["logp_chosen"],
        "logps/rejected": value["logp_rejected"],
        "log_odds_chosen": value["log_odds"],
        "log_odds_ratio": -value["or_loss"],
        "perplexity/chosen": exp(chosen_nll) if chosen_nll < 700 else inf,
    }
    return metrics | ({"aux_loss": value["aux_loss"]} if router_loss else {}) | own


def lengths_in(rows: Any) -> Mapping[str, Any]:
    """Return the columns of tokenized pairs that give the lengths of their responses."""
    gaps = [name for name in GAP_COLUMNS if name in getattr(rows, "column_names", ())]
    return {name: rows[name][:] for name in (*LENGTH_COLUMNS, *gaps)}


def length_correlation(rows: Mapping[str, Sequence[int]], logps: Tensor) -> float | None:
    """Correlate the length difference of pairs with their margin; near 1 or -1 the model may have learned only length.

    Pearson's correlation, over the pairs of an evaluation, of ``chosen tokens - rejected tokens`` and
    ``logp_w - logp_l``. Prompts do not count.

    Args:
        rows: The columns of the pairs that :func:`batching.plan.response_tokens` reads, of both sides.
        logps: ``[pairs, 2]``, what :meth:`EvaluationMeter.read` returns.

    Returns:
        The correlation, -1 to 1; ``None`` for fewer than ``MIN_CORRELATED_PAIRS`` pairs or where either is constant.
    """
    chosen, rejected = (torch.from_numpy(response_tokens(rows, side)) for side in ("chosen", "rejected"))
    if len(chosen) != len(logps) or len(logps) < MIN_CORRELATED_PAIRS:
        return None
    both_2P = torch.stack([(chosen - rejected).double(), (logps[:, 0] - logps[:, 1]).double()])
    if (both_2P.std(dim=1) == 0).any():
        return None
    return torch.corrcoef(both_2P)[0, 1].item()


def memory_gib() -> float:
    """Return the most GiB this process has held of its GPU; without a GPU, its resident memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**30
    return psutil.Process().memory_info().rss / 2**30


class TrainingMeter(TrainerCallback):
    """Sum the micro-batches of this process between two log lines, and the seconds its steps took.

    As a callback of the trainer it keeps its own clock, so that evaluations and saves do not count.
    """

    state_version = 1

    def __init__(self) -> None:
        self._names: Sequence[str] = QUANTITIES
        self._total_Q: Tensor | None = None
        self._seconds = 0.0
        self._mark = 0.0
        self._last_step = 0
        self._skipped_steps = 0
        self._gpu = GpuReadings()
        # Of all processes, up to the last log line; None after a checkpoint that does not tell.
        self._num_tokens: int | None = 0

    def add(self, sums_Q: Tensor, batch: Mapping[str, Tensor], names: Sequence[str] = QUANTITIES) -> None:
        """Add what :func:`pair_sums` returned for a micro-batch, as a share of the averages of its step."""
        self._names = names
        share_Q = divide(sums_Q, batch["num_pairs"], batch["num_nll_tokens"])
        self._total_Q = share_Q if self._total_Q is None else self._total_Q.to(share_Q.device) + share_Q

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, with the names of the quantities, so that another version can read them."""
        return {
            "quantities": list(self._names),
            "total": self._total_Q,
            "seconds": self._seconds,
            "last_step": self._last_step,
            "skipped_steps": self._skipped_steps,
            "num_tokens": self._num_tokens,
        }

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Go back to an earlier :meth:`state_dict`, or continue the sums of an interrupted run.

        Sums of a version with other quantities are dropped: the first log line then averages the steps since the
        checkpoint. After a state without a count of tokens none is logged, which would begin at 0 in the middle of the
        run.
        """
        num_tokens = state.get("num_tokens")
        self._num_tokens = None if num_tokens is None else whole(num_tokens)
        names = state.get("quantities", ())
        if list(names[: len(QUANTITIES)]) != list(QUANTITIES):
            return
        total = state["total"]
        self._names = [str(name) for name in names]
        self._total_Q = None if total is None else sums(total, len(names))
        self._seconds = figure(state["seconds"])
        self._last_step, self._skipped_steps = whole(state["last_step"]), whole(state["skipped_steps"])

    @staticmethod
    def redistribute(states: Sequence[Mapping[str, Any]], world_size: int) -> dict[str, Any]:
        """Spread the sums of all former ranks evenly over ``world_size`` ranks, so that their total stays."""
        totals = [state["total"] for state in states if state["total"] is not None]
        return {**states[0], "total": torch.stack(totals).sum(dim=0) / world_size if totals else None}

    def leave_out_step(self, before: Mapping[str, Any]) -> None:
        """Remove a skipped step from the averages; ``before`` is the :meth:`state_dict` at its beginning."""
        self.load_state_dict(before)
        self._last_step += 1
        self._skipped_steps += 1

    @property
    def seconds(self) -> float:
        """What the steps since the last log line took."""
        return self._seconds

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start at the first step, or at that of the checkpoint."""
        self._start_interval(state.global_step)
        self._num_tokens = 0
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count the seconds of an optimizer step."""
        now = time.perf_counter()
        self._seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave out the time of an evaluation."""
        self._mark = time.perf_counter()

    on_save = on_evaluate

    def read(
        self, step: int, reduce: Callable[[Tensor], Tensor], router_loss: bool, processes: int = 1
    ) -> dict[str, float]:
        """Return the metrics since the last call, over all processes, and start a new interval.

        Args:
            step: Optimizer steps done so far.
            reduce: Sums a tensor over processes.
            router_loss: Whether the model has one.
            processes: How many there are: one for each GPU.

        Returns:
            The metrics by name; nothing where no micro-batch was added.
        """
        if self._total_Q is None:
            return {}
        mean_Q = reduce(self._total_Q).clone()
        mean_Q[: QUANTITIES.index("nll") + 1] /= max(step - self._last_step, 1)
        mean_Q[len(QUANTITIES) :] /= max(step - self._last_step, 1)
        means = mean_Q.tolist()  # the one time that a log line waits for a GPU; tokens and pairs are sums in it, too
        metrics = named_metrics(means, router_loss, self._names)
        if self._num_tokens is not None:
            self._num_tokens += round(means[QUANTITIES.index("tokens")])
            metrics["num_tokens"] = self._num_tokens
        if self._seconds > 0:
            for name in ("tokens", "pairs"):
                metrics[f"{name}_per_second"] = means[QUANTITIES.index(name)] / self._seconds
            if processes > 1:
                metrics["tokens_per_second_per_gpu"] = metrics["tokens_per_second"] / processes
        if self._skipped_steps:
            metrics["skipped_steps"] = self._skipped_steps
        self._start_interval(step)
        return metrics | {"memory_gib": memory_gib()} | self._gpu.read()

    def _start_interval(self, step: int) -> None:
        self._total_Q, self._seconds, self._last_step, self._skipped_steps = None, 0.0, step, 0


class EvaluatedPairs(NamedTuple):
    """What an evaluation measured of each pair, in the order of the dataset.

    Args:
        logps_P2: Mean log-probability of chosen and rejected, nats per token, float32.
        tokens_P2K: Log-probability of the first K tokens of both, float16, on the CPU; 0 after the end.
        nll_P: Mean NLL of the target tokens of each chosen sequence, nats per token, float32; ``None`` where it was
            not kept.
        own_P: A loss of one's own of each pair; ``None`` without one.
    """

    logps_P2: Tensor
    tokens_P2K: Tensor
    nll_P: Tensor | None = None
    own_P: Tensor | None = None

    def losses(self, beta: float) -> Tensor:
        """Return ``NLL + beta * L_OR`` of each pair by itself, or the NLL and a loss of one's own. [P]"""
        if self.nll_P is None:
            raise ValueError("the NLL of these pairs was not kept")
        if self.own_P is not None:
            return self.nll_P + self.own_P
        return self.nll_P + beta * odds_ratio_loss(self.logps_P2[:, 0], self.logps_P2[:, 1])


class EvaluationMeter:
    """Collect one evaluation of this process: sums, and the log-probabilities of each pair.

    Args:
        kept_tokens: For how many tokens of a response the log-probabilities are kept (K).
    """

    def __init__(self, kept_tokens: int = 0) -> None:
        self._kept_tokens = kept_tokens
        self._names: Sequence[str] = QUANTITIES
        self._sums_Q: Tensor | None = None
        # Of each micro-batch, on its device: for its pairs weight, position, mean log-probabilities of both responses,
        # mean NLL and loss; and the log-probabilities of tokens that are kept. Reading them at once would stall a GPU.
        self._numbers_N6: list[Tensor] = []
        self._kept_N2K: list[Tensor] = []
        self._loss_sum, self._loss_weight = 0.0, 0.0

    @property
    def num_pairs(self) -> int:
        """Pairs of this process so far."""
        return sum(map(len, self._numbers_N6))

    def add(self, sums_Q: Tensor, logps: PairLogps, batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch."""
        self._names = quantities_of(logps)
        self._sums_Q = sums_Q if self._sums_Q is None else self._sums_Q + sums_Q
        numbers = (
            batch["weight"],
            batch["position"],
            logps.logp_chosen_B,
            logps.logp_rejected_B,
            logps.nll_sum_B / logps.nll_tokens_B.clamp(min=1),
            logps.logp_chosen_B if logps.own is None else logps.own.loss_B,
        )
        self._numbers_N6.append(torch.stack([values_B.detach().to(sums_Q.dtype) for values_B in numbers], dim=1))
        kept_SK = logps.response_logp_SL[:, : self._kept_tokens]
        kept_SK = F.pad(kept_SK, (0, self._kept_tokens - kept_SK.shape[1])).to(torch.float16)
        self._kept_N2K.append(torch.stack(kept_SK.chunk(2), dim=1))

    def add_loss(self, loss: Tensor, num_pairs: Tensor | float) -> None:
        """Add the loss of a loader item, which belongs to an evaluation step of ``num_pairs`` over all processes."""
        self._loss_sum += float(loss) * float(num_pairs)
        self._loss_weight += float(num_pairs)

    def mean_loss(self, reduce: Callable[[Tensor], Tensor]) -> float:
        """Return the mean over pairs of the losses that were added; for a loss that is not ours."""
        total, weight = reduce(torch.tensor([self._loss_sum, self._loss_weight])).tolist()
        return total / weight if weight else nan

    def read(
        self,
        aux_coefficient: float | None,
        reduce: Callable[[Tensor], Tensor],
        gather: Callable[[list], list],
    ) -> tuple[dict[str, float], EvaluatedPairs]:
        """Return the metrics over the whole set and all processes, and the pairs.

        Args:
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
        means_Q = divide(sums_Q, num_pairs, num_nll_tokens.clamp(min=1))  # a loss of one's own may leave the NLL out
        means = means_Q.tolist()
        metrics = named_metrics(means, aux_coefficient is not None, self._names)
        loss = metrics["nll_loss"] + means[QUANTITIES.index("pair_term")]
        if aux_coefficient is not None:
            loss += aux_coefficient * metrics["aux_loss"]
        if not sums_Q.isfinite().all():  # a mean without the pairs that are NaN or infinite would be of another set
            loss, metrics = nan, dict.fromkeys(metrics, nan)
        return {"loss": loss} | metrics, pairs

    def pairs(self, gather: Callable[[list], list]) -> EvaluatedPairs:
        """Return the pairs of all processes in the order of the dataset; ``gather`` concatenates lists over them."""
        own: list[tuple[Any, ...]] = []
        if self._numbers_N6:
            numbers_N6, kept_N2K = torch.cat(self._numbers_N6).tolist(), torch.cat(self._kept_N2K).cpu().numpy()
            # A filler, of weight 0, repeats pairs of another process.
            own = [(*rest, kept_2K) for (weight, *rest), kept_2K in zip(numbers_N6, kept_N2K, strict=True) if weight]
        found = sorted(gather(own), key=lambda pair: pair[0])
        if not found:
            no_tokens = torch.zeros(0, 2, self._kept_tokens, dtype=torch.float16)
            return EvaluatedPairs(torch.zeros(0, 2), no_tokens, torch.zeros(0))
        return EvaluatedPairs(
            torch.tensor([[chosen, rejected] for _, chosen, rejected, *_ in found]),
            torch.from_numpy(np.stack([kept_2K for *_, kept_2K in found])),
            torch.tensor([nll for *_, nll, _, _ in found]),
            torch.tensor([own for *_, own, _ in found]) if len(self._names) > len(QUANTITIES) else None,
        )
