"""Check the header of a GGUF file before other libraries read it, in bounded time and memory.

    magic "GGUF"  version  tensor count  key count  | keys and values | tensors: name, shape, type, offset | data

Every count and length is compared with the bytes that are left, so that a file that was cut off while it was copied and
a header that claims a quintillion strings are both errors. What the values mean is left to llama.cpp.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ...errors import ModelError
from ...system.outside import open_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32
# Special token of a tokenizer -> its name within ``tokenizer.ggml.NAME_token_id``.
SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Far more than any model has; they bound the time that a malicious header can take to about two seconds.
MAX_KEYS = MAX_TENSORS = 65_536
MAX_STRINGS = 4_000_000  # the vocabulary of Gemma 3 and its merges are 800,000
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65_535

_BYTES_OF_TYPES = {
    1: (GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL),
    2: (GGUFValueType.UINT16, GGUFValueType.INT16),
    4: (GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32),
    8: (GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64),
}
_FIXED_BYTES: dict[int, int] = {kind: size for size, kinds in _BYTES_OF_TYPES.items() for kind in kinds}
_SMALLEST_KEY_BYTES = 8 + 1 + 4 + 1  # length, one letter, type, one byte
_SMALLEST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one letter, dimensions, one of them, type, offset


# Counts that make as many layers, or tensors as large.
_COUNTS = (
    b".block_count",
    b".embedding_length",
    b".feed_forward_length",
    b".attention.head_count",
    b".attention.head_count_kv",
    b".attention.key_length",
    b".attention.value_length",
    b".expert_count",
    b".vocab_size",
)
MAX_SIZE = 2**26
_WHOLE_NUMBERS: dict[int, str] = {
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
}


def check_gguf(path: Path) -> None:
    """Raise ``ModelError`` if a GGUF file is cut off, or its header claims more than the file can hold."""
    try:
        with open_file(path) as file:
            _Header(path, file).check()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Header:
    """Read the header of an open file once, from start to end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.strings = 0
        self.alignment = DEFAULT_ALIGNMENT_BYTES

    def check(self) -> None:
        """Walk over keys and tensors, and compare the end of the last tensor with the size of the file."""
        if self.size < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise ModelError(f"{self.path}: is no GGUF file: it does not begin with the letters GGUF")
        (version,) = self._numbers("<I")
        if version not in VERSIONS:
            raise ModelError(f"{self.path}: has GGUF version {version}; expected 2 or 3, little-endian")
        tensors, keys = self._numbers("<QQ")
        self._bound("keys", keys, MAX_KEYS, _SMALLEST_KEY_BYTES)
        self._bound("tensors", tensors, MAX_TENSORS, _SMALLEST_TENSOR_BYTES)
        for _ in range(keys):
            self._key(tensors)
        end = max((self._tensor_end() for _ in range(tensors)), default=0)
        data_start = -(-self.position // self.alignment) * self.alignment
        if end and data_start + end > self.size:
            missing = data_start + end - self.size
            raise ModelError(
                f"{self.path}: is cut off: its tensors end {missing:,} bytes after the end of the file"
                f" ({self.size:,} bytes); fetch or export it again"
            )

    def _key(self, tensors: int) -> None:
        key = self._text("the name of a key")
        (kind,) = self._numbers("<I")
        if key == b"general.alignment" and kind == GGUFValueType.UINT32:
            (self.alignment,) = self._numbers("<I")
            if self.alignment == 0 or self.alignment & (self.alignment - 1):
                raise ModelError(f"{self.path}: its general.alignment is {self.alignment}; expected a power of two")
        elif key.endswith(_COUNTS) and kind in _WHOLE_NUMBERS:
            (number,) = self._numbers(_WHOLE_NUMBERS[kind])
            least, most = (1, tensors) if key.endswith(b".block_count") else (0, MAX_SIZE)
            if not least <= number <= most:
                name = key.decode(errors="replace")
                raise self._damaged(f"its {name} is {number:,}; expected {least:,} to {most:,}")
        else:
            self._value(kind)

    def _value(self, kind: int) -> None:
        if kind == GGUFValueType.STRING:
            self._skip_text()
        elif kind == GGUFValueType.ARRAY:
            element, count = self._numbers("<IQ")
            if element == GGUFValueType.STRING:
                self._bound("strings in one list", count, MAX_STRINGS - self.strings, 8)
                self.strings += count
                for _ in range(count):
                    self._skip_text()
            else:
                self._skip(count * self._fixed_bytes(element), f"a list of {count:,} values")
        else:
            self._skip(self._fixed_bytes(kind), "a value")

    def _tensor_end(self) -> int:
        """Return a tensor's end in bytes from the start of the data; 0 for a type that the gguf package lacks."""
        name = self._text("the name of a tensor")
        (dimensions,) = self._numbers("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name.decode(errors='replace')!r} has {dimensions:,} dimensions")
        *shape, kind, offset = self._numbers(f"<{dimensions}QIQ")
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            return 0
        return offset + math.prod(shape) // block * block_bytes

    def _fixed_bytes(self, kind: int) -> int:
        if kind not in _FIXED_BYTES:
            raise self._damaged(f"unknown type {kind} of a value")
        return _FIXED_BYTES[kind]

    def _text(self, what: str) -> bytes:
        (length,) = self._numbers("<Q")
        if length > MAX_NAME_BYTES:
            raise self._damaged(f"{what} claims {length:,} bytes")
        return self._take(length)

    def _skip_text(self) -> None:
        (length,) = self._numbers("<Q")
        self._skip(length, "a text")

    def _bound(self, what: str, count: int, most: int, bytes_each: int) -> None:
        """Refuse a count above ``most``, or of more entries than the rest of the file can hold."""
        if count > min(most, (self.size - self.position) // bytes_each):
            raise self._damaged(f"it claims {count:,} {what} in a file of {self.size:,} bytes")

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _take(self, count: int) -> bytes:
        self._advance(count, "the header")
        return self.file.read(count)

    def _skip(self, count: int, what: str) -> None:
        self._advance(count, f"{what} in the header")
        self.file.seek(count, os.SEEK_CUR)

    def _advance(self, count: int, what: str) -> None:
        self.position += count
        if self.position > self.size:
            raise ModelError(
                f"{self.path}: is cut off or damaged: {what} ends after the end of the file ({self.size:,} bytes);"
                " fetch or export it again"
            )

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: is no sound GGUF file: {what}; fetch or export it again")
