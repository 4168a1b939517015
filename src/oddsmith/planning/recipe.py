"""Predict one recipe on one kind of machine, beside the other ways to train its model on its pairs there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..batching.forest import forest_batch
from ..batching.plan import Lengths, StepShape, lengths_of
from ..config import ModelConfig, ORPOConfig
from ..errors import ModelError
from ..model.adapters import get_peft_config
from ..model.loading.models import load_config
from ..model.loading.outline import outline_model
from ..model.loading.place import is_adapter_folder, is_gguf, locate
from ..model.loading.setup import default_dtype, run_dtype
from ..model.loading.stored_quantisation import (
    BYTES_8BIT,
    NESTED_BYTES,
    PLAIN_4BIT_BYTES,
    StoredQuantisation,
    require_trainable_base,
    stored_quantisation,
    stored_sizes,
)
from ..model.logprobs.attention.cpu import saved_weights
from ..model.logprobs.padded import unwrap
from ..model.logprobs.paths import PaddedPath
from ..model.logprobs.token_budget import EFFICIENT_TOKENS, MAX_TOKENS, MIN_TOKENS, USABLE, share
from ..system.words import word_of
from .activations import StepCost, depths_of, step_cost
from .cards import CUDA_BYTES, FREE, NCCL_BYTES, Card
from .efficiency import Efficiency, efficiency_of
from .ranks import (
    ALONE,
    DDP,
    FSDP2,
    SHARDED,
    ZERO_2,
    ZERO_3,
    RankMemory,
    Sharing,
    WeightSizes,
    peak_of_rank,
    weight_sizes,
)
from .step_time import Computed, StepTime, step_time

ALL_WEIGHTS, LORA, LORA_4BIT, LORA_8BIT = "all weights", "LoRA", "LoRA, 4 bits", "LoRA, 8 bits"


@dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    name: str
    memory: int  # bytes that a rank may have
    card: Card | None  # its rates, where they are known
    on_gpu: bool
    gpus: int  # of a machine; processes, on a CPU
    nodes: int
    process_bytes: int  # of Python and libraries; 0 on a GPU, where it is CUDA's
    is_here: bool = True  # this machine, not one that is named

    @property
    def ranks(self) -> int:
        """Return the number of processes."""
        return self.gpus * self.nodes

    @property
    def usable(self) -> float:
        """Return the bytes that may be planned with."""
        return FREE * self.memory if self.on_gpu else float(self.memory)

    @property
    def overhead(self) -> float:
        """Return the bytes of a process beside what it trains."""
        if not self.on_gpu:
            return float(self.process_bytes)
        return float(CUDA_BYTES + (NCCL_BYTES if self.ranks > 1 else 0))


@dataclass(frozen=True)
class Choice:
    """One way to train the model on a machine, and what it takes there."""

    training: str  # ``ALL_WEIGHTS``, ``LORA``, ...
    sharing: Sharing
    checkpointing: bool
    memory: RankMemory
    fits: bool
    max_tokens: int | None  # of a micro-batch
    pairs: int  # of a process in a micro-batch, where no number of tokens bounds it
    largest_tokens: int
    step: StepTime | None
    is_recipe: bool


@dataclass(frozen=True)
class Plan:
    """A recipe on a machine, and the choices beside it."""

    machine: Machine
    recipe: Choice
    choices: tuple[Choice, ...]  # the recipe among them
    efficiency: Efficiency
    path: str
    reason: str
    trained_numbers: int
    numbers: int
    stored: str | None  # how the weights of the base are quantised where they are stored


@dataclass(frozen=True)
class _Way:
    """One way to train the model, whatever it is shared over."""

    training: str
    sizes: WeightSizes
    cost: Callable[[bool, bool], StepCost]  # with checkpointing or not, with all weights in the type of the run or not
    model: nn.Module


def plan_recipe(
    args: ORPOConfig,
    chosen: ModelConfig,
    rows: Any,
    machine: Machine,
    recipe_sharing: Sharing,
    *,
    stored: StoredQuantisation | None,
    total: int | None,
    is_fixed: bool = True,
    may_split: bool = False,
) -> Plan:
    """Predict a recipe.

    Args:
        args: Settings of the training, in the precision of the machine.
        chosen: Settings of the model.
        rows: Its tokenized pairs, or a sample of them.
        machine: Where it is to run.
        recipe_sharing: How the recipe spreads over processes.
        stored: How the weights of the base are quantised where they are stored (:func:`stored_base`).
        total: Pairs of which ``rows`` are a sample; ``None``: they are all.
        is_fixed: Whether the recipe is planned as it is; otherwise, like the others, with gradient checkpointing where
            it does not fit without.
        may_split: Whether micro-batches that do not fit, and that no number of tokens bounds, are planned with fewer
            pairs, and with more of them a step.

    Returns:
        The plan.

    Raises:
        ModelError: The model cannot be built without its weights.
    """
    ways = _ways(args, chosen, stored)
    recipe_way = _training_of(chosen, ways)
    planner = _Planner(args, rows, machine, total, seq2seq=bool(_config_of(ways[recipe_way]).is_encoder_decoder))
    choices = []
    for training, way in ways.items():
        for sharing in _sharings(way, machine, recipe_sharing):
            is_recipe = training == recipe_way and sharing.kind == recipe_sharing.kind
            used = recipe_sharing if is_recipe else sharing
            both = not (args.gradient_checkpointing or (is_recipe and is_fixed))
            for checkpointing in (False, True) if both else (args.gradient_checkpointing,):
                choice = planner.choice(way, used, checkpointing=checkpointing, is_recipe=is_recipe, split=may_split)
                # Checkpointing takes less for activations alone, and measuring it takes seconds for a large model.
                if choice.fits or choice.memory.total - choice.memory.activations > machine.usable:
                    break
            choices.append(choice)
    recipe = next(choice for choice in choices if choice.is_recipe)
    way = ways[recipe_way]
    cost = way.cost(args.gradient_checkpointing, recipe.sharing.computes_narrow)
    return Plan(
        machine,
        recipe,
        tuple(choices),
        planner.efficiency(cost, recipe.max_tokens, recipe.pairs),
        cost.path,
        cost.reason,
        way.sizes.trained_numbers,
        way.sizes.numbers,
        stored.method if stored else None,
    )


# ---- Ways to train the model


def stored_base(args: ORPOConfig, chosen: ModelConfig, machine: Machine, *, adapter: bool) -> StoredQuantisation | None:
    """Return how the weights of the base are quantised where they are stored, if a run keeps them so.

    Raise ``ModelError`` where they are so and cannot be trained; ``adapter`` says whether one may be trained on them.
    """
    name = str(chosen.model_name_or_path)
    place = locate(name)
    if is_adapter_folder(Path(place)) or is_gguf(place):
        return None
    # The configuration of a model on the hub is downloaded here.
    config = load_config(name, revision=chosen.model_revision, trust_remote_code=args.trust_remote_code)
    capability = machine.card.capability if machine.card is not None and machine.on_gpu else None
    stored = stored_quantisation(name, config, is_here=machine.is_here, capability=capability)
    require_trainable_base(name, stored, adapter=adapter, quantise=chosen.load_in_4bit or chosen.load_in_8bit)
    return stored


def _ways(args: ORPOConfig, chosen: ModelConfig, stored: StoredQuantisation | None) -> dict[str, _Way]:
    name = str(chosen.model_name_or_path)
    place = locate(name)
    is_adapter = is_adapter_folder(Path(place))
    found: dict[str, _Way] = {}
    for training in (ALL_WEIGHTS, LORA, LORA_8BIT if chosen.load_in_8bit else LORA_4BIT):
        adapter = training != ALL_WEIGHTS
        if stored is not None and training != LORA:
            continue
        if is_adapter and not adapter:
            continue
        if training in (LORA_4BIT, LORA_8BIT) and LORA not in found:
            continue
        settings = replace(chosen, use_peft=adapter, load_in_4bit=False, load_in_8bit=False)
        outline = _outline_of(name, args, settings, adapter=adapter, is_adapter=is_adapter)
        per_weight = 0.0
        if training in (LORA_4BIT, LORA_8BIT):
            nested = NESTED_BYTES if chosen.use_bnb_nested_quant else PLAIN_4BIT_BYTES
            per_weight = BYTES_8BIT if training == LORA_8BIT else nested
        try:
            model = outline(None)
        except ModelError:
            if chosen.use_peft or not adapter:
                raise
            continue  # the adapter does not fit this model, and is not asked for
        files = stored_sizes(Path(place)) if stored is not None else None
        if stored is not None and files is None:
            if stored.bytes_per_weight is None:
                raise ModelError(f"{name}: weights of {stored.method} have no known size; fetch its files first")
            per_weight = stored.bytes_per_weight
        optim = word_of(args.optim)
        sizes = weight_sizes(model, optim=optim, bytes_per_quantised=per_weight, stored=files)
        cost = found[LORA].cost if LORA in found else _remembered_cost(outline, model, args)
        found[training] = _Way(training, sizes, cost, model)
    return found


def _outline_of(
    name: str, args: ORPOConfig, settings: ModelConfig, *, adapter: bool, is_adapter: bool
) -> Callable[[int | None], nn.Module]:
    dtype = settings.dtype or default_dtype(args, adapter=adapter)

    def outline(layers: int | None) -> nn.Module:
        model = outline_model(
            name,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype,
            peft_config=get_peft_config(settings) if adapter and not is_adapter else None,
            layers=layers,
        )
        if model is None:
            raise ModelError(f"{name}: it cannot be built without running code of its own, so nothing can be planned")
        return model

    return outline


def _remembered_cost(
    outline: Callable[[int | None], nn.Module], model: nn.Module, args: ORPOConfig
) -> Callable[[bool, bool], StepCost]:
    found: dict[tuple[bool, bool], StepCost] = {}
    dtype, on_gpu, depths = run_dtype(args), not args.use_cpu, depths_of(model)

    def narrow(layers: int | None) -> nn.Module:
        return outline(layers).to(dtype)

    def cost(checkpointing: bool, is_narrow: bool) -> StepCost:
        key = checkpointing, is_narrow and dtype != torch.float32
        if key not in found:
            plain = cost(False, is_narrow) if checkpointing else None
            build = narrow if key[1] else outline
            found[key] = step_cost(build, depths, args, dtype=dtype, on_gpu=on_gpu, plain=plain)
        return found[key]

    return cost


def _config_of(way: _Way) -> Any:
    model: Any = unwrap(way.model)
    return model.config


def _training_of(chosen: ModelConfig, ways: dict[str, _Way]) -> str:
    if len(ways) == 1:
        return next(iter(ways))
    if chosen.load_in_8bit or chosen.load_in_4bit:
        return LORA_8BIT if chosen.load_in_8bit else LORA_4BIT
    return LORA if chosen.use_peft or ALL_WEIGHTS not in ways else ALL_WEIGHTS


def _sharings(way: _Way, machine: Machine, recipe: Sharing) -> list[Sharing]:
    """Return how a way may be shared; quantised weights are not sharded, unless the recipe does."""
    if machine.ranks == 1:
        kinds = [recipe.kind if recipe.kind in SHARDED else ALONE]
    else:
        kinds = [DDP] if way.sizes.quantised_numbers else [DDP, FSDP2, ZERO_2, ZERO_3]
        kinds += [recipe.kind] if recipe.kind not in kinds else []
    return [replace(recipe, kind=kind, bucket_numbers=None) for kind in kinds]


# ---- What a way takes


class _Planner:
    """What all choices share: pairs, machine, settings; steps are planned once for each layout and budget."""

    def __init__(self, args: ORPOConfig, rows: Any, machine: Machine, total: int | None, *, seq2seq: bool):
        self._args, self._rows, self._machine, self._seq2seq = args, rows, machine, seq2seq
        self._columns = {name: rows[name] for name in rows.column_names if not name.endswith("input_ids")}
        self._found: dict[tuple[str, int | None, int], Efficiency] = {}
        self._total = total

    def efficiency(self, cost: StepCost, max_tokens: int | None, pairs: int) -> Efficiency:
        """Return what the steps are like in micro-batches of so many tokens, or pairs; those of a step stay."""
        args, key = self._args, (cost.path, max_tokens, pairs)
        if key not in self._found:
            micro_batches = args.per_device_train_batch_size * args.gradient_accumulation_steps // pairs
            shape = StepShape(pairs, micro_batches, self._machine.ranks, max_tokens)
            found = efficiency_of(
                self._rows,
                self._lengths(cost),
                shape,
                packed=cost.path != PaddedPath.name,
                strategy=str(args.train_sampling_strategy),
                grouped_by=lengths_of(self._columns, "sequence", shared_prompt_from=0).tokens,
                seed=args.seed if args.data_seed is None else args.data_seed,
                drop_last=args.dataloader_drop_last,
            )
            if self._total is not None:
                found = replace(found, steps=math.ceil(self._total / shape.pairs))
            self._found[key] = found
        return self._found[key]

    def _lengths(self, cost: StepCost) -> Lengths:
        return lengths_of(
            self._columns,
            self._args.nll_on,
            is_encoder_decoder=self._seq2seq,
            shared_prompt_from=cost.shared_prompt_from,
        )

    def choice(self, way: _Way, sharing: Sharing, *, checkpointing: bool, is_recipe: bool, split: bool) -> Choice:
        """Return what a way takes where it is shared like this.

        With ``split`` a micro-batch that no number of tokens bounds has as many pairs as fit, of the numbers that
        divide the recipe's.
        """
        most = self._args.per_device_train_batch_size
        is_padded = way.cost(checkpointing, sharing.computes_narrow).path == PaddedPath.name
        is_split = split and (is_padded or self._args.max_tokens_per_microbatch is None)
        for pairs in [n for n in range(most, 0, -1) if most % n == 0] if is_split else [most]:
            found = self._choice(way, sharing, pairs, checkpointing=checkpointing, is_recipe=is_recipe)
            if found.fits:
                break
        return found

    def _choice(self, way: _Way, sharing: Sharing, pairs: int, *, checkpointing: bool, is_recipe: bool) -> Choice:
        machine, args = self._machine, self._args
        cost = way.cost(checkpointing, sharing.computes_narrow)
        compute_bytes = run_dtype(args).itemsize
        # As in training: such a step may have to be computed again, so that gradients are exchanged at its end.
        can_be_halved = cost.path != PaddedPath.name and args.max_tokens_per_microbatch is not None
        held = sharing.held(way.sizes, compute_bytes, exchanges_after=can_be_halved)
        # A quantised weight is written out to be multiplied by.
        written = compute_bytes * way.sizes.largest_linear
        max_tokens, head_bytes = self._budget(cost, held, way.sizes, sharing, cost.on_top + written)
        plan = self.efficiency(cost, max_tokens, pairs)
        saved = 0
        if cost.attention_weight:
            saved = saved_weights(forest_batch([self._rows[i] for i in plan.largest], "sequence")["forest"])
        on_top = cost.above(plan.largest_tokens, saved=saved) + written
        memory = peak_of_rank(
            held,
            kept=cost.kept(plan.largest_tokens, head_bytes=head_bytes, saved=saved),
            on_top=on_top,
            process=machine.overhead,
            several=plan.micro_batches > 1 or sharing.kind in SHARDED,
            first_gradients=way.sizes.trained_tail_numbers * compute_bytes,
            arriving=sharing.arriving(way.sizes),
        )
        step = None
        if machine.card is not None:
            plain = way.cost(False, False)
            computed = _computed(way, cost=plain, checkpointing=checkpointing, compute_bytes=compute_bytes)
            step = step_time(computed, way.sizes, plan, sharing, machine.card, nodes=machine.nodes)
        return Choice(
            way.training,
            sharing,
            checkpointing,
            memory,
            memory.total <= machine.usable,
            max_tokens,
            pairs,
            plan.largest_tokens,
            step,
            is_recipe,
        )

    def _budget(
        self, cost: StepCost, held: RankMemory, sizes: WeightSizes, sharing: Sharing, on_top: float
    ) -> tuple[int | None, int]:
        """Return the tokens of a micro-batch and the bytes of its head, as ``token_budget`` would choose them there."""
        machine, asked = self._machine, self._args.max_tokens_per_microbatch
        if cost.path == PaddedPath.name:
            return None, 0
        kind = "cuda" if machine.on_gpu else "cpu"
        trained = sizes.trained_bytes / (sharing.parts if sharing.kind in (FSDP2, ZERO_3) else 1)
        buckets, gathered = (0.0, held.exchange) if sharing.kind in SHARDED else (held.exchange, 0.0)
        free = machine.usable - machine.overhead - held.weights - 3 * trained - buckets
        usable = int(max(0.0, USABLE * max(0.0, free) - cost.fixed - on_top - gathered))
        tokens, head_bytes = share(
            usable,
            max(cost.per_token + cost.above(10**9) / 10**9, 1.0),
            cost.head_per_token,
            chunk=cost.head_chunk,
            most=MAX_TOKENS[kind],
            efficient=EFFICIENT_TOKENS[kind],
        )
        if asked is None or isinstance(asked, int):
            return asked, head_bytes
        return _rounded(max(MIN_TOKENS, tokens)), head_bytes


def _rounded(tokens: int) -> int:
    """Round a budget down to two digits: it is predicted, and alike ones are planned once."""
    unit = 10 ** max(0, len(str(tokens)) - 2)
    return tokens if tokens in MAX_TOKENS.values() else tokens // unit * unit


def _computed(way: _Way, *, cost: StepCost, checkpointing: bool, compute_bytes: int) -> Computed:
    inner: Any = unwrap(way.model)
    config = inner.config.get_text_config()
    head = inner.get_output_embeddings()
    outside = {id(inner.get_input_embeddings().weight), *(id(p) for p in (head.parameters() if head else ()))}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    active = (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts > 1 else 1.0
    body = sum(
        p.numel() * (active if "experts" in name else 1.0)
        for name, p in way.model.named_parameters()
        if p.ndim > 1 and id(p) not in outside
    )
    heads = getattr(config, "num_attention_heads", 0) or 0
    width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) or 0) // max(heads, 1)
    return Computed(
        body_numbers=int(body),
        head_numbers=int(head.weight.numel()) if head is not None else 0,
        layers=getattr(config, "num_hidden_layers", 0) or 0,
        channels=heads * width,
        adapter=way.training != ALL_WEIGHTS,
        four_bit=way.sizes.quantised_numbers > 0,
        checkpointing=checkpointing,
        kept_per_token=cost.per_token,
        compute_bytes=compute_bytes,
    )
