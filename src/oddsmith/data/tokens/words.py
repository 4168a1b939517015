"""Tokenize texts word by word, where the ids are those of the whole texts: most words are known from earlier texts.

Byte-level tokenizers cut a text into words with a regular expression, then make the ids of each word by itself. In all
expressions below, a space after another character than a blank begins a new word, whatever stands before and after it:

    We live in Rome, which is  old.  ->  "We", " live", " in", " Rome,", " which", " is", "  old."

So these parts may be tokenized apart. A part is looked up in a dict of known ones, which takes a hundredth of the time
that the tokenizers library needs for it.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from tokenizers import models, normalizers
from transformers import PreTrainedTokenizerFast

Ids = list[int]

MAX_KNOWN = 200_000  # words; 40 MB in each process that tokenizes
MAX_KNOWN_CHARACTERS = 32  # longer ones, of texts without spaces between words, hardly ever come again

NEW_WORD = re.compile(r" (?<=\S )")

# No branch of these matches a character and then a space, unless that character is a blank.
# Source: tokenizer.json of Llama 3, Qwen2 and 3, Qwen3.5, Mistral Nemo, GPT-4o.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
EXPRESSIONS = frozenset(
    {
        *(
            rf"{_CONTRACTIONS}|{_START}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        rf"{_CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",
        *(
            rf"{_START}{_UPPER}*{_LOWER}+{end}|{_START}{_UPPER}+{_LOWER}*{end}|{digits}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
            for end, digits in ((f"{_CONTRACTIONS}?", r"\p{N}{1,3}"), ("", r"\p{N}"))
        ),
    }
)


def cuts_at_words(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a text may be cut in front of every ``NEW_WORD``; the tokenizers library alone makes the ids."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.BPE) or backend.model.dropout is not None:
        return False
    if not isinstance(backend.normalizer, normalizers.NFC | None):
        return False
    for token in tokenizer.added_tokens_decoder.values():
        is_blind = token.single_word and token.content.startswith(" ")  # to what stands before the cut
        if token.rstrip or is_blind or NEW_WORD.search(token.content):  # the others would reach over the cut
            return False
    try:
        steps = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    except Exception as error:
        if type(error) is not Exception:  # what tokenizers raises for a part written in Python
            raise
        return False
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "use_regex": True}]:
            return True
        case [{"type": "Digits"}, {"type": "ByteLevel", "use_regex": True}]:
            return True
        case [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False},
        ]:
            return expression in EXPRESSIONS
    return False


@dataclass
class KnownWords:
    """The ids of words, each as the bytes of an int32 array, which are joined faster than lists of numbers."""

    first: dict[str, bytes] = field(default_factory=dict)  # at the beginning of a text
    others: dict[str, bytes] = field(default_factory=dict)  # by what stands behind their space

    def add(self, first: list[str], others: list[str], ids_of_texts: Callable[[Iterable[str]], dict[str, Ids]]) -> None:
        """Tokenize words, all in one call."""
        ids_of = ids_of_texts([*first, *(" " + word for word in others)])
        self.first.update((word, packed(ids_of[word])) for word in first)
        self.others.update((word, packed(ids_of[" " + word])) for word in others)


def packed(ids: Ids) -> bytes:
    """Return ids as the bytes of an int32 array."""
    return array("i", ids).tobytes()


def unpacked(data: bytes) -> Ids:
    """Return the ids that are held as bytes."""
    return memoryview(data).cast("i").tolist()


def ids_by_words(
    texts: Iterable[str], known: KnownWords, ids_of_texts: Callable[[Iterable[str]], dict[str, Ids]]
) -> dict[str, bytes]:
    """Return ids by text, packed, and add the words that are not ``known`` to it, unless they are long.

    Args:
        texts: Texts that may be cut in front of every ``NEW_WORD``.
        known: Ids of words, of this tokenizer.
        ids_of_texts: Tokenizes texts that are different from each other.

    Returns:
        The ids of each text, as ``packed`` makes them.
    """
    if len(known.first) + len(known.others) > MAX_KNOWN:
        known.first.clear()
        known.others.clear()
    others_of = {text: NEW_WORD.split(text) for text in texts}
    first_of = [words.pop(0) for words in others_of.values()]
    first = [word for word in dict.fromkeys(first_of) if word not in known.first]
    others = [word for word in dict.fromkeys(chain.from_iterable(others_of.values())) if word not in known.others]
    known.add(first, others, ids_of_texts)
    found = {
        text: known.first[word] + b"".join(map(known.others.__getitem__, words))
        for word, (text, words) in zip(first_of, others_of.items(), strict=True)
    }
    for held, new in ((known.first, first), (known.others, others)):
        for word in new:
            if len(word) > MAX_KNOWN_CHARACTERS:
                del held[word]
    return found
