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
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...errors import ExportError, ModelError
from ...model.loading.load_errors import clear_errors
from ...model.loading.models import load_config
from .families import Family, family_of
from .parts import Change, Part, text_name
from .settings import Settings, text_settings
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
# One expert of many, which llama.cpp wants in one tensor: where they are, its number, its weight.
EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+\.weight)")
# Matrices that are float32 in every file.
FLOAT32 = (
    "_norm.weight", ".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight", ".ssm_conv1d.weight", ".shortconv.conv.weight"
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor of a model folder."""

    file: Path
    key: str  # its name in that file
    shape: tuple[int, ...]
    type: str  # ``"f32"``, ``"f16"`` or ``"bf16"``


@dataclass(frozen=True)
class Tensor:
    """One tensor of the new file."""

    name: str  # in llama.cpp
    shape: tuple[int, ...]  # in torch
    stored: tuple[Stored, ...]  # what it is made of; none where it is computed
    is_stack: bool = False  # whether these are stacked, one or several
    change: Change = lambda values: values  # makes it of the stored one or the stack

    @property
    def stays_float32(self) -> bool:
        return len(self.shape) < 2 or self.name.endswith(FLOAT32) or not self.name.endswith(".weight")

    @property
    def source(self) -> str:
        return self.stored[0].key if self.stored else self.name

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
    with clear_errors(source, "main"):
        settings = text_settings(load_config(str(folder)))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    family = family_of(settings, source)
    tensors = _plan_tensors(folder, settings, family, source)
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise ModelError(f"{source}: has no token embedding; expected a whole model")
    matrix_types = {stored.type for tensor in tensors if not tensor.stays_float32 for stored in tensor.stored}
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
    found: dict[str, dict[int, Stored]] = {}  # by name, the experts of a layer by number
    for stored in (stored for file in files for stored in _read_header(file, source)):
        key = text_name(stored.key)
        if key is None or key.endswith(IGNORED) or (key == "lm_head.weight" and settings["tie_word_embeddings"]):
            continue  # a tied head is the embedding; llama.cpp takes it from there
        expert = EXPERT.fullmatch(key)
        name, number = (f"{expert[1]}.{expert[3]}", int(expert[2])) if expert else (key, -1)
        found.setdefault(name, {})[number] = stored
    tensors = [Tensor(name, tuple(data.shape), ()) for name, data in family.extra_tensors(settings)]
    names = get_tensor_name_map(family.architecture, settings["num_hidden_layers"])
    for name, experts in found.items():
        several = tuple(experts[number] for number in sorted(experts))
        for part in family.parts(name, settings):
            tensors.append(_plan_tensor(part, several, -1 not in experts, names, source))
    return tensors


def _read_header(file: Path, source: str) -> Iterator[Stored]:
    """Yield the tensors of a file."""
    try:
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118  no mapping
                part = weights.get_slice(key)
                yield Stored(file, key, tuple(part.get_shape()), part.get_dtype().lower())
    except SafetensorError as error:
        raise ModelError(f"{source}: {file.name} is damaged ({error}); fetch or export it again") from error


def _plan_tensor(part: Part, stored: tuple[Stored, ...], is_stack: bool, names: Any, source: str) -> Tensor:
    name = names.get_name(part.name, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise ModelError(f"{source}: llama.cpp has no name for its tensor {stored[0].key}; use --converter PATH")
    for each in stored:
        if each.type not in ENCODINGS:
            raise ModelError(f"{source}: {each.key} is {each.type.upper()}; expected 16- or 32-bit numbers")
    shape = (len(stored), *stored[0].shape) if is_stack else stored[0].shape
    shape = tuple(part.change(torch.empty(shape, device="meta")).shape)
    return Tensor(name, shape, stored, is_stack, part.change)


def write_gguf(plan: Conversion, path: Path, encoding: str) -> None:
    """Write a GGUF file; ``encoding`` is ``"f32"``, ``"f16"`` or ``"bf16"``, for everything but vectors and norms.

    Raise ``ExportError`` where a weight is too large for float16, and ``OSError`` where the file cannot be written.
    """
    kind = ENCODINGS[encoding]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[plan.family.architecture])
    writer.add_type(GGUFType.MODEL)
    writer.add_name(plan.title)
    plan.family.write_settings(writer, plan.settings)
    writer.add_file_type(kind.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    plan.vocabulary.write(writer)
    for tensor in plan.tensors:
        bytes_each = 4 if tensor.stays_float32 else kind.torch_type.itemsize
        raw_type = GGMLQuantizationType.F32 if tensor.stays_float32 else kind.tensor_type
        # GGUFWriter ignores the NumPy type, except for "uint8", which would make the shape one of bytes.
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), tensor.numbers * bytes_each, raw_type)
    writer.add_size_label(size_label(*writer.get_total_parameter_count()))
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

        def read(stored: Stored) -> torch.Tensor:
            if stored.file not in opened:
                opened[stored.file] = stack.enter_context(safe_open(stored.file, "pt"))
            return opened[stored.file].get_tensor(stored.key)

        for tensor in plan.tensors:
            if not tensor.stored:
                yield tensor, computed[tensor.name]
            elif tensor.is_stack:
                yield tensor, tensor.change(torch.stack([read(stored) for stored in tensor.stored]))
            else:
                yield tensor, tensor.change(read(tensor.stored[0]))


def _encode(tensor: Tensor, values: torch.Tensor, kind: Encoding) -> np.ndarray:
    if tensor.stays_float32:
        return values.float().contiguous().numpy()
    encoded = values.to(kind.torch_type).contiguous()
    if kind.torch_type is torch.float16 and not encoded.isfinite().all() and values.isfinite().all():
        raise ExportError(
            f"{tensor.source}: holds {values.abs().max().item():,.0f}, and float16 ends at 65,504;"
            " export bf16 (or a quantised type) instead of f16"
        )
    # NumPy has no bfloat16; the writer needs only the bits.
    return encoded.view(torch.int16).numpy() if kind.torch_type is torch.bfloat16 else encoded.numpy()
