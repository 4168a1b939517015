"""Compare a GGUF file with the model it was made from: both are run on the built-in texts."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ...errors import ExportError
from ...model.computing import require_finite_logits
from ...model.loading.models import load_model, load_tokenizer
from ..divergence import TEXTS, Divergence, divergence, fits_in_memory, logits_of, text_ids
from .llama_cpp import GgufModel
from .quantise import FILE_TYPES, is_quantised

# Where the model is computed in 16 bits, which by itself costs a KL of 2e-3 on SmolLM2-135M. Where experts are chosen,
# llama.cpp's rounding of activations to the type of the file has others chosen here and there.
MAX_KL_IN_16_BITS = 2e-2


@dataclass(frozen=True)
class Reference:
    """The model that files are made from, on the texts."""

    tokenizer: PreTrainedTokenizerBase
    ids: list[list[int]]  # tokens of the texts
    logits: list[torch.Tensor]  # float32 ``[T, V]`` per text
    exact: bool  # whether the logits were computed in float32


@dataclass(frozen=True)
class Proof:
    """The comparison of a file with the model."""

    divergence: Divergence
    most_kl: float  # the largest KL that is expected
    texts_cut_otherwise: int  # number of texts that llama.cpp splits into other tokens than the model's tokenizer
    texts: int  # number of all texts
    begins: bool  # whether llama.cpp puts the begin token in front of a text

    def warnings(self, name: str) -> list[str]:
        """Return what the user should read before relying on a file of the type ``name``, in sentences."""
        found = []
        if not self.divergence.kl <= self.most_kl:
            found.append(
                f"{name} is further from the model than expected: KL {self.divergence.kl:.3f} a token, expected at most"
                f" {self.most_kl:g}; compare its answers, or take a type with more bits"
            )
        if self.texts_cut_otherwise:
            found.append(
                f"llama.cpp cuts {self.texts_cut_otherwise} of {self.texts} texts into other tokens than the tokenizer;"
                " answers may differ from those in transformers"
            )
        return found


def make_reference(folder: Path, name: str) -> Reference:
    """Compute the logits of the model in a folder on the texts, in float32 where the memory allows.

    ``name`` is the model's for the ``ModelError`` that says that its weights are NaN.
    """
    tokenizer = load_tokenizer(str(folder))
    exact = fits_in_memory(2 * sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    model = load_model(str(folder), dtype=torch.float32 if exact else "auto").eval()
    ids = text_ids(tokenizer)
    reference = Reference(tokenizer, ids, logits_of(model, ids), exact)
    require_finite_logits(name, model, reference.logits)
    del model
    gc.collect()  # llama.cpp needs the memory next
    return reference


def prove(path: Path, name: str, reference: Reference) -> Proof:
    """Open a file of the type ``name``, run it on the texts, and compare its logits with the model's.

    Raise ``ExportError`` where an unquantised file computes something else than the model, or a quantised one gives NaN
    or infinite logits, and ``ModelError`` where llama.cpp cannot open the file.
    """
    # The context is as long as the texts, because llama.cpp chooses the factors of LongRoPE by its length.
    longest = max(map(len, reference.ids))
    with GgufModel(path, context_length=longest) as model:
        found = divergence(reference.logits, lambda ids: torch.from_numpy(model.logits(ids)), reference.ids)
        cut_otherwise = _texts_cut_otherwise(model, reference.tokenizer)
        begins = model.begin_id is not None
        chooses = any(key.endswith(".expert_used_count") for key in model.metadata)
    rounds = not reference.exact or (chooses and name != "f32")
    max_kl = max(FILE_TYPES[name].max_kl, MAX_KL_IN_16_BITS if rounds else 0)
    if not found.kl < float("inf") or (not is_quantised(name) and found.kl > max_kl):
        raise ExportError(
            f"{name} does not compute what the model does: KL {found.kl:.2g} a token, expected at most {max_kl:g};"
            " nothing was written"
        )
    texts = len(TEXTS) + (reference.tokenizer.chat_template is not None)
    return Proof(found, max_kl, cut_otherwise, texts, begins)


def _texts_cut_otherwise(model: GgufModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many of the texts, and a question in the chat template, become other tokens in llama.cpp."""
    pairs = [(model.tokenize(text, begin=True), tokenizer(text)["input_ids"]) for text in TEXTS]
    if tokenizer.chat_template is not None:
        question = [{"role": "user", "content": TEXTS[0]}]
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        pairs.append((model.tokenize(text), tokenizer(text, add_special_tokens=False)["input_ids"]))
    return sum(theirs != list(ours) for theirs, ours in pairs)
