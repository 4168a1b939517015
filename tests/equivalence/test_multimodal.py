"""Models that read images or sound as well, trained on text: packed = padded = plain, and nothing else is touched."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.model.adapters import add_adapter
from oddsmith.model.logprobs.padded import pair_logps
from oddsmith.model.logprobs.self_check import check_forest
from oddsmith.model.text_part import outside_parameters, outside_text, pattern_of
from tests.equivalence.test_forest import assert_same, both_paths, rows_of
from tests.tiny import tiny_tokenizer
from tests.tiny_multimodal import multimodal_model

FAST = ["qwen3_vl", "qwen2_5_vl", "mistral3", "gemma3", "paligemma", "mllama", "idefics3", "cohere2_vision"]
PAIRS = [
    ([3, 4, 5, 9], [6, 7, 8], [9, 3]),
    ([3, 4, 5, 9, 11], [6, 7, 8, 8, 8], [9, 3, 4]),
    ([5, 6], [7, 8, 9], [7, 8, 1]),
]


def plain_logps(model, ids: list[int]) -> torch.Tensor:
    """Compute log p of each token after the first, of one sequence, one token longer each time: nothing leaks back."""
    found = []
    for end in range(1, len(ids)):
        before = torch.tensor([ids[:end]])
        kinds = {"token_type_ids": torch.ones_like(before)} if model.config.model_type == "paligemma" else {}
        logits = model(input_ids=before, attention_mask=torch.ones_like(before), **kinds).logits[0, -1]
        found.append(logits.float().log_softmax(-1)[ids[end]])
    return torch.stack(found)


@pytest.mark.parametrize("kind", FAST)
def test_pairs_are_packed_and_equal_padded_and_plain_ones(kind):
    model = multimodal_model(kind).eval()
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    assert verdict.forest, verdict.reason
    rows = rows_of(PAIRS)
    packed, padded = both_paths(model, rows)
    assert_same(packed, padded, 1e-5)
    for side, found in (("chosen", packed[0].logp_chosen_B), ("rejected", packed[0].logp_rejected_B)):
        for row, logp in zip(rows, found, strict=True):
            with torch.no_grad():
                plain = plain_logps(model, row[f"{side}_input_ids"])[row[f"{side}_prompt_tokens"] - 1 :].mean()
            torch.testing.assert_close(logp, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", FAST)
def test_text_reaches_all_weights_but_those_outside_in_training_mode(kind):
    model = multimodal_model(kind).train()
    logps = pair_logps(model, PairCollator(0)([trl_features(row) for row in rows_of(PAIRS)]), pad_token_id=0)
    (logps.nll_sum_B.sum() + logps.logp_rejected_B.sum()).backward()
    outside = {name for name, _ in outside_parameters(model)}
    assert outside
    assert outside == {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(k_proj|o_proj)"], ids=str)
def test_an_adapter_stays_in_the_text_part(kind, targets):
    model = multimodal_model(kind)
    outside = pattern_of(outside_text(model))
    adapted = add_adapter(model, LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    ids = torch.tensor([[3, 4, 5, 6]])
    adapted.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.logsumexp(-1).sum().backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("q_proj" in name or "k_proj" in name for name in trained)
    assert adapted.peft_config["default"].exclude_modules == outside
