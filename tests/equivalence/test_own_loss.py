"""A loss of one's own (``pair_losses``): the examples of docs/from-trl.md, exact on every path and split of a step.

The reference computes each pair by itself, from all logits, in plain torch.
"""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader

from oddsmith import ORPOTrainer, PairLosses, PairTokens
from oddsmith.batching.collate import IGNORED, PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.errors import ConfigError, NonFiniteError
from oddsmith.loss import odds_ratio_loss, pair_log_odds
from oddsmith.model.logprobs.packed import forest_tokens
from oddsmith.model.logprobs.padded import padded_tokens
from oddsmith.model.logprobs.paths import PaddedPath
from oddsmith.training.own_loss import OwnLoss
from oddsmith.training.step import with_counts
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

PAGE = Path(__file__).parents[2] / "docs" / "from-trl.md"
PAIRS = 9
MASKED = (*b"e ", 257)  # a letter, the space and the end token


def documented() -> dict[str, type[ORPOTrainer]]:
    """The classes of the page's examples."""
    section = re.search(r"^## A loss of your own$(.*?)^## ", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)[1]
    names: dict = {}
    for code in re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        exec(code, names)
    return {name: kind for name, kind in names.items() if isinstance(kind, type) and issubclass(kind, ORPOTrainer)}


EXAMPLES = documented()
TokenMask = type("TokenMask", (EXAMPLES["TokenMask"],), {"masked_ids": MASKED})
Margin, LengthNormalised = EXAMPLES["Margin"], EXAMPLES["LengthNormalised"]


class AsOurs(ORPOTrainer):
    def pair_losses(self, pairs):
        assert self.model.training
        return super().pair_losses(pairs)._replace(nll=pairs.nll.where(pairs.nll.ids_BL >= 0))  # all


def train(folder, kind=ORPOTrainer, model=None, rows=None, **more):
    """One step of gradient descent over all pairs with a learning rate of 1: weights before minus after = gradient."""
    rows = Dataset.from_list(ragged_pairs(PAIRS, seed=4)) if rows is None else rows
    settings = {
        "per_device_train_batch_size": PAIRS, "per_device_eval_batch_size": 2, "max_length": 128, "max_steps": 1,
        "prefix_forest": False,
        "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "beta": 0.5,
    }  # fmt: skip
    trainer = make_trainer(folder, model or tiny_model(), rows, rows, kind=kind, **{**settings, **more})
    trainer.train()
    return trainer


def log_of(trainer) -> dict[str, float]:
    return trainer.state.log_history[0]


class Outcome(NamedTuple):
    """A trainer after its step, and its weights then."""

    kind: type[ORPOTrainer]
    trainer: ORPOTrainer
    weights: list[torch.Tensor]


def outcome(kind, trainer) -> Outcome:
    return Outcome(kind, trainer, [weight.detach().clone() for weight in trainer.model.parameters()])


def assert_same(trainer, expected: Outcome) -> None:
    for (name, weight), other in zip(trainer.model.named_parameters(), expected.weights, strict=True):
        torch.testing.assert_close(weight.detach(), other, rtol=1e-5, atol=1e-5, msg=name)
    values, others = log_of(trainer), log_of(expected.trainer)
    for name in {"loss", "nll_loss", "grad_norm", "or_loss", "pair_loss", "beyond_margin"} & others.keys():
        assert values[name] == pytest.approx(others[name], rel=1e-5), name


# ---- The reference


def reference(kind, model, rows) -> torch.Tensor:
    """The loss of a step over tokenized rows."""

    def logps(row, side):
        ids = torch.tensor(row[f"{side}_input_ids"][: row[f"{side}_end"]])
        logp_T = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        return ids[1:], logp_T, row[f"{side}_prompt_tokens"] - 1

    def kept(ids, logp):
        return logp[[int(token) not in MASKED for token in ids]] if kind is TokenMask else logp

    def normalised(logp):
        return logp.sum() / len(logp) ** 0.9 if kind is LengthNormalised else logp.mean()

    nll, preferences = [], []
    for row in rows:
        (ids_w, logp_w, start_w), (ids_l, logp_l, start_l) = logps(row, "chosen"), logps(row, "rejected")
        nll.append(-kept(ids_w, logp_w))
        chosen, rejected = (
            normalised(kept(ids_w[start_w:], logp_w[start_w:])),
            normalised(kept(ids_l[start_l:], logp_l[start_l:])),
        )
        log_odds = pair_log_odds(chosen, rejected)
        preferences.append(-F.logsigmoid(log_odds - (0.5 if kind is Margin else 0)))
    over_tokens = torch.stack([one.mean() for one in nll]).mean() if kind is LengthNormalised else torch.cat(nll).mean()
    return over_tokens + 0.5 * torch.stack(preferences).mean()


SPLITS = {
    "padded, 3 x 3": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
    "packed": {"prefix_forest": True, "max_tokens_per_microbatch": None},
    "packed, 50 tokens": {"prefix_forest": True, "max_tokens_per_microbatch": 50},
    "packed, 3 x 3": {
        "prefix_forest": True, "max_tokens_per_microbatch": None, "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=[TokenMask, Margin, LengthNormalised], ids=lambda kind: kind.__name__)
def whole(request, tmp_path_factory):
    """All pairs in one padded batch."""
    return outcome(request.param, train(tmp_path_factory.mktemp("whole"), request.param))


def test_the_page_has_the_examples():
    assert list(EXAMPLES) == ["ORPOTrainer", "TokenMask", "Margin", "LengthNormalised"]


def test_value_and_gradient_are_those_of_the_reference(whole):
    model = tiny_model()
    loss = reference(whole.kind, model, whole.trainer.train_dataset)
    loss.backward()
    assert log_of(whole.trainer)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for (name, weight), after in zip(model.named_parameters(), whole.weights, strict=True):
        torch.testing.assert_close(weight.detach() - weight.grad, after, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "split",
    [split if split == "packed, 50 tokens" else pytest.param(split, marks=pytest.mark.slow) for split in SPLITS],
)
def test_splits_and_paths_give_the_same(whole, split, tmp_path):
    trainer = train(tmp_path, whole.kind, **SPLITS[split])
    assert trainer.path.name == ("prefix forest" if "prefix_forest" in SPLITS[split] else "padded batches")
    assert_same(trainer, whole)


def test_an_evaluation_averages_over_its_set_on_both_paths(whole):
    trainer = whole.trainer
    trainer.model.load_state_dict(tiny_model().state_dict())
    metrics = trainer.evaluate()
    with torch.no_grad():
        loss = reference(whole.kind, trainer.model, trainer.eval_dataset).item()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_nll_loss"] + metrics["eval_pair_loss"])
    pairs = trainer.evaluation_meter.pairs(lambda found: found)
    assert pairs.own_P.mean().item() == pytest.approx(metrics["eval_pair_loss"], rel=1e-5)
    assert torch.equal(pairs.losses(beta=9.0), pairs.nll_P + pairs.own_P)
    trainer.args.prefix_forest = True
    trainer.stepper.forget_path()
    packed = trainer.evaluate()
    assert trainer.path.name == "prefix forest"
    for name in ("eval_loss", "eval_pair_loss", "eval_nll_loss"):
        assert packed[name] == pytest.approx(metrics[name], rel=1e-5)


def test_ours_written_as_one_s_own_is_ours(tmp_path):
    plain = train(tmp_path / "plain")
    own = train(tmp_path / "own", AsOurs)
    for name in ("loss", "grad_norm", "nll_loss", "rewards/margins"):
        assert log_of(own)[name] == pytest.approx(log_of(plain)[name], rel=1e-6), name
    assert log_of(own)["pair_loss"] == pytest.approx(0.5 * log_of(plain)["or_loss"], rel=1e-6)
    assert "pair_loss" not in log_of(plain)


@pytest.mark.parametrize("nll_on", ["sequence", "response"])
def test_both_paths_give_the_same_tokens(nll_on):
    prompt, answers = [5, 6, 7], ([8, 9, 2], [8, 2], [8, 9, 9, 9, 2])
    rows = [
        {
            "chosen_input_ids": prompt + chosen, "rejected_input_ids": prompt + rejected,
            "chosen_prompt_tokens": 3, "rejected_prompt_tokens": 3,
            "chosen_end": 3 + len(chosen), "rejected_end": 3 + len(rejected),
        }
        for chosen, rejected in (answers[:2], (answers[2], answers[0]))
    ]  # fmt: skip
    packed = forest_tokens(forest_batch(rows, nll_on), None)
    padded = padded_tokens(
        PairCollator(0)([trl_features(row) for row in rows]), None, nll_on=nll_on, is_encoder_decoder=False
    )
    for ours, plain in zip(packed[:3], padded[:3], strict=True):
        assert torch.equal(ours.ids_BL, plain.ids_BL[:, : ours.ids_BL.shape[1]])
        assert (plain.ids_BL[:, ours.ids_BL.shape[1] :] == IGNORED).all()
        assert torch.equal(ours.count_B, plain.count_B)
    assert padded.chosen.count_B.tolist() == [3, 5]
    assert padded.nll.ids_BL[0][:5].tolist() == ([6, 7, 8, 9, 2] if nll_on == "sequence" else [8, 9, 2, -100, -100])


def returning(what: str, pairs: PairTokens):
    """What a loss returns that cannot be exact."""
    loss_B = pairs.chosen.mean_B
    return {
        "a tensor": loss_B,
        "a mean": PairLosses(loss_B.mean()),
        "a number": PairLosses(loss_B, metrics={"mine": 1.0}),
        "other tokens": PairLosses(loss_B, nll=pairs.rejected.logp_BL),
        "likely tokens": PairLosses(loss_B, nll=pairs.nll.where(pairs.nll.logp_BL > -5)),
        "tokens now and then": PairLosses(loss_B, nll=pairs.nll if len(loss_B) > 1 else None),
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a tensor", "pair_losses returned a Tensor; expected oddsmith.PairLosses"),
        ("a mean", r"returned loss_B of shape \(\); expected one of shape \(2,\): a value for each pair, not reduced"),
        ("a number", r"returned mine that is a float; expected one of shape \(2,\)"),
        ("other tokens", "something else as nll than the tokens of its pairs"),
        ("likely tokens", "keeps other tokens in nll than before the step.*choose them by ids_BL"),
        ("tokens now and then", "nll for some micro-batches of a step, and none for others"),
    ],
)
def test_what_would_not_be_exact_is_refused(what, message):
    path = PaddedPath(PairCollator(0), 0, "sequence", is_encoder_decoder=False, router_loss=False)
    own = OwnLoss(
        SimpleNamespace(
            is_overridden=lambda name: True,
            pair_losses=partial(returning, what),
            prepare_inputs=lambda item: item,
            sum_over_processes=lambda tensor: tensor,
            stepper=SimpleNamespace(path_of=lambda batch: path),
            model=tiny_model(),
        )
    )
    row = {"prompt_input_ids": [5, 6], "prompt_attention_mask": [1, 1]}
    for side in ("chosen", "rejected"):
        row |= {
            f"{side}_input_ids": [5, 6, 7, 2],
            f"{side}_attention_mask": [1] * 4,
            f"{side}_labels": [-100] * 2 + [7, 2],
        }
    items = [with_counts(PairCollator(0)([row] * pairs), 3.0, 9.0) for pairs in (2, 1)]

    def step():
        for item in own.counted(items, is_training=True):
            own.applied(path.logps(tiny_model(), item), item, 0.1)
        own.on_pre_optimizer_step(None, None, None)

    with pytest.raises(ConfigError, match=message):
        step()


def test_a_margin_of_each_pair_is_looked_up_by_its_row(tmp_path):
    margins = torch.linspace(-1, 1, PAIRS)
    seen = []

    class OfEachPair(ORPOTrainer):
        def pair_losses(self, pairs):
            seen.append(pairs.row_B)
            log_odds = pair_log_odds(pairs.chosen.mean_B, pairs.rejected.mean_B)
            return PairLosses(-F.logsigmoid(log_odds - margins[pairs.row_B]), metrics={"margin": margins[pairs.row_B]})

    trainer = train(tmp_path, OfEachPair, per_device_train_batch_size=3, gradient_accumulation_steps=3)
    assert sorted(torch.cat(seen[len(seen) // 2 :]).tolist()) == list(range(PAIRS))
    assert log_of(trainer)["margin"] == pytest.approx(0.0, abs=1e-6)


def test_a_pair_without_a_token_left_is_named_and_skipped(tmp_path, caplog):
    class KeepsNone(ORPOTrainer):
        def pair_losses(self, pairs):
            none = pairs.chosen.where((pairs.chosen.ids_BL >= 0) & (pairs.row_B != 3)[:, None])
            return PairLosses(odds_ratio_loss(none.mean_B, pairs.rejected.mean_B))

    model = tiny_model()
    with pytest.raises(NonFiniteError, match="of 1 step none could be made"):
        train(tmp_path, KeepsNone, model=model)
    assert "skipped: log-probabilities are NaN or infinite for dataset row 3" in caplog.text
    assert torch.equal(model.lm_head.weight, tiny_model().lm_head.weight)


def test_a_step_whose_kept_tokens_depend_on_their_likelihood_is_not_made(tmp_path):
    class KeepsLikely(ORPOTrainer):
        def pair_losses(self, pairs):
            return super().pair_losses(pairs)._replace(nll=pairs.nll.where(pairs.nll.logp_BL > -5))

    model = tiny_model()
    with pytest.raises(ConfigError, match="keeps other tokens in nll than before the step"):
        train(tmp_path, KeepsLikely, model=model)
    assert torch.equal(model.lm_head.weight, tiny_model().lm_head.weight)


class OwnLoader(TokenMask):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=3, collate_fn=self.data_collator)


def test_targets_that_a_loss_or_a_collator_masks_are_counted_over_the_step(tmp_path):
    class Masking(PairCollator):
        def __call__(self, features):
            batch = super().__call__(features)
            for side in ("chosen", "rejected"):
                labels = batch[f"{side}_labels"]
                labels[torch.isin(labels, torch.tensor(MASKED))] = IGNORED
            return batch

    settings = {"data_collator": Masking(0), "nll_on": "response"}
    together = train(tmp_path / "together", **settings)
    apart = train(tmp_path / "apart", **settings, per_device_train_batch_size=3, gradient_accumulation_steps=3)
    assert_same(apart, outcome(ORPOTrainer, together))
    masked = train(tmp_path / "masked", OwnLoader, nll_on="response", gradient_accumulation_steps=3)
    for name in ("loss", "nll_loss", "grad_norm"):
        assert log_of(together)[name] == pytest.approx(log_of(masked)[name], rel=1e-5), name
