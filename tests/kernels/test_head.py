"""The head's kernel against its reference in torch, by Triton's interpreter; alone, and in heads of all kinds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.utils import TrainableTokensWrapper

pytest.importorskip("triton", reason="Triton is there on Linux alone")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy, which warns of infinity

from oddsmith.model.logprobs import head as heads
from oddsmith.model.logprobs.kernels import head as softmax
from oddsmith.model.logprobs.kernels import head_triton
from oddsmith.model.logprobs.output_transform import OutputTransform
from tests.equivalence.test_head import OTHER_HEADS, Case, Holder, assert_equal, linear

from .interpreter import interpreted

LARGEST = {torch.float32: 3.4e38, torch.float16: 65504.0}
transforms = st.builds(OutputTransform, st.sampled_from([1.0, 0.3, 4.0]), st.sampled_from([None, 2.0, 30.0]))


def both(z, target, transform):
    """(log-probabilities, residuals) of the kernel and of the reference; the kernel writes in place."""
    expected = torch.empty_like(z)
    logp = softmax.target_logps_reference(z, target, *transform, expected)
    found = z.clone()
    with interpreted():
        alone = head_triton.target_logps(z, target, *transform, None)
        result = head_triton.target_logps(found, target, *transform, found)
    assert torch.equal(alone.nan_to_num(9), result.nan_to_num(9))
    return (result, found), (logp, expected)


def assert_near(ours, theirs, *, logit=30.0):
    """Log-probabilities within roundings of float32 of the largest logit, residuals within one of their dtype."""
    (logp, residual), (expected_logp, expected) = ours, theirs
    assert (logp.dtype, residual.dtype) == (torch.float32, expected.dtype)
    torch.testing.assert_close(logp, expected_logp, rtol=1e-6, atol=3e-7 * logit, equal_nan=True)
    # A probability of 2e-7 may be rounded to a neighbour in float16, whose numbers are 6e-8 apart there.
    torch.testing.assert_close(
        residual, expected, rtol=2 * torch.finfo(residual.dtype).eps + 5e-6, atol=1.3e-7, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@settings(max_examples=15)
@given(
    rows=st.integers(1, 4),
    vocabulary=st.one_of(st.integers(1, 600), st.sampled_from([4095, 4096, 4097, 8192, 9001])),
    spread=st.sampled_from([0.1, 3.0, 8.0]),
    transform=transforms,
    seed=st.integers(0, 2**31),
)
def test_the_kernel_equals_the_reference(dtype, rows, vocabulary, spread, transform, seed):
    generator = torch.Generator().manual_seed(seed)
    z = (torch.randn(rows, vocabulary, generator=generator) * spread).to(dtype)
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    assert_near(*both(z, target, transform), logit=30 + 6 * spread * transform.scale)


@pytest.mark.parametrize("transform", [OutputTransform(), OutputTransform(2.0, 30.0)], ids=["plain", "soft cap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_nan_and_infinity_stay_their_own(dtype, transform):
    """Also a target of probability 0, a row of -inf, and the largest numbers that there are."""
    z = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.full((9,), 4999)
    z[1] = float("nan")
    z[2, 17] = float("nan")
    z[3, 4998] = float("inf")
    z[4] = float("-inf")
    z[5, 4999] = float("-inf")
    z[6, :4990] = float("-inf")
    z[7] = -LARGEST[dtype]
    z[7, 3] = LARGEST[dtype]
    ours, theirs = both(z, target, transform)
    assert_near(ours, theirs, logit=300)
    affected = ours[1].isnan().any(1).tolist()
    assert affected == [row in ((1, 2) if transform.soft_cap else (1, 2, 3, 4)) for row in range(9)]


def test_a_target_outside_of_the_vocabulary_gives_nan_and_reads_nothing():
    z = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    with interpreted():
        logp = head_triton.target_logps(z, torch.tensor([50, -100, 49]), 1.0, None, None)
    assert logp.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("margin", [1.0, 5.0, 10.0, 14.0, 80.0])
def test_a_confident_token_keeps_its_log_probability_and_gradient(margin):
    """At 14 the log-probability is -8e-7; a logit of 30 minus a logsumexp near 30 would give 0 or -2e-6."""
    z = torch.tensor([[30.0, 30.0 - margin]])
    with interpreted():
        logp = head_triton.target_logps(z, torch.tensor([0]), 1.0, None, z)
    rest = math.exp(-margin) / (1 + math.exp(-margin))
    assert logp.item() == pytest.approx(math.log1p(-rest), rel=1e-5, abs=1.2e-7)
    assert z[0].tolist() == pytest.approx([-rest, rest], rel=1e-5, abs=1.2e-7)


def test_rows_that_lie_apart():
    wide = torch.randn(3, 70, generator=torch.Generator().manual_seed(0))
    z, before = wide[:, :50], wide.clone()
    expected = z.clone()
    target = torch.tensor([0, 3, 49])
    softmax.target_logps_reference(expected, target, 1.0, None, expected)
    with interpreted():
        head_triton.target_logps(z, target, 1.0, None, z)
    torch.testing.assert_close(z, expected)
    assert torch.equal(wide[:, 50:], before[:, 50:])


def test_outputs_whose_rows_lie_side_by_side(monkeypatch):
    """As of a head that returns a transposed product; the kernel writes rows."""
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).t()
    target, expected = torch.tensor([0, 3, 49]), torch.empty(3, 50)
    logp = softmax.target_logps_reference(z, target, 1.0, None, expected)
    monkeypatch.setattr(softmax, "target_logps", head_triton.target_logps)
    with interpreted():
        ours = softmax.logps_and_residuals(z, target, OutputTransform(), residuals=True, overwrite=False)
    assert_near(ours, (logp, expected))


def rows_trained():
    wrapper = TrainableTokensWrapper(linear(8, 50, bias=False), "default", token_indices=[2, 5, 49])
    with torch.no_grad():
        wrapper.token_adapter.trainable_tokens_delta["default"].add_(1.0)
    return wrapper


KINDS = OTHER_HEADS | {
    "frozen": lambda: linear(8, 50),
    "trained": lambda: linear(8, 50, trainable=("weight", "bias")),
    "trained rows": rows_trained,
    "modules_to_save": lambda: (
        get_peft_model(
            Holder(linear(8, 50)), LoraConfig(target_modules=["other"], modules_to_save=["lm_head"])
        ).base_model.model.lm_head
    ),
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The kernel, rows of logits that lie apart, and the gradient of entries, on CPU tensors."""
    monkeypatch.setattr(softmax, "target_logps", head_triton.target_logps)
    monkeypatch.setattr(heads, "_padded", lambda vocabulary, device: vocabulary + 14)
    monkeypatch.setattr(heads, "_rows_of_entries", heads._EntryRows.apply)
    with interpreted():
        yield


@pytest.mark.parametrize("budget_rows", [8, 1000])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_all_kinds_of_heads(name, budget_rows, as_on_a_gpu):
    head, case = KINDS[name](), Case(12, 18, 8, 50)
    case.position_E[:5] = 0  # a branch point of several pairs
    options = {"transform": OutputTransform(2.0, 3.0)}
    ours = case.run(heads.token_logps, head, budget_bytes=budget_rows * 50 * 4, **options)
    assert_equal(ours, case.run(heads.token_logps_reference, head, **options), 1e-5)
