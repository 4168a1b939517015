"""Measure what a micro-batch takes on a model without values: fake tensors, through the path of the training.

    kept(T) = fixed + per_token * T + head(T) + attention(T)        T tokens of a micro-batch
    peak(T) = kept(T) + max(on_top, in_layer * T)

Few layers and short rows tell: what is kept grows with layers and tokens. Two parts do not grow like that and are
computed: the residuals of the output layer, which have a budget of their own (``head.py``), and on a CPU the weights of
the attention, one for each key that a token sees (``attention/cpu.py``). The attention of a GPU keeps none.

The fake tensors lie on the CPU, whatever the run is planned for. Layers keep the same there as on a GPU: 3.13 MB a
token of an 8B model under LoRA, where ``benchmarks/gpu_memory.py`` finds 3.18 on a fake GPU; 3.68 and 3.66 where all
weights are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations import moe

from ..batching.collate import PairCollator
from ..batching.forest import forest_batch
from ..config import ORPOConfig
from ..errors import ModelError
from ..model.loading.setup import disable_dropout
from ..model.logprobs.attention.cpu import saved_weights
from ..model.logprobs.head import kept_bytes
from ..model.logprobs.padded import head_only_at, unwrap
from ..model.logprobs.paths import ForestPath, PaddedPath, loss_of_a_row, obstacle_in_run, pair_of
from ..model.logprobs.self_check import check_outline
from ..model.logprobs.small_copy import repeating_layers
from ..model.logprobs.token_budget import CHUNK_ROWS, MEASURED_HEAD_ROWS, StepBytes, step_bytes

ROWS = (16, 32)  # tokens of the rows that are measured
# Times what a layer keeps of a token, the backward pass of long rows takes on top: gradients within the layer, and with
# checkpointing what is computed again (benchmarks/results/gpu_memory.md).
IN_LAYER, IN_LAYER_AGAIN = 1.0, 1.9

Outline = Callable[[int | None], nn.Module]  # builds so many layers of a model without values; None: all


@dataclass(frozen=True)
class StepCost:
    """What the forward and backward pass of a micro-batch takes beside weights and their gradients, in bytes."""

    per_token: float  # kept for the backward pass: without the head, and without the attention's weights
    fixed: float  # kept whatever the tokens are: weights in the type of the run
    on_top: float  # of what is kept, at the peak of a short row's backward pass: gradients of the output layer
    layer_per_token: float  # kept in a layer, without checkpointing
    checkpointing: bool
    head_per_token: int  # residuals of a trained head, as wide as the vocabulary
    head_chunk: int  # least that the head computes with
    attention_weight: float  # each that the attention of one head saves, over all layers that keep theirs
    path: str  # how micro-batches are laid out
    reason: str
    shared_prompt_from: int | None  # tokens of a prompt that is computed once for both answers

    def kept(self, tokens: int, *, head_bytes: int, saved: int = 0) -> float:
        """Return what is kept for the backward pass.

        Args:
            tokens: Of the micro-batch.
            head_bytes: What the head may take.
            saved: Attention weights that a head of a layer saves; 0 on a GPU.

        Returns:
            Bytes.
        """
        head = max(self.head_chunk, min(head_bytes, self.head_per_token * tokens))
        attention = 0.0 if self.checkpointing else self.attention_weight * saved
        return self.fixed + self.per_token * tokens + head + attention

    def above(self, tokens: int, *, saved: int = 0) -> float:
        """Return what the backward pass takes on top of what is kept, at its peak; arguments as of :meth:`kept`."""
        in_layer = (IN_LAYER_AGAIN if self.checkpointing else IN_LAYER) * self.layer_per_token
        attention = self.attention_weight * saved if self.checkpointing else 0.0
        return max(self.on_top, in_layer * tokens + attention)


class Depths(NamedTuple):
    """The numbers of layers that are measured to tell what all layers of a model take."""

    layers: int
    first: int | None  # every kind of layer is among so many; None: all layers are measured at once
    period: int  # so many more, and the kinds repeat

    @property
    def counts(self) -> list[int | None]:
        """Return the numbers of layers to measure."""
        return [None] if self.first is None else [self.first, self.first + self.period]


def depths_of(whole: nn.Module) -> Depths:
    """Return how many layers of a model to measure; comparing those of a deep one takes a second."""
    inner: Any = unwrap(whole)
    layers = getattr(inner.config.get_text_config(), "num_hidden_layers", 0)
    decoders = getattr(inner.config, "num_decoder_layers", getattr(inner.config, "decoder_layers", layers))
    repeats = repeating_layers(inner) if decoders == layers else None
    return Depths(layers, *repeats) if repeats else Depths(layers, None, max(layers, 1))


def step_cost(
    outline: Outline,
    depths: Depths,
    args: ORPOConfig,
    *,
    dtype: torch.dtype,
    on_gpu: bool,
    plain: StepCost | None = None,
) -> StepCost:
    """Measure what a micro-batch takes.

    Args:
        outline: Builds the model as it is trained.
        depths: Of what it builds with all layers.
        args: The settings of the run.
        dtype: In which the run computes.
        on_gpu: Whether the run is planned for a GPU.
        plain: The cost without checkpointing, for that with it: layers are computed again in the backward pass.

    Returns:
        The cost, for all layers of the model.

    Raises:
        ModelError: A forward pass without values is not possible, as where a layer asks for the values of a tensor.
    """
    checkpointing = plain is not None
    all_kinds = None if depths.first is None else outline(depths.counts[-1])
    found = [_measured(outline(count), all_kinds, args, dtype, checkpointing) for count in depths.counts]
    periods = 0.0 if depths.first is None else (depths.layers - depths.first) / depths.period

    def carried_on(of: Callable[[_Measured], float]) -> float:
        return of(found[0]) + periods * (of(found[-1]) - of(found[0]))

    last = found[-1]
    chunk = CHUNK_ROWS["cuda" if on_gpu else "cpu"] * last.width * 4 if last.packed else 0
    kept_layers = 1 if checkpointing else depths.layers
    return StepCost(
        per_token=max(0.0, carried_on(lambda one: one.slope)),
        fixed=max(0.0, carried_on(lambda one: one.fixed)),
        on_top=max(one.on_top for one in found),
        layer_per_token=plain.layer_per_token if plain else (last.slope - found[0].slope) / depths.period,
        checkpointing=checkpointing,
        head_per_token=last.head_per_token,
        head_chunk=chunk,
        attention_weight=0 if on_gpu else last.heads * kept_layers * dtype.itemsize,
        path=last.path,
        reason=last.reason,
        shared_prompt_from=last.shared_prompt_from,
    )


@dataclass(frozen=True)
class _Measured:
    """What rows take on a model of some layers."""

    slope: float
    fixed: float
    on_top: float
    head_per_token: int
    width: int  # of the logits
    heads: int  # whose attention weights are saved
    packed: bool
    path: str
    reason: str
    shared_prompt_from: int | None


def _measured(
    model: nn.Module, all_kinds: nn.Module | None, args: ORPOConfig, dtype: torch.dtype, checkpointing: bool
) -> _Measured:
    with _without_values(model):
        if args.disable_dropout:
            disable_dropout(model)
        _switch_checkpointing(model, args, on=checkpointing)
        model.train()
        path = _path_of(model, all_kinds, args)
        inner: Any = unwrap(model)
        width = inner.config.get_text_config().vocab_size
        precision = partial(_precision, dtype)
        is_packed = isinstance(path, ForestPath)
        run: Callable[[int], Tensor]
        if isinstance(path, ForestPath):
            run = partial(loss_of_a_row, model, path, precision, head_bytes=MEASURED_HEAD_ROWS["cpu"] * width * 4)
        else:
            run = partial(_padded_loss, model, path, precision)
        try:
            with path.around(model):
                found = [step_bytes(model, partial(run, tokens)) for tokens in ROWS]
            with precision():
                head = kept_bytes(inner.get_output_embeddings(), 1) if is_packed else 0
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # the model's own code
            raise ModelError(f"its forward pass asks for values of tensors ({type(error).__name__})") from error
    heads = getattr(inner.config.get_text_config(), "num_attention_heads", 0) if is_packed else 0
    weight = heads * dtype.itemsize
    layers = 0 if checkpointing else getattr(inner.config.get_text_config(), "num_hidden_layers", 0)
    return _fit(
        [step.kept - weight * layers * _saved_in_row(tokens) for step, tokens in zip(found, ROWS, strict=True)],
        found,
        in_layer=weight * _saved_in_row(ROWS[1]) if checkpointing else 0.0,
        head_per_token=head,
        width=width,
        heads=heads,
        packed=is_packed,
        path=path.name,
        reason=path.reason,
        shared_prompt_from=path.sequence_wise.shared_prompt_from if isinstance(path, ForestPath) else None,
    )


def _fit(kept: list[float], found: list[StepBytes], *, in_layer: float, **facts: Any) -> _Measured:
    slope = (kept[1] - kept[0]) / (ROWS[1] - ROWS[0])
    on_top = max(0.0, found[1].peak - found[1].kept - in_layer)
    return _Measured(slope=slope, fixed=kept[0] - slope * ROWS[0], on_top=on_top, **facts)


def _saved_in_row(tokens: int) -> int:
    """Return the attention weights that a head saves of the row that ``loss_of_a_row`` computes."""
    prompt = tokens // 2
    pair = pair_of(np.arange(tokens), prompt, (tokens - prompt) // 2)
    return saved_weights(forest_batch([pair], "sequence")["forest"])


@contextmanager
def _without_values(model: Any) -> Iterator[None]:
    """Give a model on ``meta`` fake tensors on the CPU, which have a shape, a type and a device, while inside."""
    with FakeTensorMode(allow_non_fake_inputs=True), _experts_in_any_type():
        model.to_empty(device="cpu")
        if hasattr(model, "tie_weights"):
            model.tie_weights()
        yield


@contextmanager
def _experts_in_any_type() -> Iterator[None]:
    """Multiply experts as Transformers does without ``grouped_mm``, which takes fake tensors in bf16 alone.

    Both keep the same for the backward pass.
    """
    name = "_can_use_grouped_mm"
    own = getattr(moe, name, None)
    if own is None:  # another version of Transformers
        yield
        return
    setattr(moe, name, lambda *tensors: False)
    try:
        yield
    finally:
        setattr(moe, name, own)


def _switch_checkpointing(model: Any, args: ORPOConfig, *, on: bool) -> None:
    if on:
        # The second is the name before transformers 5.23.
        switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        switch(args.gradient_checkpointing_kwargs)
        if hasattr(model, "peft_config"):
            model.enable_input_require_grads()


def _precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)


def _path_of(model: Any, all_kinds: nn.Module | None, args: ORPOConfig) -> ForestPath | PaddedPath:
    """Return the path that the run would take, as far as it can be told without weights."""
    is_encoder_decoder = bool(unwrap(model).config.is_encoder_decoder)
    padded = PaddedPath(PairCollator(0), 0, args.nll_on, is_encoder_decoder, router_loss=False)
    reason = obstacle_in_run(args, padded, [])
    if reason is None:
        verdict = check_outline(model, all_kinds)
        if verdict.transform and verdict.memory_saving and verdict.sequence_wise:
            return ForestPath(
                args.nll_on, verdict.transform, verdict.memory_saving, verdict.sequence_wise, verdict.reason
            )
        reason = verdict.reason
    padded.reason = reason
    return padded


def _padded_loss(model: Any, path: PaddedPath, precision: Callable[[], AbstractContextManager], tokens: int) -> Tensor:
    """Compute a loss over a padded pair as ``pair_logps`` does; both of its sequences together have so many tokens.

    It finds the targets by their values, which are not there. Here they are all of the chosen sequence, and half of the
    other one.
    """
    ids_ST = torch.full((2, tokens // 2), 3)
    target_N = ids_ST.flatten()[: 3 * tokens // 4]
    place_N = torch.arange(len(target_N))
    inputs = {"input_ids": ids_ST} | ({"decoder_input_ids": ids_ST} if path.is_encoder_decoder else {})
    with precision(), head_only_at(model, place_N, ids_ST.shape):
        logits_NV = model(**inputs, use_cache=False).logits
        if logits_NV.dim() == 3:  # the output layer was not found
            logits_NV = logits_NV.flatten(0, 1)[: len(target_N)]
        return F.cross_entropy(logits_NV.float(), target_N, reduction="none").sum()
