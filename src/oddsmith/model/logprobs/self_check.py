"""Can this model train on a PrefixForest? Asked once, at the start, by computing a few pairs on both paths.

What a packed row needs of a model (an attention that can be replaced, position ids that are obeyed, nothing recurrent
and nothing else that looks at neighbours) cannot be read off its name, so the log-probabilities decide. Sliding windows
and chunks are made a few tokens short for the occasion: a model that handles them elsewhere than in its attention call
is found out by pairs of a few dozen tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerBase

from ...batching.collate import PairCollator, trl_features
from ...batching.forest import forest_batch
from ...errors import ModelError
from ..loading.setup import dropout_rates
from .attention.interface import NAME, forest_attention, forest_attention_in
from .memory_saving import LeanLayers, lean_layers
from .output_transform import OutputTransform, output_transform
from .packed import forest_logps
from .padded import PairLogps, pair_logps, unwrap

# Mean difference of log-probabilities over their spread. Rounding stays below a twentieth of these on the models of
# tests/equivalence; a token that sees one it should not makes tenths.
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
    """Which path a model trains on, and why.

    Args:
        forest: Whether the packed path is exact for this model.
        reason: One line for people.
        transform: What the model does to its logits, for the packed path.
        lean: Its layers that keep less, for the packed path.
    """

    forest: bool
    reason: str
    transform: OutputTransform | None = None
    lean: LeanLayers | None = None


def check_forest(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_token_id: int,
    precision: Callable[[], AbstractContextManager],
) -> Verdict:
    """Compare both paths on four short pairs that share prompts and beginnings of answers.

    Args:
        model: The model as it will be trained, not wrapped yet.
        tokenizer: Its tokenizer.
        pad_token_id: As in ``pair_logps``.
        precision: The context the training computes in (autocast).

    Returns:
        The verdict.
    """
    obstacle = _obstacle(model)
    if obstacle:
        return Verdict(False, obstacle)
    transform = output_transform(unwrap(model).config)
    if transform is None:
        return Verdict(False, "what it does to its logits after the output layer is not known here")
    rows, lean = _pairs(tokenizer), lean_layers(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), precision(), _short_windows(model):
            plain = pair_logps(model, _on(device, PairCollator(pad_token_id)(rows["plain"])), pad_token_id=pad_token_id)
            with _counted_attention() as calls, forest_attention_in(model), lean.applied():
                packed = forest_logps(model, _on(device, rows["forest"]), transform=transform)
            tolerance = TOLERANCE[_coarsest_dtype(model, device)]
    except (ModelError, TypeError, AttributeError, ValueError, RuntimeError, LookupError) as error:
        # Whatever a foreign model's code raises when it is called in an unusual way: it cannot be packed.
        return Verdict(False, f"it cannot be called with packed rows ({str(error).splitlines()[0][:100]})")
    finally:
        model.train(was_training)
    layers = getattr(unwrap(model).config.get_text_config(), "num_hidden_layers", 1)
    if len(calls) < layers:  # what else mixes tokens may do so too little to be told from rounding
        return Verdict(False, f"{len(calls)} of its {layers} layers have an attention that can be replaced")
    difference = _difference(packed, plain)
    if not difference <= tolerance:  # also where it is NaN
        return Verdict(False, f"packed and plain batches differ by {difference:.2g} of the spread of log-probabilities")
    return Verdict(True, f"packed and plain batches agree to {difference:.1g} of the spread", transform, lean)


def _obstacle(model: nn.Module) -> str | None:
    config = unwrap(model).config
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if getattr(config, "output_router_logits", False):
        return "its router loss counts every copy of a token"
    if any(getattr(peft, "is_prompt_learning", False) for peft in getattr(model, "peft_config", {}).values()):
        return "its adapter puts virtual tokens in front of every sequence"
    if unwrap(model).get_output_embeddings() is None:
        return "its output layer could not be found"
    if dropout_rates(model):
        return "dropout is on, and a token that stands once would get one mask for several sequences"
    return None


def _pairs(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The pairs in the form of either path."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    first, second = ids(PROMPT), ids(PROMPT.split(".")[0] + ".")
    answers = [ids(" " + answer) for answer in ANSWERS]
    rows = [
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
    forest = forest_batch(rows, "sequence")
    return {"plain": [trl_features(row) for row in rows], "forest": forest}


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def _counted_attention() -> Iterator[list[int]]:
    """While inside, every call of the forest's attention adds to the list."""
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
    """While inside, sliding windows and attention chunks are a few tokens long."""
    names = ("sliding_window", "attention_chunk_size")
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    changed = []
    for owner in owners.values():
        for name in names:
            value = getattr(owner, "__dict__", {}).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                changed.append((owner, name, value))
                setattr(owner, name, SHORT_WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _difference(packed: PairLogps, plain: PairLogps) -> float:
    def values(logps: PairLogps) -> Tensor:
        nll_B = logps.nll_sum_B / logps.nll_tokens_B
        return torch.cat([logps.logp_chosen_B, logps.logp_rejected_B, -nll_B]).double()

    ours, reference = values(packed), values(plain)
    return ((ours - reference).abs().mean() / reference.std()).item()


def _coarsest_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """The coarsest type that takes part."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.is_autocast_enabled(device.type):
        kinds.add(torch.get_autocast_dtype(device.type))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in kinds:
            return dtype
    return torch.float64
