"""Generation settings stop at every token that ends an answer, keep what a person set, and can be saved."""

import pytest
from transformers import GenerationConfig

from oddsmith.errors import ModelError
from oddsmith.model.generation import stop_at_end_tokens
from tests.tiny import CHATML, tiny_model, tiny_tokenizer

END_OF_TEXT = "<|endoftext|>"


def base(chat_template: str | None = CHATML, **settings):
    """A base model with a chat template: its tokenizer and its settings end a document, not a turn."""
    tokenizer = tiny_tokenizer(chat_template, eos=END_OF_TEXT)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=end)
    model.generation_config = GenerationConfig(**{"eos_token_id": end, **settings})
    return model, tokenizer, end, tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_end_of_turn_is_added():
    model, tokenizer, end_of_text, end_of_turn = base()
    assert stop_at_end_tokens(model, tokenizer) == sorted([end_of_text, end_of_turn])
    assert model.generation_config.eos_token_id == sorted([end_of_text, end_of_turn])
    prompt = tokenizer("Hi", return_tensors="pt")
    others = [token for token in range(len(tokenizer)) if token != end_of_turn]
    assert model.generate(**prompt, max_new_tokens=9, suppress_tokens=others)[0, 2:].tolist() == [end_of_turn]


def test_settings_of_a_person_stay():
    model, tokenizer, end_of_text, end_of_turn = base(do_sample=True, temperature=0.3, max_new_tokens=7)
    model.generation_config.eos_token_id = [9, end_of_turn]
    stop_at_end_tokens(model, tokenizer)
    settings = model.generation_config
    assert settings.eos_token_id == sorted([9, end_of_turn, end_of_text])
    assert (settings.temperature, settings.max_new_tokens) == (0.3, 7)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no chat') }}"], ids=["none", "refuses"])
def test_without_a_usable_template_the_tokenizer_s_end_is_enough(template):
    model, tokenizer, end_of_text, _ = base(template)
    assert stop_at_end_tokens(model, tokenizer) == [end_of_text]
    assert model.generation_config.eos_token_id == end_of_text


def test_settings_that_transformers_would_not_write_are_mended_or_refused(tmp_path):
    model, tokenizer, *_ = base(temperature=0.7, top_p=0.9)
    stop_at_end_tokens(model, tokenizer)
    model.generation_config.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.7, 0.9)
    model.generation_config.num_beams, model.generation_config.num_return_sequences = 1, 3
    model.generation_config.early_stopping = True
    with pytest.raises(ModelError, match="generation_config cannot be saved, so change it: .*early_stopping"):
        stop_at_end_tokens(model, tokenizer)
