"""A chat template for a tokenizer that has none: the template, its tokens, its EOS."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors

from oddsmith.data.tokens.rendering import Renderer
from oddsmith.errors import ConfigError, ModelError
from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.chat_template import CHATML, fit_model, new_tokens, set_chat_template, template_tokens
from tests.pairs import assistant, new_merging_tokenizer, user
from tests.templates import CHAT_FORMATS, GEMMA, LLAMA3, PHI3, PLAIN
from tests.tiny import tiny_model, tiny_tokenizer

CHAT = [user("Hi"), assistant("Hello")]
CHATML_TEXT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"


@pytest.fixture
def base():
    """A tokenizer as a base model has it: no template, two special tokens."""
    return new_merging_tokenizer()


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "chat.jinja").write_text(text, encoding="utf-8")
        return str(tmp_path / "chat.jinja")

    return write


def rendered(tokenizer) -> str:
    return tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_chatml_brings_its_tokens_and_its_end(base, caplog):
    before = len(base)
    set_chat_template(base, "chatml")
    assert rendered(base) == CHATML_TEXT
    assert new_tokens(base) == ("<|im_start|>", "<|im_end|>")
    assert base.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [before, before + 1]
    assert base("<|im_end|>", add_special_tokens=False).input_ids == [before + 1]
    assert base.decode([before, before + 1], skip_special_tokens=True) == ""
    assert (base.eos_token, Renderer(base).end_of_turn) == ("<|im_end|>", "<|im_end|>")
    assert caplog.messages == [
        "chat_template chatml: '<|im_start|>' and '<|im_end|>' became tokens",
        "chat_template chatml: answers end with '<|im_end|>', which is EOS now (was '</s>')",
    ]


def test_a_second_time_it_changes_and_says_nothing(base, caplog):
    set_chat_template(base, "chatml")
    caplog.clear()
    state = base.chat_template, base.eos_token, len(base), new_tokens(base)
    set_chat_template(base, "chatml")
    assert (base.chat_template, base.eos_token, len(base), new_tokens(base)) == state
    assert caplog.messages == []


def test_what_the_tokenizer_has_already_stays(caplog):
    """Qwen's base models have the tokens of ChatML."""
    tokenizer = tiny_tokenizer(None, bos=None, eos="<|endoftext|>")
    before = len(tokenizer)
    set_chat_template(tokenizer, "chatml")
    assert (len(tokenizer), new_tokens(tokenizer), tokenizer.eos_token) == (before, (), "<|im_end|>")


def test_chatml_begins_with_bos_where_text_does(base):
    assert rendered_with(base, "chatml") == CHATML_TEXT
    adds_bos = new_merging_tokenizer()
    adds_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", adds_bos.bos_token_id)]
    )
    assert rendered_with(adds_bos, "chatml") == "<s>" + CHATML_TEXT
    ids = adds_bos.apply_chat_template(CHAT, return_dict=False)
    assert ids.count(adds_bos.bos_token_id) == 1


def rendered_with(tokenizer, wanted: str) -> str:
    set_chat_template(tokenizer, wanted)
    return rendered(tokenizer)


@pytest.mark.parametrize("chat", [c for c in CHAT_FORMATS if c.name not in ("mistral",)], ids=lambda chat: chat.name)
def test_a_file_brings_the_tokens_that_it_writes(chat, file, base):
    """But [INST] and <think>, which are text to many models."""
    wanted = {token for token in chat.special if token.startswith("<|") or "_" in token}
    written = {token for token in wanted if token in "".join(Renderer(with_template(base, chat.template)).probes())}
    base.chat_template = None
    set_chat_template(base, file(chat.template))
    assert set(new_tokens(base)) == written
    assert (Renderer(base).end_of_turn == chat.end_of_turn) or chat.end_of_turn not in written


def with_template(tokenizer, template: str):
    tokenizer.chat_template = template
    return tokenizer


def test_the_text_of_a_template_is_one_itself(file, base, caplog):
    """As recipes of alignment-handbook have it; a message does not repeat it."""
    set_chat_template(base, PHI3.template)
    assert base.chat_template == PHI3.template
    assert caplog.messages
    assert all(line.startswith("chat_template: ") for line in caplog.messages)


def test_an_end_of_text_that_the_template_writes_itself_stays(file, base):
    set_chat_template(base, file(PHI3.template))
    assert (base.eos_token, Renderer(base).end_of_turn) == ("</s>", "<|end|>")
    assert rendered(base).endswith("Hello<|end|>\n</s>")


def test_what_a_template_lacks_is_told(file, base, caplog):
    set_chat_template(base, file("{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"))
    assert any("no token ends its answers; '</s>' is added to the last one" in line for line in caplog.messages)
    assert any("it writes '[INST]' and '[/INST]', which" in line for line in caplog.messages)
    caplog.clear()
    adds_bos = base
    adds_bos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", base.bos_token_id)]
    )
    set_chat_template(adds_bos, file(CHATML))
    assert any("does not begin with '<s>', as other text of this model does" in line for line in caplog.messages)
    assert any("takes the place of the tokenizer's own" in line for line in caplog.messages)


@pytest.mark.parametrize("chat", [GEMMA, LLAMA3], ids=lambda chat: chat.name)
def test_another_model_s_template_comes_with_its_tokens(chat, base, tmp_path):
    chat.tokenizer().save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    set_chat_template(base, str(tmp_path))
    assert set(new_tokens(base)) >= {chat.end_of_turn}
    assert set(template_tokens(base)) - {"<s>", "</s>"} == set(new_tokens(base))
    assert base.eos_token == chat.end_of_turn
    assert rendered(base) == chat.tokenizer().apply_chat_template(CHAT, tokenize=False).replace(chat.bos, "<s>")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("chatlm", "expected chatml, a file"),
        ("none.jinja", "a file that cannot be read"),
        ("builtin:nothing", "expected chatml, a file"),
    ],
)
def test_anything_else_is_refused(base, wanted, found):
    with pytest.raises(ConfigError, match=f"chat_template is '{wanted}'.*{found}"):
        set_chat_template(base, wanted)
    assert base.chat_template is None


def test_only_one_process_tells(base, caplog):
    caplog.set_level(logging.INFO)
    set_chat_template(base, "chatml", is_main=False)
    assert caplog.messages == []


def test_a_template_of_plain_text_has_no_tokens(file, base):
    set_chat_template(base, file(PLAIN.template))
    assert (new_tokens(base), base.eos_token) == ((), "</s>")


# ---- Rows for its tokens that a model has to spare


def with_spare_rows(base, **settings):
    """A tokenizer with ChatML, and a model with zeros in the rows of its tokens, perhaps with an adapter."""
    set_chat_template(base, "chatml")
    model = tiny_model(vocab_size=len(base) + 8)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[len(base) - 2 :] = 0
    return model if not settings else get_peft_model(model, lora(**settings))


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})


def test_an_adapter_that_would_not_save_their_rows_is_refused(base):
    model = with_spare_rows(base, r=2)
    before = model.get_input_embeddings().weight.clone()
    with pytest.raises(ModelError, match="needs rows for the tokens .* has an adapter already"):
        fit_model(model, base, None, is_set=True)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("settings", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"rows": True}], ids=str)
def test_an_adapter_that_trains_their_rows_goes_on(base, settings):
    tokens = [len(base), len(base) + 1]  # ChatML adds two
    model = with_spare_rows(
        base,
        **(
            {"trainable_token_indices": dict.fromkeys(("embed_tokens", "lm_head"), tokens)}
            if "rows" in settings
            else settings
        ),
    )
    fit_model(model, base, None, is_set=True)


def test_what_a_new_adapter_does_not_save_stays_as_it_is(base):
    """LoRA on the head adds to its rows, which are the base's again when the adapter is loaded."""
    model = with_spare_rows(base)
    head = model.get_output_embeddings().weight
    before = head.clone()
    config = fit_model(model, base, lora(target_modules=["q_proj", "lm_head"]), is_set=True)
    assert torch.equal(head, before)
    assert model.get_input_embeddings().weight[len(base) - 2 : len(base)].any()
    assert config.trainable_token_indices == {"model.embed_tokens": [len(base) - 2, len(base) - 1]}
    add_adapter(model, config)
