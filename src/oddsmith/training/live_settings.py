"""Use, record and resume what a callback changes of the settings while training: ``beta``; report what cannot change.

beta                           from the next step on; logged from then on; a resumed run continues with it
gradient_accumulation_steps    refused: the steps are planned
what _READ_AT_START lists      reported once: it was read when training began, as in transformers
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..checkpoint.values import figure, flag
from ..config import ORPOConfig
from ..config.catalogue import DECIDING_SETTINGS
from ..config.ranges import require_beta
from ..errors import ConfigError

logger = logging.getLogger(__name__)

# transformers reads these at every step, evaluation or end of the run.
_LIVE = ("beta", "max_grad_norm", "metric_for_best_model", "greater_is_better", "load_best_model_at_end")
_READ_AT_START = (
    *(name for name in DECIDING_SETTINGS if name not in _LIVE),
    *("per_device_train_batch_size", "logging_steps", "save_steps", "eval_steps", "max_tokens_per_microbatch"),
)
_INSTEAD = {"learning_rate": "; change the lr of optimizer.param_groups and the base_lrs of lr_scheduler"}


class LiveSettings(TrainerCallback):
    """The settings of a run as they change. As a callback it stands behind the user's, which may change them.

    Args:
        args: The settings.
    """

    state_version = 1

    def __init__(self, args: ORPOConfig):
        self._args = args
        self.begin()

    def begin(self) -> None:
        """Take the settings as those of the run: a training starts."""
        self.beta = self._beta_at_start = self._args.beta  # of the current step
        self.beta_has_changed = False
        self._seen = {name: getattr(self._args, name, None) for name in _READ_AT_START}
        self._accumulation = self._args.gradient_accumulation_steps

    def on_step_begin(self, args: ORPOConfig, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take what callbacks have changed since the last step."""
        if args.beta != self.beta:
            require_beta(args.beta)
            self.beta, self.beta_has_changed = args.beta, True
        for name, before in self._seen.items():
            value = getattr(args, name, None)
            if value != before:
                self._seen[name] = value
                if state.is_world_process_zero:
                    logger.warning(
                        f"step {state.global_step}: {name} has become {value}, which has no effect: it was read when"
                        f" training began{_INSTEAD.get(name, '')}"
                    )

    def require_planned_steps(self) -> None:
        """Refuse another number of accumulation steps, of which transformers would make its next step."""
        now = self._args.gradient_accumulation_steps
        if now != self._accumulation:
            raise ConfigError(
                f"gradient_accumulation_steps has become {now}; it cannot change while training, whose steps are"
                f" planned with {self._accumulation}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"beta": self.beta, "at_start": self._beta_at_start, "beta_has_changed": self.beta_has_changed}

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Continue with the beta of a checkpoint, unless the run was resumed with another one on purpose."""
        beta, at_start = figure(state["beta"]), figure(state["at_start"])
        if flag(state["beta_has_changed"]) and self._args.beta == at_start:
            self._args.beta = self.beta = beta
            self.beta_has_changed = True
