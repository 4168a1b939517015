"""ChatML for a base model, by the function that TRL had."""

import pytest
import torch

from oddsmith import setup_chat_format
from oddsmith.errors import ConfigError
from tests.pairs import assistant, user
from tests.tiny import tiny_model, tiny_tokenizer


def base():
    tokenizer = tiny_tokenizer(None, bos="<s>", eos="</s>", chatml=False)
    return tiny_model(vocab_size=len(tokenizer)), tokenizer


def test_a_base_model_gets_template_tokens_and_rows():
    model, tokenizer = base()
    before = model.get_input_embeddings().weight.detach().clone()
    assert setup_chat_format(model, tokenizer) == (model, tokenizer)
    ids = tokenizer.apply_chat_template([user("Hi"), assistant("Ho")], tokenize=True, return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == len(tokenizer) == len(before) + 2
    assert torch.equal(weight[:-2], before)
    assert torch.allclose(weight[-2:], before.mean(dim=0).expand(2, -1), atol=1e-2)
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id


def test_new_rows_are_the_same_each_time_and_draw_no_random_number():
    torch.manual_seed(1)
    one, _ = setup_chat_format(*base())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = base()
    torch.set_rng_state(state)
    setup_chat_format(*other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.get_input_embeddings().weight, other[0].get_input_embeddings().weight)


def test_rows_may_be_a_multiple():
    model, _ = setup_chat_format(*base(), resize_to_multiple_of=64)
    assert model.get_input_embeddings().num_embeddings == 320


def test_what_it_is_not_for():
    model, tokenizer = base()
    with pytest.raises(ConfigError, match="format is 'llama'; expected chatml"):
        setup_chat_format(model, tokenizer, format="llama")
    with pytest.raises(ConfigError, match="this one has its own; leave the call out, or set tokenizer.chat_template"):
        setup_chat_format(model, tiny_tokenizer())
