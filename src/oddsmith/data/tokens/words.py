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
from collections.abc import Callable, Iterable
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


def ids_by_words(
    texts: Iterable[str], known: dict[str, Ids], ids_of_texts: Callable[[Iterable[str]], dict[str, Ids]]
) -> dict[str, Ids]:
    """Return ids by text, and add the words that are not ``known`` to it, unless they are long.

    Args:
        texts: Texts that may be cut in front of every ``NEW_WORD``.
        known: Ids of words, of this tokenizer.
        ids_of_texts: Tokenizes texts that are different from each other.

    Returns:
        The ids of each text.
    """
    if len(known) > MAX_KNOWN:
        known.clear()
    words_of = {}
    for text in texts:
        first, *others = NEW_WORD.split(text)
        words_of[text] = [first, *[" " + word for word in others]]
    new = [word for word in dict.fromkeys(chain.from_iterable(words_of.values())) if word not in known]
    known.update(ids_of_texts(new))
    found = {text: list(chain.from_iterable(map(known.__getitem__, words))) for text, words in words_of.items()}
    for word in new:
        if len(word) > MAX_KNOWN_CHARACTERS:
            del known[word]
    return found
