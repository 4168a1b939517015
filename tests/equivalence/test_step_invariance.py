"""A step's result does not depend on how its pairs are split over micro-batches, accumulation and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, GPT2Config

from oddsmith import ORPOConfig, ORPOTrainer
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

PAIRS = 37  # five steps of 8 leave a short last step of 5; an odd number, so two processes never divide it evenly


def float64_model():
    """GPT-2 computes its norms in the dtype of its weights; Llama's are float32 whatever the weights are."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=512, initializer_range=0.2)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64)


def train(model, folder: Path, micro_batch: int, accumulation: int, rows=None, **more):
    args = ORPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=1e-4,
        beta=0.3,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    trainer = ORPOTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(ragged_pairs(PAIRS)) if rows is None else rows,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: p.detach() for name, p in trainer.model.named_parameters()}, logs


MODELS = {"float64": (float64_model, 1e-9), "float32": (tiny_model, 1e-5)}
METRICS = ("loss", "nll_loss", "or_loss", "logps/chosen", "rewards/accuracies", "perplexity/chosen", "grad_norm")


def assert_same(got, expected, tolerance):
    for name, value in expected[0].items():
        torch.testing.assert_close(got[0][name], value, rtol=tolerance, atol=tolerance, msg=name)
    assert len(got[1]) == len(expected[1]) == 5
    for step, other in zip(got[1], expected[1], strict=True):
        for name in METRICS:
            assert step[name] == pytest.approx(other[name], rel=max(tolerance, 1e-6)), name


@pytest.fixture(scope="module", params=MODELS)
def whole(request, tmp_path_factory):
    """Eight pairs at once: the reference, for each dtype."""
    make, tolerance = MODELS[request.param]
    return request.param, make, tolerance, train(make(), tmp_path_factory.mktemp("whole"), 8, 1)


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_splits_over_accumulation_give_the_same_parameters(whole, micro_batch, accumulation, tmp_path):
    _, make, tolerance, expected = whole
    assert_same(train(make(), tmp_path, micro_batch, accumulation), expected, tolerance)


def test_two_processes_give_the_same_parameters(whole, tmp_path):
    dtype, _, tolerance, expected = whole
    run_processes(2, tmp_path, dtype)
    parameters = torch.load(tmp_path / "parameters.pt")
    logs = json.loads((tmp_path / "logs.json").read_text())
    assert_same((parameters, logs), expected, tolerance)


def run_processes(count: int, folder: Path, dtype: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [*command, "-m", "tests.equivalence.test_step_invariance", str(folder), dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_stream_gives_what_a_dataset_gives(tmp_path):
    """In file order, because a stream is not shuffled; every step but the short last one is planned the same way."""
    rows = ragged_pairs(PAIRS)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    streamed = train(tiny_model(), tmp_path / "stream", 2, 4, rows=stream, max_steps=5)
    mapped = train(tiny_model(), tmp_path / "map", 2, 4, train_sampling_strategy="sequential")
    assert_same(streamed, mapped, 1e-6)


def main(folder: str, dtype: str) -> None:
    """One of the processes of ``run_processes``: 2 processes x 2 pairs x 2 micro-batches."""
    parameters, logs = train(MODELS[dtype][0](), Path(folder), 2, 2)
    if int(os.environ["RANK"]) == 0:
        torch.save(parameters, Path(folder) / "parameters.pt")
        (Path(folder) / "logs.json").write_text(json.dumps(logs))


if __name__ == "__main__":
    main(*sys.argv[1:])
