"""Log-probabilities of pairs against a plain reference: full logits, one sequence at a time, no padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.model.logprobs.padded import pair_logps
from tests.tiny import tiny_model


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=256, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()  # without dropout


def gemma2():
    """Tied head, soft caps on attention and logits, scaled embeddings."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=264, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.4, final_logit_softcapping=3.0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


MODELS = {"llama": (tiny_model(), 1e-5), "gpt2": (gpt2(), 1e-9), "gemma2": (gemma2(), 1e-5)}
sides = st.tuples(
    st.lists(st.integers(0, 255), min_size=1, max_size=12), st.lists(st.integers(0, 257), min_size=1, max_size=9)
)


def gaps_in(answer):
    """Gaps that begin and end between two tokens of an answer."""
    places = st.lists(st.integers(1, max(1, len(answer) - 1)), unique=True, max_size=4).map(sorted)
    return places.map(lambda found: found[: len(found) // 2 * 2] if len(answer) > 2 else [])


rows_with_gaps = st.lists(
    st.tuples(sides, sides).flatmap(
        lambda pair: st.tuples(st.just(pair), st.tuples(gaps_in(pair[0][1]), gaps_in(pair[1][1])))
    ),
    min_size=1,
    max_size=4,
)


def row(number, prompt, chosen, rejected, gaps=((), ())):
    return {
        "chosen_gaps": [len(prompt) + place for place in gaps[0]],
        "rejected_gaps": [len(prompt) + place for place in gaps[1]],
        "row": number,
        "chosen_input_ids": prompt + chosen,
        "chosen_prompt_tokens": len(prompt),
        "chosen_end": len(prompt) + len(chosen),
        "rejected_input_ids": [*prompt, *rejected, 5, 6],  # text after the end of the turn
        "rejected_prompt_tokens": len(prompt),
        "rejected_end": len(prompt) + len(rejected),
    }


def reference(model, ids, prompt_tokens, gaps=()):
    """log p of each token but the first and those in gaps, and those of the response."""
    logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    targets = [t for t in range(1, len(ids)) if not any(a <= t < b for a, b in zip(gaps[::2], gaps[1::2], strict=True))]
    per_token = torch.stack([logp[t - 1, ids[t]] for t in targets])
    return per_token, per_token[[t >= prompt_tokens for t in targets]]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("nll_on", ["sequence", "response"])
@settings(max_examples=12)
@given(pairs=rows_with_gaps)
def test_values_and_gradients_equal_one_sequence_at_a_time(name, nll_on, pairs):
    model, tolerance = MODELS[name]
    rows = [row(i, *pair[0], pair[1][1], gaps) for i, (pair, gaps) in enumerate(pairs)]
    batch = PairCollator(pad_token_id=257)([trl_features(r) for r in rows])
    logps = pair_logps(model, batch, pad_token_id=257, nll_on=nll_on)
    expected = []
    for r in rows:
        chosen, response = reference(model, r["chosen_input_ids"], r["chosen_prompt_tokens"], r["chosen_gaps"])
        ids = r["rejected_input_ids"][: r["rejected_end"]]
        rejected = reference(model, ids, r["rejected_prompt_tokens"], r["rejected_gaps"])[1]
        nll = -(chosen if nll_on == "sequence" else response)
        expected.append((nll.sum(), response.mean(), rejected.mean()))
        assert logps.nll_tokens_B[r["row"]] == len(nll)
        assert logps.chosen_tokens_B[r["row"]] == len(response)
        for place, tokens in ((r["row"], response), (r["row"] + len(rows), rejected)):
            found = logps.response_logp_SL[place]
            torch.testing.assert_close(found[: len(tokens)], tokens, rtol=tolerance, atol=tolerance)
            assert not found[len(tokens) :].any()
    got = torch.stack([logps.nll_sum_B, logps.logp_chosen_B, logps.logp_rejected_B])
    wanted = torch.stack([torch.stack(values) for values in zip(*expected, strict=True)])
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    weights = torch.arange(1, got.numel() + 1, dtype=got.dtype).reshape(got.shape)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((got * weights).sum(), parameters)
    plain = torch.autograd.grad((wanted * weights).sum(), parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=10 * tolerance)


def test_the_head_computes_only_where_a_target_is_predicted():
    model = tiny_model()
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    rows = [row(0, [1, 2, 3], [4, 5], [6]), row(1, [1], [2], [3, 4, 5])]
    pair_logps(model, PairCollator(0)([trl_features(r) for r in rows]), pad_token_id=0)
    assert seen == [torch.Size([4 + 1 + 1 + 3, 264])]  # chosen: all but the first token; rejected: the response


def test_a_confident_bf16_model_keeps_its_log_probabilities():
    """The log-softmax of bf16 logits taken in bf16 would round these to exactly 0."""
    model = tiny_model(dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 20
    r = row(0, [1, 2], [3], [4])
    with torch.no_grad():
        logits = model(torch.tensor([r["chosen_input_ids"]])).logits[0, 1]
    r["chosen_input_ids"][2] = int(logits.argmax())
    logps = pair_logps(model, PairCollator(0)([trl_features(r)]), pad_token_id=0)
    assert logps.logp_chosen_B.dtype == torch.float32
    expected = logits.double().log_softmax(-1).max().item()
    assert logps.logp_chosen_B.item() == pytest.approx(expected, rel=0.1)
    assert logps.logp_chosen_B.item() < 0
