"""An answer of several turns: only the assistant's own tokens are targets."""

import pytest

from oddsmith.data.formats import PreferencePair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Tokens
from oddsmith.errors import RowError
from tests.pairs import assistant, merging_tokenizer, targets, tokenize, user
from tests.templates import CHAT_FORMATS, LLAMA3, MISTRAL, PLAIN, QWEN3, SMOLLM2, ChatFormat
from tests.tiny import CHATML, tiny_tokenizer

CALL = [{"type": "function", "function": {"name": "w", "arguments": {"city": "Rome"}}}]
WET = {"role": "tool", "content": "wet"}
NO = [assistant("No.")]
WITH_CALLS = CHATML.replace(
    "message['content'] +", "message['content'] ~ ((message.tool_calls | tojson) if message.tool_calls) ~"
)


def pieces(tokenizer, pair: PreferencePair, side: str = "chosen") -> list[str]:
    """The response in pieces: what is learned, and what is not, by turns."""
    tokens = tokenize(tokenizer, pair).side(side)
    return [tokenizer.decode(ids) for ids, _ in tokens.segments()]


def answer(*chosen: dict, prompt: list[dict] | None = None) -> PreferencePair:
    return PreferencePair(prompt or [user("Hi")], list(chosen), NO)


class TestEveryTemplate:
    @pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
    @pytest.mark.parametrize("text", ("Hello. ", "Hello.</b>", "Bye.", "wet"))
    def test_the_users_turn_is_no_target(self, chat: ChatFormat, text):
        tokenizer = chat.tokenizer()
        row = answer(assistant(text), user("wet"), assistant("Bye."))
        prompts = [row.prompt, [*row.prompt, *row.chosen[:2]]]
        first, last = (tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False) for p in prompts)
        learned, gap, learned_last, *tail = pieces(tokenizer, row)
        whole = tokenizer.apply_chat_template([*row.prompt, *row.chosen], tokenize=False)
        assert first + learned + gap + learned_last + "".join(tail) == whole + ("" if chat.end_of_turn else chat.eos)
        assert gap.endswith(last[len(first + learned) :][-10:])
        assert "wet" in gap
        if chat is PLAIN:  # no token ends a turn but the last
            assert (learned, learned_last) == (f"{text}\n\n", "Bye.\n\n</s>")
            return
        of_turn = (lambda answer: answer) if chat is QWEN3 else chat.response  # no think block but in the last turn
        assert (learned, learned_last) == (of_turn(text) + chat.end_of_turn, chat.response("Bye.") + chat.end_of_turn)

    @pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
    def test_an_answer_of_one_turn_has_no_gaps(self, chat):
        tokens = tokenize(chat.tokenizer(), answer(assistant("Hello.")))
        assert tokens.chosen_gaps == tokens.rejected_gaps == ()


class TestTools:
    def test_a_call_and_what_follows_its_result_are_learned(self):
        tokenizer = tiny_tokenizer(WITH_CALLS)
        learned, gap, last, _ = pieces(tokenizer, answer(assistant("", tool_calls=CALL), WET, assistant("It rains.")))
        assert learned.startswith('[{"type": "function"')
        assert learned.endswith("<|im_end|>")
        assert gap == "\n<|im_start|>tool\nwet<|im_end|>\n<|im_start|>assistant\n"
        assert last == "It rains.<|im_end|>"

    def test_a_turn_may_end_in_another_token(self):
        row = answer(assistant("f()", tool_calls=CALL), WET, assistant("It rains."))
        learned, gap, last = pieces(LLAMA3.tokenizer(), row)
        assert (learned, last) == ("f()<|eom_id|>", "It rains.<|eot_id|>")
        assert gap.startswith("<|start_header_id|>tool")

    def test_a_result_in_front_of_the_answer_belongs_to_the_prompt(self):
        tokenizer = tiny_tokenizer(WITH_CALLS)
        prompt = [user("Rain?"), assistant("", tool_calls=CALL)]
        row = PreferencePair(prompt, [WET, assistant("Yes.")], [{"role": "tool", "content": "dry!"}, assistant("No.")])
        tokens = tokenize(tokenizer, row)
        assert (targets(tokenizer, tokens), targets(tokenizer, tokens, "rejected")) == (
            "Yes.<|im_end|>",
            "No.<|im_end|>",
        )
        assert tokens.chosen_gaps == tokens.rejected_gaps == ()
        assert tokenizer.decode(tokens.chosen_ids[: tokens.chosen_prompt_tokens]).endswith(
            "tool\nwet<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt_text, *answers = tokens.texts
        whole = [tokenizer.decode(ids) for ids in (tokens.chosen_ids, tokens.rejected_ids)]
        assert [prompt_text + text for text in answers] == whole

    def test_several_results_and_calls(self):
        tokenizer = tiny_tokenizer(WITH_CALLS)
        call = assistant("", tool_calls=CALL)
        row = answer(call, WET, WET, call, WET, assistant("It rains."))
        learned, _, again, _, last, _ = pieces(tokenizer, row)
        assert learned == again
        assert "wet" not in learned + again + last

    def test_a_call_that_the_template_writes_by_the_name_of_the_tool(self):
        by_name = "if message.tool_calls and message.tool_calls[0].function.name == 'w'"
        template = WITH_CALLS.replace("if message.tool_calls", by_name)
        learned, gap, *_ = pieces(tiny_tokenizer(template), answer(assistant("", tool_calls=CALL), WET, *NO))
        assert '"Rome"' in learned
        assert gap.startswith("\n<|im_start|>tool\nwet")


class TestPeculiarities:
    def test_thoughts_that_are_left_out_once_a_user_follows(self):
        tokenizer = QWEN3.tokenizer()
        thinking = [assistant(f"<think>\n{text}\n</think>\n\n{text}.") for text in ("one", "two")]
        learned, gap, last, _ = pieces(tokenizer, answer(thinking[0], user("And?"), thinking[1]))
        assert (learned, last) == ("one.<|im_end|>", "<think>\ntwo\n</think>\n\ntwo.<|im_end|>")
        assert gap == "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        assert tokenize(tokenizer, answer(thinking[0], user("And?"), thinking[1])).left_out == ("thoughts in chosen",)

    def test_an_answer_that_goes_on_with_the_prompts_turn(self):
        row = answer(assistant(" is."), user("So?"), assistant("So."), prompt=[user("Sky?"), assistant("It")])
        assert pieces(SMOLLM2.tokenizer(), row)[::2] == [" is.<|im_end|>", "So.<|im_end|>"]

    def test_two_turns_of_the_assistant_in_a_row(self):
        learned, gap, last, _ = pieces(SMOLLM2.tokenizer(), answer(assistant("One."), assistant("Two.")))
        assert (learned, gap, last) == ("One.<|im_end|>", "\n<|im_start|>assistant\n", "Two.<|im_end|>")

    def test_a_turn_that_holds_nothing(self):
        learned, gap, last, _ = pieces(SMOLLM2.tokenizer(), answer(assistant(""), user("What?"), assistant("Two.")))
        assert (learned, last) == ("<|im_end|>", "Two.<|im_end|>")
        assert gap == "\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"

    def test_an_end_of_turn_in_the_text_ends_no_turn(self):
        learned, _, last, _ = pieces(SMOLLM2.tokenizer(), answer(assistant("a<|im_end|>b"), user("?"), assistant("c")))
        assert (learned, last) == ("a<|im_end|>b<|im_end|>", "c<|im_end|>")

    def test_a_merge_over_the_boundary_is_the_answers(self):
        tokenizer = merging_tokenizer(PLAIN.template)
        tokens = tokenize(tokenizer, answer(assistant("One."), user("?"), assistant("\nTwo.")))
        assert targets(tokenizer, tokens) == "One.\n\n" + "\n\nTwo.\n\n</s>"

    def test_a_template_that_writes_turns_in_another_order(self):
        template = CHATML.replace("in messages", "in messages | sort(attribute='content')")
        with pytest.raises(RowError, match=r"turns not found in the rendering: .* expected one turn"):
            tokenize(tiny_tokenizer(template), answer(assistant("y"), user("z"), assistant("x")))

    def test_an_encoder_decoder_learns_one_turn(self):
        with pytest.raises(RowError, match="several turns in an answer: .*the decoder learns all"):
            tokenize(SMOLLM2.tokenizer(), answer(*NO, user("?"), *NO), is_encoder_decoder=True)

    def test_generation_marks_of_the_template_say_the_same(self):
        template = CHATML.replace("message['content'] + '<|im_end|>\n' }}", "'' }}{% if message.role == 'assistant' %}"
            "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
            "{{ message.content + '<|im_end|>\n' }}{% endif %}")  # fmt: skip
        tokenizer = tiny_tokenizer(template)
        row = answer(assistant("One."), user("?"), assistant("Two."))
        found = tokenizer.apply_chat_template(
            [*row.prompt, *row.chosen], return_assistant_tokens_mask=True, return_dict=True
        )
        own = [token for token, is_own in zip(found["input_ids"], found["assistant_masks"], strict=True) if is_own]
        assert tokenize(tokenizer, row).side("chosen").targets() == own


class TestCut:
    side = Tokens([*range(20)], prompt_tokens=4, end=18, gaps=(6, 9, 12, 15))

    @pytest.mark.parametrize(
        ("max_length", "end", "gaps", "targets"),
        (
            (18, 18, (6, 9, 12, 15), [4, 5, 9, 10, 11, 15, 16, 17]),
            (16, 16, (6, 9, 12, 15), [4, 5, 9, 10, 11, 15]),
            (15, 12, (6, 9), [4, 5, 9, 10, 11]),
            (13, 12, (6, 9), [4, 5, 9, 10, 11]),
            (12, 12, (6, 9), [4, 5, 9, 10, 11]),
            (8, 6, (), [4, 5]),
            (3, 3, (), []),
        ),
    )
    def test_targets_end_before_a_gap_that_is_cut(self, max_length, end, gaps, targets):
        cut = self.side.without_right(max_length)
        assert (cut.end, cut.gaps, cut.targets()) == (end, gaps, targets)
        assert cut.target_tokens == len(targets) if targets else cut.target_tokens < 1

    def test_gaps_move_with_the_prompt(self):
        cut = self.side.without_left(3, kept_tokens=1)
        assert (cut.prompt_tokens, cut.end, cut.gaps) == (1, 15, (3, 6, 9, 12))
        assert cut.targets() == self.side.targets()

    def test_in_a_pair(self):
        tokenizer = SMOLLM2.tokenizer()
        row = answer(assistant("One."), user("And?"), assistant("Two."))
        whole = tokenize(tokenizer, row)
        tokens = PairTokenizer(tokenizer, max_length=whole.chosen_gaps[1] + 1).tokenize([row])[0]
        assert targets(tokenizer, tokens) == "One.<|im_end|>T"
        tokens = PairTokenizer(tokenizer, max_length=whole.chosen_gaps[1]).tokenize([row])[0]
        assert (targets(tokenizer, tokens), tokens.chosen_gaps, tokens.chosen_cut) == ("One.<|im_end|>", (), True)


def test_mistral_learns_the_blank_in_front_of_each_answer():
    row = answer(assistant("One."), user("And?"), assistant("Two."))
    assert pieces(MISTRAL.tokenizer(), row) == [" One.</s>", "[INST] And? [/INST]", " Two.</s>"]
