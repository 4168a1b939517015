"""Tokenize texts that share parts: each part is tokenized once, and the ids are those of the whole texts.

A tokenizer of the ``tokenizers`` library first takes its added tokens out of a text and then tokenizes what lies
between them, each part by itself. So a text may be cut in front of an added token without changing a single id:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n                        prompt
    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nYes<|im_end|>\\n        prompt + chosen
    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nNo<|im_end|>\\n         prompt + rejected
    [-------------------][-----------][------------------------][-----------]

Prompts, which are most of the text, are then tokenized once instead of three times. ``cutting_tokens`` finds the tokens
where a cut is safe. A piece keeps its token in front, because some tokenizers treat the very beginning of a text
differently (Llama's add a space there).

Pieces are cut further into words where that changes no id, either (words.py).

Source: the order of work is that of ``AddedVocabulary::extract_and_normalize`` in tokenizers 0.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from itertools import chain

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .words import Ids, KnownWords, cuts_at_words, ids_by_words, packed, unpacked


def ids_of_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, add_special_tokens: bool = False
) -> dict[str, Ids]:
    """Return token ids by text; each different text is tokenized once, all in one call of the tokenizer.

    With ``add_special_tokens`` the tokenizer adds what it adds to a text, such as BOS.
    """
    unique = list(dict.fromkeys(texts))
    if not unique:
        return {}
    encoding = tokenizer(
        unique,
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return dict(zip(unique, encoding["input_ids"], strict=True))


def ids_of_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], known_words: KnownWords | None = None
) -> dict[str, Ids]:
    """Return what ``ids_of_texts`` does, and tokenize each different piece of the texts once.

    ``known_words`` are kept from call to call, as long as the tokenizer stays as it is.
    """
    unique = list(dict.fromkeys(texts))
    tokens = cutting_tokens(tokenizer, max(unique, key=len, default=""))
    cut = re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
    pieces_of = {text: _pieces(cut.split(text)) if cut else [text] for text in unique}
    pieces = dict.fromkeys(chain.from_iterable(pieces_of.values()))
    if _is_cut_by_library(tokenizer) and cuts_at_words(tokenizer):
        words = KnownWords() if known_words is None else known_words
        ids_of = ids_by_words(pieces, words, partial(ids_of_texts, tokenizer))
    else:
        ids_of = {piece: packed(ids) for piece, ids in ids_of_texts(tokenizer, pieces).items()}
    return {text: unpacked(b"".join(map(ids_of.__getitem__, pieces))) for text, pieces in pieces_of.items()}


def _pieces(parts: list[str]) -> list[str]:
    """Join each token to what stands behind it: of ``[text, token, text, ...]``, which a pattern in a group gives."""
    return [parts[0], *(token + text for token, text in zip(parts[1::2], parts[2::2], strict=True))]


def cutting_tokens(tokenizer: PreTrainedTokenizerBase, sample: str) -> list[str]:
    """Return the added tokens in the text ``sample`` in front of which any text may be cut.

    The tokenizer finds such a token in every text wherever its characters stand, and the text on one side does not
    change the ids on the other:

    - it is looked for in the text as it is (not ``normalized``) and anywhere in it (not ``single_word``),
    - it takes no blanks in front of it (not ``lstrip``), and does not begin with a blank or a letter, which a token
      before it could depend on,
    - no added token, itself included, can begin before it and reach into it.

    There are none where ids are not made by the tokenizers library alone, or special tokens are split.
    """
    if not _is_cut_by_library(tokenizer):
        return []
    added = tokenizer.added_tokens_decoder.values()
    contents = [token.content for token in added]
    return [
        token.content
        for token in added
        if token.content in sample
        and not (token.normalized or token.single_word or token.lstrip)
        and re.match(r"[^\w\s]", token.content)
        and not _can_be_overrun(token.content, contents)
    ]


def is_library_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizers library makes the ids, with no Python of a tokenizer class in between."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    classes = type(tokenizer).__mro__
    subclasses = classes[: classes.index(PreTrainedTokenizerFast)]
    return not any({"__call__", "_encode_plus", "_batch_encode_plus"} & set(vars(each)) for each in subclasses)


def _is_cut_by_library(tokenizer: PreTrainedTokenizerBase) -> bool:
    return is_library_alone(tokenizer) and not tokenizer.split_special_tokens


def _can_be_overrun(token: str, others: Iterable[str]) -> bool:
    """Return whether a match of one of ``others`` can begin before ``token`` and hold its beginning."""
    beginnings = tuple(token[:end] for end in range(1, len(token)))
    return any(other.endswith(beginnings) or (token in other and other != token) for other in others)
