"""A run as one ordinary model folder, proved before it appears.

    base + adapter -> logits on a few texts             what it has to compute
    merged in float32 -> the same logits                 ROUNDED[float32], or it fails
    cast, written beside, loaded again -> logits again   ROUNDED[dtype], or it fails
    renamed

An adapter that was trained on a 4-bit base is another function on the 16-bit base. Which of the two it becomes is the
caller's choice; how far it then is from the model as it was trained is measured.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from .. import __version__
from ..errors import ConfigError, ExportError, MissingExtraError
from ..model.generation import end_tokens
from ..model.loading.models import load_model, load_tokenizer
from ..model.logprobs.token_budget import free_bytes
from ..model.merging import cast_parameters, is_tied, merge_weights
from ..system.run_folder import read_events
from ..training.card import write_card
from .atomic import RECORD_FILE, require_space, write_folder
from .divergence import Divergence, divergence, logits_of, text_ids
from .finished import Finished, card_facts, find_finished, load_as_trained, quantization_config, require_weights
from .model_folder import keep_files, write_model_folder

MergeInto = Literal["16bit", "dequantized"]
DTYPES = ("bfloat16", "float16", "float32")

# Mean KL a token, in nats. Sums in another order were off by 1e-11 on SmolLM2-135M, weights rounded to 16 bits by 8e-5
# to 4e-4 (bfloat16) and 3e-6 (float16). That the merge is right is shown in float32; what can still go wrong when
# weights are written (one is missing, too large or somewhere else) is off by far more than these allow for.
ROUNDED = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
# Where float32 does not fit into memory everything is computed in 16 bits, which by itself is off by 2e-3 there.
COMPUTED_IN_16_BITS = 3e-2
# Of what is free; logits and one layer in float32 come on top of the weights.
USABLE_MEMORY = 0.9


@dataclass(frozen=True)
class MergeReport:
    """What became of a run.

    Args:
        name: What was merged, as it was given.
        folder: Where the model is now.
        base: Name of the base; ``None`` for a model that was trained whole.
        dtype: Type of the weights.
        merge_into: The base that was merged into.
        parameters: Number of parameters.
        size_bytes: Of the weights.
        compute_dtype: Type that everything was compared in.
        merged: The merged model against base + adapter, before it was cast; ``None`` where nothing was merged.
        written: The model that was loaded again, against base + adapter.
        tolerance: The KL up to which ``written`` passes.
        bits: Of a weight of the base in training.
        from_trained: The model that was loaded again, against the model as it was trained, where that is another one;
            ``None`` also where it cannot be loaded here (``trained_missing`` says why).
        trained_missing: Why the model as trained could not be measured.
        is_tied: Whether embedding and head are one weight.
        end_tokens: Ids that end an answer.
        seconds: All of it.
    """

    name: str
    folder: str
    base: str | None
    dtype: str
    merge_into: str
    parameters: int
    size_bytes: int
    compute_dtype: str
    merged: Divergence | None
    written: Divergence
    tolerance: float
    bits: int
    from_trained: Divergence | None
    trained_missing: str | None
    is_tied: bool
    end_tokens: list[int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def merge_adapter(
    name: str,
    folder: Path,
    *,
    dtype: str | None = None,
    merge_into: MergeInto = "16bit",
    overwrite: bool = False,
    title: str | None = None,
    on_stage: Callable[[str, Any], None] = lambda stage, detail: None,
) -> MergeReport:
    """Write a run as an ordinary model folder: weights, tokenizer, chat template, generation settings.

    A model that was trained whole is cast and copied by the same road.

    Args:
        name: Run folder, checkpoint, adapter or model.
        folder: The new folder.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``; by default the 16-bit type that the base is loaded in,
            bfloat16 for a base in float32.
        merge_into: For an adapter that was trained on a quantised base: the base in 16 bits, or what the quantised
            weights stand for. Else without effect.
        overwrite: Whether an earlier export in ``folder`` may be replaced.
        title: What the model card calls it, such as its id on the hub; the run's name by default.
        on_stage: Called with ``("load", Finished)``, ``("trained", Finished)``, ``("merge", Finished)``,
            ``("write", folder)``, ``("check", folder)`` as it goes on.

    Returns:
        What was done, with the proof.

    Raises:
        ModelError: Nothing is there that can be merged, or its base is missing or another one.
        ConfigError: An unknown dtype, or a folder that cannot be written to.
        ExportError: No room, or the result does not compute what base and adapter do. Nothing is left then.
    """
    started_at = time.monotonic()
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype is {dtype!r}; expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    with write_folder(folder, overwrite=overwrite) as partial:
        finished = find_finished(name)
        require_weights(finished)
        tokenizer = load_tokenizer(name)
        ids = text_ids(tokenizer)
        trained, trained_missing = _trained_logits(finished, ids, on_stage)
        on_stage("load", finished)
        model, wanted, compute = _load(finished, dtype, merge_into)
        require_space(folder, model.num_parameters() * wanted.itemsize)
        reference = logits_of(model, ids)
        merged = None
        if isinstance(model, PeftModel):
            on_stage("merge", finished)
            model = merge_weights(model, compute)
            cast_parameters(model, compute)
            merged = divergence(reference, logits_of(model, ids), ids)
            _require(merged, _tolerance(torch.float32, compute), "the merged model")
        on_stage("write", folder)
        ends = end_tokens(model, tokenizer)
        write_model_folder(model, tokenizer, partial, dtype=wanted, end_tokens=ends)
        keep_files(partial, [finished.name, *([finished.base] if finished.base else [])])
        del model
        gc.collect()  # two of them might not fit
        on_stage("check", folder)
        model = load_model(str(partial), dtype=compute)
        again = logits_of(model, ids)
        report = MergeReport(
            name=name,
            folder=str(folder),
            base=finished.base,
            dtype=_name(wanted),
            merge_into=merge_into if finished.quantization else "16bit",
            parameters=model.num_parameters(),
            size_bytes=sum(file.stat().st_size for file in partial.glob("*.safetensors")),
            compute_dtype=_name(compute),
            merged=merged,
            written=divergence(reference, again, ids),
            tolerance=_tolerance(wanted, compute),
            bits=finished.bits,
            from_trained=divergence(trained, again, ids) if trained else None,
            trained_missing=trained_missing,
            is_tied=is_tied(model),
            end_tokens=ends,
            seconds=time.monotonic() - started_at,
        )
        _require(report.written, report.tolerance, f"the model as {report.dtype}")
        _write_record(partial, report)
        facts = card_facts(
            finished, "merged", title, tokenizer,
            is_encoder_decoder=model.config.is_encoder_decoder, notes=_notes(report),
        )  # fmt: skip
        write_card(partial, facts, read_events(finished.run) if finished.run else [])
    return report


def _trained_logits(
    finished: Finished, ids: Sequence[Sequence[int]], on_stage: Callable[[str, Any], None]
) -> tuple[list[torch.Tensor] | None, str | None]:
    """What a model on a quantised base said as it was trained; else, or without bitsandbytes, nothing, and why."""
    if not finished.quantization:
        return None, None
    on_stage("trained", finished)
    try:
        return logits_of(load_as_trained(finished), ids), None
    except MissingExtraError as error:
        return None, str(error)


def _load(
    finished: Finished, dtype: str | None, merge_into: MergeInto
) -> tuple[PreTrainedModel | PeftModel, torch.dtype, torch.dtype]:
    """The model to merge, the type it is wanted in, and the type to compute in.

    The base comes in the type it was trained in: PiSSA takes the adapter's start out of exactly these weights.
    """
    record = finished.record
    loaded = record.dtype if record and record.dtype else "auto"
    quantised = quantization_config(finished) if merge_into == "dequantized" else None
    # Unpacked in any case: a base that is only published in 4 bits has no other weights.
    model = load_model(finished.name, dtype=loaded, dequantize=True, quantization_config=quantised)
    wanted = getattr(torch, dtype) if dtype else (model.dtype if model.dtype.itemsize == 2 else torch.bfloat16)
    held_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fits = model.num_parameters() * 4 - held_bytes < USABLE_MEMORY * free_bytes(torch.device("cpu"))
    compute = torch.float32 if fits or wanted == torch.float32 else wanted
    if compute == torch.float32:
        model.float()
    return model.eval(), wanted, compute


def _tolerance(dtype: torch.dtype, compute: torch.dtype) -> float:
    """The largest KL that weights of a type may cost, where everything is computed in another."""
    return ROUNDED[_name(dtype)] if compute == torch.float32 else COMPUTED_IN_16_BITS


def _require(found: Divergence, limit: float, what: str) -> None:
    if not found.kl <= limit:  # not a number is no proof either
        reason = "some of its numbers are too large for its type; try --dtype bfloat16" if found.kl != found.kl else ""
        raise ExportError(
            f"{what} does not compute what base and adapter do: KL {found.kl:.2g} a token, expected at most {limit:.0e}"
            + (f" ({reason})" if reason else "; nothing was written")
        )


def _notes(report: MergeReport) -> list[str]:
    """What the model card says of the weights."""
    if report.base is None:
        return [f"Weights in {report.dtype}."]
    notes = [
        f"Weights in {report.dtype}, with the adapter merged in float32: on a few texts {report.written.kl:.1e} nats a"
        " token (KL divergence) from base and adapter apart."
    ]
    if report.bits < 16:
        into = "the base in 16 bits" if report.merge_into == "16bit" else f"what the {report.bits} bits stand for"
        measured = (
            f": {report.from_trained.kl:.1e} nats a token from the model as trained" if report.from_trained else ""
        )
        notes.append(f"The adapter was trained on a base in {report.bits} bits, and merged into {into}{measured}.")
    return notes


def _write_record(folder: Path, report: MergeReport) -> None:
    """``export.json``: the proof. The folder may be published, so no names of places on this machine."""
    proof = {key: value for key, value in report.to_dict().items() if key not in ("name", "folder", "base", "seconds")}
    text = json.dumps({"oddsmith": __version__, "kind": "merged", **proof}, indent=2)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
