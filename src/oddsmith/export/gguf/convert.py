"""Convert a model folder to a GGUF file: settings and tokenizer into its header, then the weights, tensor by tensor.

plan_conversion (reads headers only; refuses families, settings, tokenizers and tensors that cannot be converted)
-> write_gguf (streams the weights)
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    size_label,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ...errors import ExportError, ModelError
from .families import Family, Settings, family_of
from .vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class Encoding:
    """A file type without quantisation. Norms, biases and other vectors are float32 in each."""

    torch_type: torch.dtype
    tensor_type: GGMLQuantizationType
    file_type: LlamaFileType


ENCODINGS = {
    "f32": Encoding(torch.float32, GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": Encoding(torch.float16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": Encoding(torch.bfloat16, GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}

# How llama.cpp recognises Phi-3 (src/llama-vocab.cpp), and the tokens that it then expects.
PHI3_NAME = re.compile("phi-?3", re.IGNORECASE)
PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}

# Buffers in older model folders, which every library computes itself.
IGNORED = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the new file."""

    name: str  # in llama.cpp
    shape: tuple[int, ...]  # in torch
    file: Path | None  # the safetensors file that holds it; ``None`` where it is computed
    source: str  # its name in that file
    source_type: str  # ``"f32"``, ``"f16"`` or ``"bf16"``

    @property
    def stays_float32(self) -> bool:
        return len(self.shape) < 2 or self.name.endswith("_norm.weight")

    @property
    def numbers(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class Conversion:
    """The plan of a conversion."""

    title: str  # what the file calls the model
    settings: Settings
    family: Family
    vocabulary: Vocabulary
    tensors: list[Tensor]  # of the new file, in order
    stored: str  # the encoding that keeps the matrices as they are stored; f32 where they are of several types


def plan_conversion(folder: Path, *, title: str, source: str) -> Conversion:
    """Read the headers and the tokenizer of a model folder and plan its conversion; ``source`` names it in messages.

    A model that cannot be converted raises ``ModelError``, which says why, and which models can.
    """
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    family = family_of(settings, source)
    tensors = _plan_tensors(folder, settings, family, source)
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise ModelError(f"{source}: has no token embedding; expected a whole model")
    matrix_types = {tensor.source_type for tensor in tensors if not tensor.stays_float32}
    return Conversion(
        title=safe_title(title, tokenizer),
        settings=settings,
        family=family,
        vocabulary=read_vocabulary(folder, tokenizer, embedding.shape[0], source),
        tensors=tensors,
        stored=matrix_types.pop() if len(matrix_types) == 1 else "f32",
    )


def safe_title(title: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the title with ``Phi-3`` in it where the tokenizer is Phi-3's, and without it elsewhere.

    llama.cpp looks for ``Phi-3`` in the title. Where it finds that, it lets special tokens swallow the space behind
    them, as Phi-3's do, and it cannot open a file without the tokens of Phi-3 in its vocabulary.
    """
    names_phi3 = re.search(PHI3_NAME, title) is not None
    if not tokenizer.get_vocab().keys() >= PHI3_TOKENS:
        return re.sub(PHI3_NAME, "phi_3", title)
    swallows_space = any(added.rstrip for added in tokenizer.added_tokens_decoder.values())
    return f"{title} (Phi-3)" if swallows_space and not names_phi3 else title


def _plan_tensors(folder: Path, settings: Settings, family: Family, source: str) -> list[Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source}: holds no .safetensors file; expected a model folder that save_pretrained wrote")
    names = get_tensor_name_map(family.architecture, settings["num_hidden_layers"])
    tensors = [Tensor(name, tuple(data.shape), None, "", "f32") for name, data in family.extra_tensors(settings)]
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118  no mapping
                    if key.endswith(IGNORED) or (key == "lm_head.weight" and settings["tie_word_embeddings"]):
                        continue  # a tied head is the embedding; llama.cpp takes it from there
                    part = weights.get_slice(key)
                    name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                    if name is None:
                        raise ModelError(f"{source}: llama.cpp has no name for its tensor {key}; use --converter PATH")
                    if part.get_dtype().lower() not in ENCODINGS:
                        raise ModelError(f"{source}: {key} is {part.get_dtype()}; expected 16- or 32-bit numbers")
                    tensors.append(Tensor(name, tuple(part.get_shape()), file, key, part.get_dtype().lower()))
        except SafetensorError as error:
            raise ModelError(f"{source}: {file.name} is damaged ({error}); fetch or export it again") from error
    return tensors


def write_gguf(plan: Conversion, path: Path, encoding: str) -> None:
    """Write a GGUF file; ``encoding`` is ``"f32"``, ``"f16"`` or ``"bf16"``, for everything but vectors and norms.

    Raise ``ExportError`` where a weight is too large for float16, and ``OSError`` where the file cannot be written.
    """
    kind = ENCODINGS[encoding]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[plan.family.architecture])
    parameters = sum(tensor.numbers for tensor in plan.tensors)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(plan.title)
    writer.add_size_label(size_label(parameters, parameters, 0, 0))
    plan.family.write_settings(writer, plan.settings)
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    plan.vocabulary.write(writer)
    for tensor in plan.tensors:
        bytes_each = 4 if tensor.stays_float32 else kind.torch_type.itemsize
        raw_type = GGMLQuantizationType.F32 if tensor.stays_float32 else kind.tensor_type
        # GGUFWriter ignores the NumPy type, except for "uint8", which would make the shape one of bytes.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), tensor.numbers * bytes_each, raw_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, values in _load(plan):
            writer.write_tensor_data(_encode(tensor, values, kind))
    except OSError as error:
        if error.errno is None:  # NumPy says only how many numbers it could write
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        writer.close()


def _load(plan: Conversion) -> Iterator[tuple[Tensor, torch.Tensor]]:
    """Yield the tensors as llama.cpp expects them, one at a time."""
    computed = dict(plan.family.extra_tensors(plan.settings))
    with ExitStack() as stack:
        opened: dict[Path, Any] = {}
        for tensor in plan.tensors:
            if tensor.file is None:
                yield tensor, computed[tensor.name]
                continue
            if tensor.file not in opened:
                opened[tensor.file] = stack.enter_context(safe_open(tensor.file, "pt"))
            yield tensor, _rearranged(tensor, opened[tensor.file].get_tensor(tensor.source), plan)


def _rearranged(tensor: Tensor, values: torch.Tensor, plan: Conversion) -> torch.Tensor:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = tensor.source.split(".")[-2] if "." in tensor.source else ""
    if plan.family.permutes_heads and part in heads:
        return interleave_heads(values, plan.settings[heads[part]])
    if plan.family.norm_offset and tensor.source.endswith("norm.weight"):
        return values.float() + plan.family.norm_offset
    return values


def interleave_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return weights ``[heads * 2R, inputs]`` or a bias ``[heads * 2R]`` in the row order that llama.cpp rotates.

    transformers rotates row i of a head with row i + R, llama.cpp with the next: ``x0 x1 .. y0 y1 ..`` becomes
    ``x0 y0 x1 y1 ..``.
    """
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _encode(tensor: Tensor, values: torch.Tensor, kind: Encoding) -> np.ndarray:
    if tensor.stays_float32:
        return values.float().contiguous().numpy()
    encoded = values.to(kind.torch_type).contiguous()
    if kind.torch_type is torch.float16 and not encoded.isfinite().all() and values.isfinite().all():
        raise ExportError(
            f"{tensor.source or tensor.name}: holds {values.abs().max().item():,.0f}, and float16 ends at 65,504;"
            " export bf16 (or a quantised type) instead of f16"
        )
    # NumPy has no bfloat16; the writer needs only the bits.
    return encoded.view(torch.int16).numpy() if kind.torch_type is torch.bfloat16 else encoded.numpy()
