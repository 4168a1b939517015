"""Pairs, messages and tokenizers that the tests of the data path share."""

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from oddsmith.data.formats import PreferencePair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Dropped, TokenizedPair


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def conversation(prompt: list[dict], chosen: str, rejected: str, **more) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=[assistant(chosen)], rejected=[assistant(rejected)], **more)


def text_pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected)


def tokenize(tokenizer, pair: PreferencePair, max_length: int | None = None, **limits) -> TokenizedPair | Dropped:
    (result,) = PairTokenizer(tokenizer, max_length=max_length, **limits).tokenize([pair])
    return result


def targets(tokenizer, pair: TokenizedPair, side: str = "chosen") -> str:
    """The learned part of a side as text."""
    return tokenizer.decode(pair.side(side).targets())


def new_merging_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level with two merges: two newlines are one token, and so is a space with the letter A."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate([*alphabet, "ĊĊ", "ĠA"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("Ġ", "A")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    return tokenizer


merging_tokenizer = functools.cache(new_merging_tokenizer)  # one for all tests, which leave it as it is
