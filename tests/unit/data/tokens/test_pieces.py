"""Texts tokenized in pieces have the ids of the whole texts, whatever the tokenizer does at a beginning or an end."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from oddsmith.data.tokens.pieces import cutting_tokens, ids_of_pieces, ids_of_texts
from tests.pairs import merging_tokenizer
from tests.templates import CHAT_FORMATS
from tests.tiny import tiny_tokenizer

CORPUS = (
    "the cat sat on a mat\n\nand then it ran 12 times.",
    " the  cats\n sat, they're on  mats ",
    "A a A\n\n\nA cat",
)
PLAIN = AddedToken("<|s|>", special=True, normalized=False)


def byte_level(**options):
    return None, pre_tokenizers.ByteLevel(**options)


def metaspace(scheme: str):
    return None, pre_tokenizers.Metaspace(prepend_scheme=scheme)


# What real tokenizers do first: normalizer and pre-tokenizer. Llama's begin a text with a space, in one way or another.
PIPELINES = {
    "byte-level": byte_level(add_prefix_space=False),
    "byte-level with a space in front": byte_level(add_prefix_space=True),
    "digits apart": (
        None,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "a space at the very beginning": metaspace("first"),
    "a space everywhere": metaspace("always"),
    "a space by the normalizer": (
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        pre_tokenizers.Split("▁", "merged_with_next"),
    ),
    "lower case, blanks stripped": (
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]),
        pre_tokenizers.Whitespace(),
    ),
}

# Added tokens beside <|s|>, and whether a text may still be cut in front of <|s|>.
NEIGHBOURS = {
    "none": ((), True),
    "takes blanks before it": ((AddedToken("<x>", lstrip=True, normalized=False),), True),
    "takes blanks after it": ((AddedToken("<x>", rstrip=True, normalized=False),), True),
    "a word of its own": ((AddedToken("<x>", single_word=True, normalized=False),), True),
    "a word of letters": ((AddedToken("it", single_word=True, normalized=False),), True),
    "a word beside letters": (
        (AddedToken("<x>", single_word=True, normalized=False), AddedToken("it", normalized=False)),
        True,
    ),
    "found after normalizing": ((AddedToken("<x>", normalized=True), AddedToken("cat", normalized=True)), True),
    "reaches into it": ((AddedToken("a<|", normalized=False),), False),
    "is longer": ((AddedToken("<|s|><|s|>", normalized=False),), False),
    "begins as it does": ((AddedToken("<|s", normalized=False),), False),
}


@functools.cache
def tokenizer_of(pipeline: str, neighbours: str = "none", kind: str = "bpe") -> PreTrainedTokenizerFast:
    normalizer, pre_tokenizer = PIPELINES[pipeline]
    backend = Tokenizer(models.BPE(unk_token="?") if kind == "bpe" else models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "▁", " ", "\n"]
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["?"], show_progress=False
        )
    else:
        trainer = trainers.UnigramTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=["?"], unk_token="?", show_progress=False
        )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="?")
    tokenizer.add_tokens([PLAIN, *NEIGHBOURS[neighbours][0]])
    return tokenizer


parts = st.sampled_from(
    ["<|s|>", "<|s|>", "<x>", "a<|", "<|s", "|>", " ", "  ", "\n", "\n\n", "cat", "it", "A", "12", "é"]
)
texts = st.lists(st.lists(parts, max_size=12).map("".join), min_size=1, max_size=4)


def agree(tokenizer, some: list[str]) -> None:
    """Also with all added tokens in the longest text, which is the sample."""
    some = ["cat<|s|> a<x>it<|s a<|" + " cat" * 9, *some]
    assert ids_of_pieces(tokenizer, some) == ids_of_texts(tokenizer, some)


class TestSameIds:
    @pytest.mark.parametrize("pipeline", PIPELINES)
    @pytest.mark.parametrize("neighbours", NEIGHBOURS)
    @settings(max_examples=25)
    @given(some=texts)
    def test_every_beginning_and_every_neighbour(self, pipeline, neighbours, some):
        agree(tokenizer_of(pipeline, neighbours), some)

    @pytest.mark.parametrize("pipeline", ("a space at the very beginning", "a space everywhere"))
    @settings(max_examples=25)
    @given(some=texts)
    def test_unigram(self, pipeline, some):
        agree(tokenizer_of(pipeline, kind="unigram"), some)

    @pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
    def test_conversations(self, chat):
        tokenizer = chat.tokenizer()
        turns = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": " Yes "}]
        opened = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns + turns, tokenize=False)
        assert ids_of_pieces(tokenizer, [opened, whole]) == ids_of_texts(tokenizer, [opened, whole])

    def test_merges_are_made_within_a_piece(self):
        tokenizer = merging_tokenizer()
        ids = ids_of_pieces(tokenizer, ["<s>\n\n A</s>\n\n", "<s>\n\n A"])
        assert tokenizer.convert_ids_to_tokens(ids["<s>\n\n A</s>\n\n"]) == ["<s>", "ĊĊ", "ĠA", "</s>", "ĊĊ"]
        assert tokenizer.convert_ids_to_tokens(ids["<s>\n\n A"]) == ["<s>", "ĊĊ", "ĠA"]

    def test_nothing(self):
        assert ids_of_pieces(tokenizer_of("byte-level"), []) == {}
        assert ids_of_pieces(tokenizer_of("byte-level"), [""]) == {"": []}


class TestWhereToCut:
    @pytest.mark.parametrize("neighbours", NEIGHBOURS)
    def test_other_tokens_may_reach_over_a_cut(self, neighbours):
        is_safe = NEIGHBOURS[neighbours][1]
        assert ("<|s|>" in cutting_tokens(tokenizer_of("byte-level", neighbours), "<|s|>")) == is_safe

    @pytest.mark.parametrize(
        "token",
        (
            AddedToken("<x>", lstrip=True, normalized=False), AddedToken("<x>", single_word=True, normalized=False),
            AddedToken("<x>", normalized=True), AddedToken("x>", normalized=False),
            AddedToken(" <x>", normalized=False), AddedToken("[x[", normalized=False),
        ),
        ids=lambda token: repr(token)[11:40],
    )  # fmt: skip
    def test_tokens_that_mind_what_is_beside_them(self, token):
        tokenizer = tiny_tokenizer(bos="<s>")
        assert cutting_tokens(tokenizer, f"<s>a{token.content}b") == ["<s>"]
        tokenizer.add_tokens([token])
        assert cutting_tokens(tokenizer, f"<s>a{token.content}b") == ["<s>"]

    def test_special_tokens_that_are_split(self):
        tokenizer = tiny_tokenizer(bos="<s>")
        tokenizer.split_special_tokens = True
        assert cutting_tokens(tokenizer, "<s>a") == []

    def test_tokenizer_with_python_of_its_own(self):
        class Shouting(PreTrainedTokenizerFast):
            def _encode_plus(self, text, **options):
                return super()._encode_plus([each + "!" for each in text], **options)

        tokenizer = Shouting(tokenizer_object=tiny_tokenizer().backend_tokenizer)
        text = "<|im_start|>Hi<|im_end|>"
        assert tokenizer.decode(ids_of_pieces(tokenizer, [text])[text]) == f"{text}!"

    def test_what_texts_share_is_tokenized_once(self, monkeypatch):
        tokenizer = tiny_tokenizer()
        prompt = "<|im_start|>user\nA long question.<|im_end|>\n<|im_start|>assistant\n"
        calls = []
        whole_call = type(tokenizer).__call__
        monkeypatch.setattr(
            type(tokenizer), "__call__", lambda self, a, **k: calls.append(a) or whole_call(self, a, **k)
        )
        ids_of_pieces(tokenizer, [prompt, f"{prompt}Yes<|im_end|>\n", f"{prompt}No<|im_end|>\n"])
        (asked,) = calls
        assert sorted(asked) == sorted(
            [
                "", "<|im_start|>user\nA long question.", "<|im_end|>\n", "<|im_start|>assistant\n",
                "<|im_start|>assistant\nYes", "<|im_start|>assistant\nNo",
            ],
        )  # fmt: skip
