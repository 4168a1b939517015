"""Packed rows against padded batches over the architectures of transformers; test_self_check.py has the others."""

import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.batching.collate import IGNORED, PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.loss import orpo_loss
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import _of_lists, forest_logps, forest_tokens
from oddsmith.model.logprobs.padded import padded_tokens, pair_logps
from oddsmith.model.logprobs.small_copy import Float64Everywhere
from tests.tiny import SMALL

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
EXACT = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 5},
    "mixtral": EXPERTS,
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {"sliding_window": 6},
    "olmo2": {},
    "olmo3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5},
    "glm4": {},
    "cohere2": {"logit_scale": 0.5, "sliding_window": 4},
    "starcoder2": {"sliding_window": 6},
    "smollm3": {},
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "deepseek_v3": EXPERTS | LATENT,
    "gpt_oss": EXPERTS | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "stablelm": {},
    "nemotron": {},
    "granite_swa": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "granitemoe_swa": EXPERTS | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "mimo_v2_flash": EXPERTS | {"sliding_window": 4},
    "llama4_text": EXPERTS
    | {
        "attention_chunk_size": 4,
        "intermediate_size_mlp": 48,
        "no_rope_layers": [1, 0],
        "floor_scale": 3,
    },
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
BETA = 0.3


@functools.cache
def model_of(kind: str, dtype: torch.dtype):
    config = AutoConfig.for_model(kind, **{**SMALL, **EXACT[kind]})
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").to(dtype)  # grouped_mm: no float64


tokens = st.lists(st.integers(3, 5), min_size=1, max_size=7)  # few ids, so that beginnings are shared often
pairs = st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=4)


def rows_of(pairs, gap_from=5):
    return [
        {
            "chosen_input_ids": prompt + chosen,
            "rejected_input_ids": prompt + rejected,
            "chosen_prompt_tokens": len(prompt),
            "rejected_prompt_tokens": len(prompt),
            "chosen_end": len(prompt) + len(chosen),
            "rejected_end": len(prompt) + len(rejected),
            # As between the turns of a conversation: from the second token of an answer to its last.
            "chosen_gaps": [len(prompt) + 1, len(prompt) + len(chosen) - 1] if len(chosen) > gap_from else [],
            "rejected_gaps": [len(prompt) + 1, len(prompt) + 2] if len(rejected) > gap_from else [],
        }
        for prompt, chosen, rejected in pairs
    ]


def loss_and_gradients(model, logps):
    loss = orpo_loss(
        logps.nll_sum_B.sum(), logps.logp_chosen_B, logps.logp_rejected_B, beta=BETA, num_nll_tokens=40, num_pairs=5
    ).loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def both_paths(model, rows, nll_on="sequence"):
    padded, forest = PairCollator(0)([trl_features(row) for row in rows]), forest_batch(rows, nll_on)
    plain = pair_logps(model, padded, pad_token_id=0, nll_on=nll_on)
    with forest_attention_in(model):
        packed = forest_logps(model, forest, transform=output_transform(model.config))
        # Each path keeps the log-probabilities of tokens in a layout of its own; this is one for both.
        plain = plain._replace(
            token_logps=padded_tokens(padded, plain.token_logps, nll_on=nll_on, is_encoder_decoder=False)
        )
        packed = packed._replace(token_logps=forest_tokens(forest, packed.token_logps))
        return (packed, *loss_and_gradients(model, packed)), (plain, *loss_and_gradients(model, plain))


def assert_same(ours, reference, tolerance):
    for name in ours[0]._fields:
        one, other = getattr(ours[0], name), getattr(reference[0], name)
        if name == "token_logps":
            for some, others in zip(one[:3], other[:3], strict=True):
                width = some.ids_BL.shape[1]
                assert torch.equal(some.ids_BL, others.ids_BL[:, :width])
                assert (others.ids_BL[:, width:] == IGNORED).all()
                logps = some.logp_BL.double(), others.logp_BL[:, :width].double()
                assert torch.allclose(*logps, rtol=10 * tolerance, atol=10 * tolerance)
        elif other is not None:
            if name == "response_logp_SL":  # filled up to different widths
                width = min(one.shape[1], other.shape[1])
                one, other = one[:, :width], other[:, :width]
            assert torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance), name
    assert torch.allclose(ours[1].double(), reference[1].double(), rtol=tolerance)
    scale = max(gradient.abs().max() for gradient in reference[2])
    for one, other in zip(ours[2], reference[2], strict=True):
        assert (one - other).abs().max() <= 10 * tolerance * scale


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=5)
@given(pairs=pairs, nll_on=st.sampled_from(["sequence", "response"]))
def test_packed_rows_give_the_loss_and_every_gradient_of_padded_batches(kind, dtype, pairs, nll_on):
    with Float64Everywhere() if dtype == torch.float64 else nullcontext():
        assert_same(*both_paths(model_of(kind, dtype), rows_of(pairs), nll_on), TOLERANCE[dtype])


@given(pairs=pairs)
def test_a_packed_row_holds_every_sequence_once(pairs):
    rows = rows_of(pairs)
    batch = forest_batch(rows, "sequence")
    ids, depth = batch["input_ids"][0].tolist(), batch["position_ids"][0].tolist()
    seen = batch["forest"].ancestor_mask()
    written = {tuple(ids[i] for i in np.flatnonzero(seen[row])) for row in range(len(ids))}
    wanted = {
        tuple(r[f"{side}_input_ids"][:n])
        for r in rows
        for side in ("chosen", "rejected")
        for n in range(1, 1 + len(r[f"{side}_input_ids"]))
    }
    assert written == wanted
    assert len(ids) == len(wanted)
    assert depth == [int(mask.sum()) - 1 for mask in seen]


class SortsOrAtomics(TorchDispatchMode):
    """Notes what adds up gradients by sorting indices, or on a GPU by atomics."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("index_put", "index_add", "scatter_add", "index_reduce")):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@given(pairs=pairs, nll_on=st.sampled_from(["sequence", "response"]))
def test_gradients_of_entries_are_sums_in_a_fixed_order(pairs, nll_on):
    """Equal to autograd's own, without its sorting; whole numbers, so that any order gives the same sum."""
    batch = forest_batch(rows_of(pairs), nll_on)
    logp_E = torch.arange(1.0, 1 + len(batch["target_E"])).requires_grad_()
    ours, reference = [], []
    for name, lists in (("response", "response_entry_SL"), ("nll", "nll_entry_BL")):
        listed = _of_lists(logp_E, batch, name)
        plain = F.pad(logp_E, (0, 1))[batch[lists]]
        assert torch.equal(listed, plain)
        d_listed = torch.arange(float(listed.numel())).view_as(listed)
        with SortsOrAtomics() as mode:
            ours += torch.autograd.grad(listed, logp_E, d_listed)
        assert not mode.found
        reference += torch.autograd.grad(plain, logp_E, d_listed)
    assert torch.equal(torch.stack(ours), torch.stack(reference))
