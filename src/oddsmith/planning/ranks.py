"""Add up the memory of a rank by its parts, for each way to spread a training over processes.

N ranks, bytes of all weights W, of those that are trained T (n numbers), of the optimizer's states O:

               weights                  gradients   optimizer   exchange
    alone      W                        T           O           -
    DDP        W                        T           O           T: buckets beside the gradients (on a CPU: see below)
    FSDP2      W / N                    T / N       O / N       two layers, embedding or head, whole, with gradients
    ZeRO-2     W + 4 n / N              4 n / N     O / N       a bucket of gradients (twice with ``overlap_comm``)
    ZeRO-3     W / N (+ 4 n / N)        8 n / N     O / N       buckets (twice by default), weights that stay gathered

DDP's buckets are there from the start, and a GPU gives memory to what is there. A CPU's system gives it to what is
written, and nothing is written to them where gradients are exchanged after the last backward pass, in a bucket of our
own (``training/shared_budget.py``): 25 MiB, which take the place of activations.

Where FSDP2 shards within replicas of the model, its N are the ranks of one replica. Stage 1 of ZeRO is taken for 2.

What is kept for the backward pass is the same in all of them. With several micro-batches a step gradients are there all
the time. With one, they come while what is kept goes, and the peak is at either end of the backward pass.

Source: torch's ``FSDPParamGroup``, DeepSpeed's ``stage_1_and_2.py`` and ``stage3.py`` (0.19), read for what they hold;
``benchmarks/plan_memory.py`` compares peaks with processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..checkpoint.space import estimated_state_bytes
from ..model.loading.stored_quantisation import StoredSizes
from ..model.logprobs.padded import unwrap

ALONE, DDP, FSDP2, ZERO_2, ZERO_3 = "one process", "DDP", "FSDP2", "ZeRO-2", "ZeRO-3"
SHARDED = (FSDP2, ZERO_2, ZERO_3)
MASTER_BYTES = 4  # of a number that an optimizer of DeepSpeed holds beside the weights, and of its gradient
LIVE_NUMBERS = 10**9  # ``stage3_max_live_parameters`` and ``stage3_max_reuse_distance``: fewer stay gathered
BUCKET_NUMBERS = 5 * 10**8  # DeepSpeed's ``reduce_bucket_size``


@dataclass(frozen=True)
class WeightSizes:
    """The weights of a model, as they are trained."""

    bytes: int
    trained_bytes: int
    numbers: int
    trained_numbers: int
    optimizer_bytes: int
    layer_numbers: int  # of the largest layer
    tail_numbers: int  # final norm and output layer, with the embedding that it is tied to
    trained_tail_numbers: int
    hidden: int
    largest_linear: int  # numbers of the largest quantised weight; 0 where none is
    quantised_numbers: int


class RankMemory(NamedTuple):
    """The peak memory of a rank by its parts, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    exchange: float  # what processes send and receive, and weights that are gathered
    activations: float
    process: float  # Python and libraries, or a GPU's context

    @property
    def total(self) -> float:
        """Return the sum."""
        return float(sum(self))


def weight_sizes(
    model: nn.Module, *, optim: str, bytes_per_quantised: float = 0.0, stored: StoredSizes | None = None
) -> WeightSizes:
    """Return the sizes of a model without values.

    Args:
        model: As it is trained, with its adapter.
        optim: Name of the optimizer, as in the settings.
        bytes_per_quantised: Of a weight of a frozen linear layer; 0 where none is quantised.
        stored: What the files of a quantised base hold, which then counts.

    Returns:
        The sizes.
    """
    inner: Any = unwrap(model)
    head = inner.get_output_embeddings()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    quantised: set[int] = set()
    if bytes_per_quantised:
        quantised = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
        }
    numbers_4bit = [p.numel() for p in model.parameters() if id(p) in quantised]
    quantised_numbers, quantised_bytes = sum(numbers_4bit), bytes_per_quantised * sum(numbers_4bit)
    plain = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in quantised)
    if stored is not None:
        frozen = [p for p in model.parameters() if not p.requires_grad]
        quantised_numbers, quantised_bytes = max(0, _numbers(frozen) - stored.plain_numbers), stored.quantised_bytes
        each = min(p.element_size() for p in frozen)
        plain = stored.plain_numbers * each + sum(p.numel() * p.element_size() for p in trained)
    config = inner.config.get_text_config()
    layers = [
        sum(p.numel() for p in layer.parameters())
        for modules in model.modules()
        if isinstance(modules, nn.ModuleList) and len(modules) == getattr(config, "num_hidden_layers", None)
        for layer in modules
    ]
    tail = list(head.parameters()) if head is not None else []
    return WeightSizes(
        bytes=int(plain + quantised_bytes),
        trained_bytes=sum(p.numel() * p.element_size() for p in trained),
        numbers=_numbers(model.parameters()),
        trained_numbers=_numbers(trained),
        optimizer_bytes=estimated_state_bytes(trained, optim),
        layer_numbers=max(layers, default=0),
        tail_numbers=_numbers(tail),
        trained_tail_numbers=_numbers([p for p in tail if p.requires_grad]),
        hidden=int(getattr(config, "hidden_size", 0) or 0),
        largest_linear=max(numbers_4bit, default=0),
        quantised_numbers=quantised_numbers,
    )


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@dataclass(frozen=True)
class Sharing:
    """How a training is spread over processes."""

    kind: str  # one of ``ALONE``, ``DDP``, ``FSDP2``, ``ZERO_2``, ``ZERO_3``
    ranks: int
    bucket_numbers: int | None = None  # of DeepSpeed; None: ``auto``, the square of the hidden size
    overlaps: bool | None = None  # DeepSpeed's ``overlap_comm``, which takes a second bucket; None: at stage 3 alone
    live_numbers: int = LIVE_NUMBERS
    in_16_bits: bool = False  # DeepSpeed trains weights of 16 bits, and keeps float32 ones beside them
    on_gpu: bool = True
    replicas: int = 1  # within which FSDP2 shards

    @property
    def parts(self) -> int:
        """Return the number of ranks over which what is sharded is spread."""
        return self.ranks // self.replicas if self.kind == FSDP2 else self.ranks

    @property
    def computes_narrow(self) -> bool:
        """Return whether the weights of a step are in the type in which the run computes, not cast layer by layer."""
        return self.kind == FSDP2 or (self.kind in (ZERO_2, ZERO_3) and self.in_16_bits)

    def arriving(self, sizes: WeightSizes) -> float:
        """Return what of the exchange is filled in the backward pass, while activations go: ZeRO-2's bucket on a CPU.

        DeepSpeed asks for a new one before each backward pass, and a GPU gives all of it at once.
        """
        return self._buckets(sizes) if self.kind == ZERO_2 and not self.on_gpu else 0.0

    def held(self, sizes: WeightSizes, compute_bytes: int, *, exchanges_after: bool = False) -> RankMemory:
        """Return what a rank holds at the peak of a step, beside activations and process.

        Args:
            sizes: Of the weights.
            compute_bytes: Of a number in the type in which the run computes.
            exchanges_after: Whether gradients are exchanged after the last backward pass under DDP, not within it.

        Returns:
            The parts, activations and process as 0.
        """
        n, N = sizes.trained_numbers, self.parts
        weights, trained, states = float(sizes.bytes), float(sizes.trained_bytes), float(sizes.optimizer_bytes)
        if self.kind in (ZERO_2, ZERO_3) and self.in_16_bits:
            weights -= trained - 2 * n
        if self.kind == ALONE:
            return RankMemory(weights, trained, states, 0, 0, 0)
        if self.kind == DDP:
            return RankMemory(weights, trained, states, trained if self.on_gpu or not exchanges_after else 0, 0, 0)
        if self.kind == FSDP2:
            return RankMemory(weights / N, trained / N, states / N, self._gathered(sizes, compute_bytes), 0, 0)
        master = MASTER_BYTES * n / N
        if self.kind == ZERO_2:
            return RankMemory(weights + master, master, states / N, self._buckets(sizes), 0, 0)
        gathered = min(sizes.numbers, self.live_numbers) * weights / max(sizes.numbers, 1)
        more = master if self.in_16_bits else 0.0
        return RankMemory(weights / N + more, 2 * master, states / N, self._buckets(sizes) + gathered, 0, 0)

    def _gathered(self, sizes: WeightSizes, compute_bytes: int) -> float:
        """Return what FSDP2 holds whole: output layer with its gradient, once more to be sent, beside two layers."""
        tail = compute_bytes * (sizes.tail_numbers + 2 * sizes.trained_tail_numbers)
        return tail + 2 * compute_bytes * sizes.layer_numbers

    def _buckets(self, sizes: WeightSizes) -> float:
        """Return the bytes of DeepSpeed's buckets; a system gives memory on a CPU only as it is written to."""
        numbers = sizes.hidden**2 if self.bucket_numbers is None else self.bucket_numbers
        if not self.on_gpu:
            numbers = min(numbers, sizes.trained_numbers)
        each = 2 if self.in_16_bits else 4
        overlaps = self.kind == ZERO_3 if self.overlaps is None else self.overlaps
        return float(numbers * each * (2 if overlaps else 1))


def peak_of_rank(
    held: RankMemory,
    *,
    kept: float,
    on_top: float,
    process: float,
    several: bool,
    first_gradients: float,
    arriving: float = 0.0,
) -> RankMemory:
    """Return the memory of a rank at the peak of a step.

    Args:
        held: What it holds whatever the micro-batch is.
        kept: Bytes that the largest micro-batch keeps for its backward pass.
        on_top: Of that, at the peak of the backward pass.
        process: Bytes of Python and libraries, or of a GPU's context.
        several: Whether a step has several micro-batches, so that gradients are there when one begins.
        first_gradients: Bytes of the gradients that the backward pass begins with, the output layer's.
        arriving: Bytes of the exchange that are filled while what is kept goes.

    Returns:
        All parts.
    """
    arriving += 0 if several else held.gradients
    # What arrives takes the place of what is kept.
    beginning, end = kept + on_top + min(first_gradients, arriving), arriving + on_top
    return held._replace(activations=max(beginning, end) - arriving, process=process)


def sharing_of(settings: Mapping[str, Any], ranks: int, *, bf16: bool, on_gpu: bool) -> Sharing:
    """Return how a recipe spreads its training over so many processes.

    It is by its ``fsdp``, ``deepspeed`` and ``parallelism_config``, which is accelerate's object.
    """
    plain = DDP if ranks > 1 else ALONE
    deepspeed = settings.get("deepspeed")
    if isinstance(deepspeed, Mapping):
        given = deepspeed.get("zero_optimization")
        zero = given if isinstance(given, Mapping) else {}
        stage = zero.get("stage", 0)
        bits = deepspeed.get("bf16", {"enabled": "auto"})  # which accelerate adds
        enabled = bits.get("enabled", False) if isinstance(bits, Mapping) else False
        bucket = zero.get("reduce_bucket_size", BUCKET_NUMBERS)
        kind = ZERO_3 if stage == 3 else ZERO_2 if stage else plain
        return Sharing(
            kind,
            ranks,
            bucket_numbers=None if bucket == "auto" else int(float(bucket)),
            overlaps=zero.get("overlap_comm"),
            live_numbers=_count(zero.get("stage3_max_live_parameters"), LIVE_NUMBERS),
            in_16_bits=bf16 if enabled == "auto" else bool(enabled),
            on_gpu=on_gpu,
        )
    if ranks > 1 and settings.get("fsdp"):
        parallelism = settings.get("parallelism_config")
        return Sharing(FSDP2, ranks, on_gpu=on_gpu, replicas=parallelism.dp_replicate_size if parallelism else 1)
    return Sharing(plain, ranks, on_gpu=on_gpu)


def _count(value: Any, otherwise: int) -> int:
    return otherwise if value in (None, "auto") else int(float(value))
