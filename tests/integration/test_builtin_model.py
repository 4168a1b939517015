"""The built-in SmolLM2-135M-Instruct, converted once for this file: about 20 seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from oddsmith.errors import MissingExtraError
from oddsmith.model.loading.builtin import PREFIX, _packaged_gguf, builtin_model
from oddsmith.model.loading.models import load_model, load_tokenizer

NAME = "builtin:smollm2-135m-instruct"
HEADS, KEY_HEADS = 9, 3


def packaged_gguf() -> Path:
    try:
        return _packaged_gguf(NAME.removeprefix(PREFIX))[0]
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gguf_tensors():
    """Return the dequantised weights by name, computed by the ``gguf`` package alone."""
    path = packaged_gguf()
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    return lambda name: dequantize(tensors[name].data, tensors[name].tensor_type)


@pytest.fixture(scope="session")
def cache(gguf_tensors, tmp_path_factory):
    """A fresh cache with the model converted by two processes at once; what each of them printed on stderr."""
    folder = tmp_path_factory.mktemp("cache")
    program = (
        "from oddsmith.model.loading.quiet import hush_dependencies; hush_dependencies()\n"
        f"from oddsmith.model.loading.builtin import builtin_model; print(builtin_model({NAME!r}))"
    )
    environment = {**os.environ, "ODDSMITH_CACHE": str(folder)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODDSMITH_CACHE", str(folder))
        yield outputs


@pytest.fixture(scope="session")
def model(cache):
    return load_model(NAME)


@pytest.fixture(scope="session")
def tokenizer(cache):
    return load_tokenizer(NAME)


@pytest.mark.slow
def test_two_processes_make_one_folder_and_one_says_so(cache):
    folders = {stdout.strip() for stdout, _ in cache}
    assert folders == {str(builtin_model(NAME))}
    announcements = [line for _, stderr in cache for line in stderr.splitlines() if NAME in line]
    assert announcements == [f"Preparing {NAME} in {folders.pop()} (once; about 15 seconds)"]
    left = sorted(path.name for path in builtin_model(NAME).parent.iterdir())
    assert [name for name in left if not name.endswith(".lock")] == [builtin_model(NAME).name]


def test_progress_bars_are_silent(cache):
    assert not any("%|" in stderr for _, stderr in cache)


def test_weights_are_the_file_s(model, gguf_tensors):
    layer = model.model.layers[17]

    def as_in_llama(weights, heads):
        # llama.cpp keeps the rows of a head as pairs that rotate together, transformers as two halves.
        return weights.reshape(heads, -1, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)

    for parameter, expected in (
        (model.model.embed_tokens, gguf_tensors("token_embd.weight")),
        (layer.mlp.down_proj, gguf_tensors("blk.17.ffn_down.weight")),
        (layer.self_attn.v_proj, gguf_tensors("blk.17.attn_v.weight")),
        (layer.self_attn.q_proj, as_in_llama(gguf_tensors("blk.17.attn_q.weight"), HEADS)),
        (layer.self_attn.k_proj, as_in_llama(gguf_tensors("blk.17.attn_k.weight"), KEY_HEADS)),
        (layer.post_attention_layernorm, gguf_tensors("blk.17.ffn_norm.weight")),
    ):
        assert parameter.weight.dtype is torch.float32
        np.testing.assert_array_equal(parameter.weight.detach().numpy(), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bf16_would_not_hold_them(model):
    """Why the cache is in float32, 538 MB instead of 269."""
    weights = model.model.layers[0].mlp.down_proj.weight
    assert not torch.equal(weights.bfloat16().float(), weights)


def test_configuration(model, tokenizer):
    assert model.num_parameters() == 134_515_008
    assert model.config.rms_norm_eps == 1e-5
    assert model.config.rope_parameters["rope_theta"] == 100_000
    assert model.config._name_or_path == NAME
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", *["<|im_end|>"] * 2)
    assert tokenizer.model_max_length == 8192
    assert len(tokenizer) == model.config.vocab_size == 49152


def test_files_know_nothing_of_this_machine(cache):
    folder = builtin_model(NAME)
    package = str(packaged_gguf().parents[1])
    for file in folder.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert package not in text
        assert "Mix1 Ep2" not in text  # the file's title
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("\n\n1.", [1116, 33, 30]),  # [198, 198, 33, 30] with transformers' pre-tokenizer
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_text_becomes_the_tokens_of_its_training(tokenizer, text, tokens):
    assert tokenizer(text).input_ids == tokens
    assert tokenizer.decode(tokens) == text


def test_chat_template_is_the_file_s(tokenizer):
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )


def test_answers_sensibly(model, tokenizer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
