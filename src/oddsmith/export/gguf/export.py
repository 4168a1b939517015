"""Export a run as GGUF files for llama.cpp and Ollama: merged if it is an adapter, converted, quantised and compared.

run -> merged folder (temporary) -> one unquantised file -> quantised files
              |                            |                     |
              +--- logits on the texts ----+-------- KL ---------+      all of them appear, or none
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import ConfigError, ExportError, ModelError
from ...model.loading.models import load_config
from ...model.loading.place import is_gguf, locate
from ...system.outside import read_text
from ..atomic import clear_write_errors, require_space, write_file
from ..merge import MergeInto, MergeReport, OnStage, merge_adapter
from ..named_model import NamedModel, find_model
from .convert import plan_conversion, write_gguf
from .families import family_of
from .llama_cpp import load_cyllama
from .modelfile import MARK, write_modelfile
from .proof import Proof, make_reference, prove
from .quantise import FILE_TYPES, check_types, is_quantised, quantise
from .settings import text_settings

MODELFILE = "Modelfile"
TEXT_ALONE = (
    "the files hold the model's text part alone; for images llama.cpp needs a second file, which its own script makes"
    " (convert_hf_to_gguf.py --mmproj)"
)


@dataclass(frozen=True)
class GgufFile:
    """One file that was written."""

    type: str  # a key of ``FILE_TYPES``
    path: str
    size_bytes: int
    proof: Proof  # the comparison with the model
    warnings: list[str]  # what the user should read before relying on it
    seconds: float  # time to write it, open it and run it


@dataclass(frozen=True)
class GgufReport:
    """The files of an export."""

    name: str  # of the model, as given by the user
    title: str  # what the files call the model
    files: list[GgufFile]  # in the order they were asked for
    modelfile: str  # path
    merge: MergeReport | None  # how an adapter was merged; ``None`` where nothing was merged
    is_exact: bool  # whether the files were compared with the model in float32
    left_out: str | None  # which part of the model the files lack, in a sentence
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the merged folder, which is temporary."""
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
        types: Types of the files, keys of ``FILE_TYPES``.
        output: A folder, or for a single type the file itself; ``RUN/gguf`` by default.
        dtype: Type of the merged weights that files are made from and compared with; see ``merge_adapter``.
        merge_into: For an adapter that was trained on a quantised base; see ``merge_adapter``.
        converter: llama.cpp's ``convert_hf_to_gguf.py``, to be used instead of the conversion here.
        overwrite: Whether files of the same names may be replaced.
        on_stage: Called when a stage begins: with the stages of ``merge_adapter``, ``("reference", folder)``, and for
            each file ``("convert", type)`` or ``("quantise", type)`` and ``("prove", type)``.

    Returns:
        What was written, with the comparisons.

    Raises:
        MissingExtraError: ``cyllama`` is not installed.
        ModelError: There is no model, or one that cannot be converted here.
        ConfigError: An unknown type, or a place that cannot be written to.
        ExportError: No room, or a file does not compute what the model does. Nothing is left then.
    """
    started_at = time.monotonic()
    load_cyllama("an export to GGUF")
    wanted = check_types(types)
    if converter is not None and not converter.is_file():
        raise ConfigError(f"--converter {converter}: no file is there; expected llama.cpp's convert_hf_to_gguf.py")
    source = find_model(name)
    source.require_weights()
    title = _title(source)
    targets = _targets(source, title, wanted, output)
    if converter is None:
        _refuse_unknown_family(source)
    with ExitStack() as stack:
        # Entered first and left last, so that a place that cannot be written to costs no merge.
        partials = {kind: stack.enter_context(write_file(targets[kind], overwrite=overwrite)) for kind in wanted}
        modelfile = targets[wanted[0]].with_name(MODELFILE)
        is_ours = modelfile.is_file() and read_text(modelfile, errors="replace", follow=False).startswith(MARK)
        partial_modelfile = stack.enter_context(write_file(modelfile, overwrite=overwrite or is_ours))
        scratch = Path(
            stack.enter_context(
                TemporaryDirectory(prefix=".oddsmith-", dir=modelfile.parent, ignore_cleanup_errors=True)
            )
        )
        folder, merge = _plain_weights(source, scratch, dtype, merge_into, on_stage)
        writer = _FileWriter(folder, title, name, converter, scratch, on_stage)
        writer.require_space(wanted, modelfile.parent)
        on_stage("reference", folder)
        reference = make_reference(folder, name)
        files: dict[str, GgufFile] = {}
        for kind in sorted(wanted, key=lambda kind: kind != writer.stored):  # first the file that others come from
            began_at, partial = time.monotonic(), partials[kind]
            with clear_write_errors(targets[kind]):
                writer.write(kind, partial)
            on_stage("prove", kind)
            proof = prove(partial, kind, reference)
            size_bytes, seconds = partial.stat().st_size, time.monotonic() - began_at
            files[kind] = GgufFile(kind, str(targets[kind]), size_bytes, proof, proof.warnings(kind), seconds)
        names, begins = [targets[kind].name for kind in wanted], files[wanted[0]].proof.begins
        text = write_modelfile(names[0], reference.tokenizer, begins=begins, others=names[1:])
        partial_modelfile.write_text(text, encoding="utf-8")
        config = load_config(str(folder))
    return GgufReport(
        name,
        title,
        [files[kind] for kind in wanted],
        str(modelfile),
        merge,
        is_exact=reference.exact,
        left_out=TEXT_ALONE if hasattr(config, "vision_config") else None,
        seconds=time.monotonic() - started_at,
    )


class _FileWriter:
    """Write the files of one model. The unquantised file that quantised ones are made from is written once.

    That file has the type of the stored weights: nothing is rounded twice, and no weight is too large for its type.
    """

    def __init__(
        self, folder: Path, title: str, name: str, converter: Path | None, scratch: Path, on_stage: OnStage
    ) -> None:
        self.folder, self.title, self.converter, self.scratch = folder, title, converter, scratch
        self.on_stage = on_stage
        self.plan = plan_conversion(folder, title=title, source=name) if converter is None else None
        if self.plan is not None:
            self.stored = self.plan.stored
        else:
            dtype = str(load_config(str(folder)).dtype).removeprefix("torch.")
            self.stored = {"bfloat16": "bf16", "float16": "f16"}.get(dtype, "f32")
        self._written: dict[str, Path] = {}

    def require_space(self, wanted: Sequence[str], folder: Path) -> None:
        """Raise ``ExportError`` where the files do not fit."""
        bits = [FILE_TYPES[kind].bits for kind in wanted]
        if any(map(is_quantised, wanted)) and self.stored not in wanted:
            bits.append(FILE_TYPES[self.stored].bits)
        stored_bytes = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))
        require_space(folder, int(stored_bytes / FILE_TYPES[self.stored].bits * sum(bits)))

    def write(self, kind: str, path: Path) -> None:
        """Write one file."""
        if not is_quantised(kind):
            self._convert(kind, path)
            return
        if self.stored not in self._written:
            self._convert(self.stored, self.scratch / f"{self.stored}.gguf")
        self.on_stage("quantise", kind)
        quantise(self._written[self.stored], path, kind)

    def _convert(self, kind: str, path: Path) -> None:
        self.on_stage("convert", kind)
        if self.plan is not None:
            write_gguf(self.plan, path, kind)
        else:
            self._run_converter(kind, path)
        self._written[kind] = path

    def _run_converter(self, kind: str, path: Path) -> None:
        """Run llama.cpp's script in a new process; it changes names of files that do not end in .gguf."""
        target = self.scratch / f"converted-{kind}.gguf"
        command = [sys.executable, str(self.converter), str(self.folder), "--outfile", str(target)]
        command += ["--outtype", kind, "--model-name", self.title]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0 or not target.is_file():
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
            raise ExportError(f"--converter {self.converter}: failed (exit code {done.returncode}): {last.strip()}")
        target.replace(path)


def _title(source: NamedModel) -> str:
    """Return the model's name in file names and in the files: the run's name without its folder."""
    path = Path(source.name).expanduser()
    if path.exists():
        path = path.resolve()
        parts = [path.name]
        if path.name == "merged" or path.name.startswith("checkpoint-"):
            parts = [path.parent.name, *parts] if path.name != "merged" else [path.parent.name]
    else:
        parts = [source.name.rpartition("/")[2].rpartition(":")[2]]
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.") or "model"


def _targets(source: NamedModel, title: str, wanted: Sequence[str], output: Path | None) -> dict[str, Path]:
    if output is not None and is_gguf(str(output)):
        if len(wanted) > 1:
            raise ConfigError(f"--output {output}: is one file, but {len(wanted)} types are wanted; give a folder")
        return {wanted[0]: output}
    folder = output or source.default_output("gguf")
    return {kind: folder / f"{title}-{kind.upper()}.gguf" for kind in wanted}


def _refuse_unknown_family(source: NamedModel) -> None:
    """Raise ``ModelError`` for a family that cannot be converted, before anything is merged."""
    place = locate(source.base) if source.base else source.place
    if is_gguf(place):
        return
    try:
        settings = text_settings(load_config(place))
    except ModelError:
        return  # loading the model raises a clearer error
    family_of({**settings, "quantization_config": None}, source.name)


def _plain_weights(
    source: NamedModel, scratch: Path, dtype: str | None, merge_into: MergeInto, on_stage: OnStage
) -> tuple[Path, MergeReport | None]:
    """Return a folder with unquantised weights: the model's own, or a temporary merged one and its report."""
    place = Path(source.place)
    if source.kind == "model" and dtype is None and any(place.glob("*.safetensors")):
        config = load_config(str(place))
        if not getattr(config, "quantization_config", None):
            return place, None
    merged = scratch / "merged"
    return merged, merge_adapter(source.name, merged, dtype=dtype, merge_into=merge_into, on_stage=on_stage)
