"""How much a model can read, by its tables of embeddings and positions."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from oddsmith.errors import ConfigError, ModelError
from oddsmith.model.limits import limits_of, require_pad_token
from tests.tiny import SMALL, tiny_model, tiny_tokenizer

SMALL_BART = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip


def made(kind: str, **settings):
    config = AutoConfig.for_model(kind, **{**SMALL, "max_position_embeddings": 64, **settings})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        ("gpt2", {}, 64),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 32}, 64),
        ("biogpt", {}, 64),
        ("gpt_bigcode", {}, 64),
        ("roberta", {"is_decoder": True}, 63),
        ("gptj", {"rotary_dim": 4}, 64),
        ("bart", SMALL_BART, 64),
        ("llama", {}, None),
        ("qwen2", {}, None),
        ("gpt_neox", {}, None),
        ("bloom", {}, None),
        ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}, None),
    ],
)
def test_positions_are_limited_only_where_they_are_in_a_table(kind, settings, positions):
    assert limits_of(made(kind, **settings)) == (264, positions)


def test_virtual_tokens_take_positions():
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10)
    model = get_peft_model(AutoModelForCausalLM.from_config(made("gpt2").config), prompt)
    assert limits_of(model).positions == 54


def test_embeddings_are_counted_as_they_are():
    model = tiny_model()
    model.resize_token_embeddings(300)
    assert limits_of(model).embeddings == 300
    trained = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    assert limits_of(get_peft_model(model, trained)).embeddings == 300


def test_a_pad_token_beyond_the_embeddings_is_refused():
    tokenizer = tiny_tokenizer(pad="<pad>")
    limits = limits_of(tiny_model(vocab_size=tokenizer.pad_token_id, eos_token_id=2, bos_token_id=1, pad_token_id=0))
    with pytest.raises(ModelError, match=r"the pad token '<pad>' has the id 258, but the model has 258 embeddings"):
        require_pad_token(limits, tokenizer)
    require_pad_token(limits, tiny_tokenizer())


def test_a_padding_value_beyond_the_embeddings_is_refused():
    with pytest.raises(ConfigError, match=r"padding_value is 264, but the model has 264 embeddings \(ids 0 to 263\)"):
        require_pad_token(limits_of(tiny_model()), tiny_tokenizer(), 264)
