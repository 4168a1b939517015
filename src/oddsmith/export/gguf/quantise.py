"""Quantise GGUF files with llama.cpp, which chooses the type of each tensor itself; and list the types of files.

llama.cpp keeps norms in float32, gives a tied embedding (which is also the head) and about every second ``ffn_down``
more bits in the ``_k_m`` types, and takes a type with smaller blocks for rows that 256 does not divide (Q4_K becomes
Q5_0, Q6_K becomes Q8_0). It holds one tensor in memory at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import LlamaFileType

from ...errors import ConfigError, ExportError
from .llama_cpp import available_processors, load_cyllama, logged_errors


@dataclass(frozen=True)
class FileType:
    """A type that a file can be exported in."""

    number: LlamaFileType
    bits: float  # mean bits per weight, scales included, for models with rows that 256 divides
    max_kl: float  # mean KL divergence per token from the 16-bit model, in nats, above which the export warns


MAX_KL_UNQUANTISED = 1e-3  # above it the export of an unquantised file fails

# The limits are about five times what llama.cpp's documentation measured on Llama 3 8B (tools/perplexity/README.md):
# small models lose more. docs/export.md has the figures of SmolLM2-135M.
FILE_TYPES = {
    "f32": FileType(LlamaFileType.ALL_F32, 32, MAX_KL_UNQUANTISED),
    "f16": FileType(LlamaFileType.MOSTLY_F16, 16, MAX_KL_UNQUANTISED),
    "bf16": FileType(LlamaFileType.MOSTLY_BF16, 16, MAX_KL_UNQUANTISED),
    "q8_0": FileType(LlamaFileType.MOSTLY_Q8_0, 8.5, 0.01),
    "q6_k": FileType(LlamaFileType.MOSTLY_Q6_K, 6.6, 0.03),
    "q5_k_m": FileType(LlamaFileType.MOSTLY_Q5_K_M, 5.7, 0.06),
    "q4_k_m": FileType(LlamaFileType.MOSTLY_Q4_K_M, 4.9, 0.15),
    "q4_0": FileType(LlamaFileType.MOSTLY_Q4_0, 4.6, 0.35),
}


def check_types(types: Sequence[str]) -> list[str]:
    """Return the types in lower case and without repetitions; raise ``ConfigError`` for an unknown one or none."""
    wanted = list(dict.fromkeys(name.strip().lower() for name in types))
    known = ", ".join(FILE_TYPES)
    for name in wanted:
        if name not in FILE_TYPES:
            raise ConfigError(f"quantize is {name!r}; expected one or several of: {known}")
    if not wanted:
        raise ConfigError(f"quantize names no type; expected one or several of: {known}")
    return wanted


def is_quantised(name: str) -> bool:
    """Return whether the quantiser makes files of this type; the others are written by ``write_gguf``."""
    return FILE_TYPES[name].bits < 16


def quantise(source: Path, target: Path, name: str) -> None:
    """Quantise an unquantised GGUF file into a new one of the type ``name``.

    Raise ``ExportError`` where llama.cpp refuses, and ``OSError`` where the disk is full.
    """
    library = load_cyllama("quantising")
    parameters = library.LlamaModelQuantizeParams()
    parameters.ftype = int(FILE_TYPES[name].number)
    parameters.nthread = available_processors()
    with logged_errors(library) as errors:
        try:
            library.model_quantize(str(source), str(target), parameters)
        except (RuntimeError, ValueError) as error:
            reason = errors[0] if errors else str(error)
            if "iostream error" in reason:  # the whole message of a failed write in C++
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise ExportError(f"{target.name}: llama.cpp cannot quantise to {name}: {reason}") from error
