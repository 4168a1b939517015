"""What a model prefers among pairs, against the formula; which pairs are scored; and what cannot be scored."""

import math

import pytest
import torch

from oddsmith.data.formats import to_pair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.errors import DataError, NonFiniteError
from oddsmith.model.preference import MOST_SURPRISING, model_preference
from oddsmith.model.scoring import score_pairs
from tests.pairs import tokenize
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

ROWS = ragged_pairs(30)


def pair_tokenizer(max_length: int | None = None) -> PairTokenizer:
    return PairTokenizer(tiny_tokenizer(), max_length=max_length)


def reference_log_odds(model, tokens):
    """Log-odds of a pair by its formula, one sequence at a time in float64."""

    def odds(ids, prompt_tokens, end):
        logp = model(torch.tensor([ids[:end]])).logits[0].double().log_softmax(-1)
        mean = sum(logp[t - 1, ids[t]].item() for t in range(prompt_tokens, end)) / (end - prompt_tokens)
        return mean - math.log(1 - math.exp(mean))

    rejected = odds(tokens.rejected_ids, tokens.rejected_prompt_tokens, tokens.rejected_end)
    return odds(tokens.chosen_ids, tokens.chosen_prompt_tokens, tokens.chosen_end) - rejected


def test_the_model_prefers_what_the_formula_says():
    model, tokens = tiny_model(), pair_tokenizer()
    with torch.no_grad():
        expected = [reference_log_odds(model.eval(), tokenize(tokens.tokenizer, to_pair(row))) for row in ROWS]
    counts = []
    found = model_preference(model, tokens, ROWS, total=len(ROWS), on_pairs=counts.append)
    assert (found.pairs, sum(counts)) == (30, 30)
    assert found.log_odds_mean == pytest.approx(sum(expected) / 30, abs=1e-5)
    assert found.accuracy == sum(odds > 0 for odds in expected) / 30
    assert found.or_loss == pytest.approx(sum(math.log1p(math.exp(-odds)) for odds in expected) / 30, abs=1e-5)
    order = sorted(range(30), key=lambda number: expected[number])
    assert [pair.row for pair in found.surprising] == order[:MOST_SURPRISING]
    assert found.surprising[0].chosen == ROWS[order[0]]["chosen"]


def test_pairs_are_scored_once_the_longest_first():
    model = tiny_model().eval()
    pairs = [(10 * number, tokenize(tiny_tokenizer(), to_pair(row))) for number, row in enumerate(ROWS[:7])]
    batches = list(score_pairs(model, pairs, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    scores = [score for batch in batches for score in batch]
    longest_first = sorted(pairs, key=lambda item: -item[1].longest_tokens)
    assert [score.row for score in scores] == [row for row, _ in longest_first]
    with torch.no_grad():
        expected = [reference_log_odds(model, pair) for _, pair in longest_first]
    assert [score.log_odds for score in scores] == pytest.approx(expected, abs=1e-5)


def test_a_sample_is_spread_over_the_rows_that_stay():
    found = model_preference(tiny_model(), pair_tokenizer(), ROWS, total=30, left_out={0, 29}, most_pairs=4)
    assert sorted(pair.row for pair in found.surprising) == [1, 10, 19, 28]


def test_nothing_to_score_and_nothing_finite_are_errors():
    with pytest.raises(DataError, match="no pair is left"):
        model_preference(tiny_model(), pair_tokenizer(max_length=2), ROWS, total=30)
    broken = tiny_model()
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    with pytest.raises(NonFiniteError, match="no finite log-probabilities for the rows"):
        model_preference(broken, pair_tokenizer(), ROWS, total=30)
