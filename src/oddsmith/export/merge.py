"""Merge an adapter into its base and write one ordinary model folder, checked before it appears.

    base + adapter -> logits on a few texts              what the merged model has to compute
    merged in float32 -> the same logits                 KL at most MAX_KL["float32"], or the export fails
    cast, written, loaded again -> the same logits       KL at most MAX_KL[dtype], or the export fails

An adapter that was trained on a 4-bit base is another function on the 16-bit base. The caller chooses which of the two
it is merged into; the distance to the model on its quantised base is measured.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..errors import ConfigError, ExportError, MissingExtraError
from ..model.computing import require_finite_logits
from ..model.generation import stop_at_end_tokens
from ..model.loading.architecture import multimodal_class
from ..model.loading.models import load_model, load_tokenizer
from ..model.loading.place import locate
from ..model.loading.processor_files import copy_processor_files
from ..model.loading.quiet import no_progress_bars
from ..model.merging import cast_parameters, is_tied, merge_weights
from ..model.text_part import outside_parameters, stored_dtype
from ..system.dtypes import dtype_name
from ..training.card import CardFacts, card_names, place_of, write_card
from ..training.card_record import CardRecord
from .atomic import RECORD_FILE, require_space, write_folder
from .divergence import Divergence, divergence, fits_in_memory, logits_of, text_ids
from .named_model import NamedModel, find_model

MergeInto = Literal["16bit", "dequantized"]
OnStage = Callable[[str, Any], None]
DTYPES = ("bfloat16", "float16", "float32")

# Mean KL per token, in nats. On SmolLM2-135M summing in another order costs 1e-11, rounding the weights 8e-5 to 4e-4
# (bfloat16) or 3e-6 (float16). The merge itself is checked in float32; what can still go wrong when weights are written
# (one is missing, too large or somewhere else) costs far more than these allow.
MAX_KL = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
# Where float32 does not fit into memory everything is computed in 16 bits, which by itself costs 2e-3 there.
MAX_KL_COMPUTED_IN_16_BITS = 3e-2

# transformers reads it and does not write it again; llama.cpp's converter needs it.
SENTENCEPIECE_FILE = "tokenizer.model"


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge, and its distance from the original."""

    name: str  # of the run or model, as given by the user
    folder: str  # where the merged model is
    base: str | None  # name of the base; ``None`` for a model that was trained whole
    dtype: str  # of the weights
    merge_into: str  # the base that was merged into
    parameters: int
    size_bytes: int  # of the weights
    compute_dtype: str  # type in which everything was compared
    merged: Divergence | None  # merged model before the cast, against base + adapter; ``None``: nothing was merged
    written: Divergence  # the model loaded again from the folder, against base + adapter
    tolerance: float  # the largest KL of ``written`` that passes
    bits: int  # bits per weight of the base in training
    # The model loaded again, against the model on its quantised base; ``None`` without such a base, or where it could
    # not be loaded
    from_trained: Divergence | None
    trained_missing: str | None  # why it could not be loaded
    is_tied: bool  # whether embedding and head are one weight
    end_tokens: list[int]  # ids of the tokens that end an answer
    seconds: float


def merge_adapter(
    name: str,
    folder: Path,
    *,
    dtype: str | None = None,
    merge_into: MergeInto = "16bit",
    overwrite: bool = False,
    title: str | None = None,
    on_stage: OnStage = lambda stage, detail: None,
) -> MergeReport:
    """Write a run as an ordinary model folder: weights, tokenizer, chat template, generation settings.

    A model that was trained whole is only cast and copied.

    Args:
        name: Run folder, checkpoint, adapter or model.
        folder: The new folder.
        dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``; by default the 16-bit type that the base is loaded in,
            bfloat16 for a base in float32.
        merge_into: For an adapter that was trained on a quantised base: the base in 16 bits, or what the quantised
            weights stand for. Without effect otherwise.
        overwrite: Whether an earlier export in ``folder`` may be replaced.
        title: What the model card calls it, such as its id on the hub; the run's name by default.
        on_stage: Called with ``("load", NamedModel)``, ``("trained", NamedModel)``, ``("merge", NamedModel)``,
            ``("write", folder)``, ``("check", folder)`` when the stage begins.

    Returns:
        The measured distances and what was written.

    Raises:
        ModelError: There is no model that can be merged, or its base is missing or another one.
        ConfigError: An unknown dtype, or a folder that cannot be written to.
        ExportError: No room, or the result does not compute what base and adapter do. Nothing is left then.
    """
    started_at = time.monotonic()
    dtype = dtype_name(dtype)
    if dtype not in (None, *DTYPES):
        raise ConfigError(f"dtype is {dtype!r}; expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    with write_folder(folder, overwrite=overwrite) as partial:
        source = find_model(name)
        source.require_weights()
        origin = _Origin.of(source)
        tokenizer = load_tokenizer(name)
        ids = text_ids(tokenizer)
        trained, trained_missing = _trained_logits(source, ids, on_stage)
        on_stage("load", source)
        model, wanted, compute = _load(source, dtype, merge_into)
        require_space(folder, model.num_parameters() * wanted.itemsize)
        reference = logits_of(model, ids)
        require_finite_logits(name, model, reference)
        merged = None
        if isinstance(model, PeftModel):
            on_stage("merge", source)
            model = merge_weights(model, compute)
            cast_parameters(model, compute)
            merged = divergence(reference, logits_of(model, ids), ids)
            _require(merged, _max_kl(torch.float32, compute), "the merged model")
        on_stage("write", folder)
        ends = stop_at_end_tokens(model, tokenizer)
        write_model_folder(model, tokenizer, partial, dtype=wanted)
        _copy_sentencepiece_file(partial, [source.name, *([source.base] if source.base else [])])
        del model
        gc.collect()  # two models might not fit
        on_stage("check", folder)
        model = load_model(str(partial), dtype=compute)
        again = logits_of(model, ids)
        report = MergeReport(
            name=name,
            folder=str(folder),
            base=source.base,
            dtype=_name(wanted),
            merge_into=merge_into if source.quantization else "16bit",
            parameters=model.num_parameters(),
            size_bytes=sum(file.stat().st_size for file in partial.glob("*.safetensors")),
            compute_dtype=_name(compute),
            merged=merged,
            written=divergence(reference, again, ids),
            tolerance=_max_kl(wanted, compute),
            bits=source.bits,
            from_trained=divergence(trained, again, ids) if trained else None,
            trained_missing=trained_missing,
            is_tied=is_tied(model),
            end_tokens=ends,
            seconds=time.monotonic() - started_at,
        )
        _require(report.written, report.tolerance, f"the model as {report.dtype}")
        _write_record(partial, report)
        kind = {"is_encoder_decoder": model.config.is_encoder_decoder, "auto_class": multimodal_class(model)}
        _write_card(partial, report, origin, title, tokenizer, **kind)
    return report


def _trained_logits(
    source: NamedModel, ids: Sequence[Sequence[int]], on_stage: OnStage
) -> tuple[list[torch.Tensor] | None, str | None]:
    """Return the logits of a model on its quantised base, or ``None`` and, where there is such a base, the reason."""
    if not source.quantization:
        return None, None
    on_stage("trained", source)
    try:
        return logits_of(source.load_as_trained(), ids), None
    except MissingExtraError as error:
        return None, str(error)


def _load(
    source: NamedModel, dtype: str | None, merge_into: MergeInto
) -> tuple[PreTrainedModel | PeftModel, torch.dtype, torch.dtype]:
    """Return the model to merge, the type that its weights get, and the type to compute in.

    The base is loaded in the type it was trained in: PiSSA subtracts the adapter's start from exactly these weights.
    """
    record = source.record
    loaded = record.dtype if record and record.dtype else "auto"
    quantised = source.quantization_config() if merge_into == "dequantized" else None
    # Dequantised in any case: a base that is only published in 4 bits has no other weights.
    model = load_model(source.name, dtype=loaded, dequantize=True, quantization_config=quantised)
    _restore_outside(model, source)
    wanted = getattr(torch, dtype) if dtype else (model.dtype if model.dtype.itemsize == 2 else torch.bfloat16)
    held_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fits = fits_in_memory(model.num_parameters() * 4 - held_bytes)
    compute = torch.float32 if fits or wanted == torch.float32 else wanted
    if compute == torch.float32:
        model.float()
    return model.eval(), wanted, compute


def _restore_outside(model: PreTrainedModel | PeftModel, source: NamedModel) -> None:
    """Read what text does not reach once more where it was rounded: a base in float32 may be trained on in bfloat16."""
    stored = stored_dtype(model)
    if stored is None or stored.itemsize <= model.dtype.itemsize:
        return
    original = dict(outside_parameters(load_model(source.base or source.name, dtype=stored)))
    for name, weight in outside_parameters(model):
        if name in original:
            weight.data = original[name].data


def _max_kl(dtype: torch.dtype, compute: torch.dtype) -> float:
    return MAX_KL[_name(dtype)] if compute == torch.float32 else MAX_KL_COMPUTED_IN_16_BITS


def _require(found: Divergence, max_kl: float, what: str) -> None:
    if not found.kl <= max_kl:  # NaN fails too
        reason = "some of its numbers are too large for its type; try --dtype bfloat16" if found.kl != found.kl else ""
        raise ExportError(
            f"{what} does not compute what base and adapter do: KL {found.kl:.2g} a token, expected at most"
            f" {max_kl:.0e}" + (f" ({reason})" if reason else "; nothing was written")
        )


def write_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Write weights, configuration, generation settings, tokenizer and chat template, for ``from_pretrained``.

    The weights are cast to ``dtype`` in place.
    """
    cast_parameters(model, dtype)
    model.config.dtype = dtype
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    copy_processor_files(model, folder)


def _copy_sentencepiece_file(folder: Path, names: Iterable[str]) -> None:
    """Copy the tokenizer's SentencePiece file from the first of the named models that has it."""
    for place in map(locate, names):
        found = Path(place) / SENTENCEPIECE_FILE
        if not Path(place).exists():  # an id on the hub
            cached = try_to_load_from_cache(place, SENTENCEPIECE_FILE)
            found = Path(cached) if isinstance(cached, str) else found
        if found.is_file():
            shutil.copyfile(found, folder / SENTENCEPIECE_FILE)
            return


def _write_record(folder: Path, report: MergeReport) -> None:
    """Write ``export.json``, the measurements. The folder may be published, so it names no places on this machine."""
    proof = {key: value for key, value in asdict(report).items() if key not in ("name", "folder", "base", "seconds")}
    text = json.dumps({"oddsmith": __version__, "kind": "merged", **proof}, indent=2)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Origin:
    """What the card of an export takes from the run or model: read before the work, as it may be a stranger's."""

    folder: Path  # of the run or the model, or no folder for a model on the hub
    name: str
    base: str | None
    datasets: list[str]
    record: CardRecord

    @classmethod
    def of(cls, source: NamedModel) -> _Origin:
        folder = source.run or Path(source.place)
        base, datasets = card_names(folder)
        record = CardRecord.of_run(source.run) if source.run else CardRecord()
        name = folder.resolve().name if folder.exists() else source.name
        return cls(folder, name, base or source.base, datasets, record)


def _write_card(
    folder: Path,
    report: MergeReport,
    origin: _Origin,
    title: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_encoder_decoder: bool,
    auto_class: str,
) -> None:
    """Write the model card, with the names that the run's own card has."""
    facts = CardFacts(
        title or origin.name,
        "merged",
        place=title or place_of(Path(report.folder), origin.folder),
        base_model=origin.base,
        datasets=origin.datasets,
        has_chat_template=tokenizer.chat_template is not None,
        is_encoder_decoder=is_encoder_decoder,
        auto_class=auto_class,
        notes=_card_notes(report),
    )
    write_card(folder, facts, origin.record)


def _card_notes(report: MergeReport) -> list[str]:
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
