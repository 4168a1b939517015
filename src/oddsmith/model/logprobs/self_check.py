"""Check whether a model can train on a PrefixForest, once, at the start.

What a packed row needs of a model (replaceable attention, position ids that it obeys, no recurrence, nothing else that
mixes tokens) does not follow from its name. Three things decide, and the first that fails rules packed rows out:

    structure   nothing but the replaced attention mixes tokens, in the model itself (mixing.py), whatever its weights;
                or else layers of classes that the copy has too, and those run on sequences (sequence_wise.py)
    exactness   packed rows equal sequences computed one by one to 1e-5, on a small copy in float64 (small_copy.py)
    agreement   packed and padded batches of a few pairs are alike on the model itself, as it will compute

The last one cannot find a leak, which rounding may hide. It finds gross errors of what the copy does not have:
adapters, modules that were exchanged, the kernels of this device. Sliding windows and attention chunks are a few tokens
long in all of them, so that short sequences reveal a model that handles them anywhere but in its attention call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedTokenizerBase

from ...batching.collate import PairCollator, trl_features
from ...batching.forest import forest_batch
from ...data.tokens.tokenized import TokenizedPair
from ...errors import ModelError
from ...system.compilers import compiler_fault
from ...system.memory import is_of_the_machine
from ..limits import position_rows
from ..loading.setup import dropout_rates
from .attention import forest_attention_in
from .memory_saving import MemorySavingLayers, memory_saving_layers
from .mixing import mixing_module
from .output_transform import OutputTransform, output_transform
from .packed import forest_logps
from .padded import PairLogps, pair_logps, unwrap
from .sequence_wise import SequenceWiseLayers, sequence_wise_layers
from .small_copy import (
    SHORT_WINDOW,
    SPECIAL_IDS,
    VOCABULARY,
    Float64Everywhere,
    is_window,
    small_config,
    small_copy,
)

# Largest difference of a token's log-probability over their spread, on a copy in float64. What models compute in
# float32 even then (norms, soft caps) rounds to 2e-7 of it; a token of another sequence changes hundredths.
EXACT = 1e-5
# Mean difference of the same on the model itself, in any precision. In bfloat16 an expert chosen otherwise by rounding
# changes a tenth; positions or keys that are wrong change as much as there is.
ALIKE = 0.3
# The beginning of a reason. The figures after it are printed with --verbose alone.
INEXACT = "packed rows would change its results"
# A row of the model itself is short, for it may be large; one of the copy exceeds blocks that a layer may work on.
ROW_TOKENS, COPY_ROW_TOKENS = 68, 306
# All alike: then nothing is padded. Layers that mix tokens in their own way often work on blocks of 64.
COPY_SEQUENCE_TOKENS, COPY_LONG_TOKENS = 40, 80
PROMPT = (
    "Water boils at a lower temperature on a mountain than by the sea. Why is that so, and what follows for cooking?"
)
ANSWERS = (
    "The air presses less up there, so bubbles form sooner; pasta needs a few minutes more.",
    "The air presses less up there, which nobody has ever explained. Eat bread.",
    "Because mountains are cold.",
    "The higher you go, the less air lies above you, and the easier it is for water to turn into steam.",
)
# The model's own code may raise any of these when it is called with packed rows.
_REFUSALS = (ModelError, TypeError, AttributeError, ValueError, RuntimeError, LookupError, AssertionError)


class Verdict(NamedTuple):
    """The result of the check: whether the packed path is exact for the model, the reason, and parts for that path."""

    forest: bool
    reason: str
    transform: OutputTransform | None = None
    memory_saving: MemorySavingLayers | None = None
    sequence_wise: SequenceWiseLayers | None = None


def check_forest(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pad_token_id: int,
    precision: Callable[[], AbstractContextManager],
) -> Verdict:
    """Decide whether a model can be packed; ``agreement`` is measured on four short pairs that share beginnings.

    ``model`` is not wrapped yet; ``precision`` makes the context in which the training computes (autocast).
    """
    if obstacle := _obstacle(model):
        return Verdict(False, obstacle)
    transform = output_transform(unwrap(model).config)
    if transform is None:
        return Verdict(False, "its output layer is followed by an unknown change of the logits")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _short_windows(model):
            with precision():
                mixers = _mixers(model, tokens=ROW_TOKENS)
            exactness = _exactness(model)
            if exactness.obstacle:
                return Verdict(False, exactness.obstacle)
            if added := [kind for kind in mixers if kind not in exactness.mixers]:
                raise _Leak(added[0])
            sequence_wise = sequence_wise_layers(model, mixers, hands_on_states=exactness.hands_on_states)
            with precision():
                return _agreement(model, tokenizer, pad_token_id, transform, sequence_wise)
    except _Leak as leak:
        return Verdict(False, str(leak))
    except Exception as error:  # noqa: BLE001  Triton has errors of its own, and is not always there
        _require_refusal(error)
        reason = compiler_fault(error) or f"it cannot be called with packed rows ({_in_short(error)})"
        return Verdict(False, reason)
    finally:
        model.train(was_training)


def check_outline(model: nn.Module, all_kinds: nn.Module | None = None) -> Verdict:
    """Decide whether a model without values can be packed: by its configuration, and exactness on a small copy.

    ``model`` is made of fake tensors. Where it lacks kinds of layers, the copy is made of ``all_kinds``, which has
    them. What its own weights would show, ``check_forest`` finds when it is trained.
    """
    if obstacle := _obstacle(model):
        return Verdict(False, obstacle)
    transform = output_transform(unwrap(model).config)
    if transform is None:
        return Verdict(False, "its output layer is followed by an unknown change of the logits")
    with unset_fake_temporarily():
        exactness = _exactness(model if all_kinds is None else all_kinds)
        if exactness.obstacle:
            return Verdict(False, exactness.obstacle)
        layers = memory_saving_layers(model)
    sequence_wise = sequence_wise_layers(model, exactness.mixers, hands_on_states=exactness.hands_on_states)
    return Verdict(
        True, f"packed rows of a small copy of it are exact{sequence_wise.said}", transform, layers, sequence_wise
    )


def _require_refusal(error: Exception) -> None:
    """Raise an error that says nothing of the model: one of the machine, or of a kind that no model's code raises."""
    if is_of_the_machine(error) or not (isinstance(error, _REFUSALS) or compiler_fault(error)):
        raise error


class _Leak(Exception):
    def __init__(self, kind: type[nn.Module]):
        super().__init__(
            f"its {kind.__name__} mixes tokens in its own way, so packed sequences would leak into each other"
        )


def _mixers(model: nn.Module, *, tokens: int) -> list[type[nn.Module]]:
    """Return the classes of layers that mix tokens in their own way; ``_Leak`` where they cannot run on sequences."""
    kinds: list[type[nn.Module]] = []
    while True:
        try:
            with sequence_wise_layers(model, kinds, hands_on_states=False).applied(mixing=False):
                kind = mixing_module(model, tokens=tokens)
        except _REFUSALS as error:
            _require_refusal(error)
            if kinds and compiler_fault(error) is None:
                raise _Leak(kinds[-1]) from error
            raise
        if kind is None:
            return kinds
        if kind in kinds or isinstance(unwrap(model), kind):
            raise _Leak(kind)
        kinds.append(kind)


def _in_short(error: Exception) -> str:
    cause = str(error).strip() or type(error).__name__
    return cause.splitlines()[0][:100]


class _Exactness(NamedTuple):
    """What was found on a small copy of a model."""

    obstacle: str | None = None  # why packed rows are not exact
    mixers: tuple[type[nn.Module], ...] = ()  # layers that have to run on sequences
    hands_on_states: bool = False  # and are exact on answers that begin with the state behind their prompt


_exactness_of_kind: dict[tuple[type, str], _Exactness] = {}  # by class and settings, for runs of the same kind of model


def _exactness(model: nn.Module) -> _Exactness:
    """Return how packed rows are exact on a small copy of a model."""
    inner: Any = unwrap(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    try:
        kind = type(inner), small_config(inner).to_json_string()
        if kind not in _exactness_of_kind:
            _exactness_of_kind[kind] = _exactness_of_copy(small_copy(inner))
    except _Leak as leak:
        return _Exactness(str(leak))
    except Exception as error:  # the class's own code, with settings that nobody has tried
        if is_of_the_machine(error):
            raise
        return _Exactness(f"no small copy of it could be made to check on ({_in_short(error)})")
    return _exactness_of_kind[kind]


def _exactness_of_copy(small: nn.Module) -> _Exactness:
    mixers = tuple(_mixers(small, tokens=COPY_ROW_TOKENS))
    transform = output_transform(small.config)
    if transform is None:
        raise ModelError("its output layer is followed by an unknown change of the logits")
    rows = _random_pairs(COPY_LONG_TOKENS if mixers else COPY_SEQUENCE_TOKENS)

    with Float64Everywhere() if mixers else nullcontext():
        padded = pair_logps(small, PairCollator(0)([trl_features(row) for row in rows]), pad_token_id=0)

        def difference(hands_on_states: bool) -> float:
            layers = sequence_wise_layers(small, mixers, hands_on_states=hands_on_states, min_shared=2)
            with forest_attention_in(small), layers.applied():
                packed = forest_logps(small, forest_batch(rows, "sequence"), transform=transform)
            return _differences(packed, padded).max().item()

        if mixers:
            try:
                if difference(True) <= EXACT:
                    return _Exactness(None, mixers, True)
            except _REFUSALS as error:  # a layer without states, or with others than most
                _require_refusal(error)
        found = difference(False)
    if found <= EXACT:
        return _Exactness(None, mixers)
    figure = f"those of a small copy of it differ from single sequences by {found:.2g} of the spread"
    return _Exactness(f"{INEXACT}: {figure}")


def _random_pairs(tokens: int) -> list[dict[str, Any]]:
    """Return four tokenized pairs for a copy, of sequences of so many tokens that share prompts and beginnings."""
    generator = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return generator.integers(SPECIAL_IDS, VOCABULARY, count).tolist()

    def pair(prompt: list[int], shared: int) -> dict[str, Any]:
        chosen = ids(tokens - len(prompt))
        return _row(prompt, chosen, chosen[:shared] + ids(len(chosen) - shared))

    first, second = ids(12), ids(25)
    return [pair(first, 3), pair(first, 0), pair(second, 5), pair(first[:9], 10)]


def _agreement(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pad_token_id: int,
    transform: OutputTransform,
    sequence_wise: SequenceWiseLayers,
) -> Verdict:
    """Compare both paths on four short pairs that share prompts and beginnings of answers."""
    device, memory_saving = next(model.parameters()).device, memory_saving_layers(model)
    rows = _pairs(tokenizer, position_rows(unwrap(model)))
    features = PairCollator(pad_token_id)([trl_features(row) for row in rows])
    padded = pair_logps(model, send_to_device(features, device), pad_token_id=pad_token_id)
    with forest_attention_in(model), memory_saving.applied(), sequence_wise.applied():
        packed = forest_logps(model, send_to_device(forest_batch(rows, "sequence"), device), transform=transform)
    difference = _differences(packed, padded).mean().item()
    if not difference <= ALIKE:  # also where it is NaN
        return Verdict(False, f"{INEXACT}: they differ from padded batches by {difference:.2g} of their spread")
    reason = f"packed and padded batches agree to {difference:.1g} of the spread{sequence_wise.said}"
    return Verdict(True, reason, transform, memory_saving, sequence_wise)


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
    if len(set((getattr(unwrap(model), "hf_device_map", None) or {}).values())) > 1:
        return "device_map spreads its layers over several devices"
    if dropout_rates(model):
        return "dropout is on, and a token shared by several sequences would get the same mask in all of them"
    return None


def _pairs(tokenizer: PreTrainedTokenizerBase, positions: int | None) -> list[dict[str, Any]]:
    """Return four tokenized pairs that fit into so many positions."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"][: positions and positions // 2]

    first, second = ids(PROMPT), ids(PROMPT.split(".")[0] + ".")
    answers = [ids(" " + answer) for answer in ANSWERS]
    return [
        _row(prompt, answers[chosen], answers[rejected])
        for prompt, chosen, rejected in ((first, 0, 1), (first, 3, 2), (second, 1, 0), (second, 2, 3))
    ]


def _row(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """Return a tokenized pair."""
    return TokenizedPair(
        chosen_ids=prompt + chosen,
        rejected_ids=prompt + rejected,
        chosen_prompt_tokens=len(prompt),
        rejected_prompt_tokens=len(prompt),
        chosen_end=len(prompt) + len(chosen),
        rejected_end=len(prompt) + len(rejected),
    ).to_row(0)


@contextmanager
def _short_windows(model: nn.Module) -> Iterator[None]:
    """Make sliding windows and attention chunks a few tokens long while inside."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, getattr(module, "config", None))}
    changed = [
        (owner, name, value)
        for owner in owners.values()
        for name, value in getattr(owner, "__dict__", {}).items()
        if is_window(name, value)
    ]
    for owner, name, _ in changed:
        setattr(owner, name, SHORT_WINDOW)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def _differences(packed: PairLogps, padded: PairLogps) -> Tensor:
    """Return by how much log-probabilities of response tokens, and the pairs' NLL, differ, over the tokens' spread."""
    columns = packed.response_logp_SL.shape[1]  # the padded path fills up to whole sequences

    def values(logps: PairLogps) -> Tensor:
        nll_B = logps.nll_sum_B / logps.nll_tokens_B
        return torch.cat([logps.response_logp_SL[:, :columns].flatten(), -nll_B]).double()

    ours, reference = values(packed), values(padded)
    is_token = reference != 0  # 0 behind the end of a response
    return (ours - reference)[is_token].abs() / reference[is_token].std()
