"""A run as GGUF files that llama.cpp and Ollama take: merged if it is an adapter, converted, quantised, proved.

run -> merged folder (beside, temporary) -> one file of plain numbers -> quantised files
                  |                                       |                     |
                  +--- logits on the built-in texts ------+------ KL -----------+      all of them appear, or none
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from ...errors import ConfigError, ExportError
from ...model.loading.place import is_gguf, locate
from ..atomic import clear_write_errors, require_space, write_file
from ..finished import Finished, find_finished, require_weights
from ..merge import MergeInto, MergeReport, merge_adapter
from .convert import Conversion, plan_conversion, write_gguf
from .families import family_of
from .llama_cpp import load_cyllama
from .modelfile import MARK, write_modelfile
from .proof import Proof, Reference, make_reference, prove
from .quantise import FILE_TYPES, check_types, is_quantised, quantise

OnStage = Callable[[str, Any], None]

MODELFILE = "Modelfile"


@dataclass(frozen=True)
class GgufFile:
    """One file that was made.

    Args:
        type: As in ``FILE_TYPES``.
        path: Where it is.
        size_bytes: How large.
        proof: What it does, against the model.
        warnings: What a person should know before relying on it.
        seconds: To write, open and run it.
    """

    type: str
    path: str
    size_bytes: int
    proof: Proof
    warnings: list[str]
    seconds: float


@dataclass(frozen=True)
class GgufReport:
    """What became of a run.

    Args:
        name: What was exported, as it was given.
        title: What the files call the model.
        files: In the order they were asked for.
        modelfile: For Ollama.
        merge: How an adapter was merged; ``None`` where nothing was merged.
        is_exact: Whether the model that they were compared with was computed in float32.
        seconds: All of it.
    """

    name: str
    title: str
    files: list[GgufFile]
    modelfile: str
    merge: MergeReport | None
    is_exact: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values. The merged folder is gone, and is not named."""
        values = asdict(self)
        if values["merge"]:
            del values["merge"]["folder"]
        return values


def export_gguf(
    name: str,
    *,
    types: Sequence[str] = ("q4_k_m",),
    output: Path | None = None,
    dtype: str | None = None,
    merge_into: MergeInto = "16bit",
    converter: Path | None = None,
    overwrite: bool = False,
    on_stage: OnStage = lambda stage, detail: None,
) -> GgufReport:
    """Write a run as GGUF files, with a Modelfile for Ollama beside them.

    Args:
        name: Run folder, checkpoint, adapter or model.
        types: Of the files, as in ``FILE_TYPES``.
        output: A folder, or for a single type the file itself; ``RUN/gguf`` by default.
        dtype: Type of the merged weights that files are made from and compared with; see ``merge_adapter``.
        merge_into: For an adapter that was trained on a quantised base; see ``merge_adapter``.
        converter: llama.cpp's ``convert_hf_to_gguf.py``, to be used instead of the conversion here.
        overwrite: Whether files of the same names may be replaced.
        on_stage: Called as it goes on: with the stages of ``merge_adapter``, ``("reference", folder)``, and for each
            file ``("convert", type)`` or ``("quantise", type)`` and ``("prove", type)``.

    Returns:
        What was made, with the proof.

    Raises:
        MissingExtraError: ``cyllama`` is not installed.
        ModelError: Nothing is there, or a model that cannot be converted here.
        ConfigError: An unknown type, or a place that cannot be written to.
        ExportError: No room, or a file does not compute what the model does. Nothing is left then.
    """
    started_at = time.monotonic()
    load_cyllama("an export to GGUF")
    wanted = check_types(types)
    if converter is not None and not converter.is_file():
        raise ConfigError(f"--converter {converter}: no file is there; expected llama.cpp's convert_hf_to_gguf.py")
    finished = find_finished(name)
    require_weights(finished)
    title = _title(finished)
    targets = _targets(finished, title, wanted, output)
    if converter is None:
        _refuse_early(finished)
    with ExitStack() as stack:
        # Entered first and left last, so that a place that cannot be written to costs no merge.
        partials = {kind: stack.enter_context(write_file(targets[kind], overwrite=overwrite)) for kind in wanted}
        modelfile = targets[wanted[0]].with_name(MODELFILE)
        partial_modelfile = stack.enter_context(write_file(modelfile, overwrite=overwrite or _is_ours(modelfile)))
        scratch = Path(
            stack.enter_context(
                TemporaryDirectory(prefix=".oddsmith-", dir=modelfile.parent, ignore_cleanup_errors=True)
            )
        )
        folder, merge = _weights(finished, scratch, dtype, merge_into, on_stage)
        make = _Maker(folder, title, name, converter, scratch, on_stage)
        make.require_space(wanted, modelfile.parent)
        on_stage("reference", folder)
        reference = make_reference(folder)
        files = []
        for kind in make.in_order(wanted):
            files.append(_make_file(make, kind, partials[kind], targets[kind], reference))
        files.sort(key=lambda file: wanted.index(file.type))
        names = [targets[kind].name for kind in wanted]
        text = write_modelfile(names[0], reference.tokenizer, begins=files[0].proof.begins, others=names[1:])
        partial_modelfile.write_text(text, encoding="utf-8")
    return GgufReport(name, title, files, str(modelfile), merge, reference.exact, time.monotonic() - started_at)


def _make_file(make: _Maker, kind: str, partial: Path, target: Path, reference: Reference) -> GgufFile:
    started_at = time.monotonic()
    with clear_write_errors(target):
        make(kind, partial)
    make.on_stage("prove", kind)
    proof = prove(partial, kind, reference)
    return GgufFile(
        type=kind,
        path=str(target),
        size_bytes=partial.stat().st_size,
        proof=proof,
        warnings=proof.warnings(kind),
        seconds=time.monotonic() - started_at,
    )


class _Maker:
    """Makes files of one model; the one of plain numbers that quantised ones come from is made once.

    That one keeps the weights as they are stored: no number is rounded twice, and none is too large for it.
    """

    def __init__(
        self, folder: Path, title: str, name: str, converter: Path | None, scratch: Path, on_stage: OnStage
    ) -> None:
        self.folder, self.title, self.converter, self.scratch = folder, title, converter, scratch
        self.on_stage = on_stage
        self.plan: Conversion | None = None
        if converter is None:
            self.plan = plan_conversion(folder, title=title, source=name)
            self.stored = self.plan.stored
        else:
            dtype = str(AutoConfig.from_pretrained(folder, trust_remote_code=False).dtype).removeprefix("torch.")
            self.stored = {"bfloat16": "bf16", "float16": "f16"}.get(dtype, "f32")
        self.made: dict[str, Path] = {}

    def __call__(self, kind: str, path: Path) -> None:
        """Write one file."""
        if not is_quantised(kind):
            self._convert(kind, path)
            return
        if self.stored not in self.made:
            self._convert(self.stored, self.scratch / f"{self.stored}.gguf")
        self.on_stage("quantise", kind)
        quantise(self.made[self.stored], path, kind)

    def in_order(self, wanted: Sequence[str]) -> list[str]:
        """What is to be made first: the file that others come from, if it is wanted itself."""
        return sorted(wanted, key=lambda kind: kind != self.stored)

    def require_space(self, wanted: Sequence[str], folder: Path) -> None:
        """Refuse to begin where the files do not fit."""
        bits = [FILE_TYPES[kind].bits for kind in wanted]
        if any(map(is_quantised, wanted)) and self.stored not in wanted:
            bits.append(FILE_TYPES[self.stored].bits)
        stored_bytes = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        require_space(folder, int(stored_bytes / FILE_TYPES[self.stored].bits * sum(bits)))

    def _convert(self, kind: str, path: Path) -> None:
        self.on_stage("convert", kind)
        if self.plan is not None:
            write_gguf(self.plan, path, kind)
        else:
            self._run_converter(kind, path)
        self.made[kind] = path

    def _run_converter(self, kind: str, path: Path) -> None:
        """llama.cpp's script, in a process of its own; it writes where it is told to only if that ends in .gguf."""
        target = self.scratch / f"converted-{kind}.gguf"
        command = [sys.executable, str(self.converter), str(self.folder), "--outfile", str(target)]
        command += ["--outtype", kind, "--model-name", self.title]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not target.is_file():
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
            raise ExportError(f"--converter {self.converter}: failed (exit code {done.returncode}): {last.strip()}")
        target.replace(path)


def _title(finished: Finished) -> str:
    """What the model is called in file names and in the files: the run's name, not where it lies."""
    path = Path(finished.name).expanduser()
    if path.exists():
        path = path.resolve()
        parts = [path.name]
        if path.name == "merged" or path.name.startswith("checkpoint-"):
            parts = [path.parent.name, *parts] if path.name != "merged" else [path.parent.name]
    else:
        parts = [finished.name.rpartition("/")[2].rpartition(":")[2]]
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.") or "model"


def _targets(finished: Finished, title: str, wanted: Sequence[str], output: Path | None) -> dict[str, Path]:
    if output is not None and is_gguf(str(output)):
        if len(wanted) > 1:
            raise ConfigError(f"--output {output}: is one file, but {len(wanted)} types are wanted; give a folder")
        return {wanted[0]: output}
    folder = output or finished.folder_for("gguf")
    return {kind: folder / f"{title}-{kind.upper()}.gguf" for kind in wanted}


def _is_ours(modelfile: Path) -> bool:
    """Whether a Modelfile was written here, and may be written again for other types."""
    return modelfile.is_file() and modelfile.read_text(encoding="utf-8", errors="replace").startswith(MARK)


def _refuse_early(finished: Finished) -> None:
    """Refuse a family that is not converted here before anything is merged."""
    place = locate(finished.base) if finished.base else finished.place
    if is_gguf(place):
        return
    try:
        settings = AutoConfig.from_pretrained(place, trust_remote_code=False).to_dict()
    except (OSError, ValueError):
        return  # whoever loads it says it better
    family_of({**settings, "quantization_config": None}, finished.name)


def _weights(
    finished: Finished, scratch: Path, dtype: str | None, merge_into: MergeInto, on_stage: OnStage
) -> tuple[Path, MergeReport | None]:
    """A folder with plain weights: the model's own, or a merged one that is gone afterwards."""
    place = Path(finished.place)
    is_plain = finished.kind == "model" and dtype is None and any(place.glob("*.safetensors"))
    if is_plain and not getattr(
        AutoConfig.from_pretrained(place, trust_remote_code=False), "quantization_config", None
    ):
        return place, None
    merged = scratch / "merged"
    return merged, merge_adapter(finished.name, merged, dtype=dtype, merge_into=merge_into, on_stage=on_stage)
