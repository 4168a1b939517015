"""Check whether a model can train on a PrefixForest: compute a few pairs on both paths and compare, once, at the start.

What a packed row needs of a model (replaceable attention, position ids that it obeys, no recurrence, nothing else that
mixes neighbouring tokens) does not follow from its name, so the log-probabilities decide. During the check, sliding
windows and attention chunks are a few tokens long, so that pairs of a few dozen tokens reveal a model that handles
them anywhere but in its attention call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerBase

from ...batching.collate import PairCollator, trl_features
from ...batching.forest import forest_batch
from ...errors import ModelError
from ..loading.setup import dropout_rates
from .attention import NAME, forest_attention, forest_attention_in
from .memory_saving import MemorySavingLayers, memory_saving_layers
from .output_transform import OutputTransform, output_transform
from .packed import forest_logps
from .padded import PairLogps, pair_logps, unwrap

# Mean difference of log-probabilities over their spread. Rounding stays below a twentieth of these on the models of
# tests/equivalence; a token that sees another sequence's token causes differences of tenths.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
SHORT_WINDOW = 8
PROMPT = (
    "Water boils at a lower temperature on a mountain than by the sea. Why is that so, and what follows for cooking?"
)
ANSWERS = (
    "The air presses less up there, so bubbles form sooner; pasta needs a few minutes more.",
    "The air presses less up there, which nobody has ever explained. Eat bread.",
    "Because mountains are cold.",
    "The higher you go, the less air lies above you, and the easier it is for water to turn into steam.",
)


class Verdict(NamedTuple):
    """The result of the check: whether the packed path is exact for the model, the reason, and parts for that path."""

    forest: bool
    reason: str
    transform: OutputTransform | None = None
    memory_saving: MemorySavingLayers | None = None


def check_forest(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_token_id: int,
    precision: Callable[[], AbstractContextManager],
) -> Verdict:
    """Compare both paths on four short pairs that share prompts and beginnings of answers.

    ``model`` is not wrapped yet; ``precision`` makes the context in which the training computes (autocast).
    """
    if obstacle := _obstacle(model):
        return Verdict(False, obstacle)
    transform = output_transform(unwrap(model).config)
    if transform is None:
        return Verdict(False, "its output layer is followed by an unknown change of the logits")
    device, memory_saving = next(model.parameters()).device, memory_saving_layers(model)
    rows = _pairs(tokenizer)
    batch = send_to_device(forest_batch(rows, "sequence"), device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision(), _short_windows(model):
            features = PairCollator(pad_token_id)([trl_features(row) for row in rows])
            padded = pair_logps(model, send_to_device(features, device), pad_token_id=pad_token_id)
            with _counted_attention() as calls, forest_attention_in(model), memory_saving.applied():
                packed = forest_logps(model, batch, transform=transform)
            tolerance = TOLERANCE[_coarsest_dtype(model, device)]
    except (ModelError, TypeError, AttributeError, ValueError, RuntimeError, LookupError) as error:
        # The model's own code may raise any of these when it is called with packed rows.
        cause = str(error).strip() or type(error).__name__
        return Verdict(False, f"it cannot be called with packed rows ({cause.splitlines()[0][:100]})")
    finally:
        model.train(was_training)
    layers = getattr(unwrap(model).config.get_text_config(), "num_hidden_layers", 1)
    if len(calls) < layers:  # another layer may mix tokens so little that it looks like rounding
        return Verdict(False, f"{len(calls)} of its {layers} layers have an attention that can be replaced")
    difference = _difference(packed, padded)
    if not difference <= tolerance:  # also where it is NaN
        return Verdict(False, f"packed and padded batches differ by {difference:.2g} of the log-probabilities' spread")
    return Verdict(True, f"packed and padded batches agree to {difference:.1g} of the spread", transform, memory_saving)


def _obstacle(model: nn.Module) -> str | None:
    """Return what in the model's configuration rules packed rows out."""
    config = unwrap(model).config
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if getattr(config, "output_router_logits", False):
        return "its router loss depends on how many sequences share a token"
    if any(getattr(peft, "is_prompt_learning", False) for peft in getattr(model, "peft_config", {}).values()):
        return "its adapter puts virtual tokens in front of every sequence"
    if unwrap(model).get_output_embeddings() is None:
        return "its output layer could not be found"
    if dropout_rates(model):
        return "dropout is on, and a token shared by several sequences would get the same mask in all of them"
    return None


def _pairs(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return four tokenized pairs."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first, second = ids(PROMPT), ids(PROMPT.split(".")[0] + ".")
    answers = [ids(" " + answer) for answer in ANSWERS]
    return [
        {
            "chosen_input_ids": prompt + answers[chosen],
            "rejected_input_ids": prompt + answers[rejected],
            "chosen_prompt_tokens": len(prompt),
            "rejected_prompt_tokens": len(prompt),
            "chosen_end": len(prompt) + len(answers[chosen]),
            "rejected_end": len(prompt) + len(answers[rejected]),
        }
        for prompt, chosen, rejected in ((first, 0, 1), (first, 3, 2), (second, 1, 0), (second, 2, 3))
    ]


@contextmanager
def _counted_attention() -> Iterator[list[int]]:
    """Append to the yielded list at every call of the forest attention."""
    calls: list[int] = []

    def counted(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(query.shape[2])
        return forest_attention(module, query, *args, **kwargs)

    AttentionInterface.register(NAME, counted)
    try:
        yield calls
    finally:
        AttentionInterface.register(NAME, forest_attention)


@contextmanager
def _short_windows(model: nn.Module) -> Iterator[None]:
    """Make sliding windows and attention chunks a few tokens long while inside."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    changed = []
    for owner in owners.values():
        for name in ("sliding_window", "attention_chunk_size"):
            value = getattr(owner, "__dict__", {}).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                changed.append((owner, name, value))
                setattr(owner, name, SHORT_WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _difference(packed: PairLogps, padded: PairLogps) -> float:
    """Return the mean difference of log-probabilities over their spread."""

    def values(logps: PairLogps) -> Tensor:
        nll_B = logps.nll_sum_B / logps.nll_tokens_B
        return torch.cat([logps.logp_chosen_B, logps.logp_rejected_B, -nll_B]).double()

    ours, reference = values(packed), values(padded)
    return ((ours - reference).abs().mean() / reference.std()).item()


def _coarsest_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """Return the coarsest dtype that the model computes in."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(device.type):
        kinds.add(torch.get_autocast_dtype(device.type))
    return next((d for d in (torch.bfloat16, torch.float16, torch.float32) if d in kinds), torch.float64)
