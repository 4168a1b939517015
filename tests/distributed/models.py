"""Tiny models of other kinds than a Llama: experts with a router, an encoder and a decoder, a base in 4 bits."""

from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig, MixtralConfig, T5Config

from oddsmith.model.loading.models import load_model
from tests.tiny import tiny_model

TOKENS: dict[str, Any] = {"vocab_size": 264, "eos_token_id": 257, "pad_token_id": 257, "bos_token_id": 256}


def tiny_mixtral(**overrides: Any) -> Any:
    """Return four experts of which two are used, trained with the loss of the router."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    router = {"output_router_logits": True, "router_aux_loss_coef": 0.1, "initializer_range": 0.3}
    torch.manual_seed(0)
    config = MixtralConfig(**{**TOKENS, **sizes, **heads, **router, **overrides})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tiny_t5(**overrides: Any) -> Any:
    """Return two layers of an encoder and two of a decoder."""
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 4, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    torch.manual_seed(0)
    config = T5Config(**{**TOKENS, **sizes, "decoder_start_token_id": 257, **overrides})
    return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)


def tiny_4_bit(storage: str = "float32", **overrides: Any) -> Any:
    """Return a Llama with NF4 weights, packed in numbers of the type ``storage``, which FSDP can share out."""
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=getattr(torch, storage),
    )
    with TemporaryDirectory() as folder:
        model = tiny_model(hidden_size=64, intermediate_size=128, **overrides)
        model.config.save_pretrained(folder)
        save_file(
            model.state_dict(), f"{folder}/model.safetensors"
        )  # save_pretrained writes in the first process alone
        return load_model(folder, quantization_config=bits)


MODELS = {"llama": tiny_model, "llama-4-bit": tiny_4_bit, "mixtral": tiny_mixtral, "t5": tiny_t5}
LAYERS = {
    "llama": "LlamaDecoderLayer",
    "llama-4-bit": "LlamaDecoderLayer",
    "mixtral": "MixtralDecoderLayer",
    "t5": "T5Block",
}
