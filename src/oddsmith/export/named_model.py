"""Find the model that a name stands for: an adapter and its base, a whole model, or a GGUF file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel

from ..errors import ConfigError, MissingExtraError, ModelError
from ..model.loading.adapter_base import RECORD_FILE, BaseRecord, find_base, read_base_record
from ..model.loading.models import load_model
from ..model.loading.place import MODEL_SETTINGS, is_gguf, locate
from ..model.loading.untrusted_files import refuse_code_in_folder
from ..system.run_folder import EVENTS_FILE


@dataclass(frozen=True)
class NamedModel:
    """A model that was found by its name and is not loaded yet."""

    name: str  # as given by the user
    place: str  # the folder or GGUF file, or the id on the hub
    kind: Literal["adapter", "model", "gguf"]
    base: str | None = None  # name of an adapter's base
    record: BaseRecord | None = None  # what was recorded about that base when the adapter was trained
    run: Path | None = None  # the run folder, with its event log, where the model lies in one

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Return bitsandbytes' settings, where an adapter was trained on a quantised base."""
        return self.record.quantization if self.record else None

    @property
    def bits(self) -> int:
        """Return the bits per weight of the base in training: 4, 8, or 16 for everything above."""
        if not self.quantization:
            return 16
        return 4 if self.quantization.get("load_in_4bit") else 8

    def quantization_config(self) -> BitsAndBytesConfig | None:
        """Return how to load the base in the bits it was trained in; ``None`` where it was not quantised.

        Where bitsandbytes is needed and not installed, ``MissingExtraError`` names the install command.
        """
        if not self.quantization:
            return None
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError(f"a base in {self.bits} bits", "4bit")
        try:
            return BitsAndBytesConfig.from_dict(dict(self.quantization))
        except (TypeError, ValueError, AttributeError) as error:
            found = f"its {RECORD_FILE} says how the base was quantised, but not as bitsandbytes takes it"
            raise ModelError(f"{self.name}: {found} ({error}); copy that file again") from error

    def load_as_trained(self) -> PreTrainedModel | PeftModel:
        """Load the model as in its training: an adapter on its base in the same type and number of bits."""
        dtype = self.record.dtype if self.record else None
        return load_model(self.name, dtype=dtype or "auto", quantization_config=self.quantization_config())

    def require_weights(self) -> None:
        """Raise ``ModelError`` for a GGUF file, where weights of a transformers model are needed."""
        if self.kind == "gguf":
            raise ModelError(
                f"{self.name}: is an exported GGUF file already; expected a run, an adapter or a model folder"
                f" ({MODEL_SETTINGS})"
            )

    def default_output(self, folder: str) -> Path:
        """Return where an export goes without ``--output``: a folder of this name in the run or model folder."""
        if not Path(self.name).expanduser().is_dir():
            raise ConfigError(f"{self.name}: is no folder here, so say where the export goes: --output FOLDER")
        return Path(self.name).expanduser() / folder


def find_model(name: str) -> NamedModel:
    """Decide what a name stands for, before anything is loaded.

    The name is a run folder, one of its checkpoints, an adapter or a model, here or on the hub. ``ModelError`` says
    that nothing is there, that it is no model, or that the base of an adapter cannot be found.
    """
    place = locate(name)
    if is_gguf(place):
        return NamedModel(name, place, "gguf")
    refuse_code_in_folder(name, place, trust_remote_code=False)  # and what would be waited for
    folder = Path(place)
    run = next((parent for parent in (folder, folder.parent) if (parent / EVENTS_FILE).is_file()), None)
    base = find_base(name)
    if base is None:
        return NamedModel(name, place, "model", run=run)
    return NamedModel(name, place, "adapter", base[0], read_base_record(place), run)
