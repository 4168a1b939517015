"""Read a model's tokenizer as a GGUF file holds it: tokens with type and score, merges, special tokens, chat template.

llama.cpp calls the two kinds of vocabulary by their first users:

    gpt2    byte-level BPE: merges, and the name of a pre-tokenizer (Llama 3, Qwen, SmolLM, newer Mistral)
    llama   SentencePiece: scores instead of merges, a token for each byte (Llama 2, Mistral, Gemma, Phi-3)

Both are read from ``tokenizer.json``. transformers 5 no longer saves a ``tokenizer.model`` with its scores, so they are
derived from the merges: llama.cpp joins the pair with the highest score first, so the token that is merged first gets
the highest.

llama.cpp has a name for each way in which byte-level tokenizers split text before the merges, the pre-tokenizer. Its
converter finds the name by a fingerprint, the hash of the tokens of one awkward text; ``pre_tokenizers.json`` holds
fingerprints and names. A begin token that was switched on or off changes the fingerprint; where it is unknown, the
pattern in ``tokenizer.json`` decides. Source: llama.cpp (MIT), conversion/base.py, ``get_vocab_base_pre``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import PreTrainedTokenizerBase

from ...data.tokens.rendering import Renderer
from ...errors import ModelError
from ...model.loading.gguf import WHOLE_WORDS_FIRST, byte_level_pre_tokenizer

SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
SCORE_ADDED, SCORE_NEVER = -1000.0, -10000.0  # as in llama.cpp's converter

# The text of the fingerprint; every character counts.
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33"
    " 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======="
    " нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure"
    " I'll make it, 'D you like some tea? We'Ve a'lL"
)
# A name for each pattern that can be compared with the tokenizer's own.
COMPARABLE = ("gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer in a GGUF file."""

    kind: str  # ``"gpt2"`` or ``"llama"``
    pre: str  # llama.cpp's name of the pre-tokenizer
    tokens: list[str]  # the token of each row of the embedding
    types: list[TokenType]
    scores: list[float] | None  # in a SentencePiece vocabulary
    special: SpecialVocab  # ids of special tokens, merges and the chat template, as the ``gguf`` package reads them
    end_id: int | None  # the token that ends an answer, if there is one
    begins: bool  # whether the begin token is put in front of a text
    adds_space: bool | None  # whether a space is put in front of a text; ``None`` leaves it to llama.cpp

    def write(self, writer: GGUFWriter) -> None:
        """Write the vocabulary into the header of a file."""
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
    """Read the tokenizer of a model folder, with its ``tokenizer.json``.

    ``rows`` are those of the embedding; rows without a token are padding. ``source`` is the model's name, for messages.
    Raise ``ModelError`` for a tokenizer of another kind, with more tokens than the embedding has rows, or one that
    splits text in a way that llama.cpp has no name for.
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
    end = end_of_turn(tokenizer)
    return Vocabulary(
        kind=kind,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        special=special,
        end_id=tokenizer.eos_token_id if end is None else tokenizer.convert_tokens_to_ids(end),
        begins=tokenizer.bos_token_id is not None and tokenizer.encode("a")[0] == tokenizer.bos_token_id,
        adds_space=_adds_space(backend, chats=bool(tokenizer.chat_template)) if kind == "llama" else None,
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the token that ends an assistant's turn; ``None`` where no chat template writes answers."""
    if tokenizer.chat_template is None:
        return None
    try:
        return Renderer(tokenizer).end_of_turn
    except ModelError:
        return None


@cache
def known_fingerprints() -> dict[str, str]:
    """Return llama.cpp's names of pre-tokenizers by fingerprint."""
    return json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the tokens of ``PROBE``, as Python writes the list."""
    return hashlib.sha256(str(tokenizer.encode(PROBE)).encode()).hexdigest()


def pre_tokenizer_name(tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level tokenizer splits text; ``None`` if it has none.

    ``backend`` is the content of its ``tokenizer.json``.
    """
    if name := known_fingerprints().get(fingerprint(tokenizer)):
        return name
    for name in COMPARABLE:
        same_pattern = _without_offsets(backend["pre_tokenizer"]) == _pattern(name)
        whole_words_first = bool(backend["model"].get("ignore_merges"))
        if same_pattern and whole_words_first == (name in WHOLE_WORDS_FIRST):
            return name
    return None


@cache
def _pattern(name: str) -> Any:
    pre_tokenizer = byte_level_pre_tokenizer(name)
    return _without_offsets(json.loads(pre_tokenizer.__getstate__())) if pre_tokenizer else None


def _without_offsets(settings: Any) -> Any:
    """Drop ``trim_offsets``, which does not change where text is split."""
    if isinstance(settings, list):
        return [_without_offsets(value) for value in settings]
    if isinstance(settings, dict):
        return {key: _without_offsets(value) for key, value in settings.items() if key != "trim_offsets"}
    return settings


def _byte_level_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[list[str], list[TokenType]]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for number, added in tokenizer.added_tokens_decoder.items():
        text = added.content
        if not added.normalized:  # llama.cpp expects added tokens as the tokenizer decodes them
            text = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        tokens[number], types[number] = _added(text, added.special)
    return tokens, types


def _sentencepiece_tokens(
    tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any], rows: int
) -> tuple[list[str], list[TokenType], list[float]]:
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    scores = [SCORE_NEVER] * rows
    rank_of: dict[str, int] = {}  # of the first merge that makes a token
    for rank, pair in enumerate(backend["model"]["merges"]):
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        rank_of.setdefault(left + right, rank)
    for token, number in backend["model"]["vocab"].items():
        tokens[number] = token
        types[number] = TokenType.BYTE if BYTE_TOKEN.fullmatch(token) else TokenType.NORMAL
        is_made = token in rank_of or types[number] != TokenType.NORMAL
        # A token that no merge makes is a single letter, which is looked up before anything is joined.
        scores[number] = -float(rank_of.get(token, 0 if is_made else len(rank_of)))
    for number, added in tokenizer.added_tokens_decoder.items():
        tokens[number], types[number] = _added(added.content, added.special)
        scores[number] = SCORE_ADDED
    return tokens, types, scores


def _added(text: str, special: bool) -> tuple[str, TokenType]:
    """Return text and type of an added token. Not every control token is marked as special in ``tokenizer.json``."""
    marked = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
    unused = text.startswith("<unused") and text.endswith(">")
    if special or marked or unused or text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return text, TokenType.CONTROL
    return text.replace(SPACE, " "), TokenType.USER_DEFINED


def _adds_space(backend: dict[str, Any], chats: bool) -> bool:
    """Return whether llama.cpp is to put a space in front of a text, which it then does after each special token too.

    A tokenizer that always prepends a space does the same. One that prepends it only at the very start of a text never
    does so in a chat, because the chat template begins with a special token; so a chat model gets no space.
    """
    parts = [backend.get("normalizer") or {}, backend.get("pre_tokenizer") or {}]
    parts += [part for outer in parts for part in outer.get("normalizers", []) + outer.get("pretokenizers", [])]
    schemes = {part.get("prepend_scheme", "always") for part in parts if part.get("type") == "Metaspace"}
    if "always" in schemes or any(part.get("type") == "Prepend" and part["prepend"] == SPACE for part in parts):
        return True
    return "first" in schemes and not chats
