"""Pairs for an encoder-decoder model: the prompt for the encoder, the answers as labels of the decoder."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from oddsmith.data.formats import PreferencePair
from oddsmith.data.tokens.tokenized import Dropped, TokenizedPair
from tests.pairs import conversation, text_pair, tokenize, user
from tests.templates import SMOLLM2
from tests.tiny import tiny_tokenizer


class TestEncoderDecoder:
    @staticmethod
    def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
        """Ends every text with EOS, as T5's does."""
        tokenizer = tiny_tokenizer(chat_template, bos=None, eos="</s>")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
        )
        return tokenizer

    def tokens(self, pair: PreferencePair, chat_template: str | None = None, **limits):
        limits = {"max_length": None, "is_encoder_decoder": True} | limits
        tokenizer = self.tokenizer(chat_template)
        tokens = tokenize(tokenizer, pair, **limits)
        if isinstance(tokens, Dropped):
            return tokens, ()
        return tokens, [tokenizer.decode(ids) for ids in (tokens.prompt_ids, tokens.chosen_ids, tokens.rejected_ids)]

    def test_prompt_and_labels_apart_each_with_its_end(self):
        tokens, texts = self.tokens(text_pair("Hi ", "Yes", "No"))
        assert texts == ["Hi </s>", "Yes</s>", "No</s>"]
        assert (tokens.chosen_prompt_tokens, tokens.chosen_end, tokens.rejected_end) == (0, 4, 3)
        assert not tokens.cut_sides

    def test_conversation(self):
        template = SMOLLM2.template.replace("'<|im_end|>' + '\n'", "'</s>\n'")
        _, texts = self.tokens(conversation([user("Hi")], "Yes", "No"), template)
        assert texts[0].endswith("<|im_start|>user\nHi</s>\n<|im_start|>assistant\n</s>")
        assert texts[1:] == ["Yes</s>", "No</s>"]

    def test_labels_are_cut(self):
        tokens, texts = self.tokens(text_pair("Hi ", "abcdef", "xy"), max_completion_length=4)
        assert texts[1:] == ["abcd", "xy</s>"]
        assert tokens.chosen_end == 4
        assert tokens.cut_sides == ["chosen"]

    def test_labels_have_128_tokens_by_default(self):
        tokens, _ = self.tokens(text_pair("Hi ", "a" * 200, "xy"))
        assert tokens.chosen_end == len(tokens.chosen_ids) == 128

    def test_prompt_is_cut_or_dropped(self):
        pair = text_pair("0123456789", "a", "b")
        tokens, texts = self.tokens(pair, max_length=8, max_prompt_length=4)
        assert (texts[0], tokens.cut_sides) == ("789</s>", ["prompt"])
        assert self.tokens(pair, max_length=10)[0] == Dropped("prompt fills max_length")
        assert isinstance(self.tokens(pair, max_length=11)[0], TokenizedPair)

    def test_cut_prompt_keeps_bos(self):
        tokenizer = tiny_tokenizer(None, bos="<s>", eos="</s>")
        pair, limits = text_pair("<s>0123456789", "a", "b"), {"max_prompt_length": 4, "is_encoder_decoder": True}
        tokens = tokenize(tokenizer, pair, 8, **limits)
        assert tokenizer.decode(tokens.prompt_ids) == "<s>789"

    @pytest.mark.parametrize("answer", ["a", "a" * 30])
    def test_the_longest_sequence_is_the_prompt_which_max_length_bounds(self, answer):
        tokens, _ = self.tokens(text_pair("0123456789", answer, "b"))
        assert tokens.longest_tokens == 11

    def test_identical(self):
        dropped = Dropped("identical answers after truncation")
        assert self.tokens(text_pair("Hi ", "same a", "same b"), max_completion_length=5)[0] == dropped
