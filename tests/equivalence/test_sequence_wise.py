"""Hybrids on packed rows, where layers that mix tokens in their own way run on sequences: as padded, with gradients."""

import functools
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch, pack
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from oddsmith.model.logprobs.padded import pair_logps
from oddsmith.model.logprobs.self_check import check_forest
from oddsmith.model.logprobs.sequence_wise import Part, parts_of, sequence_wise_layers
from oddsmith.model.logprobs.small_copy import Float64Everywhere
from tests.equivalence.test_forest import loss_and_gradients, rows_of, tokens
from tests.equivalence.test_self_check import MIXING, made
from tests.tiny import tiny_tokenizer

# Family -> the classes that run on sequences, and whether their states are handed on.
FAMILIES = {
    "lfm2": ("Lfm2ShortConv", True),
    "falcon_h1": ("FalconH1Mixer", True),
    "granitemoehybrid": ("GraniteMoeHybridMambaLayer", True),
    "qwen3_5_text": ("Qwen3_5GatedDeltaNet", True),
    "qwen3_next": ("Qwen3NextGatedDeltaNet", True),
    "recurrent_gemma": ("RecurrentGemmaRecurrentBlock", False),
    "rwkv": ("RwkvFeedForward RwkvSelfAttention", False),
}  # fmt: skip


@functools.cache
def model_of(kind: str):
    model = made(kind, MIXING[kind], experts_implementation="eager").double()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" not in name:  # biases and decays that tell tokens apart
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def layers_of(model, kind: str, hands_on_states: bool):
    names = FAMILIES[kind][0].split()
    kinds = {type(module) for module in model.modules() if type(module).__name__ in names}
    assert len(kinds) == len(names)
    return sequence_wise_layers(model, list(kinds), hands_on_states=hands_on_states, min_shared=2)


def assert_as_padded(model, layers, rows):
    padded = loss_and_gradients(
        model, pair_logps(model, PairCollator(0)([trl_features(row) for row in rows]), pad_token_id=0)
    )
    with forest_attention_in(model), layers.applied():
        logps = forest_logps(model, forest_batch(rows, "sequence"), transform=output_transform(model.config))
        packed = loss_and_gradients(model, logps)
    assert torch.allclose(packed[0], padded[0], rtol=1e-9)
    scale = max(gradient.abs().max() for gradient in padded[1])
    for one, other in zip(packed[1], padded[1], strict=True):
        assert (one - other).abs().max() <= 1e-8 * scale


@pytest.mark.parametrize(
    ("kind", "hands_on_states"),
    [
        (kind, states)
        for kind, (_, has_states) in FAMILIES.items()
        for states in ((False, True) if has_states else (False,))
    ],
)
@settings(max_examples=4)
@given(pairs=st.lists(st.tuples(tokens, tokens, tokens), min_size=1, max_size=4))
def test_a_hybrid_gives_the_loss_and_every_gradient_of_padded_batches(kind, hands_on_states, pairs):
    with Float64Everywhere():
        model = model_of(kind)
        assert_as_padded(model, layers_of(model, kind, hands_on_states), rows_of(pairs))


@pytest.mark.parametrize("kind", ["falcon_h1", "qwen3_5_text"])
def test_sequences_of_several_chunks_agree(kind):
    generator = np.random.default_rng(0)

    def ids(count):
        return generator.integers(3, 200, count).tolist()

    with Float64Everywhere():
        model = model_of(kind)
        rows = rows_of([(ids(70), ids(90), ids(10)), (ids(3), ids(150), ids(1))], gap_from=1000)
        assert_as_padded(model, layers_of(model, kind, True), rows)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["qwen3_5_text", "stablelm"])
def test_layers_that_run_again_in_the_backward_pass_find_their_own_row(kind, use_reentrant):
    """Two rows forward, then both backward, the first one first; neither family hands keywords on to these layers."""
    model = made(kind, MIXING.get(kind, {})).train()
    layers = sequence_wise_layers(
        model, [type(m) for m in model.modules() if "DeltaNet" in type(m).__name__], hands_on_states=True, min_shared=2
    )
    batches = [
        forest_batch(rows_of(pairs), "sequence")
        for pairs in ([([3, 4, 5], [6, 7], [8])], [([5, 4, 3], [3], [7, 8]), ([5, 4], [4, 4], [3])])
    ]

    def gradients():
        model.zero_grad()
        with forest_attention_in(model), layers.applied():
            losses = [
                forest_logps(model, batch, transform=output_transform(model.config)).nll_sum_B.sum()
                for batch in batches
            ]
            for loss in losses:
                loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    for one, other in zip(gradients(), plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


# ---- The parts of a row


def layout_of(sequences):
    return pack([np.array(sequence) for sequence in sequences])


def shown(parts):
    return [(part.rows.tolist(), part.repeated, part.parent, part.keeps_state) for part in parts]


P, Q, C, D, E, F, G, H = range(8)


def test_a_row_is_cut_into_whole_paths_or_into_parts_behind_states():
    """The forest of the docstring; its rows are p q c d e f g h."""
    _, _, layout = layout_of([[P, Q, C, D, E], [P, Q, C, F], [P, Q, G, H]])
    assert shown(parts_of(layout, None)) == [
        ([0, 1, 2, 3, 4], 0, None, False),
        ([0, 1, 2, 5], 3, None, False),
        ([0, 1, 6, 7], 2, None, False),
    ]
    assert shown(parts_of(layout, 2)) == [
        ([0, 1], 0, None, True),  # the state behind p q; the one behind c would come a token later
        ([2, 3, 4], 0, 0, False),
        ([2, 5], 1, 0, False),
        ([6, 7], 0, 0, False),
    ]
    assert shown(parts_of(layout, 3)) == [
        ([0, 1, 2], 0, None, True),
        ([3, 4], 0, 0, False),
        ([5], 0, 0, False),
        ([0, 1, 6, 7], 2, None, False),
    ]


@pytest.mark.parametrize("min_shared", [None, 2, 3])
@given(sequences=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7))
def test_every_token_is_computed_behind_those_before_it(min_shared, sequences):
    _, rows_of_sequence, layout = layout_of(sequences)
    before = {rows[i]: rows[: i + 1].tolist() for rows in rows_of_sequence for i in range(len(rows))}
    parts = parts_of(layout, min_shared)

    def whole(part: Part) -> list[int]:
        return ([] if part.parent is None else whole(parts[part.parent])) + part.rows.tolist()

    own = [row for part in parts for row in part.rows[part.repeated :]]
    assert sorted(own) == list(range(len(layout.depth_T)))
    for part in parts:
        assert whole(part) == before[part.rows[-1]]
        assert part.parent is None or parts[part.parent].keeps_state
        assert not part.keeps_state or len(part.rows) >= 2


def test_the_check_finds_how_a_hybrid_is_packed():
    for kind in ("lfm2", "rwkv"):
        names, has_states = FAMILIES[kind]
        layers = check_forest(
            made(kind, MIXING[kind]), tiny_tokenizer(), pad_token_id=0, precision=nullcontext
        ).sequence_wise
        assert " ".join(sorted({type(module).__name__ for module in layers.modules})) == names
        assert (layers.min_shared is not None) is has_states
