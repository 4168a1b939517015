"""What a finished run is, by its name: an adapter or a whole model, on which base, trained on how many bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, MissingExtraError, ModelError
from ..model.loading.fingerprint import BaseRecord, read_base_record
from ..model.loading.models import find_base, load_model
from ..model.loading.place import MODEL_SETTINGS, is_gguf, locate
from ..system.run_folder import EVENTS_FILE
from ..training.card import CardFacts, Kind, card_names


@dataclass(frozen=True)
class Finished:
    """What a name stands for.

    Args:
        name: As it was given.
        place: The folder or GGUF file, or the id on the hub.
        kind: An adapter, a whole model, or a GGUF file.
        base: Name of the model that an adapter stands on.
        record: What was remembered of that base when the adapter was trained.
        run: The run folder, with its diary, where the name leads into one.
    """

    name: str
    place: str
    kind: Literal["adapter", "model", "gguf"]
    base: str | None = None
    record: BaseRecord | None = None
    run: Path | None = None

    @property
    def quantization(self) -> dict[str, Any] | None:
        """bitsandbytes' settings, where an adapter was trained on a quantised base."""
        return self.record.quantization if self.record else None

    @property
    def bits(self) -> int:
        """Bits of a weight of the base while the adapter was trained: 4, 8, or 16 for everything above."""
        if not self.quantization:
            return 16
        return 4 if self.quantization.get("load_in_4bit") else 8

    def folder_for(self, what: str) -> Path:
        """Where an export goes that was given no place: into the run folder.

        Args:
            what: Name of the new folder, e.g. ``"merged"``.

        Returns:
            The new folder's path.

        Raises:
            ConfigError: The name is no folder here.
        """
        if not Path(self.name).expanduser().is_dir():
            raise ConfigError(f"{self.name}: is no folder here, so say where the export goes: --output FOLDER")
        return Path(self.name).expanduser() / what


def find_finished(name: str) -> Finished:
    """Decide what a name stands for, before anything is loaded.

    Args:
        name: A run folder, one of its checkpoints, an adapter, a model; here or on the hub.

    Returns:
        What it is.

    Raises:
        ModelError: Nothing is there, it is no run, or an adapter whose base cannot be found.
    """
    place = locate(name)
    if is_gguf(place):
        return Finished(name, place, "gguf")
    folder = Path(place)
    run = next((parent for parent in (folder, folder.parent) if (parent / EVENTS_FILE).is_file()), None)
    base = find_base(name)
    if base is None:
        return Finished(name, place, "model", run=run)
    return Finished(name, place, "adapter", base[0], read_base_record(place), run)


def load_as_trained(finished: Finished) -> PreTrainedModel | PeftModel:
    """Load a model as its training had it: an adapter on its base in the same type and the same number of bits.

    Args:
        finished: What to load.

    Returns:
        The model in evaluation mode.

    Raises:
        MissingExtraError: It was trained on a quantised base, and bitsandbytes is not installed.
        ModelError: It cannot be loaded.
    """
    dtype = finished.record.dtype if finished.record else None
    return load_model(finished.name, dtype=dtype or "auto", quantization_config=quantization_config(finished))


def quantization_config(finished: Finished) -> BitsAndBytesConfig | None:
    """How to load the base in the bits that it was trained in.

    Args:
        finished: What is to be loaded.

    Returns:
        bitsandbytes' settings; ``None`` where the base was not quantised.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if not finished.quantization:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"a base in {finished.bits} bits", "4bit")
    return BitsAndBytesConfig.from_dict(dict(finished.quantization))


def card_facts(
    finished: Finished,
    kind: Kind,
    title: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_encoder_decoder: bool = False,
    notes: Sequence[str] = (),
    files: Sequence[str] = (),
) -> CardFacts:
    """What the model card of an export says, with the names that the run's own card has.

    Args:
        finished: What is exported.
        kind: What it becomes.
        title: What it is called; the run's name by default.
        tokenizer: Its tokenizer.
        is_encoder_decoder: Whether it reads the prompt in an encoder.
        notes: Sentences about the files.
        files: Names of GGUF files.

    Returns:
        The facts.
    """
    folder = finished.run or Path(finished.place)
    base, datasets = card_names(folder)
    return CardFacts(
        title or (folder.resolve().name if folder.exists() else finished.name),
        kind,
        base_model=base or finished.base,
        datasets=datasets,
        has_chat_template=tokenizer.chat_template is not None,
        is_encoder_decoder=is_encoder_decoder,
        notes=notes,
        files=files,
    )


def require_weights(finished: Finished) -> None:
    """Refuse a GGUF file where weights of a transformers model are needed.

    Args:
        finished: What is to be exported.

    Raises:
        ModelError: It is one.
    """
    if finished.kind == "gguf":
        raise ModelError(
            f"{finished.name}: is an exported GGUF file already; expected a run, an adapter or a model folder"
            f" ({MODEL_SETTINGS})"
        )
