"""The types of GGUF files, and llama.cpp's own quantiser: which tensor becomes what is its decision, not ours.

It keeps norms in float32, gives a tied embedding (which is the head, too) and every second or so ``ffn_down`` more bits
in the ``_k_m`` types, and takes a type of smaller blocks for rows that 256 does not divide (Q4_K becomes Q5_0, Q6_K
becomes Q8_0). Tensors come and go one at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import LlamaFileType

from ...errors import ConfigError, ExportError
from .convert import ENCODINGS
from .llama_cpp import available_processors, load_cyllama, said_by


@dataclass(frozen=True)
class FileType:
    """A type that a file can be exported in.

    Args:
        number: llama.cpp's.
        bits: Of a weight on average, scales included, for models with rows that 256 divides.
        most_kl: Mean KL divergence from the 16-bit model, in nats a token, above which the export warns.
    """

    number: LlamaFileType
    bits: float
    most_kl: float


# Past which a file of numbers, not quantised, has failed.
MOST_KL_OF_NUMBERS = 1e-3

# The limits are about five times what llama.cpp's documentation measured on Llama 3 8B (tools/perplexity/README.md),
# for small models suffer more: docs/export.md has the figures of SmolLM2-135M.
FILE_TYPES = {
    "f32": FileType(LlamaFileType.ALL_F32, 32, MOST_KL_OF_NUMBERS),
    "f16": FileType(LlamaFileType.MOSTLY_F16, 16, MOST_KL_OF_NUMBERS),
    "bf16": FileType(LlamaFileType.MOSTLY_BF16, 16, MOST_KL_OF_NUMBERS),
    "q8_0": FileType(LlamaFileType.MOSTLY_Q8_0, 8.5, 0.01),
    "q6_k": FileType(LlamaFileType.MOSTLY_Q6_K, 6.6, 0.03),
    "q5_k_m": FileType(LlamaFileType.MOSTLY_Q5_K_M, 5.7, 0.06),
    "q4_k_m": FileType(LlamaFileType.MOSTLY_Q4_K_M, 4.9, 0.15),
    "q4_0": FileType(LlamaFileType.MOSTLY_Q4_0, 4.6, 0.35),
}


def check_types(types: Sequence[str]) -> list[str]:
    """Settle which files are wanted.

    Args:
        types: Their names, in any case; repeated ones count once.

    Returns:
        Known names, in the order given.

    Raises:
        ConfigError: There is no such type, or none was named.
    """
    wanted = list(dict.fromkeys(name.strip().lower() for name in types))
    known = ", ".join(FILE_TYPES)
    for name in wanted:
        if name not in FILE_TYPES:
            raise ConfigError(f"quantize is {name!r}; expected one or several of: {known}")
    if not wanted:
        raise ConfigError(f"quantize names no type; expected one or several of: {known}")
    return wanted


def is_quantised(name: str) -> bool:
    """Whether a type is made by the quantiser; the others are written as they are."""
    return name not in ENCODINGS


def quantise(source: Path, target: Path, name: str) -> None:
    """Quantise a GGUF file of plain numbers.

    Args:
        source: The file.
        target: The new one; the caller cares for it to appear as a whole.
        name: A quantised type of ``FILE_TYPES``.

    Raises:
        MissingExtraError: ``cyllama`` is not installed.
        ExportError: llama.cpp refuses.
        OSError: The disk is full.
    """
    library = load_cyllama("quantising")
    parameters = library.LlamaModelQuantizeParams()
    parameters.ftype = int(FILE_TYPES[name].number)
    parameters.nthread = available_processors()
    with said_by(library) as said:
        try:
            library.model_quantize(str(source), str(target), parameters)
        except (RuntimeError, ValueError) as error:
            reason = said[0] if said else str(error)
            if "iostream error" in reason:  # all that C++ says of a write that failed
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise ExportError(f"{target.name}: llama.cpp cannot quantise to {name}: {reason}") from error
