"""Let what a model's folder asks for fail in one line where it is first computed with, and refuse weights of NaN.

transformers reads many settings of ``config.json`` and ``generation_config.json`` only while it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..errors import ModelError, OddsmithError, first_line
from ..system.memory import is_of_the_machine
from .loading.load_errors import clear_errors

_CHECKED = (torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def clear_computing(name: str, what: str = "compute") -> Iterator[None]:
    """Raise ``ModelError`` for errors of transformers inside, but those of the machine; ``what`` it does there."""
    try:
        yield
    except OddsmithError:
        raise
    except Exception as error:
        if is_of_the_machine(error):
            raise
        reason = ": ".join(filter(None, [type(error).__name__, first_line(error)[:300]]))
        raise ModelError(
            f"{name or 'the model'}: transformers cannot {what} with it ({reason}); its settings, tokenizer and weights"
            " do not fit together"
        ) from error


def require_finite_logits(name: str, model: nn.Module, logits: Sequence[torch.Tensor]) -> None:
    """Raise ``ModelError`` where logits are NaN, with the first of the weights that are NaN or infinite."""
    if not any(bool(each.isnan().any()) for each in logits):
        return
    parameters = model.named_parameters()
    bad = next((key for key, weight in parameters if weight.is_floating_point() and not weight.isfinite().all()), None)
    found = f"its weights {bad} are NaN or infinite" if bad else "it computes NaN, though its weights are finite"
    raise ModelError(f"{name}: {found}; fetch or copy the model again, or take an earlier checkpoint")


@torch.no_grad()
def require_computing(name: str, model: Any) -> None:
    """Compute the logits after one token; raise ``ModelError`` where that fails or they are NaN.

    Models without weights on this machine (on ``meta``, or shared out before they are gathered) are not tried.
    """
    if any(weight.is_meta or not weight.numel() for weight in model.parameters()):
        return
    was_training = model.training
    with clear_computing(name):
        model.eval()
        ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        logits = model(**inputs).logits
        model.train(was_training)
    require_finite_logits(name, model, [logits])


def require_finite_files(name: str, folder: Path) -> None:
    """Raise ``ModelError`` where weights in the files of a folder are NaN or infinite; reads all of them."""
    for file in sorted(folder.glob("*.safetensors")):
        with clear_errors(name, "main"), safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  no mapping
                weight = weights.get_tensor(key)
                if weight.dtype in _CHECKED and weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
                    raise ModelError(f"{name}: its weights {key} are NaN or infinite; fetch or copy the model again")
