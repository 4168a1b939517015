"""A model's tokenizer as llama.cpp keeps it: each token with kind and score, merges, special tokens, chat template.

Two kinds of vocabulary are known there by the names of their first users:

    gpt2    byte-level BPE: merges, and the name of a pre-tokenizer (Llama 3, Qwen, SmolLM, newer Mistral)
    llama   SentencePiece: scores instead of merges, bytes as tokens of their own (Llama 2, Mistral, Gemma, Phi-3)

Both are read from ``tokenizer.json``. Where the original came as a ``tokenizer.model``, which transformers 5 no longer
saves, its scores follow from the merges: llama.cpp joins the pair with the highest score first, so the token that is
merged first gets the highest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

from ...data.tokens.rendering import Renderer
from ...errors import ModelError
from .pre_tokenizers import fingerprint, pre_tokenizer_name

SPACE = "\u2581"  # how SentencePiece writes a space
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SCORE_ADDED, SCORE_NEVER = -1000.0, -10000.0  # as llama.cpp's converter has them


@dataclass(frozen=True)
class Vocabulary:
    """Everything that is written of a tokenizer.

    Args:
        kind: ``"gpt2"`` or ``"llama"``.
        pre: llama.cpp's name of the pre-tokenizer.
        tokens, types: Of each id of the embedding.
        scores: Likewise, of a SentencePiece vocabulary.
        special: Ids of special tokens, merges and the chat template, as the ``gguf`` package reads them.
        end_id: The token that ends an answer, if there is one.
        begins: Whether the begin token is put in front of a text.
        adds_space: Whether text gets a space in front; None where that is llama.cpp's default.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float] | None
    special: SpecialVocab
    end_id: int | None
    begins: bool
    adds_space: bool | None

    def write(self, writer: GGUFWriter) -> None:
        """Put it into the header of a file."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.adds_space is not None:
            writer.add_add_space_prefix(self.adds_space)
        if self.end_id is not None:
            self.special.special_token_ids["eos"] = self.end_id
        self.special.add_special_token["bos"] = self.begins
        self.special.add_to_gguf(writer, quiet=True)


def read_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int, source: str) -> Vocabulary:
    """Read the tokenizer of a model folder.

    Args:
        folder: The folder, with its ``tokenizer.json``.
        tokenizer: The tokenizer in it.
        rows: Rows of the embedding. Those that no token has are padding.
        source: Name of the model, for messages.

    Returns:
        The vocabulary.

    Raises:
        ModelError: The tokenizer is of another kind, has more tokens than the embedding has rows, or cuts text in a way
            that llama.cpp does not know.
    """
    otherwise = "use llama.cpp's own script for it: --converter PATH/TO/convert_hf_to_gguf.py"
    if not tokenizer.is_fast:
        raise ModelError(f"{source}: its tokenizer has no tokenizer.json; {otherwise}")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] != "BPE":
        raise ModelError(f"{source}: its tokenizer is {backend['model']['type']}, expected BPE; {otherwise}")
    if (highest := max(tokenizer.get_vocab().values())) >= rows:
        raise ModelError(f"{source}: its tokenizer has a token {highest}, its embedding only {rows} rows")
    if backend["model"].get("byte_fallback"):
        tokens, types, scores = _sentencepiece_tokens(tokenizer, backend, rows)
        kind, pre, special = "llama", "default", SpecialVocab(folder, n_vocab=rows)
    else:
        name = pre_tokenizer_name(tokenizer, backend)
        if name is None:
            raise ModelError(
                f"{source}: llama.cpp has no name for how its tokenizer cuts text"
                f" (fingerprint {fingerprint(tokenizer)[:16]}...); {otherwise}"
            )
        tokens, types = _byte_level_tokens(tokenizer, rows)
        scores, kind, pre, special = None, "gpt2", name, SpecialVocab(folder, load_merges=True, n_vocab=rows)
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        special=special,
        end_id=_end_id(tokenizer),
        begins=tokenizer.bos_token_id is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id,
        adds_space=_adds_space(backend, chats=bool(tokenizer.chat_template)) if kind == "llama" else None,
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that ends an assistant's turn.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The token; ``None`` without a chat template, or with one that writes no answers.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        return Renderer(tokenizer).end_of_turn
    except ModelError:
        return None


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an assistant's turn; without a template for chats, the one that ends a text."""
    end = end_of_turn(tokenizer)
    return tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end)


def _byte_level_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[TokenType]]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        text = added.content
        if not added.normalized:  # llama.cpp wants added tokens as the tokenizer would write them
            text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        tokens[number], types[number] = _added(text, added.special)
    return tokens, types


def _sentencepiece_tokens(
    tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any], rows: int
) -> tuple[list[str], list[TokenType], list[float]]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    scores = [SCORE_NEVER] * rows
    rank_of: dict[str, int] = {}  # the first merge that makes a token
    for rank, pair in enumerate(backend["model"]["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        rank_of.setdefault(left + right, rank)
    for token, number in backend["model"]["vocab"].items():
        tokens[number] = token
        types[number] = TokenType.BYTE if BYTE.fullmatch(token) else TokenType.NORMAL
        is_made = token in rank_of or types[number] != TokenType.NORMAL
        # What no merge makes is a single letter, and is looked up before anything is joined.
        scores[number] = -float(rank_of.get(token, 0 if is_made else len(rank_of)))
    for number, added in tokenizer.added_tokens_decoder.items():
        tokens[number], types[number] = _added(added.content, added.special)
        scores[number] = SCORE_ADDED
    return tokens, types, scores


def _added(text: str, special: bool) -> tuple[str, TokenType]:
    """Text and kind of an added token. Some that steer the model are not marked as special by their authors."""
    marked = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
    unused = text.startswith("<unused") and text.endswith(">")
    if special or marked or unused or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return text, TokenType.CONTROL
    return text.replace(SPACE, " "), TokenType.USER_DEFINED


def _adds_space(backend: dict[str, Any], chats: bool) -> bool:
    """Whether llama.cpp shall put a space in front of a text, which it then does after every special token, too.

    So does a tokenizer that prepends it always. One that does it at the very start only never does it in a chat, whose
    template begins with a special token: for a model that chats, that decides.
    """
    parts = [backend.get("normalizer") or {}, backend.get("pre_tokenizer") or {}]
    parts += [part for outer in parts for part in outer.get("normalizers", []) + outer.get("pretokenizers", [])]
    schemes = {part.get("prepend_scheme", "always") for part in parts if part.get("type") == "Metaspace"}
    if "always" in schemes or any(part.get("type") == "Prepend" and part["prepend"] == SPACE for part in parts):
        return True
    return "first" in schemes and not chats
