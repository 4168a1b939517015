"""Models and pairs: random weights of known shapes, random words with the lengths of UltraFeedback.

A row's words are the numbers of their tokens, so that both trainers tokenize text as in a real run, and use the whole
vocabulary. A request names a work and how it is measured; ``complete`` adds the work's own settings to it.
"""

from __future__ import annotations

import string
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from oddsmith.batching.forest import pack
from oddsmith.system.precision import emulates_bf16

LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
QWEN_2_5_500M = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
# Two layers with the heads of the whole model: where both paths are compared before anything is timed.
FEW_LAYERS = {"num_hidden_layers": 2, "vocab_size": 4096}
TOY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LETTERS = string.ascii_letters + string.punctuation
# UltraFeedback's means (prompt, response), and the spread of the logarithms that gives tails as long as its own.
MEAN_TOKENS, SPREAD = (185, 305), (0.9, 0.8)
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


# On a GPU, and at toy size: most tokens of a sequence, share of UltraFeedback's lengths, size of the timed product.
SIZES = {False: (2048, 1.0, 8192), True: (96, 1 / 16, 256)}


class Work(NamedTuple):
    """A model, which part of it is trained, and how many pairs a step has."""

    shape: dict[str, Any]
    adapter: bool
    weights: str  # "4bit": NF4, what is not quantised in bfloat16
    pairs: int
    learning_rate: float


# The works of gpu_roofline.py.
# Full fine-tuning needs float32 weights: an update of 1e-6 of a bf16 weight would be rounded away.
WORKS = {
    "8b-lora": Work(LLAMA_3_8B, adapter=True, weights="bfloat16", pairs=10, learning_rate=1e-4),
    "0.5b-full": Work(QWEN_2_5_500M, adapter=False, weights="float32", pairs=20, learning_rate=1e-5),
    "8b-qlora": Work(LLAMA_3_8B, adapter=True, weights="4bit", pairs=5, learning_rate=1e-4),
    "0.5b-lora-8-pairs": Work(QWEN_2_5_500M, adapter=True, weights="bfloat16", pairs=8, learning_rate=1e-4),
}


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """Return a request with what its work and its size settle.

    Args:
        request: ``work``, ``device``, ``toy`` (everything small), ``seed``, ``steps`` (all of them) and, instead of the
            work's own, ``pairs``.

    Returns:
        The request with the fields of the ``Work``, ``bf16`` (autocast), ``small_shape`` (few layers, small
        vocabulary), ``max_length``, ``scale``, ``matrix_size`` and ``rows``, as many as the steps need.
    """
    work, toy = WORKS[request["work"]], request["toy"]
    if request["device"] == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16 = not emulates_bf16()  # a CPU that emulates it trains in float32, ours alone
    max_length, scale, matrix_size = SIZES[toy]
    shape = work.shape | (TOY if toy else {})
    pairs = request.get("pairs") or work.pairs
    rows = make_rows(
        pairs * request["steps"],
        vocabulary=shape["vocab_size"],
        max_length=max_length,
        scale=scale,
        seed=request["seed"],
    )
    return {
        **work._asdict(),
        "weights": "float32" if work.weights == "bfloat16" and not bf16 else work.weights,
        "bf16": bf16,
        "shape": shape,
        "small_shape": shape if toy else shape | FEW_LAYERS,
        "max_length": max_length,
        "scale": scale,
        "matrix_size": matrix_size,
        "rows": rows,
        **request,
        "pairs": pairs,
    }


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per number and per other letter; the last token ends a turn."""
    tokens = {str(number): number for number in range(vocabulary - 1 - len(LETTERS))}
    tokens |= {letter: len(tokens) + i for i, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def make_rows(pairs: int, *, vocabulary: int, max_length: int, scale: float, seed: int) -> list[dict[str, str]]:
    """Make rows of random words with ``prompt``, ``chosen`` and ``rejected``.

    ``max_length`` counts the tokens of a sequence with its end token; ``scale`` is 1 for lengths like UltraFeedback's.
    """
    generator = np.random.default_rng(seed)

    def words(kind: int, most: int) -> str:
        mean, spread = MEAN_TOKENS[kind] * scale, SPREAD[kind]
        drawn = generator.lognormal(np.log(mean) - spread**2 / 2, spread)
        return " ".join(map(str, generator.integers(1, vocabulary - 1 - len(LETTERS), int(np.clip(drawn, 2, most)))))

    half = max_length // 2
    return [
        {"prompt": words(0, half), "chosen": " " + words(1, half - 1), "rejected": " " + words(1, half - 1)}
        for _ in range(pairs)
    ]


def make_model(shape: dict[str, Any], *, weights: str, device: str, seed: int, attention: str = "sdpa") -> nn.Module:
    """Make a causal language model with random weights on its device, from settings of its configuration."""
    config = AutoConfig.for_model(**shape)
    dtype = torch.bfloat16 if weights == "4bit" else getattr(torch, weights)
    torch.manual_seed(seed)
    with torch.device(device):
        if weights == "4bit":
            return _four_bit_model(config, attention)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def _four_bit_model(config: Any, attention: str) -> nn.Module:
    """Make a model whose layers are quantised one after the other, so that never more than one is there in bf16.

    It is what loading it with ``load_in_4bit`` makes of it, without files of 16 GB.
    """
    from transformers import BitsAndBytesConfig

    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    config.num_hidden_layers = model.config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        model.config.layer_types = config.layer_types * layers
    decoder = model.get_decoder()
    make_layer, before = type(decoder.layers[0]), torch.get_default_dtype()
    decoder.layers = nn.ModuleList()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for index in range(layers):
            layer = make_layer(decoder.config, index)
            _quantise(layer)
            decoder.layers.append(layer)
    finally:
        torch.set_default_dtype(before)
    model.config.quantization_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model.is_loaded_in_4bit = True
    return model


def _quantise(layer: nn.Module) -> None:
    """Replace the linear layers of a decoder layer by bitsandbytes' NF4."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, linear in [named for named in layer.named_modules() if isinstance(named[1], nn.Linear)]:
        with torch.device("meta"):
            quantised = Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
        quantised.weight = Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4", module=quantised
        ).to(linear.weight.device)
        layer.set_submodule(name, quantised)


def multiplied_parameters(shape: dict[str, Any]) -> int:
    """Count the weights of the linear layers and the output layer: those that every token is multiplied with."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def token_ids(row: dict[str, str], side: str, vocabulary: int) -> tuple[np.ndarray, int]:
    """Return the tokens of a sequence with its end token, and how many of them are the prompt's."""
    prompt = row["prompt"].split()
    ids = [*prompt, *row[side].split(), vocabulary - 1]
    return np.array(ids, dtype=np.int64), len(prompt)


def tokenized(row: dict[str, str], vocabulary: int) -> dict[str, Any]:
    """Return a row as a tokenized pair."""
    columns: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids, prompt_tokens = token_ids(row, side, vocabulary)
        columns |= {f"{side}_input_ids": ids, f"{side}_prompt_tokens": prompt_tokens, f"{side}_end": len(ids)}
    return columns


def count_step(rows: list[dict[str, str]], vocabulary: int) -> dict[str, int]:
    """Count a step's tokens: ``padded`` (sequences times the longest), ``packed`` (all) and ``forest`` (none twice)."""
    sequences = [token_ids(row, side, vocabulary)[0] for side in ("chosen", "rejected") for row in rows]
    lengths = [len(ids) for ids in sequences]
    return {
        "padded": len(lengths) * max(lengths),
        "packed": sum(lengths),
        "forest": len(pack(sequences)[0]),
    }
