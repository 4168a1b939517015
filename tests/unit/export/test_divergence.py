"""The distance between two models on the built-in texts, against values by hand."""

import math

import pytest
import torch

from oddsmith.export.divergence import TEXTS, divergence, logits_of, text_ids
from tests.tiny import tiny_model, tiny_tokenizer


def test_values_by_hand():
    reference = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    other = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log() + 3.0  # logits are free up to a constant
    found = divergence([reference], [other], [[0, 1]])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert (found.tokens, found.same_top) == (2, 0.5)
    assert found.kl == pytest.approx(first / 2)
    assert found.kl_max == pytest.approx(first)
    assert (found.perplexity, found.perplexity_other) == (pytest.approx(2), pytest.approx(4 / 3))


def test_a_model_is_as_itself_and_another_is_not():
    ids = text_ids(tiny_tokenizer())
    assert len(ids) == len(TEXTS)
    reference = logits_of(tiny_model(), ids)
    same, other = (divergence(reference, logits_of(tiny_model(seed=seed), ids), ids) for seed in (0, 1))
    assert (same.kl, same.kl_max, same.same_top) == (0, 0, 1)
    assert same.perplexity == same.perplexity_other
    assert other.kl > 0.1


def test_a_padded_vocabulary_is_cut_and_a_function_will_do():
    ids = text_ids(tiny_tokenizer())
    reference = logits_of(tiny_model(), ids)
    padded = iter([torch.nn.functional.pad(logits, (0, 8), value=50.0) for logits in reference])
    assert divergence(reference, lambda text: next(padded), ids).kl == 0


def test_logits_that_are_not_finite_show():
    broken = torch.tensor([[math.nan, 0.0], [0.0, 0.0]])
    assert math.isnan(divergence([torch.zeros(2, 2)], [broken], [[0, 1]]).kl)
    impossible = torch.tensor([[-math.inf, 0.0], [0.0, 0.0]])
    assert divergence([impossible], [impossible], [[1, 1]]).kl == 0
    assert divergence([torch.zeros(2, 2)], [impossible], [[0, 1]]).kl == math.inf
