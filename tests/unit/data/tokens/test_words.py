"""Texts tokenized word by word have the ids of the whole texts, and only known tokenizers are used so."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import gguf_tokenizer_mapping
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN3_5

from oddsmith.data.tokens.pieces import ids_of_pieces, ids_of_texts
from oddsmith.data.tokens.words import (
    EXPRESSIONS,
    MAX_KNOWN_CHARACTERS,
    KnownWords,
    cuts_at_words,
    ids_by_words,
    unpacked,
)
from oddsmith.model.loading.gguf import LLAMA3_PATTERN

CORPUS = ("the cat sat on a mat\n\nand then it's, 12 times. ", " the  cats\n sat, they're on  mats ", "A a 1 2 ééé A")


def split(expression: str, behavior: str = "isolated"):
    step = pre_tokenizers.Split(Regex(expression), behavior)
    return pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


DIGITS = pre_tokenizers.Digits(individual_digits=True)
KNOWN = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "GPT-2, a space in front": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "SmolLM2": pre_tokenizers.Sequence([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    **{expression: split(expression) for expression in sorted(EXPRESSIONS)},
}


@functools.cache
def backend_of(name: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = KNOWN[name]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


def tokenizer_of(name: str = "GPT-2", *tokens: AddedToken, **changes: object) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(backend_of(name).to_str())
    for attribute, value in changes.items():
        setattr(backend, attribute, value)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_tokens([AddedToken("<|s|>", special=True, normalized=False), *tokens])
    return tokenizer


SNIPPETS = (
    *("<|s|>", " ", " ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u3000"),
    *("cat", " the", "A", "12", "é", "e\u0301", "的", "'s", ".", "<x>", '"', "_", "/", "🙂"),
)
parts = st.sampled_from(SNIPPETS) | st.text(max_size=3)
texts = st.lists(st.lists(parts, max_size=14).map("".join), min_size=1, max_size=4)


@pytest.mark.parametrize("normalizer", (None, normalizers.NFC()), ids=("as it is", "NFC"))
@pytest.mark.parametrize("name", KNOWN)
@settings(max_examples=40)
@given(some=texts)
def test_ids_are_those_of_whole_texts(name, normalizer, some):
    lstrip = AddedToken("<x>", lstrip=True, normalized=False)
    tokenizer = tokenizer_of(name, lstrip, **({} if normalizer is None else {"normalizer": normalizer}))
    assert cuts_at_words(tokenizer)
    known = KnownWords()
    whole = ids_of_texts(tokenizer, some)
    assert ids_of_pieces(tokenizer, some, known) == whole
    assert ids_of_pieces(tokenizer, some, known) == whole  # of known words


IN_TRANSFORMERS = [text for text in vars(gguf_tokenizer_mapping).values() if isinstance(text, str) and "p{N}" in text]


@pytest.mark.parametrize("expression", (QWEN2, QWEN3_5, LLAMA3_PATTERN, *IN_TRANSFORMERS))
def test_expressions_are_those_of_real_tokenizers(expression):
    assert cuts_at_words(tokenizer_of(pre_tokenizer=split(expression)))


@pytest.mark.parametrize(
    "tokenizer",
    (
        tokenizer_of("GPT-2", AddedToken("<x>", rstrip=True, normalized=False)),
        tokenizer_of("GPT-2", AddedToken("the cat", normalized=False)),
        tokenizer_of("GPT-2", AddedToken("cat ", normalized=False)),
        tokenizer_of("GPT-2", AddedToken(" cat", normalized=False, single_word=True)),
        tokenizer_of("GPT-2", normalizer=normalizers.Lowercase()),
        tokenizer_of("GPT-2", model=models.BPE(dropout=0.1)),
        tokenizer_of("GPT-2", model=models.WordLevel({"a": 0}, "a")),
        tokenizer_of("GPT-2", pre_tokenizer=pre_tokenizers.Metaspace()),
        tokenizer_of("GPT-2", pre_tokenizer=pre_tokenizers.ByteLevel(use_regex=False)),
        tokenizer_of("GPT-2", pre_tokenizer=split(r"\w+ ?|\W+")),
        tokenizer_of("GPT-2", pre_tokenizer=split(QWEN2, "merged_with_next")),
    ),
    ids=lambda tokenizer: "",
)
def test_other_tokenizers_get_whole_texts(tokenizer):
    assert not cuts_at_words(tokenizer)
    some = ["the cat <x> sat cat on", "the cat <x> a"]
    if tokenizer.backend_tokenizer.model.__class__ is models.BPE and not tokenizer.backend_tokenizer.model.dropout:
        assert ids_of_pieces(tokenizer, some) == ids_of_texts(tokenizer, some)


def test_a_known_word_is_not_tokenized_again():
    asked: list[str] = []

    def ids_of(words):
        asked.extend(words)
        return {word: [len(word)] for word in words}

    def ids_by(*texts):
        return [unpacked(packed) for packed in ids_by_words(texts, known, ids_of).values()]

    known = KnownWords()
    long = "x" * (MAX_KNOWN_CHARACTERS + 1)
    assert ids_by("we live here", "we  live") == [[2, 5, 5], [2, 6]]
    assert ids_by(f"here we live {long}") == [[4, 3, 5, 34]]
    assert asked == ["we", " live", " here", "  live", "here", " we", f" {long}"]
    assert long not in known.others
    assert "we" in known.others
