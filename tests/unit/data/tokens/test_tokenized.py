"""What is cut from a pair that is too long, and what is never lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oddsmith.data.tokens.tokenized import Dropped, TokenizedPair, Tokens, cut_pair
from tests.pairs import conversation, merging_tokenizer, text_pair, tokenize, user
from tests.templates import PHI3
from tests.tiny import tiny_tokenizer


class TestTruncation:
    """One token a byte: BOS + 10 of the prompt, then the answer and EOS."""

    tokenizer = tiny_tokenizer(bos="<s>", eos="</s>")
    prompt = "0123456789"

    def tokens(self, chosen: str, rejected: str, **limits) -> TokenizedPair | Dropped:
        return tokenize(self.tokenizer, text_pair(self.prompt, chosen, rejected), **limits)

    def test_what_fits_is_left_alone(self):
        tokens = self.tokens("abcd", "xy", max_length=16, max_prompt_length=3)
        assert self.tokenizer.decode(tokens.chosen_ids) == "<s>0123456789abcd</s>"
        assert not tokens.cut_sides

    def test_response_is_cut_from_the_right(self):
        tokens = self.tokens("abcd", "xy", max_length=14)
        assert self.tokenizer.decode(tokens.chosen_ids) == "<s>0123456789abc"
        assert self.tokenizer.decode(tokens.rejected_ids) == "<s>0123456789xy</s>"
        assert (tokens.chosen_end, tokens.rejected_end) == (14, 14)
        assert tokens.cut_sides == ["chosen"]

    def test_prompt_of_both_sides_is_cut_first_and_keeps_bos(self):
        tokens = self.tokens("abcdef", "xy", max_length=14, max_prompt_length=4)
        assert self.tokenizer.decode(tokens.chosen_ids) == "<s>789abcdef</s>"
        assert self.tokenizer.decode(tokens.rejected_ids) == "<s>789xy</s>"
        assert tokens.chosen_prompt_tokens == tokens.rejected_prompt_tokens == 4
        assert tokens.cut_sides == ["prompt"]

    def test_prompt_then_response(self):
        tokens = self.tokens("abcdef", "xy", max_length=8, max_prompt_length=4)
        assert self.tokenizer.decode(tokens.chosen_ids) == "<s>789abcd"
        assert tokens.cut_sides == ["prompt", "chosen"]

    def test_prompt_shorter_than_its_limit_is_left_alone(self):
        tokens = self.tokens("abcdef", "xy", max_length=14, max_prompt_length=11)
        assert tokens.cut_sides == ["chosen"]

    def test_prompt_without_bos_keeps_its_last_tokens(self):
        tokenizer = tiny_tokenizer(bos=None, eos="</s>")
        tokens = tokenize(tokenizer, text_pair(self.prompt, "abcdef", "xy"), 12, max_prompt_length=4)
        assert tokenizer.decode(tokens.chosen_ids) == "6789abcdef</s>"

    def test_a_cut_before_a_bos_keeps_one(self):
        """SmolLM2's turns begin with the token that its texts begin with."""
        turn = [1, 7, 8]  # 1 is BOS
        side = Tokens([*turn, *turn, 5, 6], prompt_tokens=6, end=8)
        cut, _ = cut_pair(side, side, max_length=7, max_prompt_length=4, bos_token_id=1)
        assert cut == Tokens([*turn, 5, 6], prompt_tokens=3, end=5)
        elsewhere, _ = cut_pair(side, side, max_length=7, max_prompt_length=3, bos_token_id=1)
        assert elsewhere == Tokens([1, 7, 8, 5, 6], prompt_tokens=3, end=5)

    def test_merge_at_the_boundary_cuts_the_same_from_both_prompts(self):
        tokens = tokenize(merging_tokenizer(), text_pair("01234567 ", "Abcdef", "x"), 12, max_prompt_length=4)
        assert merging_tokenizer().decode(tokens.chosen_ids) == "<s>67 Abcdef</s>"
        assert merging_tokenizer().decode(tokens.rejected_ids) == "<s>67 x</s>"

    def test_text_after_the_end_of_turn_is_lost_without_a_cut(self):
        tokenizer = PHI3.tokenizer()
        pair = conversation([user("Hi")], "Yes", "No")
        whole = tokenize(tokenizer, pair)
        tokens = tokenize(tokenizer, pair, whole.chosen_end, max_prompt_length=2)
        assert tokens.chosen_ids == whole.chosen_ids[: whole.chosen_end]
        assert not tokens.cut_sides

    @pytest.mark.parametrize(("max_length", "kept"), ((11, False), (12, True)))
    def test_prompt_must_leave_room(self, max_length, kept):
        tokens = self.tokens("abc", "xyz", max_length=max_length)
        assert isinstance(tokens, TokenizedPair) if kept else tokens == Dropped("prompt fills max_length")

    def test_same_start_and_no_room_for_the_rest(self):
        assert self.tokens("same a", "same b", max_length=16) == Dropped("identical answers after truncation")
        assert isinstance(self.tokens("same a", "same b", max_length=17), TokenizedPair)

    @settings(max_examples=200, deadline=None)
    @given(
        st.text("ab ", max_size=20), st.text("ab", min_size=1, max_size=20), st.text("ab", min_size=1, max_size=20),
        st.integers(2, 40), st.none() | st.integers(1, 39),
    )  # fmt: skip
    def test_limits_hold_and_nothing_but_the_ends_is_lost(
        self, prompt, chosen, rejected, max_length, max_prompt_length
    ):
        pair = text_pair(prompt, chosen, rejected)
        whole = tokenize(merging_tokenizer(), pair)
        tokens = tokenize(merging_tokenizer(), pair, max_length, max_prompt_length=max_prompt_length)
        if isinstance(tokens, Dropped):
            return
        for side in ("chosen", "rejected"):
            ids, prompt_tokens, end = (getattr(tokens, f"{side}_{name}") for name in ("ids", "prompt_tokens", "end"))
            names = ("ids", "prompt_tokens", "end")
            whole_ids, whole_prompt, whole_end = (getattr(whole, f"{side}_{name}") for name in names)
            assert 1 <= prompt_tokens < end <= len(ids) <= max_length
            assert ids[0] == whole_ids[0]
            assert ids[1:prompt_tokens] == whole_ids[whole_prompt - prompt_tokens + 1 : whole_prompt]
            assert ids[prompt_tokens:end] == whole_ids[whole_prompt : whole_prompt + end - prompt_tokens]
            assert getattr(tokens, f"{side}_cut") == (end - prompt_tokens < whole_end - whole_prompt)
            assert tokens.prompt_cut or prompt_tokens == whole_prompt
            if not tokens.prompt_cut and max_prompt_length is not None and whole_prompt > max_prompt_length:
                assert max(whole.chosen_end, whole.rejected_end) <= max_length
