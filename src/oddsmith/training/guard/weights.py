"""Which of the weights that are trained are no numbers any more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn


def unsound_weights(model: nn.Module, accelerator: Accelerator) -> list[str]:
    """The weights that are trained and hold NaN or infinity, in any process; all have to call this.

    Args:
        model: The model, each process's part of it where it is sharded.
        accelerator: Of the run.

    Returns:
        Their names, in the order of the model.
    """
    named = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    if not named:
        return []
    own = [weight.to_local() if hasattr(weight, "to_local") else weight for _, weight in named]
    # One answer for all of them: a GPU is asked once.
    bad = torch.stack([(~weight.isfinite()).any().to(accelerator.device) for weight in own]).float()
    found = accelerator.reduce(bad, reduction="sum").tolist()
    return [name for (name, _), count in zip(named, found, strict=True) if count]


def weights_in_words(names: Sequence[str]) -> str:
    """``the weights lm_head.weight and 3 others are NaN or infinite``."""
    others = f" and {len(names) - 1} others" if len(names) > 1 else ""
    return f"the weights {names[0]}{others} are NaN or infinite"
