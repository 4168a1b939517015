"""Which pass over the pairs a run is in: counted alike whether it has been interrupted or not.

transformers counts passes by steps. Of a stream it does not know how many a pass has, and takes it for one pass:

    stream of 6 steps, max_steps 13      steps  1 ... 6   7 ... 12   13
                                         pass   0         1          2        resumed at 8: 6 steps of pass 0, 2 of 1

What is in ``state.epoch`` tells both: the pass, and as its fraction which share of ``max_steps`` was made in it.
"""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerState

from ..batching.loader import StreamedBatches


class CountedPasses(Trainer):
    """The part of ``ORPOTrainer`` that finds its place in the pairs again.

    Attributes of the whole that it uses: ``_assignments``, what plans the training batches.
    """

    _assignments: Any

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, *arguments: Any
    ) -> tuple[int, int]:
        """Passes that are over, and items of the next one that are."""
        passes, items = super()._init_training_state(max_steps, steps_per_epoch, epochs, *arguments)
        if not isinstance(self._assignments, StreamedBatches) or self.args.ignore_data_skip:
            return passes, items
        over, share = divmod(self.state.epoch or 0.0, 1)
        if not share and self.state.global_step >= max_steps:
            return epochs, 0  # nothing is left to do, at the end of a pass either
        return int(over), round(share * max_steps * self.args.gradient_accumulation_steps)


class PassFollower(TrainerCallback):
    """Tells what plans the training batches which pass it is.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: CountedPasses):
        self._trainer = trainer
        self._next = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Count from where the run goes on. A pass that was interrupted is planned whole, and its head is skipped."""
        self._next = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Name it: ``state.epoch`` does not, where the pass of a stream before this one was no whole number."""
        self._trainer._assignments.epoch = self._next
        self._next += 1
