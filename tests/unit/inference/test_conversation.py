"""Conversations: the tokens of the prompt, the streamed answer, the turns that are kept, and the end of an answer."""

import pytest
import torch

from oddsmith.errors import ConfigError, ModelError
from oddsmith.inference.chat.backends import Sampling
from oddsmith.inference.chat.conversation import Conversation
from oddsmith.inference.chat.with_llama_cpp import GgufBackend
from oddsmith.inference.chat.with_transformers import TransformersBackend
from tests.templates import GEMMA
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf


def conversation(chat_template: str | None = "chatml", max_new_tokens: int = 12, **settings) -> Conversation:
    tokenizer = tiny_tokenizer() if chat_template == "chatml" else tiny_tokenizer(chat_template)
    backend = TransformersBackend("tiny", tiny_model(**settings), tokenizer)
    return Conversation(backend, Sampling(max_new_tokens=max_new_tokens))


def greedy(chat: Conversation, text: str, max_new_tokens: int = 12) -> str:
    """Return the answer of plain transformers to a rendered conversation."""
    ids = torch.tensor([chat.backend.tokenizer(text, add_special_tokens=False).input_ids])
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    output = chat.backend.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return chat.backend.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_pieces_are_the_answer_that_transformers_gives():
    chat = conversation()
    answer = chat.ask("Hi")
    pieces = list(answer)
    expected = greedy(chat, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert "".join(pieces) == answer.text == expected
    assert len(pieces) > 3
    assert (answer.finish_reason, answer.tokens, answer.dropped_turns) == ("length", 12, 0)
    assert answer.seconds > 0


def test_the_model_reads_the_whole_conversation():
    chat = conversation()
    chat.system = "Be kind."
    first = "".join(chat.ask("Hi"))
    second = "".join(chat.ask("And now?"))
    assert [message["content"] for message in chat.messages] == ["Be kind.", "Hi", first, "And now?", second]
    assert [message["role"] for message in chat.messages] == ["system"] + ["user", "assistant"] * 2
    render = chat.backend.tokenizer.apply_chat_template
    assert second == greedy(chat, render(chat.messages[:-1], tokenize=False, add_generation_prompt=True))
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be kind."}]


def test_an_answer_ends_with_the_end_token_which_is_no_part_of_it():
    chat = conversation(max_new_tokens=40)
    with torch.no_grad():
        chat.backend.model.lm_head.weight.zero_()  # all logits alike: the first token of the vocabulary, for ever
    answer = chat.ask("Hi")
    pieces = iter(answer)
    next(pieces)
    with torch.no_grad():
        chat.backend.model.lm_head.bias = torch.nn.Parameter(torch.zeros(264).index_fill(0, torch.tensor(257), 1.0))
    rest = list(pieces)
    assert answer.finish_reason == "stop"
    assert answer.tokens == 1 + len("".join(rest)) < 40
    assert "<|im_end|>" not in answer.text


def test_a_conversation_that_outgrows_the_context_loses_its_oldest_turns():
    chat = conversation(max_position_embeddings=200)  # one token a byte; a quarter is kept for the answer
    chat.system = "S"
    for number in range(3):
        answer = chat.ask(f"{number}" * 30)
        list(answer)
    assert answer.dropped_turns == 1
    assert [turn.question[0] for turn in chat.turns] == ["1", "2"]
    assert chat.messages[0] == {"role": "system", "content": "S"}


def test_a_message_longer_than_the_context_is_refused():
    chat = conversation(max_position_embeddings=100)
    with pytest.raises(ModelError, match=r"the message has 1\d\d tokens, and tiny reads at most 100; shorten it"):
        chat.ask("x" * 100)
    assert chat.messages == []


def test_an_answer_never_runs_past_the_context():
    chat = conversation(max_position_embeddings=100, max_new_tokens=500)
    answer = chat.ask("x" * 40)
    list(answer)
    assert answer.prompt_tokens + answer.tokens <= 100


def test_without_a_chat_template_the_texts_are_continued():
    chat = conversation(chat_template=None)
    first = "".join(chat.ask("Once upon"))
    assert first == greedy(chat, "Once upon")
    second = "".join(chat.ask("a time"))
    assert second == greedy(chat, f"Once upon\n{first}\na time")


def test_what_the_template_refuses_leaves_the_conversation_as_it_was():
    tokenizer = GEMMA.tokenizer()
    backend = TransformersBackend("tiny", tiny_model(vocab_size=len(tokenizer)), tokenizer)
    chat = Conversation(backend, Sampling(None, 4))
    chat.system = "Be kind."
    with pytest.raises(ModelError, match=r"tiny: its chat template refuses .*: System role not supported"):
        chat.ask("Hi")
    chat.system = None
    list(chat.ask("Hi"))
    assert len(chat.turns) == 1


def test_a_stopped_answer_keeps_what_was_said():
    chat = conversation(max_new_tokens=2000)
    answer = chat.ask("Hi")
    pieces = []
    for piece in answer:
        pieces.append(piece)
        if len(pieces) == 3:
            answer.stop()
    assert answer.finish_reason == "interrupted"
    assert answer.tokens < 20
    assert chat.turns[-1].answer == "".join(pieces)


def test_an_abandoned_answer_ends_its_computation():
    chat = conversation(max_new_tokens=2000)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    chat.backend.model.register_forward_pre_hook(count)
    pieces = iter(chat.ask("Hi"))
    next(pieces)
    pieces.close()
    after_close = calls
    assert after_close < 100
    list(conversation().ask("Hi"))
    assert calls == after_close


def test_what_goes_wrong_in_the_computation_is_raised():
    tokenizer = tiny_tokenizer(extra_special=("<beyond>",))
    chat = Conversation(TransformersBackend("tiny", tiny_model(vocab_size=258), tokenizer))
    with pytest.raises(ModelError, match=r"^the model: transformers cannot generate with it \(IndexError: "):
        list(chat.ask("<beyond>"))  # a token that the model has no embedding for
    assert chat.messages == []


def test_a_seed_decides_what_is_drawn():
    def said(seed: int) -> str:
        chat = conversation()
        chat.sampling = Sampling(1.0, 12, seed)
        return "".join(chat.ask("Hi"))

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_the_model_s_own_settings_decide_until_a_temperature_is_given():
    model = tiny_model()
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    chat = Conversation(TransformersBackend("tiny", model, tiny_tokenizer()), Sampling(max_new_tokens=12))
    assert chat.backend.own_temperature == 0.6
    drawn = "".join(chat.ask("Hi"))
    chat.reset()
    chat.sampling = Sampling(0.0, 12)
    expected = "".join(conversation().ask("Hi"))
    assert "".join(chat.ask("Hi")) == expected != drawn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1; expected a number from 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**settings)


class EchoBackend:
    """A chat backend of bytes that repeats its prompt."""

    name, has_template, context_tokens, own_temperature = "echo", False, None, 0.0

    def tokenize(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")

    def generate(self, ids, sampling):
        yield from ids[: sampling.max_new_tokens]


def test_no_character_is_shown_before_it_is_whole():
    text = "Grüße, 世界 🙂!"
    assert list(Conversation(EchoBackend()).ask(text)) == list(text)
    cut = Conversation(EchoBackend(), Sampling(max_new_tokens=3)).ask("Grü")
    assert list(cut) == ["G", "r", "\ufffd"]
    assert cut.text == "Gr\ufffd"


def clear_model():
    """Make a model with clear likeliest tokens: llama.cpp rounds keys and values to 16 bits, 0.02 logits."""
    return tiny_model(seed=198, hidden_size=64, vocab_size=258)


@pytest.fixture
def gguf(tmp_path):
    pytest.importorskip("cyllama")
    return write_gguf(tmp_path / "tiny.gguf", clear_model(), tiny_tokenizer(), merges=["Ā ā"])


def test_a_gguf_file_says_what_its_weights_say_in_transformers(gguf):
    said = []
    model = clear_model()
    for backend in (GgufBackend("g", str(gguf)), TransformersBackend("f", model, tiny_tokenizer())):
        with Conversation(backend, Sampling(0.0, 8)) as chat:
            said.append("".join(chat.ask("Hi")))
            assert chat.backend.context_tokens == 2048
    assert said[0] == said[1]


def test_the_template_of_a_gguf_file_runs_in_a_sandbox(tmp_path):
    pytest.importorskip("cyllama")
    tokenizer = tiny_tokenizer("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    path = write_gguf(tmp_path / "bad.gguf", tiny_model(hidden_size=64, vocab_size=258), tokenizer, merges=["Ā ā"])
    with Conversation(GgufBackend("bad", str(path))) as chat, pytest.raises(ModelError, match="refuses .* unsafe"):
        chat.ask("Hi")
