"""The trainer against TRL 1.16 as an oracle: same model, same rows, one micro-batch a step, float32."""

import pytest
import torch
from datasets import Dataset
from trl.experimental.orpo import ORPOConfig as TRLConfig
from trl.experimental.orpo import ORPOTrainer as TRLTrainer

from oddsmith import ORPOConfig, ORPOTrainer
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import PLAIN

SHARED = (
    "loss", "grad_norm", "learning_rate", "nll_loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies",
    "rewards/margins", "logps/chosen", "logps/rejected", "log_odds_chosen", "log_odds_ratio",
)  # fmt: skip


def arguments(tmp_path, **more):
    settings = {"per_device_train_batch_size": 3, "max_steps": 10, "learning_rate": 1e-3, "beta": 0.25}
    order = {"train_sampling_strategy": "sequential", "gradient_checkpointing": False}
    return {**PLAIN, "output_dir": str(tmp_path), **settings, **order, **more}


def history(trainer):
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_ten_steps_agree_in_every_shared_metric_and_the_gradient_norm(tmp_path):
    rows = Dataset.from_list(ragged_pairs(30, seed=3))
    common = {"train_dataset": rows, "processing_class": tiny_tokenizer(pad="<|pad|>")}
    theirs = history(TRLTrainer(tiny_model(vocab_size=272), args=TRLConfig(**arguments(tmp_path / "trl")), **common))
    ours = history(ORPOTrainer(tiny_model(vocab_size=272), args=ORPOConfig(**arguments(tmp_path / "ours")), **common))
    assert len(ours) == len(theirs) == 10
    for our_step, their_step in zip(ours, theirs, strict=True):
        for name in SHARED:
            # A difference of two float32 numbers near 1 is only known to about 1e-7.
            least = 1e-6 if name in ("rewards/margins", "log_odds_chosen") else 1e-7
            assert our_step[name] == pytest.approx(their_step[name], rel=1e-5, abs=least), (our_step["step"], name)


def test_evaluation_agrees_with_trl_when_its_set_is_one_batch(tmp_path):
    rows = Dataset.from_list(ragged_pairs(6, seed=4))
    tokenizer = tiny_tokenizer(pad="<|pad|>")
    common = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer}
    batch = {"per_device_eval_batch_size": 6}
    theirs = TRLTrainer(tiny_model(vocab_size=272), args=TRLConfig(**arguments(tmp_path, **batch)), **common)
    ours = ORPOTrainer(tiny_model(vocab_size=272), args=ORPOConfig(**arguments(tmp_path, **batch)), **common)
    theirs.evaluate()
    expected = theirs.state.log_history[-1]  # TRL adds its metrics to the log, not to what evaluate returns
    got = ours.evaluate()
    for name in SHARED:
        if f"eval_{name}" in expected:
            assert got[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-5, abs=1e-7), name
    assert {"eval_loss", "eval_rewards/margins", "eval_nll_loss"} <= set(expected)


def test_trl_is_wrong_where_we_are_right_a_certain_response_has_a_finite_gradient():
    from trl.experimental.orpo.orpo_trainer import log1mexp as their_log1mexp

    from oddsmith.loss import log1mexp

    x = torch.tensor([-1e-8], requires_grad=True)
    their_log1mexp(x).sum().backward()
    assert not x.grad.isfinite().all()
    x.grad = None
    log1mexp(x).sum().backward()
    assert x.grad.isfinite().all()
