"""Which models are packed: every exact one in any precision, and none in which sequences could leak into each other."""

import copy
import inspect
import re
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch._inductor.exc import InductorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from oddsmith.model.logprobs import self_check
from oddsmith.model.logprobs.mixing import mixing_module
from oddsmith.model.logprobs.self_check import INEXACT, ROW_TOKENS, check_forest
from oddsmith.model.logprobs.small_copy import small_config, small_copy
from tests.equivalence.test_forest import EXACT, EXPERTS, LATENT, model_of
from tests.tiny import SMALL, tiny_model, tiny_tokenizer

DTYPES = [torch.float32, torch.bfloat16]
LEAKS = "mixes tokens in its own way, so packed sequences would leak into each other"
DELTA_RULE = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}  # fmt: skip
DELTA_ATTENTION = {"linear_num_heads": 2, "linear_head_dim": 8}
# Decoders with scans, recurrences, convolutions and linear attention, often beside attention.
MIXING = {
    "bailing_hybrid": EXPERTS | DELTA_ATTENTION,
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 8},
    "granitemoehybrid": MAMBA | EXPERTS | {"layer_types": ["mamba", "attention"]},
    "jamba": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "kimi_linear": EXPERTS | LATENT | DELTA_ATTENTION | {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": EXPERTS | {"layer_types": ["conv", "full_attention"]},
    "lfm3": {},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "minimax": EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
    "nemotron_h": MAMBA
    | EXPERTS
    | {
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "moe_shared_expert_intermediate_size": 32,  # oneDNN on AMX mixes NaN of rows that are no multiple of 16 long
    },
    "olmo_hybrid": DELTA_RULE,
    "qwen3_5_text": DELTA_RULE,
    "qwen3_5_moe_text": EXPERTS | DELTA_RULE,
    "qwen3_next": EXPERTS | DELTA_RULE | {"decoder_sparse_step": 1},
    "qwen4_exp_text": EXPERTS | DELTA_RULE | INDEXER,
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"num_heads": 4, "num_blocks": 2},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": EXPERTS | {"num_experts_per_tok": 1},
}
# What packed rows cannot take even by sequences: the reason has this in it.
NOT_BY_SEQUENCES = {
    "qwen4_exp_text": f"its Qwen4ExpTextGatedDeltaNet {LEAKS}",  # chosen keys beside it
    "zaya": f"its ZayaCCAProjection {LEAKS}",  # tensors over tokens with other axes
    "zamba": "no small copy of it could be made",
}
# Attention of their own, biases, chosen keys: the reason has this in it.
OTHERS = {
    "bloom": ({"n_layer": 2, "n_head": 4}, "its BloomAttention mixes tokens"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, "cannot be called with packed rows"),
    "doge": ({}, "cannot be called with packed rows"),
    "minimax_m3_vl_text": (
        EXPERTS | {"layer_types": ["minimax_m3_sparse"] * 2, "index_n_heads": 2, "index_head_dim": 8},
        "its attention uses block_indices",
    ),
}  # fmt: skip
if Version(transformers.__version__) < Version("5.24"):  # it has taken transformers' attention interface since
    OTHERS["gptj"] = ({"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "differ from single sequences by")
# Families of MODEL_FOR_CAUSAL_LM whose code has one of these words for another reason, or that are not packed anyway.
MIXING_WORDS = re.compile(r"conv1d|selective_scan|delta_rule|recurrent|lightning_attention|_scan\(")
NOT_MIXING = {
    "granitemoe_swa", "granitemoeshared",  # only the words
    "hrm_text",  # the layers are applied again and again: recurrent in depth
    "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "bigbird_pegasus",  # an encoder
    "inkling_text", "inkling2_text",  # convolutions; ruled out by their output layer already
    "qwen3_5", "qwen3_5_moe", "qwen4_exp",  # images beside one of the families above
}  # fmt: skip


def check(model: nn.Module):
    return check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)


def made(kind: str, settings: dict, **options) -> nn.Module:
    config = AutoConfig.for_model(kind, **{**SMALL, **settings})
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options)


def enlarged(model: nn.Module, factor: float) -> nn.Module:
    """Multiply what mixers add to the model, by their output layers and convolutions."""
    for name, parameter in model.named_parameters():
        if re.search(r"(out_proj|o_proj|linear_out|attention\.output|conv\w*)\.weight", name):
            parameter.data *= factor
    return model


def assert_found(kind: str, dtype: torch.dtype, factor: float) -> None:
    model = enlarged(made(kind, MIXING[kind]), factor).to(dtype)
    verdict = check(model)
    if kind in NOT_BY_SEQUENCES:
        assert verdict.reason.startswith(NOT_BY_SEQUENCES[kind])
    elif (kind, dtype) == ("xlstm", torch.bfloat16):  # which multiplies float32 by bfloat16, on any rows
        assert not verdict.forest
    else:
        assert verdict.forest, verdict.reason
        assert verdict.sequence_wise.modules
        with torch.no_grad(), verdict.sequence_wise.applied(mixing=False):
            assert mixing_module(model.eval(), tokens=100) is None


@pytest.mark.parametrize("kind", ["falcon_h1", "lfm2", "qwen3_next", "recurrent_gemma", "rwkv", "mamba", "zaya"])
def test_a_mixer_is_found_also_in_bfloat16(kind):
    assert_found(kind, torch.bfloat16, 100.0)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, 1e-4, 1.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MIXING)
def test_a_mixer_is_found_however_large_its_share(kind, dtype, factor):
    assert_found(kind, dtype, factor)


@pytest.mark.slow
def test_every_family_with_a_mixer_is_tried():
    found = set()
    for config in MODEL_FOR_CAUSAL_LM_MAPPING:
        classes = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        module = inspect.getmodule(classes[0] if isinstance(classes, tuple) else classes)
        if MIXING_WORDS.search(inspect.getsource(module)):
            found.add(config.model_type)
    assert found - set(MIXING) - NOT_MIXING == set()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_else_cannot_be_packed_is_named(kind):
    settings, reason = OTHERS[kind]
    verdict = check(made(kind, settings))
    assert not verdict.forest
    assert reason in verdict.reason


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_an_exact_model_is_packed_in_any_precision(kind, dtype):
    verdict = check(copy.deepcopy(model_of(kind, torch.float32)).to(dtype))
    assert verdict.forest, verdict.reason


@pytest.mark.parametrize("kind", ["granitemoe", "phimoe", "minimax_m2", "jetmoe"])
def test_experts_that_are_chosen_otherwise_by_rounding_do_not_matter(kind):
    verdict = check(made(kind, EXPERTS).to(torch.bfloat16))
    assert verdict.forest, verdict.reason


# ---- What a user may have added to a model


class Added(nn.Module):
    """A layer's MLP with something added that is computed over the tokens of a row."""

    def __init__(self, mlp: nn.Module, over_tokens):
        super().__init__()
        self.mlp, self.over_tokens = mlp, over_tokens

    def forward(self, hidden):
        return self.mlp(hidden) + self.over_tokens(hidden)


def zero_convolution(hidden):
    return nn.functional.conv1d(hidden.mT, torch.zeros(16, 1, 4), padding=3, groups=16)[..., :-3].mT


def scan(hidden):
    states = [hidden[:, 0]]
    for t in range(1, hidden.shape[1]):
        states.append(0.5 * states[-1] + hidden[:, t])
    return 1e-9 * torch.stack(states, 1)


def block_means(hidden):
    """The mean of every whole block of 32 tokens, added to those of the next one."""
    blocks = hidden.unfold(1, 32, 32).mean(-1).repeat_interleave(32, 1)
    return 1e-9 * nn.functional.pad(blocks, (0, 0, 32, 0))[:, : hidden.shape[1]]


MIXED_IN = {
    "mean of the row": lambda hidden: 1e-9 * hidden.mean(1, keepdim=True),
    "later tokens": lambda hidden: 1e-9 * hidden.flip(1).cumsum(1).flip(1),
    "token before": lambda hidden: 1e-9 * hidden.roll(1, 1),
    "largest so far": lambda hidden: 1e-9 * hidden.cummax(1).values,
    "attention": lambda hidden: 1e-9 * (hidden @ hidden.mT).tril().softmax(-1) @ hidden,
    "convolution of weights 0": zero_convolution,
    "scan": scan,
    "block means": block_means,
}  # fmt: skip


@pytest.mark.parametrize("what", MIXED_IN)
def test_what_mixes_tokens_in_one_layer_is_found_however_little_it_adds(what):
    model = tiny_model()
    model.model.layers[1].mlp = Added(model.model.layers[1].mlp, MIXED_IN[what])
    verdict = check(model)
    assert (verdict.forest, verdict.reason) == (False, f"its Added {LEAKS}")


def test_an_attention_of_a_layer_s_own_is_found():
    model = tiny_model()
    model.model.layers[1].self_attn = RunningMean()
    assert check(model).reason == f"its RunningMean {LEAKS}"


class RunningMean(nn.Module):
    def forward(self, hidden_states, **kwargs):
        counts = torch.arange(1, hidden_states.shape[1] + 1).unsqueeze(-1)
        return 1e-6 * hidden_states.cumsum(1) / counts, None


class HashedBigrams(LlamaForCausalLM):
    """Adds an embedding of each token with the one before it, found by a hash of both ids."""

    def __init__(self, config):
        super().__init__(config)
        self.bigrams = nn.Embedding(64, config.hidden_size)

    def forward(self, input_ids=None, **kwargs):
        pairs = (input_ids * 7 + input_ids.roll(1, 1)) % 64
        return super().forward(inputs_embeds=self.model.embed_tokens(input_ids) + self.bigrams(pairs), **kwargs)


def test_what_mixes_ids_is_found_on_the_copy_even_where_its_weights_are_0():
    model = HashedBigrams(tiny_model().config)
    nn.init.zeros_(model.bigrams.weight)
    verdict = check(model)
    assert not verdict.forest
    assert verdict.reason.startswith(f"{INEXACT}: those of a small copy of it differ from single sequences by")


class Unpredictable(LlamaForCausalLM):
    def __init__(self, config, needed):
        super().__init__(config)


def test_a_class_that_cannot_be_made_again_is_not_packed():
    verdict = check(Unpredictable(tiny_model().config, "needed"))
    assert not verdict.forest
    assert verdict.reason.startswith("no small copy of it could be made to check on (")


@pytest.mark.parametrize(
    ("message", "cause"), [("", "NotImplementedError"), ("no packed rows\nhere", "no packed rows")]
)
def test_a_model_that_cannot_be_called_is_not_packed(message, cause, monkeypatch):
    model = tiny_model()

    def refuse(*args, **kwargs):
        raise NotImplementedError(message)

    monkeypatch.setattr(model.model, "forward", refuse)
    verdict = check(model)
    assert (verdict.forest, verdict.reason) == (False, f"it cannot be called with packed rows ({cause})")


def test_nothing_of_the_model_and_no_random_number_changes():
    model = copy.deepcopy(model_of("mistral", torch.float32)).train()
    before, weights = model.config._attn_implementation, copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert check(model).forest
    assert torch.rand(1) == expected
    assert (model.config.sliding_window, model.config._attn_implementation, model.training) == (5, before, True)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- The small copy


def test_a_copy_is_small_and_has_every_kind_of_layer():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    sizes = {"vocab_size": 50_000, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    config = AutoConfig.for_model(
        "gemma3_text", **SMALL | sizes | {"num_hidden_layers": 12, "layer_types": kinds * 2, "head_dim": 64}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    small = small_copy(model)
    assert small.config.layer_types == kinds
    assert small.config.sliding_window == 8
    assert sum(p.numel() for p in small.parameters()) < 2_000_000
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert all(p.abs().sum() > 0 for p in small.parameters())


def test_a_copy_has_no_quantised_weights_and_the_model_s_switches():
    config = LlamaConfig(**SMALL, attention_bias=True, quantization_config={"load_in_4bit": True})
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    small = small_config(model)
    assert not hasattr(small, "quantization_config")
    assert small.attention_bias
    assert hasattr(model.config, "quantization_config")


def test_a_token_s_nan_stays_in_its_row_of_an_exact_model():
    with torch.no_grad():
        assert mixing_module(tiny_model(), tokens=100) is None


# ---- What says nothing of the model


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
OF_THE_MACHINE = [
    OUT_OF_MEMORY,
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


def failing(where: str, error: Exception, monkeypatch) -> nn.Module:
    """A model in which a layer fails: in the search for mixing layers, in its small copy, or on real tokens."""
    model = tiny_model()
    own = LlamaMLP.forward

    def forward(self, x):
        is_there = {
            "search": x.shape[1] == ROW_TOKENS,
            "copy": x.dtype == torch.float64,
            "packed": len(x) == 1 and x.shape[1] != ROW_TOKENS,
        }
        if is_there[where]:
            raise error
        return own(self, x)

    if where == "copy":
        monkeypatch.setattr(LlamaMLP, "forward", forward)
        monkeypatch.setattr(self_check, "_exactness_of_kind", {})
    else:
        layer = model.model.layers[0].mlp
        layer.forward = partial(forward, layer)
    return model


@pytest.mark.parametrize("error", OF_THE_MACHINE, ids=lambda error: str(error)[:40] or type(error).__name__)
@pytest.mark.parametrize("where", ["search", "copy", "packed"])
def test_an_error_of_the_machine_is_no_property_of_the_model(where, error, monkeypatch):
    model = failing(where, error, monkeypatch)
    with pytest.raises(type(error)) as raised:
        check(model)
    assert raised.value is error
    assert model.training


def test_an_error_of_the_device_is_not_taken_for_a_layer_that_mixes_tokens(monkeypatch):
    """Once one is found, an error of the next search is put down to it."""
    model = made("lfm2", MIXING["lfm2"])
    own, calls = self_check.mixing_module, []

    def mixing_module(*args, **more):
        calls.append(args)
        if len(calls) > 1:
            raise OUT_OF_MEMORY
        return own(*args, **more)

    monkeypatch.setattr(self_check, "mixing_module", mixing_module)
    with pytest.raises(torch.OutOfMemoryError):
        check(model)


def test_a_kernel_that_cannot_be_compiled_is_named_with_what_to_do(monkeypatch):
    error = InductorError(RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), None)
    verdict = check(failing("packed", error, monkeypatch))
    assert not verdict.forest
    assert verdict.reason.startswith("this machine has no C compiler, which compiling a kernel needs; install one (apt")


def test_another_refusal_is_one_of_the_model(monkeypatch):
    verdict = check(failing("packed", RuntimeError("shapes differ"), monkeypatch))
    assert verdict.reason == "it cannot be called with packed rows (shapes differ)"
