"""A step's result does not depend on packing, nor on how its pairs are split over micro-batches and processes."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config

from oddsmith import ORPOTrainer
from oddsmith.model.logprobs import token_budget as memory
from tests.command import run_two_processes
from tests.pairs import assistant, user
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

PAIRS = 37  # five steps of 8 leave a short last step of 5; an odd number, so two processes never divide it evenly


class Outcome(NamedTuple):
    """What training and a final evaluation left."""

    weights: dict[str, torch.Tensor]
    logs: list[dict[str, float]]
    evaluation: dict[str, float]
    max_tokens: int | None


def float64_model():
    """GPT-2 computes its norms in the dtype of its weights; Llama's are float32 whatever the weights are."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=512, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64)


def train(
    model, folder: Path, micro_batch: int, accumulation: int, rows=None, peft=None, eval_rows=None, **more
) -> Outcome:
    sizes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation}
    settings = {"per_device_eval_batch_size": 2, "num_train_epochs": 1, "learning_rate": 1e-4, "beta": 0.3}
    rows = Dataset.from_list(ragged_pairs(PAIRS)) if rows is None else rows
    eval_rows = eval_rows or ragged_pairs(7, seed=5)
    trainer = make_trainer(folder, model, rows, eval_rows, peft_config=peft, **sizes, **settings, **more)
    if model.dtype == torch.float64:
        trainer.model.double()  # the adapter too
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    return Outcome(weights, logs, trainer.evaluate(), trainer.path.max_tokens)


MODELS = {"float64": (float64_model, 1e-9), "float32": (tiny_model, 1e-5)}
METRICS = ("loss", "nll_loss", "or_loss", "logps/chosen", "rewards/accuracies", "perplexity/chosen", "grad_norm")


def assert_same(got: Outcome, expected: Outcome, tolerance: float, steps: int = 5) -> None:
    for name, value in expected.weights.items():
        torch.testing.assert_close(got.weights[name], value, rtol=tolerance, atol=tolerance, msg=name)
    assert len(got.logs) == len(expected.logs) == steps
    for step, other in zip(got.logs, expected.logs, strict=True):
        for name in METRICS:
            assert step[name] == pytest.approx(other[name], rel=max(tolerance, 1e-6)), name
    for name in METRICS[:-1]:
        assert got.evaluation[f"eval_{name}"] == pytest.approx(expected.evaluation[f"eval_{name}"], rel=tolerance), name


@pytest.fixture(scope="module", params=MODELS)
def whole(request, tmp_path_factory):
    """Eight pairs at once, padded: the reference, for each dtype."""
    make, tolerance = MODELS[request.param]
    return make, tolerance, train(make(), tmp_path_factory.mktemp("whole"), 8, 1, prefix_forest=False)


SPLITS = {
    "padded, one by one": {"micro_batch": 1, "accumulation": 8, "prefix_forest": False},
    "padded, 2 x 4": {"micro_batch": 2, "accumulation": 4, "prefix_forest": False},
    "packed as the batch sizes say": {"micro_batch": 8, "accumulation": 1, "max_tokens_per_microbatch": None},
    "packed, 2 x 4 as the batch sizes say": {"micro_batch": 2, "accumulation": 4, "max_tokens_per_microbatch": None},
    "packed, a pair at a time": {"micro_batch": 8, "accumulation": 1, "max_tokens_per_microbatch": 1},
    "packed, 40 tokens": {"micro_batch": 4, "accumulation": 2, "max_tokens_per_microbatch": 40},
    "packed, 200 tokens": {"micro_batch": 1, "accumulation": 8, "max_tokens_per_microbatch": 200},
    "packed, 700 tokens": {"micro_batch": 2, "accumulation": 4, "max_tokens_per_microbatch": 700},
    "packed, as memory says": {"micro_batch": 2, "accumulation": 4},
}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_give_the_same_parameters(whole, split, tmp_path):
    make, tolerance, expected = whole
    assert_same(train(make(), tmp_path, **SPLITS[split]), expected, tolerance)


def dialogues(count: int) -> list[dict[str, Any]]:
    """Answers of one to three turns of the assistant, with turns of the user between them."""
    return [
        {
            "prompt": [user(row["prompt"])],
            "chosen": [turn for _ in range(n % 3) for turn in (assistant(row["chosen"]), user("And?"))]
            + [assistant(row["chosen"])],
            "rejected": [assistant(row["rejected"]), user("Why?"), assistant("No.")],
        }
        for n, row in enumerate(ragged_pairs(count, seed=3))
    ]


@pytest.mark.parametrize("nll_on", ("sequence", "response"))
def test_turns_of_others_within_an_answer_change_nothing_of_this(nll_on, tmp_path):
    rows = dialogues(8)
    options = {"rows": rows, "eval_rows": rows[:5], "nll_on": nll_on}
    padded = train(float64_model(), tmp_path / "padded", 8, 1, prefix_forest=False, **options)
    packed = train(float64_model(), tmp_path / "packed", 2, 4, max_tokens_per_microbatch=400, **options)
    assert_same(packed, padded, 1e-9, steps=1)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM")


def untied_model():
    model = float64_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


class MaskedTokens(ORPOTrainer):
    def pair_losses(self, pairs):
        return super().pair_losses(pairs)._replace(nll=pairs.nll.where(pairs.nll.ids_BL % 3 > 0))


# What two processes train, 2 pairs x 2 micro-batches each, in one launch.
SHARED: dict[str, tuple[Any, dict[str, Any]]] = {
    "float64": (float64_model, {}),
    "float32": (tiny_model, {}),
    "padded": (float64_model, {"prefix_forest": False}),
    "as the batch sizes say": (float64_model, {"max_tokens_per_microbatch": None}),
    "150 tokens": (float64_model, {"max_tokens_per_microbatch": 150}),
    "checkpoints": (float64_model, {"gradient_checkpointing": True, "max_tokens_per_microbatch": 300}),
    "a loss of one's own": (float64_model, {"kind": MaskedTokens, "max_tokens_per_microbatch": 300}),
    "LoRA and a trained head": (untied_model, {"peft": lora(), "max_tokens_per_microbatch": 300}),
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> tuple[dict[str, Outcome], ...]:
    """What each of two processes has at the end."""
    folder = tmp_path_factory.mktemp("two")
    run_two_processes(__name__, folder)
    saved = [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
    return tuple({name: Outcome(*values) for name, values in of_rank.items()} for of_rank in saved)


@pytest.mark.parametrize("kind", SHARED)
def test_two_processes_give_what_one_gives(two_processes, kind, tmp_path):
    make, settings = SHARED[kind]
    alone = train(make(), tmp_path, 8, 1, **settings | {"prefix_forest": False})
    for of_rank in two_processes:
        assert_same(of_rank[kind], alone, 1e-5 if kind == "float32" else 1e-9)


def test_processes_that_find_unlike_memory_agree_on_the_least(two_processes):
    found = [of_rank["float64"].max_tokens for of_rank in two_processes]
    assert found[0] == found[1] == memory.MIN_TOKENS


def test_a_stream_gives_what_a_dataset_gives(tmp_path):
    """In file order, because a stream is not shuffled; every step but the short last one is planned the same way."""
    rows = ragged_pairs(PAIRS)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    streamed = train(tiny_model(), tmp_path / "stream", 2, 4, rows=stream, max_steps=5)
    mapped = train(tiny_model(), tmp_path / "map", 2, 4, train_sampling_strategy="sequential")
    assert_same(streamed, mapped, 1e-6)


def main(folder: str) -> None:
    """One of two processes; the second finds its memory taken."""
    rank = os.environ["RANK"]
    memory.free_bytes = lambda device: 10**10 if rank == "0" else 10**3
    outcomes = {}
    for name, (make, settings) in SHARED.items():
        outcomes[name] = tuple(train(make(), Path(folder), 2, 2, **settings))
    torch.save(outcomes, Path(folder) / f"{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
