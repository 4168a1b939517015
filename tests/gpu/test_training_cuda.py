"""Training on a GPU: packed rows against padded batches, models that the self-check admits, memory that runs out."""

import logging
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from oddsmith.model.logprobs.padded import pair_logps
from oddsmith.model.logprobs.self_check import check_forest
from tests.equivalence.test_forest import EXACT, loss_and_gradients, model_of, rows_of
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import make_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

CHECKPOINTING = {
    "kept": {},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.fixture(autouse=True)
def empty_caches():
    """Few compiled graphs at a time, and all of the memory."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def small_model(dtype=torch.float32, **overrides):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return tiny_model(dtype=dtype, **{**sizes, **overrides}).to("cuda")


def trainer_of(folder, *, forest, adapter=False, bf16=True, pairs=None, model=None, callbacks=None, **settings):
    fixed = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "beta": 0.3, "use_cpu": False}
    order = {"bf16": bf16, "tf32": False, "prefix_forest": forest, "train_sampling_strategy": "sequential"}
    return make_trainer(
        folder,
        model or small_model(torch.bfloat16 if adapter and bf16 else torch.float32),
        Dataset.from_list(pairs or ragged_pairs(12)),
        peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if adapter else None,
        callbacks=callbacks,
        **{**fixed, **order, **settings},
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "float32"])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_both_paths_train_alike(tmp_path, checkpointing, bf16, adapter):
    options = {"adapter": adapter, "bf16": bf16, **CHECKPOINTING[checkpointing]}
    packed, padded = (trainer_of(tmp_path / str(forest), forest=forest, **options) for forest in (True, False))
    for trainer in (packed, padded):
        trainer.train()
    assert (packed.path.name, padded.path.name) == ("prefix forest", "padded batches"), packed.path.reason
    loss_tolerance, norm_tolerance = (1e-2, 5e-2) if bf16 else (1e-5, 1e-3)
    assert logged(packed, "loss") == pytest.approx(logged(padded, "loss"), rel=loss_tolerance)
    assert logged(packed, "grad_norm") == pytest.approx(logged(padded, "grad_norm"), rel=norm_tolerance)


@pytest.mark.parametrize("kind", EXACT)
def test_models_are_packed_in_bf16(kind):
    """A model that is exact in float32 on a CPU is admitted to packed rows on a GPU too."""
    model = model_of.__wrapped__(kind, torch.float32).to("cuda", torch.bfloat16)
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    assert verdict.forest, verdict.reason


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "deepseek_v3"])
def test_losses_and_gradients_of_models(kind):
    """Windows, soft caps and unequal heads on their way through a whole model, in float32."""
    model = model_of.__wrapped__(kind, torch.float32).to("cuda")
    rows = rows_of([([3, 4, 5] * 9, [4] * 11, [4, 5] * 7), ([3, 4, 5] * 4, [5, 3], [4, 4, 4]), ([3], [5] * 30, [4])])

    def on_gpu(batch):
        return {key: value.to("cuda") if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    padded = on_gpu(PairCollator(0)([trl_features(row) for row in rows]))
    plain = pair_logps(model, padded, pad_token_id=0)
    expected_loss, expected = loss_and_gradients(model, plain)
    with forest_attention_in(model):
        packed = forest_logps(model, on_gpu(forest_batch(rows, "sequence")), transform=output_transform(model.config))
        loss, gradients = loss_and_gradients(model, packed)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    scale = max(torch.linalg.vector_norm(gradient) for gradient in expected)
    for found, gradient in zip(gradients, expected, strict=True):
        assert torch.linalg.vector_norm(found - gradient) <= 1e-4 * scale


# Long enough, and a vocabulary large enough, that memory is what a step needs and not what a process needs.
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGE |= {"num_key_value_heads": 4, "vocab_size": 8192, "initializer_range": 0.02}


def long_pairs(count):
    return [
        {"prompt": row["prompt"] * 6, "chosen": row["chosen"] * 8, "rejected": row["rejected"] * 5}
        for row in ragged_pairs(count, seed=1)
    ]


class Hog(TrainerCallback):
    """After the first step, take all memory except a share of what that step needed."""

    def __init__(self, share):
        self.share, self.taken, self.needed_bytes = share, None, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            torch.cuda.reset_peak_memory_stats()
            self.before_bytes = torch.cuda.memory_allocated()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 1:
            return
        torch.cuda.synchronize()
        self.needed_bytes = torch.cuda.max_memory_allocated() - self.before_bytes
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info()
        leave = int(self.share * self.needed_bytes)
        self.taken = torch.empty(free_bytes - leave, dtype=torch.uint8, device="cuda")


def test_a_step_that_does_not_fit_is_repeated_in_halves(tmp_path, caplog):
    pairs = long_pairs(32)
    options = {"pairs": pairs, "per_device_train_batch_size": 16, "max_steps": 2, "max_tokens_per_microbatch": 10**6}
    whole = trainer_of(tmp_path / "whole", forest=True, model=small_model(**LARGE), **options)
    whole.train()
    torch.cuda.empty_cache()
    hog = Hog(0.75)
    short = trainer_of(tmp_path / "short", forest=True, model=small_model(**LARGE), callbacks=[hog], **options)
    with caplog.at_level(logging.WARNING, logger="oddsmith"):
        short.train()
    assert hog.needed_bytes > 200 << 20, "the step is too small for this test"
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(said) >= 1
    assert short.path.max_tokens < 10**6
    assert logged(short, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-2)
    assert logged(short, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=5e-2)


@pytest.mark.parametrize("checkpointing", ["kept", "checkpointed"])
def test_the_automatic_budget_fits(tmp_path, caplog, checkpointing):
    """With 3 GiB free, micro-batches are as long as that allows."""
    model = small_model(**LARGE)
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free_bytes - (3 << 30), dtype=torch.uint8, device="cuda")
    options = {"pairs": long_pairs(128), "per_device_train_batch_size": 64, "max_steps": 2}
    trainer = trainer_of(tmp_path, forest=True, model=model, **options, **CHECKPOINTING[checkpointing])
    with caplog.at_level(logging.WARNING, logger="oddsmith"):
        trainer.train()
    del hog
    assert not [record for record in caplog.records if "out of memory" in record.getMessage()]
    assert 256 <= trainer.path.max_tokens <= 32768
