"""Write the tiny models as GGUF files."""

from pathlib import Path

from gguf import GGUFWriter, TokenType
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

TENSOR_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, pre: str = "smollm", **values: object
) -> Path:
    """Write a Llama with a byte-level tokenizer as a float32 GGUF file.

    ``pre`` names the pre-tokenizer; ``values`` may hold ``add_bos`` (bool) and ``merges`` (list).
    """
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("A title that is no model name")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    _write_tokenizer(writer, tokenizer, pre, values)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        weights = tensor.numpy()
        if stem.endswith("q_proj"):
            weights = _interleave(weights, config.num_attention_heads)
        if stem.endswith("k_proj"):
            weights = _interleave(weights, config.num_key_value_heads)
        writer.add_tensor(f"{_gguf_name(stem)}.{kind}", weights.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, pre: str, values: dict) -> None:
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    control = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens])
    if "merges" in values:
        writer.add_token_merges(values["merges"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if "add_bos" in values:
        writer.add_add_bos_token(values["add_bos"])
    writer.add_chat_template(tokenizer.chat_template)


def _gguf_name(stem: str) -> str:
    if not stem.startswith("model.layers."):
        return TENSOR_NAMES[stem]
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{TENSOR_NAMES[part]}"


def _interleave(weights, heads: int):
    """Reorder the rows of each head from halves (x0 x1 .. y0 y1 ..) to pairs (x0 y0 x1 y1 ..), as in llama.cpp."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
