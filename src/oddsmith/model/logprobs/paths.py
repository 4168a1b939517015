"""The two ways a micro-batch is laid out and computed: packed as a PrefixForest, or padded. Results are the same.

A path says how rows become tensors, how long pairs are for it, what must be in place around a step, and how the model
turns tensors into log-probabilities. The packed one is taken wherever the self-check agrees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ...batching.collate import PaddedTensors
from ...batching.forest import ForestTensors
from ...batching.items import BatchMaker, LoadedRows
from ...batching.plan import Lengths, lengths_of
from .attention.interface import forest_attention_in
from .memory_saving import LeanLayers
from .output_transform import OutputTransform
from .packed import forest_logps
from .padded import PairLogps, pair_logps

logger = logging.getLogger(__name__)


@dataclass
class PaddedPath:
    """Padded batches: any model, any collator.

    Args:
        collator: Pads.
        pad_token_id: Fills the shorter side.
        nll_on: ``"sequence"`` or ``"response"``.
        is_encoder_decoder: Kind of model.
        router_loss: Ask the model for its router loss.
        reason: Why not the packed path, for people; empty where nobody asked.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    pad_token_id: int
    nll_on: str
    is_encoder_decoder: bool
    router_loss: bool
    reason: str = ""

    name = "padded batches"
    max_tokens = None

    @property
    def batch_maker(self) -> BatchMaker:
        """Rows -> padded tensors; every item is one micro-batch, under TRL's names."""
        return BatchMaker(PaddedTensors(self.collator, self.is_encoder_decoder), one_each=True)

    @property
    def measure(self) -> Callable[[Mapping[str, Sequence[int]]], Lengths]:
        """Columns -> lengths of pairs."""
        return partial(lengths_of, nll_on=self.nll_on, is_encoder_decoder=self.is_encoder_decoder)

    def around(self, model: nn.Module) -> AbstractContextManager[None]:
        """What a step is done inside of."""
        return nullcontext()

    def halved(self, loaded: LoadedRows | None) -> int | None:
        """Micro-batches are as the batch sizes say: nothing to be done about memory."""
        return None

    def logps(self, model: nn.Module, batch: Mapping[str, Any]) -> PairLogps:
        """Log-probabilities of a micro-batch."""
        return pair_logps(
            model,
            batch,
            pad_token_id=self.pad_token_id,
            nll_on=self.nll_on,
            is_encoder_decoder=self.is_encoder_decoder,
            router_loss=self.router_loss,
        )


@dataclass
class ForestPath:
    """Packed rows.

    Args:
        nll_on: ``"sequence"`` or ``"response"``.
        transform: What the model does to its logits.
        lean: Its layers that keep less for the backward pass.
        reason: What the self-check found, for people.
        max_tokens: Most tokens of a micro-batch; ``None`` leaves micro-batches as the batch sizes say.
    """

    nll_on: str
    transform: OutputTransform
    lean: LeanLayers
    reason: str
    max_tokens: int | None = None

    name = "prefix forest"

    @property
    def batch_maker(self) -> BatchMaker:
        """Rows -> packed tensors."""
        return BatchMaker(ForestTensors(self.nll_on))

    @property
    def measure(self) -> Callable[[Mapping[str, Sequence[int]]], Lengths]:
        """Columns -> lengths of pairs; their prompts count once."""
        return partial(lengths_of, nll_on=self.nll_on, shared_prompt=True)

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """What a step is done inside of."""
        with forest_attention_in(model), self.lean.applied():
            yield

    def halved(self, loaded: LoadedRows | None) -> int | None:
        """Halve the budget because memory ran out, and say so.

        Args:
            loaded: The rows it ran out over; ``None`` where they are not known.

        Returns:
            The new ``max_tokens``; ``None`` where that would not help: every micro-batch is a single pair already, or
            micro-batches are as the batch sizes say.
        """
        if self.max_tokens is None or loaded is None or all(len(rows) < 2 for rows in loaded.rows):
            return None
        longest = max(sum(int(self.measure(row).tokens) for row in rows) for rows in loaded.rows if len(rows) > 1)
        if longest <= self.max_tokens:  # otherwise a worker made the item before the budget was last halved
            self.max_tokens = longest // 2
            logger.warning(
                f"out of memory with {longest:,} tokens in a micro-batch: the step is repeated, from here on with at"
                f" most {self.max_tokens:,}"
            )
        return self.max_tokens

    def logps(self, model: nn.Module, batch: Mapping[str, Any]) -> PairLogps:
        """Log-probabilities of a micro-batch."""
        return forest_logps(model, batch, transform=self.transform)
