"""From preference pairs to tokens: what is rendered, what is learned, what is refused or dropped."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oddsmith.data.formats import PreferencePair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Dropped, DropReason
from oddsmith.errors import ModelError, RowError
from tests.pairs import assistant, conversation, merging_tokenizer, targets, text_pair, tokenize, user
from tests.templates import CHAT_FORMATS, GEMMA, LLAMA3, MISTRAL, PHI3, PLAIN, QWEN3, SMOLLM2, ChatFormat
from tests.tiny import tiny_tokenizer

format_of_chat = pytest.mark.parametrize("chat", CHAT_FORMATS, ids=lambda chat: chat.name)
contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@st.composite
def pairs(draw, chat: ChatFormat) -> PreferencePair:
    turns = draw(st.lists(contents, min_size=1, max_size=5).map(lambda texts: texts[: len(texts) - 1 + len(texts) % 2]))
    prompt = [user(text) if i % 2 == 0 else assistant(text) for i, text in enumerate(turns)]
    if chat.has_system and draw(st.booleans()):
        prompt.insert(0, {"role": "system", "content": draw(contents)})
    return conversation(prompt, draw(contents), draw(contents))


class TestEveryTemplate:
    @format_of_chat
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_tokens_are_the_rendering_and_targets_are_the_answer(self, chat, data):
        pair = data.draw(pairs(chat))
        tokenizer = chat.tokenizer()
        tokens = tokenize(tokenizer, pair)
        chosen, rejected = (chat.response(side[0]["content"]) for side in (pair.chosen, pair.rejected))
        if chosen == rejected:
            assert tokens == Dropped(DropReason.IDENTICAL)
            return
        appended = "" if chat.end_of_turn else chat.eos
        opened = tokenizer.apply_chat_template(pair.prompt, add_generation_prompt=True, tokenize=False)
        for ids, prompt_tokens, end, messages, answer in (
            (tokens.chosen_ids, tokens.chosen_prompt_tokens, tokens.chosen_end, pair.chosen, chosen),
            (tokens.rejected_ids, tokens.rejected_prompt_tokens, tokens.rejected_end, pair.rejected, rejected),
        ):
            rendered = tokenizer.apply_chat_template(pair.prompt + messages, tokenize=False) + appended
            assert ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids[:end]) + tokenizer.decode(ids[end:]) == rendered
            assert tokenizer.decode(ids[:prompt_tokens]) == opened
            assert tokenizer.decode(ids[prompt_tokens:end]) == answer + (chat.end_of_turn or chat.eos)
            assert tokenizer.decode(ids[end:]) == chat.tail

    @format_of_chat
    def test_pad_token_that_is_the_end_token_is_learned(self, chat):
        tokenizer = chat.tokenizer()
        assert tokenizer.pad_token == tokenizer.eos_token
        tokenizer.pad_token = chat.end_of_turn or chat.eos
        tokens = tokenize(tokenizer, conversation([user("Hi")], "Yes", "No"))
        assert tokens.chosen_ids[tokens.chosen_end - 1] == tokenizer.pad_token_id

    @format_of_chat
    def test_end_of_turn_within_the_answer_does_not_end_it(self, chat):
        token = chat.end_of_turn or chat.eos
        tokenizer = chat.tokenizer()
        tokens = tokenize(tokenizer, conversation([user("Hi")], f"Write {token} at the end", "No"))
        assert targets(tokenizer, tokens) == chat.response(f"Write {token} at the end") + token

    @format_of_chat
    def test_no_second_bos(self, chat):
        tokenizer = chat.tokenizer()
        tokens = tokenize(tokenizer, conversation([user("Hi")], "Yes", "No"))
        rendered = tokenizer.apply_chat_template([user("Hi"), assistant("Yes")], tokenize=False)
        assert tokens.chosen_ids.count(tokenizer.bos_token_id) == (rendered.count(chat.bos) if chat.bos else 0)


class TestPeculiarities:
    def test_default_system_turn_belongs_to_the_prompt(self):
        tokenizer = SMOLLM2.tokenizer()
        tokens = tokenize(tokenizer, conversation([user("Hi")], "Yes", "No"))
        prompt = tokenizer.decode(tokens.chosen_ids[: tokens.chosen_prompt_tokens])
        assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n")

    def test_thoughts_of_earlier_turns_are_left_out_as_rendered(self):
        tokenizer = QWEN3.tokenizer()
        prompt = [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello"), user("And?")]
        tokens = tokenize(tokenizer, conversation(prompt, "<think>\nso\n</think>\n\nYes", "No"))
        assert "hm" not in tokenizer.decode(tokens.chosen_ids)
        assert targets(tokenizer, tokens) == "<think>\nso\n</think>\n\nYes<|im_end|>"
        assert targets(tokenizer, tokens, "rejected") == "<think>\n\n</think>\n\nNo<|im_end|>"

    def test_template_options_of_the_row_reach_the_template(self):
        tokenizer = QWEN3.tokenizer()
        pair = conversation([user("Hi")], "Yes", "No", template_kwargs={"enable_thinking": False})
        assert targets(tokenizer, tokenize(tokenizer, pair)) == "Yes<|im_end|>"

    def test_tools_reach_the_template(self):
        template = "{% if tools %}{{ tools[0]['function']['name'] }}|{% endif %}" + SMOLLM2.template
        tokenizer = tiny_tokenizer(template)
        tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
        tokens = tokenize(tokenizer, conversation([user("Hi")], "Yes", "No", tools=[tool]))
        assert tokenizer.decode(tokens.chosen_ids).startswith("weather|")

    def test_generation_prompt_that_the_whole_rendering_lacks_is_no_prompt(self):
        # As in DeepSeek-R1: the generation prompt opens a thought, the rendering of the conversation has none.
        template = SMOLLM2.template.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
        tokenizer = tiny_tokenizer(template, extra_special=("<think>",))
        tokens = tokenize(tokenizer, conversation([user("Hi")], "Yes", "No"))
        assert targets(tokenizer, tokens) == "Yes<|im_end|>"
        assert "<think>" not in tokenizer.decode(tokens.chosen_ids)

    def test_turn_that_ends_in_another_token_gets_no_eos(self):
        tokenizer = LLAMA3.tokenizer()
        call = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
        pair = PreferencePair([user("Hi")], [assistant("f()", tool_calls=call)], [assistant("No")])
        tokens = tokenize(tokenizer, pair)
        assert targets(tokenizer, tokens) == "f()<|eom_id|>"
        assert tokens.chosen_end == len(tokens.chosen_ids)

    def test_an_answer_cannot_follow_a_call(self):
        prompt = [user("Hi"), assistant("weather()", tool_calls=[{"name": "weather"}])]
        pair = PreferencePair(prompt, [{"role": "tool", "content": "rain"}, assistant("Wet")], [assistant("Dry")])
        with pytest.raises(RowError, match="answer after a call"):
            tokenize(SMOLLM2.tokenizer(), pair)

    def test_merge_over_the_boundary_gives_each_side_its_own_prompt(self):
        tokenizer = merging_tokenizer(PLAIN.template)
        tokens = tokenize(tokenizer, conversation([user("Hi")], "\nYes", "No"))
        assert tokens.chosen_prompt_tokens == tokens.rejected_prompt_tokens - 1
        assert targets(tokenizer, tokens) == "\n\nYes\n\n</s>"
        assert targets(tokenizer, tokens, "rejected") == "No\n\n</s>"

    def test_changed_template_is_noticed(self):
        tokenizer = SMOLLM2.tokenizer()
        pair_tokenizer = PairTokenizer(tokenizer, max_length=None)
        pair = conversation([user("Hi")], "Yes", "No")
        pair_tokenizer.tokenize([pair])
        tokenizer.chat_template = PLAIN.template
        (tokens,) = pair_tokenizer.tokenize([pair])
        assert targets(tokenizer, tokens) == "Yes\n\n<|im_end|>"
        assert tokenizer.decode(tokens.chosen_ids) == "### user:\nHi\n\n### assistant:\nYes\n\n<|im_end|>"


class TestContinuation:
    @pytest.mark.parametrize("chat", (SMOLLM2, QWEN3, LLAMA3, MISTRAL, GEMMA, PHI3), ids=lambda chat: chat.name)
    def test_response_continues_the_last_turn_of_the_prompt(self, chat):
        tokenizer = chat.tokenizer()
        tokens = tokenize(tokenizer, conversation([user("Sky?"), assistant("It is")], " blue.", " red."))
        whole = tokenizer.apply_chat_template([user("Sky?"), assistant("It is blue.")], tokenize=False)
        assert tokenizer.decode(tokens.chosen_ids) == whole
        assert targets(tokenizer, tokens) == f" blue.{chat.end_of_turn}"

    def test_turn_is_still_open(self):
        tokenizer = SMOLLM2.tokenizer()
        tokens = tokenize(tokenizer, conversation([user("Sky?"), assistant("It is")], "<|im_end|>?", " red."))
        assert targets(tokenizer, tokens) == "<|im_end|>?<|im_end|>"

    def test_call_of_a_tool_cannot_be_continued(self):
        pair = conversation([user("Sky?"), assistant("", tool_calls=[{"name": "look"}])], "Blue", "Red")
        with pytest.raises(RowError, match="answer after a call: .* expected the tool's turn between them"):
            tokenize(SMOLLM2.tokenizer(), pair)


class TestRefusals:
    def test_message_of_the_template_is_quoted(self):
        with pytest.raises(RowError) as error:
            tokenize(MISTRAL.tokenizer(), conversation([user("Hi"), user("Hello?")], "Yes", "No"))
        assert error.value.reason == "refused by the chat template"
        assert "Conversation roles must alternate user/assistant/user/assistant/..." in str(error.value)
        assert "to a conversation of user, user;" in str(error.value)

    def test_system_turn_or_content_that_the_template_does_not_take(self):
        with pytest.raises(RowError, match='the template says "System role not supported"'):
            tokenize(GEMMA.tokenizer(), conversation([{"role": "system", "content": "Be"}, user("Hi")], "Yes", "No"))
        parts = [{"type": "text", "text": "Hi"}]
        with pytest.raises(RowError, match="refused by the chat template"):
            tokenize(SMOLLM2.tokenizer(), conversation([{"role": "user", "content": parts}], "Yes", "No"))

    def test_conversation_without_chat_template(self):
        tokenizer = tiny_tokenizer(chat_template=None)
        tokenizer.name_or_path = "some/base-model"
        with pytest.raises(ModelError, match=r"'some/base-model' has no chat template.*chat_template: chatml"):
            tokenize(tokenizer, conversation([user("Hi")], "Yes", "No"))

    def test_text_needs_no_chat_template(self):
        tokenizer = tiny_tokenizer(chat_template=None)
        assert targets(tokenizer, tokenize(tokenizer, text_pair("Hi ", "Yes", "No"))) == "Yes<|im_end|>"

    def test_template_that_renders_no_answer(self):
        with pytest.raises(ModelError, match="renders no plain question and answer"):
            tokenize(tiny_tokenizer("always the same"), conversation([user("Hi")], "Yes", "No"))

    def test_no_eos_token(self):
        tokenizer = tiny_tokenizer(PLAIN.template)
        tokenizer.eos_token = None
        for pair in (text_pair("Hi ", "Yes", "No"), conversation([user("Hi")], "Yes", "No")):
            with pytest.raises(ModelError, match="has no EOS token.*set tokenizer.eos_token"):
                tokenize(tokenizer, pair)

    def test_prompt_that_changes_with_the_response(self):
        template = (
            "{{ messages[-1]['content'] }}|{% for m in messages[:-1] %}{{ m['content'] }}{% endfor %}"
            "{{ messages[-1]['role'] }}"
        )
        with pytest.raises(RowError, match="prompt rendered in two ways"):
            tokenize(tiny_tokenizer(template), conversation([user("A question")], "Yes", "No"))

    @pytest.mark.parametrize("make", (text_pair, lambda p, c, r: conversation([user(p)], c, r)))
    def test_half_of_a_surrogate_pair(self, make):
        with pytest.raises(RowError, match=r"invalid Unicode: the text of rejected holds '\\ud83d'"):
            tokenize(SMOLLM2.tokenizer(), make("Hi ", "Yes", "No \ud83d"))


class TestText:
    @pytest.mark.parametrize(
        ("bos", "prompt", "chosen", "text", "answer"),
        (
            ("<s>", "Q: hi\nA:", " Yes", "<s>Q: hi\nA: Yes</s>", " Yes</s>"),
            ("<s>", "<s>Hi ", "Yes</s>", "<s>Hi Yes</s>", "Yes</s>"),
            ("<s>", "Hi ", "Yes</s>\n \n", "<s>Hi Yes</s>\n \n", "Yes</s>"),
            ("<s>", "</s>", "  y", "<s></s>  y</s>", "  y</s>"),
            (None, "Hi ", "Yes", "Hi Yes</s>", "Yes</s>"),
        ),
        ids=("added", "there already", "blank text after EOS", "EOS in the prompt", "no BOS"),
    )
    def test_bos_and_eos_surround_it(self, bos, prompt, chosen, text, answer):
        tokenizer = tiny_tokenizer(bos=bos, eos="</s>")
        tokens = tokenize(tokenizer, text_pair(prompt, chosen, " No"))
        assert tokenizer.decode(tokens.chosen_ids) == text
        assert targets(tokenizer, tokens) == answer

    def test_merge_over_the_boundary_is_the_response(self):
        tokenizer = merging_tokenizer()
        tokens = tokenize(tokenizer, text_pair("Hi ", "All", "No"))
        assert targets(tokenizer, tokens) == " All</s>"
        assert targets(tokenizer, tokens, "rejected") == "No</s>"

    def test_empty_prompt(self):
        tokenizer = tiny_tokenizer(bos=None, eos="</s>")
        tokens = tokenize(tokenizer, text_pair("", "Yes", "No"))
        assert (tokens.chosen_prompt_tokens, tokens.chosen_end) == (0, 4)


class TestDropped:
    @pytest.mark.parametrize("make", (text_pair, lambda p, c, r: conversation([user(p)], c, r)))
    @pytest.mark.parametrize(
        ("chosen", "rejected", "reason"),
        (
            ("", "No", "empty chosen answer"),
            (" \n\t", "No", "empty chosen answer"),
            ("Yes", "", "empty rejected answer"),
            ("Yes", "Yes", "identical answers"),
        ),
    )
    def test_reasons(self, make, chosen, rejected, reason):
        assert tokenize(SMOLLM2.tokenizer(), make("Hi ", chosen, rejected)) == Dropped(reason)

    def test_answers_that_the_template_makes_identical(self):
        tokens = tokenize(GEMMA.tokenizer(), conversation([user("Hi")], "Yes", "Yes\n"))
        assert tokens == Dropped("identical answers in the chat template")

    def test_text_after_the_end_makes_no_difference(self):
        tokenizer = tiny_tokenizer(bos="<s>", eos="</s>")
        assert tokenize(tokenizer, text_pair("Hi ", "Yes</s>\n", "Yes</s> ")) == Dropped("identical answers")

    def test_single_token_without_a_prompt_has_no_prediction(self):
        tokenizer = tiny_tokenizer(bos=None, eos="</s>")
        assert tokenize(tokenizer, text_pair("", "</s>", "No")) == Dropped("no response token left")

    def test_answer_that_the_template_leaves_out(self):
        template = (
            "{% for m in messages %}{{ '<s>' + m['role'] }}{% if m['content'] != 'skip' %}{{ m['content'] + '</s>' }}"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}<s>assistant{% endif %}"
        )
        tokenizer = tiny_tokenizer(template, bos="<s>", eos="</s>")
        tokens = tokenize(tokenizer, conversation([user("Hi")], "skip", "No"))
        assert tokens == Dropped("chosen answer left out by the chat template")


class TestBatches:
    def test_order_is_kept_in_one_call_of_the_tokenizer(self, monkeypatch):
        tokenizer = SMOLLM2.tokenizer()
        batch = [
            conversation([user("Hi")], "Yes", "No"), text_pair("Hi ", "Yes", ""), text_pair("Hi ", "Yes", "No"),
            conversation([user("Hi")], "Same", "Same"), conversation([user("Ho")], "A", "B"),
        ]  # fmt: skip
        alone = [tokenize(tokenizer, pair) for pair in batch]
        calls = []
        call = type(tokenizer).__call__
        monkeypatch.setattr(type(tokenizer), "__call__", lambda self, *a, **k: calls.append(a) or call(self, *a, **k))
        assert PairTokenizer(tokenizer, max_length=None).tokenize(batch) == alone
        assert [isinstance(result, Dropped) for result in alone] == [False, True, False, True, False]
        assert len(calls) == 1

    def test_nothing_to_tokenize(self):
        pair_tokenizer = PairTokenizer(SMOLLM2.tokenizer(), max_length=None)
        assert pair_tokenizer.tokenize([]) == []
        assert pair_tokenizer.tokenize([text_pair("Hi", "", "No")]) == [Dropped("empty chosen answer")]

    def test_truncation_set_in_the_tokenizer_file_is_not_used(self):
        tokenizer = tiny_tokenizer(bos="<s>", eos="</s>")
        tokenizer.backend_tokenizer.enable_truncation(4)
        tokenizer.backend_tokenizer.enable_padding(length=50)
        tokens = tokenize(tokenizer, text_pair("0123456789", "Yes", "No"))
        assert tokenizer.decode(tokens.chosen_ids) == "<s>0123456789Yes</s>"
