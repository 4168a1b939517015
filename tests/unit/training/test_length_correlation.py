"""``eval_length_correlation``: how far a pair's margin follows from the lengths of its answers."""

import numpy as np
import pytest
import torch

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.training.meter import MIN_CORRELATED_PAIRS, length_correlation
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

COUNT = 10


def lengths(chosen: list[int], rejected: list[int], prompt: int = 7) -> dict[str, list[int]]:
    """Columns of pairs with responses of these lengths."""
    return {
        "chosen_end": [prompt + tokens for tokens in chosen],
        "chosen_prompt_tokens": [prompt] * len(chosen),
        "rejected_end": [prompt + tokens for tokens in rejected],
        "rejected_prompt_tokens": [prompt] * len(rejected),
    }


def test_a_margin_that_is_the_length_gap_correlates_fully():
    gaps = list(range(COUNT))
    rows = lengths([20 + gap for gap in gaps], [20] * COUNT)
    logps = torch.stack([torch.tensor(gaps) * 0.1 - 3, torch.full((COUNT,), -3.0)], dim=1)
    assert length_correlation(rows, logps) == pytest.approx(1.0)
    assert length_correlation(rows, logps.flip(1)) == pytest.approx(-1.0)


def test_constants_and_few_pairs_have_no_correlation():
    flat = torch.zeros(COUNT, 2)
    assert length_correlation(lengths([5] * COUNT, [5] * COUNT), torch.rand(COUNT, 2)) is None
    assert length_correlation(lengths(list(range(1, COUNT + 1)), [5] * COUNT), flat) is None
    few = MIN_CORRELATED_PAIRS - 1
    assert length_correlation(lengths(list(range(1, few + 1)), [5] * few), torch.rand(few, 2)) is None


def test_an_evaluation_reports_it_over_responses_alone(tmp_path):
    trainer = ORPOTrainer(
        tiny_model(),
        args=ORPOConfig(
            output_dir=str(tmp_path), max_length=128, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        eval_dataset=ragged_pairs(12),
        processing_class=tiny_tokenizer(),
    )
    predicted = trainer.predict(trainer.eval_dataset)
    gaps = [
        (row["chosen_end"] - row["chosen_prompt_tokens"]) - (row["rejected_end"] - row["rejected_prompt_tokens"])
        for row in trainer.eval_dataset
    ]
    margins = predicted.predictions[:, 0] - predicted.predictions[:, 1]
    expected = np.corrcoef(gaps, margins)[0, 1]
    assert predicted.metrics["test_length_correlation"] == pytest.approx(expected, rel=1e-6)
