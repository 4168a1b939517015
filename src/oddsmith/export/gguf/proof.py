"""What a GGUF file does, against the model it was made from: opened again and run on the built-in texts."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ...errors import ExportError
from ...model.loading.models import load_model, load_tokenizer
from ...model.logprobs.token_budget import free_bytes
from ..divergence import TEXTS, Divergence, divergence, logits_of, text_ids
from .llama_cpp import GgufModel
from .quantise import FILE_TYPES, is_quantised

# Of the memory that is free; logits and what layers need come on top of the weights.
USABLE_MEMORY = 0.9
# Where the model is computed in 16 bits, which by itself is off by a KL of 2e-3 on SmolLM2-135M.
MOST_KL_IN_16_BITS = 2e-2


@dataclass(frozen=True)
class Reference:
    """What the model says that files are made from.

    Args:
        tokenizer: Its tokenizer.
        ids: Tokens of the texts.
        logits: A float32 tensor [T, V] a text.
        exact: Whether it was computed in float32.
    """

    tokenizer: PreTrainedTokenizerBase
    ids: list[list[int]]
    logits: list[torch.Tensor]
    exact: bool


@dataclass(frozen=True)
class Proof:
    """How a file compares with the model.

    Args:
        divergence: Of the logits.
        most_kl: What is expected at most.
        texts_cut_otherwise: Texts that llama.cpp cuts into other tokens than the model's tokenizer.
        texts: How many were compared.
        begins: Whether llama.cpp puts the begin token in front of a text.
    """

    divergence: Divergence
    most_kl: float
    texts_cut_otherwise: int
    texts: int
    begins: bool

    def warnings(self, name: str) -> list[str]:
        """What a person should know before relying on the file.

        Args:
            name: Its type.

        Returns:
            Sentences.
        """
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


def make_reference(folder: Path) -> Reference:
    """Ask the model itself, in float32 where the memory allows.

    Args:
        folder: The model folder.

    Returns:
        What it says to the texts.
    """
    tokenizer = load_tokenizer(str(folder))
    stored_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    exact = 2 * stored_bytes < USABLE_MEMORY * free_bytes(torch.device("cpu"))
    model = load_model(str(folder), dtype=torch.float32 if exact else "auto").eval()
    ids = text_ids(tokenizer)
    reference = Reference(tokenizer, ids, logits_of(model, ids), exact)
    del model
    gc.collect()  # llama.cpp wants the memory next
    return reference


def prove(path: Path, name: str, reference: Reference) -> Proof:
    """Open a file, run it, and compare.

    Args:
        path: The file.
        name: Its type.
        reference: What the model says.

    Returns:
        The comparison.

    Raises:
        ExportError: A file that is not quantised computes something else than the model, or a quantised one computes
            numbers that are none.
        ModelError: llama.cpp cannot open it.
    """
    # No longer a context than the texts: by its length llama.cpp decides which factors of LongRoPE it takes.
    longest = max(map(len, reference.ids))
    with GgufModel(path, context_length=longest) as model:
        found = divergence(reference.logits, lambda ids: torch.from_numpy(model.logits(ids)), reference.ids)
        cut_otherwise = _texts_cut_otherwise(model, reference.tokenizer)
        begins = model.begin_id is not None
    most_kl = max(FILE_TYPES[name].most_kl, 0 if reference.exact else MOST_KL_IN_16_BITS)
    if not found.kl < float("inf") or (not is_quantised(name) and found.kl > most_kl):
        raise ExportError(
            f"{name} does not compute what the model does: KL {found.kl:.2g} a token, expected at most {most_kl:g};"
            " nothing was written"
        )
    texts = len(TEXTS) + (reference.tokenizer.chat_template is not None)
    return Proof(found, most_kl, cut_otherwise, texts, begins)


def _texts_cut_otherwise(model: GgufModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many texts, and a question in the chat template, become other tokens in llama.cpp."""
    pairs = [(model.tokenize(text, begin=True), tokenizer(text)["input_ids"]) for text in TEXTS]
    if tokenizer.chat_template is not None:
        question = [{"role": "user", "content": TEXTS[0]}]
        text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        pairs.append((model.tokenize(text), tokenizer(text, add_special_tokens=False)["input_ids"]))
    return sum(theirs != list(ours) for theirs, ours in pairs)
