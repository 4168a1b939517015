"""Answers that are drawn with a seed of their own: the right probabilities, and nothing of the neighbours."""

import pytest
import torch

from oddsmith.model import sampling
from oddsmith.model.generation import replies
from oddsmith.model.sampling import OwnDraws
from tests.tiny import tiny_model, tiny_tokenizer

ROWS = 4000
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -2.0])


def drawn(logits: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0, rows: int = ROWS) -> torch.Tensor:
    """The share of rows that draw each token."""
    draws = OwnDraws(range(rows), temperature, top_p, max_new_tokens=2)
    scores = draws(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, -1))
    assert (scores > -torch.inf).sum(1).eq(1).all()
    return scores.argmax(1).bincount(minlength=len(logits)) / rows


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    expected = (LOGITS / temperature).softmax(0)
    assert (drawn(LOGITS, temperature) - expected).abs().max() < 4 * (0.25 / ROWS) ** 0.5


def test_top_p_draws_from_the_likeliest_that_make_it_full():
    expected = LOGITS.softmax(0)  # 0.63, 0.23, 0.09, ...: the first two have 0.87 together
    kept = torch.tensor([expected[0], 0, 0, 0, expected[4], 0])
    assert (drawn(LOGITS, top_p=0.8) - kept / kept.sum()).abs().max() < 4 * (0.25 / ROWS) ** 0.5
    assert drawn(LOGITS, top_p=0.6)[4] == 1


def test_a_flat_vocabulary_is_looked_at_as_a_whole(monkeypatch):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = drawn(logits, top_p=0.9, rows=200)
    monkeypatch.setattr(sampling, "FIRST_LOOK", 5000)
    assert torch.equal(found, drawn(logits, top_p=0.9, rows=200))
    assert (found > 0).sum() > 150


def test_an_answer_depends_on_its_seed_alone():
    model, tokenizer = tiny_model(seed=3), tiny_tokenizer()
    prompts = [tokenizer(text).input_ids for text in ("Hi", "How are you today?", "Why", "Hi")]
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    seeds = [11, 22, 33, 44]
    alone = [replies(model, tokenizer, [p], seeds=[s], **options)[0] for p, s in zip(prompts, seeds, strict=True)]
    together = replies(model, tokenizer, prompts, seeds=seeds, **options)
    backwards = replies(model, tokenizer, prompts[::-1], seeds=seeds[::-1], batch_size=3, **options)
    assert together == alone == backwards[::-1]
    assert len({reply.text for reply in alone}) == 4
    assert replies(model, tokenizer, prompts, seeds=[1, 2, 3, 4], **options) != alone
