"""Train on a loss of one's own (``ORPOTrainer.pair_losses``): on either path, exact over the step.

    get_batch_samples    counted: the NLL targets that the loss keeps, over the whole step
    compute_loss         applied: the losses, from the log-probabilities of a micro-batch

Shape suffixes: B pairs of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from ..errors import ConfigError
from ..loss import orpo_loss
from ..model.logprobs.padded import PairLogps
from ..model.logprobs.pair_tokens import PairLosses, PairTokens, Tokens
from .step import Stepper

KEPT = "kept_nll_tokens"  # of a micro-batch: how many NLL targets its pairs keep, or -1 for all


def micro_batch_loss(logps: PairLogps, batch: Mapping[str, Any], *, beta: float, router_coefficient: float) -> Tensor:
    """Return the share of a micro-batch in the loss of its optimizer step (see ``loss.orpo_loss``), scalar, nats.

    A loss of one's own takes the place of ``beta * L_OR``; ``router_coefficient`` weighs the router loss.
    """
    weight_B = batch["weight"].to(logps.nll_sum_B.dtype)
    nll_sum = (logps.nll_sum_B * weight_B).sum()
    if logps.own is None:
        loss = orpo_loss(
            nll_sum,
            logps.logp_chosen_B,
            logps.logp_rejected_B,
            beta=beta,
            num_nll_tokens=batch["num_nll_tokens"],
            num_pairs=batch["num_pairs"],
            weight_B=weight_B,
        ).loss
    else:
        loss = nll_sum / batch["num_nll_tokens"] + (logps.own.loss_B * weight_B).sum() / batch["num_pairs"]
    if logps.aux_loss is not None:
        loss = loss + router_coefficient * logps.aux_loss * (weight_B.sum() / batch["num_pairs"])
    return loss


class LossOfOnesOwn(Protocol):
    """What an :class:`OwnLoss` needs of the trainer."""

    stepper: Stepper
    model: nn.Module

    def is_overridden(self, name: str) -> bool: ...  # whether a subclass replaces a method
    def pair_losses(self, pairs: PairTokens) -> PairLosses: ...  # compute the losses
    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]: ...  # move a batch to the device
    def sum_over_processes(self, tensor: Tensor) -> Tensor: ...  # return the sum


class OwnLoss(TrainerCallback):
    """Calls the ``pair_losses`` of a trainer, where a subclass has overridden it.

    Args:
        run: The trainer.
    """

    def __init__(self, run: LossOfOnesOwn):
        self._run = run
        self._is_other: list[Tensor] = []  # of each micro-batch of a step, on its device: whether it keeps other tokens

    def applied(self, logps: PairLogps, batch: Mapping[str, Any], beta: float) -> PairLogps:
        """Return the log-probabilities of a micro-batch with its losses, and with the NLL of the tokens they keep.

        Args:
            logps: Of the micro-batch.
            batch: The micro-batch, with ``KEPT`` if it was counted.
            beta: Weight of the odds-ratio term in this step.

        Returns:
            The same without a loss of one's own.

        Raises:
            ConfigError: The loss has not the shape of ``PairLosses``.
        """
        if not self._run.is_overridden("pair_losses"):
            return logps
        own = self._losses(batch, beta, logps.token_logps)
        if own.nll is not None:
            logps = logps._replace(nll_sum_B=-own.nll.sum_B, nll_tokens_B=own.nll.count_B)
        if KEPT in batch:
            kept = own.loss_B.new_full((), -1.0) if own.nll is None else _kept(own.nll, batch)
            self._is_other.append(kept != batch[KEPT])
            if not self._run.model.training:
                self.require_same_tokens()
        return logps._replace(own=own)

    def counted(self, items: list[Any], *, is_training: bool) -> list[Any]:
        """Return the items of a step, their NLL divided by the number of targets kept in the whole step.

        The loss is called with log-probabilities of 0: which tokens are kept must follow from the tokens.
        """
        if not self._run.is_overridden("pair_losses"):
            return items
        self._run.model.train(is_training)  # an evaluation may have been made since the last step
        items = [self._run.prepare_inputs(item) for item in items]
        micro_batches = [batch for item in items for batch in item.get("micro_batches", [item])]
        with torch.no_grad():
            kept = [
                None if own.nll is None else _kept(own.nll, batch)
                for batch in micro_batches
                for own in [self._losses(batch, beta=0.0)]
            ]
        counts = [count for count in kept if count is not None]
        if len(counts) not in (0, len(micro_batches)):
            raise ConfigError("pair_losses returns nll for some micro-batches of a step, and none for others")
        for batch in micro_batches:
            batch[KEPT] = -1
        if counts:
            total = self._run.sum_over_processes(torch.stack(counts).sum()).clamp(min=1)  # a step may keep none
            for batch, count in zip(micro_batches, counts, strict=True):
                batch["num_nll_tokens"], batch[KEPT] = total, count
        return items

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Forget the micro-batches of a step before."""
        self._is_other = []

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Look at the micro-batches of a step at once, where the guard waits for a GPU as well."""
        self.require_same_tokens()

    def require_same_tokens(self) -> None:
        """Raise ``ConfigError`` if the tokens that the loss keeps depend on their log-probabilities."""
        found, self._is_other = self._is_other, []
        if found and torch.stack(found).any():
            raise ConfigError(
                "pair_losses keeps other tokens in nll than before the step, when it got log-probabilities of 0, so the"
                " step would be divided by a wrong number; choose them by ids_BL"
            )

    def _losses(self, batch: Mapping[str, Any], beta: float, token_logps: Tensor | None = None) -> PairLosses:
        """Call the loss on a micro-batch, and check what it returns."""
        pairs = self._run.stepper.path_of(batch).tokens(batch, token_logps)
        row_B = None if "foreign" in batch else batch["row"]
        return _checked(self._run.pair_losses(pairs._replace(beta=beta, row_B=row_B)), len(batch["weight"]))


def _kept(nll: Tokens, batch: Mapping[str, Tensor]) -> Tensor:
    """Count the NLL targets of the pairs that count, as float32, which ``num_nll_tokens`` is."""
    return (nll.count_B * (batch["weight"] > 0)).sum().float()


def _checked(own: Any, num_pairs: int) -> PairLosses:
    """Return what ``pair_losses`` returned; ``ConfigError`` where it has another shape."""
    if not isinstance(own, PairLosses):
        raise ConfigError(f"pair_losses returned a {type(own).__name__}; expected oddsmith.PairLosses")
    for name, value_B in {"loss_B": own.loss_B, **own.metrics}.items():
        shape = tuple(value_B.shape) if isinstance(value_B, Tensor) else None
        if shape != (num_pairs,):
            what = f"of shape {shape}" if shape is not None else f"that is a {type(value_B).__name__}"
            raise ConfigError(
                f"pair_losses returned {name} {what}; expected one of shape ({num_pairs},): a value for each pair, not"
                " reduced"
            )
    if own.nll is not None and not (isinstance(own.nll, Tokens) and len(own.nll.ids_BL) == num_pairs):
        raise ConfigError("pair_losses returned something else as nll than the tokens of its pairs, cut by where")
    return own
