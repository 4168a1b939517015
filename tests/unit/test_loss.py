"""The loss: the contract's table of values and gradients, its numerics, and that shares of a step add up."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.loss import LOGP_MAX, log1mexp, odds_ratio_loss, orpo_loss

# (logp_w, logp_l), L_OR, dL/dlogp_w, dL/dlogp_l; derived by hand from Eqs. 4 and 7.
TABLE = [
    ((-3.0, -3.0), 0.6931472, -0.526198, 0.526198),
    ((-500.0, -1.0), 499.4587, -1.0, 1.58198),
    ((-50.0, -0.1), 52.25217, -1.0, 10.50833),
    ((-1.0, -500.0), 0.0, 0.0, 0.0),
    ((-1e-4, -2.0), 1.565243e-5, -0.156531, 1.81022e-5),
    ((0.0, -1.0), 5.81977e-7, 0.0, 9.2067e-7),
    ((-1.0, 0.0), 14.35684, -1.58198, 0.0),
    ((0.0, 0.0), 0.6931472, 0.0, 0.0),
]
FLOATS = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("logps", "loss", "grad_chosen", "grad_rejected"), TABLE)
def test_odds_ratio_loss_and_its_gradients_match_the_table(logps, loss, grad_chosen, grad_rejected, dtype):
    chosen, rejected = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in logps)
    got = odds_ratio_loss(chosen, rejected)
    got.sum().backward()
    assert got.dtype == dtype
    assert got.item() == pytest.approx(loss, rel=2e-5, abs=1e-12)
    assert chosen.grad.item() == pytest.approx(grad_chosen, rel=2e-5, abs=1e-12)
    assert rejected.grad.item() == pytest.approx(grad_rejected, rel=2e-5, abs=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1mexp_values(dtype):
    x = torch.tensor([-1e-10, -1e-4, -math.log(2), -1.0, -20.0, -math.inf], dtype=dtype)
    expected = [-23.02585092, -9.21039037, -0.69314718, -0.45867515, -2.0611536e-9, 0.0]
    for found, value in zip(log1mexp(x).tolist(), expected, strict=True):
        assert found == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1mexp_is_clamped_from_zero_upwards(dtype):
    clamped = log1mexp(torch.tensor(LOGP_MAX, dtype=dtype))
    assert torch.equal(log1mexp(torch.tensor([0.0, 0.5, 3.0], dtype=dtype)), clamped.repeat(3))


@pytest.mark.parametrize("dtype", FLOATS)
def test_log1mexp_gradient_is_finite_and_bounded_everywhere(dtype):
    x = torch.tensor([-math.inf, -800, -20, -1, -0.5, -1e-4, -1e-6, -1e-8, -1e-10, 0, 0.1], dtype=dtype)
    x.requires_grad_()
    log1mexp(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() <= 1e6
    assert x.grad[0] == 0
    assert (x.grad[-4:] == 0).all()


@given(st.lists(st.floats(-60, -1e-5), min_size=1, max_size=8), st.lists(st.floats(-60, -1e-5), min_size=8, max_size=8))
def test_float32_agrees_with_float64_and_with_the_formula(chosen, rejected):
    rejected = rejected[: len(chosen)]
    wide = odds_ratio_loss(torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64))
    narrow = odds_ratio_loss(torch.tensor(chosen), torch.tensor(rejected))
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-4, atol=1e-6)
    for chosen_logp, rejected_logp, loss in zip(chosen, rejected, wide.tolist(), strict=True):
        odds = [logp - math.log(-math.expm1(logp)) for logp in (chosen_logp, rejected_logp)]
        log_odds = odds[0] - odds[1]
        expected = math.log1p(math.exp(-log_odds)) if log_odds > -30 else -log_odds
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_gradients_are_right_to_second_differences():
    chosen = torch.tensor([-0.7, -2.0, -11.0, -0.01], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.6, -1.0, -0.3, -7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(odds_ratio_loss, (chosen, rejected))


@given(st.integers(1, 7), st.floats(0, 2), st.integers(0, 1000))
def test_shares_of_a_step_add_up_to_the_step(split, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    nll_B = torch.rand(8, generator=generator, dtype=torch.float64) * 50
    chosen, rejected = (-5 * torch.rand(2, 8, generator=generator, dtype=torch.float64)).unbind()
    whole = orpo_loss(nll_B.sum(), chosen, rejected, beta=beta, num_nll_tokens=321, num_pairs=8)
    shares = [
        orpo_loss(nll_B[part].sum(), chosen[part], rejected[part], beta=beta, num_nll_tokens=321, num_pairs=8)
        for part in (slice(0, split), slice(split, 8))
    ]
    for name in ("loss", "nll", "odds_ratio"):
        torch.testing.assert_close(sum(getattr(share, name) for share in shares), getattr(whole, name))


def test_the_loss_is_a_mean_over_tokens_not_a_mean_of_means():
    # Lengths 10 and 90 with token losses 1 and 3: 2.8, where a mean of means says 2.0.
    certain = torch.tensor([-20.0, -20.0])
    loss = orpo_loss(torch.tensor(10 * 1.0 + 90 * 3.0), certain, certain, beta=0.0, num_nll_tokens=100, num_pairs=2)
    assert loss.loss.item() == pytest.approx(2.8)


def test_a_pair_of_weight_zero_counts_for_nothing():
    logps = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -0.1])
    nll, counts = torch.tensor(5.0), {"beta": 0.5, "num_nll_tokens": 7, "num_pairs": 1}
    with_filler = orpo_loss(nll, *logps, **counts, weight_B=torch.tensor([1.0, 0.0]))
    alone = orpo_loss(nll, logps[0][:1], logps[1][:1], **counts)
    torch.testing.assert_close(with_filler, alone)


@pytest.mark.parametrize("logps", [(math.nan, -1.0), (-1.0, math.nan), (math.nan, math.nan)])
def test_nan_stays_nan(logps):
    """A clamp to a finite value would hide the pair that the NaN came from."""
    chosen, rejected = torch.tensor(logps, dtype=torch.float64)
    assert odds_ratio_loss(chosen, rejected).isnan()
    assert log1mexp(torch.tensor(math.nan)).isnan()
