"""The two paths through the trainer: packed and padded runs agree, and each run takes the right path."""

import functools
import json
import logging
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPT2Config,
    MixtralConfig,
    T5Config,
    TrainerCallback,
)

from oddsmith import ORPOTrainer
from oddsmith.batching.collate import PairCollator
from oddsmith.errors import NonFiniteError
from oddsmith.model.logprobs import paths
from oddsmith.model.logprobs import token_budget as memory
from oddsmith.model.logprobs.small_copy import Float64Everywhere
from tests.command import run_here, save_config, save_model, save_pairs
from tests.equivalence.test_self_check import MIXING, made
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import make_trainer

# What is measured of a run's speed and memory, or counts the tokens that were computed.
OF_THE_PATH = ("_runtime", "_per_second", "total_flos", "memory_gib")


class Run(NamedTuple):
    """The results of a run: every line of its log without measured speeds, and the trained weights."""

    lines: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    trainer: ORPOTrainer


def trainer_of(folder, model=None, rows=10, *, double=False, peft=None, evaluate=None, subclass=ORPOTrainer, **more):
    """Plain gradient descent: Adam would amplify rounding where a gradient is nearly 0."""
    settings = {
        "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 3, "num_train_epochs": 1, "optim": "sgd",
        "learning_rate": 0.1, "beta": 0.3,
    }  # fmt: skip
    rows = Dataset.from_list(ragged_pairs(rows, seed=1)) if isinstance(rows, int) else rows
    trainer = make_trainer(folder, model, rows, evaluate, kind=subclass, peft_config=peft, **{**settings, **more})
    if double:
        trainer.model.double()
    return trainer


def run(folder, *args, double=False, resume=None, **more) -> Run:
    trainer = trainer_of(folder, *args, double=double, **more)
    with in_its_precision(trainer):
        trainer.train(resume_from_checkpoint=resume)
    return finished(trainer)


def in_its_precision(trainer):
    """Llama and Qwen3.5 compute much in float32, whatever their weights are; GPT-2 computes in their type."""
    is_double = trainer.model.dtype == torch.float64
    in_float32 = trainer.model.config.model_type in ("llama", "qwen3_5_text")
    return Float64Everywhere() if is_double and in_float32 else nullcontext()


def finished(trainer) -> Run:
    log = trainer.state.log_history
    lines = [{name: value for name, value in line.items() if not name.endswith(OF_THE_PATH)} for line in log]
    return Run(lines, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, trainer)


def assert_same(ours: Run, reference: Run, tolerance: float) -> None:
    assert len(ours.lines) == len(reference.lines) > 0
    for line, other in zip(ours.lines, reference.lines, strict=True):
        assert line.keys() == other.keys()
        for name, value in other.items():
            # transformers adds losses up in float32.
            loose = max(tolerance, 1e-6) if name in ("loss", "train_loss") else tolerance
            assert line[name] == pytest.approx(value, rel=loose, abs=loose), (name, line.get("step"))
    assert ours.weights.keys() == reference.weights.keys()
    for name, weight in reference.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=tolerance, atol=tolerance, msg=name)


def lora(**more) -> LoraConfig:
    """A LoRA that starts from random weights on both sides, so that all of it has a gradient at once."""
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, **more})


def gpt2(**more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 264, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.2}
    return AutoModelForCausalLM.from_config(GPT2Config(**{**sizes, **more}))


tied = functools.partial(tiny_model, tie_word_embeddings=True)
REENTRANT, NOT_REENTRANT = (
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": value}}
    for value in (True, False)
)
# Checkpoints run again outside of Float64Everywhere: GPT-2, which computes its norms in the type of its weights.
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, tied": {"model": tied},
    "full, learned positions and tied": {"model": gpt2},
    "full, hybrid": {"model": functools.partial(made, "qwen3_5_text", MIXING["qwen3_5_text"])},
    "full, NLL on the response": {"nll_on": "response"},
    "full, checkpoints": {"model": gpt2, **NOT_REENTRANT},
    "full, reentrant checkpoints": {"model": gpt2, **REENTRANT},
    "LoRA": {"peft": lora()},
    "LoRA, tied": {"peft": lora(), "model": tied},
    "LoRA, NLL on the response": {"peft": lora(), "nll_on": "response"},
    "LoRA on the head too": {"peft": lora(target_modules=["q_proj", "lm_head"])},
    "LoRA and a trained head": {"peft": lora(modules_to_save=["lm_head"])},
    "LoRA and a trained tied head": {"peft": lora(modules_to_save=["lm_head", "embed_tokens"]), "model": tied},
    "DoRA": {"peft": lora(use_dora=True)},
    "LoRA, checkpoints": {"peft": lora(), "model": gpt2, **NOT_REENTRANT},
    "LoRA, reentrant checkpoints": {"peft": lora(), "model": gpt2, **REENTRANT},
    "LoRA on the head too, reentrant checkpoints": {
        "peft": lora(target_modules=["c_attn", "lm_head"]),
        "model": functools.partial(gpt2, tie_word_embeddings=False),
        **REENTRANT,
    },
}


IN_EVERY_RUN = {
    "full, tied", "full, hybrid", "full, NLL on the response", "full, checkpoints", "LoRA", "LoRA on the head too",
    "LoRA and a trained tied head", "LoRA, reentrant checkpoints",
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in IN_EVERY_RUN else pytest.mark.slow) for kind in KINDS]
)
def test_packed_and_padded_runs_agree_in_every_metric_and_weight(kind, tmp_path):
    settings = dict(KINDS[kind])
    model = settings.pop("model", tiny_model)
    padded = run(tmp_path / "padded", model(), double=True, prefix_forest=False, **settings)
    packed = run(tmp_path / "packed", model(), double=True, **settings)
    assert packed.trainer.path.name == "prefix forest"
    assert padded.trainer.path.name == "padded batches"
    assert_same(packed, padded, 1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"peft": lora()}, marks=pytest.mark.slow),
        {"peft": lora(modules_to_save=["lm_head"])},
        pytest.param(NOT_REENTRANT, marks=pytest.mark.slow),
        pytest.param(REENTRANT, marks=pytest.mark.slow),
        {"peft": lora(), **NOT_REENTRANT},
        pytest.param({"peft": lora(), **REENTRANT}, marks=pytest.mark.slow),
    ],
    ids=["full", "LoRA", "trained head", "checkpoints", "reentrant", "LoRA checkpoints", "LoRA reentrant"],
)
def test_they_agree_in_float32(settings, tmp_path):
    packed, padded = (run(tmp_path / str(on), prefix_forest=on, **settings) for on in (True, False))
    assert_same(packed, padded, 1e-5)


@pytest.mark.slow
def test_a_compiled_model_agrees(tmp_path, monkeypatch):
    """Traced, not compiled: whether the graph is that of the run does not depend on what is made of it."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # transformers sets it for good
    packed = run(tmp_path / "packed")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # transformers sets it, and later tests would find it
    traced = run(tmp_path / "traced", prefix_forest=False, torch_compile=True, torch_compile_backend="eager")
    assert traced.trainer.args.torch_compile
    assert_same(traced, packed, 1e-5)


def test_they_agree_in_bfloat16_within_its_rounding(tmp_path):
    """As LoRA runs where the hardware multiplies bf16: a frozen bf16 base, a float32 adapter, autocast."""
    settings = {"peft": lora(), "bf16": True, "learning_rate": 0.01}
    models = [tiny_model(dtype=torch.bfloat16) for _ in range(2)]
    packed, padded = (run(tmp_path / str(on), models[on], prefix_forest=on, **settings) for on in (True, False))
    assert packed.trainer.path.name == "prefix forest"
    for line, other in zip(packed.lines[:-1], padded.lines[:-1], strict=True):
        for name in ("nll_loss", "or_loss", "logps/chosen", "logps/rejected", "grad_norm"):
            assert line[name] == pytest.approx(other[name], rel=2**-5), name


@pytest.mark.parametrize(
    "checkpointing",
    [{}, pytest.param(NOT_REENTRANT, marks=pytest.mark.slow), pytest.param(REENTRANT, marks=pytest.mark.slow)],
    ids=["plain", "checkpoints", "reentrant"],
)
def test_they_agree_over_a_4_bit_base(checkpointing, tmp_path):
    pytest.importorskip("bitsandbytes")
    from oddsmith import ModelConfig, get_quantization_config
    from oddsmith.model.loading.models import load_model

    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    four_bit = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True, dtype="float32"))
    runs = []
    for settings in ({"prefix_forest": False}, checkpointing):
        base = load_model(str(tmp_path / "base"), dtype=torch.float32, quantization_config=four_bit)
        runs.append(run(tmp_path / "run", base, peft=lora(), learning_rate=0.01, **settings))
    padded, packed = runs
    assert [one.trainer.path.name for one in runs] == ["padded batches", "prefix forest"]
    assert_same(packed, padded, 1e-5)


def test_evaluations_agree_and_so_do_predictions(tmp_path):
    sets = {"short": ragged_pairs(3, seed=8), "long": ragged_pairs(11, seed=9)}
    settings = {"double": True, "evaluate": sets, "eval_strategy": "steps", "eval_steps": 1, "compute_metrics": spread}
    packed = run(tmp_path / "packed", **settings, max_tokens_per_microbatch=300)
    padded = run(tmp_path / "padded", **settings, prefix_forest=False)
    assert_same(packed, padded, 1e-9)
    assert {"eval_long_spread", "eval_short_rewards/margins"} <= {name for line in packed.lines for name in line}
    rows = Dataset.from_list(ragged_pairs(7, seed=3))
    with in_its_precision(packed.trainer):
        ours, theirs = (one.trainer.predict(rows) for one in (packed, padded))
    assert ours.predictions == pytest.approx(theirs.predictions, rel=1e-6)
    assert ours.predictions.shape == (7, 2)
    assert ours.metrics["test_loss"] == pytest.approx(theirs.metrics["test_loss"], rel=1e-9)


def test_training_evaluation_and_prediction_compute_packed_rows(tmp_path):
    rows = ragged_pairs(6, seed=2)
    shapes = {}
    for forest in (True, False):
        trainer = trainer_of(tmp_path, rows=rows, evaluate=rows, prefix_forest=forest, eval_strategy="epoch")
        assert trainer.path
        seen = shapes[forest] = []
        embeddings = trainer.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0].shape))
        trainer.train()
        trainer.predict(rows)
    assert {shape[0] for shape in shapes[True]} == {1}
    assert sum(map(torch.Size.numel, shapes[True])) < 0.6 * sum(map(torch.Size.numel, shapes[False]))


def spread(prediction) -> dict[str, float]:
    return {"spread": float(prediction.predictions.std())}


@pytest.mark.parametrize("budget", [None, 150])
def test_streams_agree_also_in_a_short_last_step(budget, tmp_path):
    """7 rows in steps of 4: without a budget the last step has a micro-batch that counts for nothing."""
    rows = ragged_pairs(7, seed=1)

    def streamed(**settings) -> Run:
        stream = IterableDataset.from_generator(lambda: iter(rows))
        sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 2}
        return run(tmp_path, rows=stream, evaluate=stream, eval_strategy="steps", eval_steps=2, **sizes, **settings)

    padded = streamed(prefix_forest=False, double=True)
    assert_same(streamed(max_tokens_per_microbatch=budget, double=True), padded, 1e-9)


def test_workers_collate_packed_rows_ahead(tmp_path):
    padded = run(tmp_path / "padded", gpt2(), double=True, prefix_forest=False)
    ahead = run(tmp_path / "ahead", gpt2(), double=True, dataloader_num_workers=1, dataloader_prefetch_factor=4)
    assert_same(ahead, padded, 1e-9)


# ---- Resuming


@pytest.mark.parametrize(
    "budget", [pytest.param(None, marks=pytest.mark.slow), pytest.param(150, marks=pytest.mark.slow), "auto"]
)
def test_a_run_resumed_in_mid_epoch_goes_on_exactly(budget, tmp_path):
    settings = {"rows": 22, "num_train_epochs": 2, "optim": "adamw_torch", "learning_rate": 1e-3}
    settings |= {"max_tokens_per_microbatch": budget, "save_steps": 8}  # an epoch has 6 steps
    whole = run(tmp_path / "whole", **settings)
    stop = StopAfter(8)
    run(tmp_path / "part", **settings | {"save_strategy": "steps"}, callbacks=[stop])
    resumed = run(tmp_path / "part", tiny_model(seed=9), **settings, resume=str(tmp_path / "part" / "checkpoint-8"))
    expected = {line["step"]: line["loss"] for line in whole.lines if "loss" in line}
    assert {line["step"]: line["loss"] for line in resumed.lines if "loss" in line} == expected
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


# ---- Memory


def warnings_in(caplog) -> list[str]:
    """Return the warnings of the package, without the live diagnosis of so few steps."""
    named = [record for record in caplog.records if record.name.startswith("oddsmith.")]
    ours = [record for record in named if record.name != "oddsmith.training.live_diagnosis"]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
NO_ROOM_FOR_CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


class Shortage:
    """Raises what CUDA raises where a row of more than so many tokens is trained on, but for the first one."""

    def __init__(self, trainer: ORPOTrainer, tokens: int, error: Exception = OUT_OF_MEMORY):
        self.trainer, self.tokens, self.error, self.spared = trainer, tokens, error, False
        self.rows: list[int] = []
        self.struck: list[bool] = []  # whether a part of the step was computed already
        trainer.model.get_input_embeddings().register_forward_hook(self.note)
        trainer.model.transformer.h[1].register_forward_pre_hook(self.look, with_kwargs=True)

    def note(self, module, args, output):
        if torch.is_grad_enabled():
            self.rows.append(args[0].shape[1])

    def look(self, module, args, kwargs):
        if torch.is_grad_enabled() and self.rows[-1] > self.tokens:
            if self.spared:
                self.struck.append(any(p.grad is not None for p in self.trainer.model.parameters()))
                raise self.error
            self.spared = True


def with_shortage(folder, tokens, error=OUT_OF_MEMORY, **more) -> tuple[Run, Shortage]:
    trainer = trainer_of(folder, gpt2(), double=True, **more)
    shortage = Shortage(trainer, tokens, error)
    trainer.train()
    return finished(trainer), shortage


STEPS = {"rows": 16, "per_device_train_batch_size": 4, "num_train_epochs": 2}


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NO_ROOM_FOR_CUBLAS], ids=["torch", "cuBLAS"])
def test_where_memory_runs_out_the_step_is_repeated_with_half_the_budget(error, tmp_path, caplog):
    settings = {**STEPS, "max_tokens_per_microbatch": 900}
    undisturbed = run(tmp_path / "whole", gpt2(), double=True, **settings)
    caplog.clear()
    disturbed, shortage = with_shortage(tmp_path / "short", tokens=500, error=error, **settings)
    assert shortage.struck == [True]
    assert_same(disturbed, undisturbed, 1e-9)
    (said,) = warnings_in(caplog)
    budget = disturbed.trainer.path.max_tokens
    assert 250 <= budget <= 450
    assert said.startswith((f"out of memory with {2 * budget} tokens", f"out of memory with {2 * budget + 1} tokens"))
    assert said.endswith(f" in a micro-batch: the step is repeated, from here on with at most {budget}")
    assert max(shortage.rows[-8:]) <= budget


def test_what_a_worker_made_before_the_budget_was_halved_is_divided_too(tmp_path, caplog):
    settings = {**STEPS, "rows": 32, "max_tokens_per_microbatch": 2000, "dataloader_num_workers": 1}
    undisturbed = run(tmp_path / "whole", gpt2(), double=True, **settings)
    caplog.clear()
    disturbed, shortage = with_shortage(tmp_path / "short", tokens=700, **settings)
    assert len(shortage.struck) == 1
    assert_same(disturbed, undisturbed, 1e-9)
    assert len(warnings_in(caplog)) == 1


def test_the_next_steps_of_a_stream_keep_to_the_halved_budget(tmp_path):
    rows = ragged_pairs(16, seed=1)
    settings = {**STEPS, "max_tokens_per_microbatch": 900, "max_steps": 6}

    def stream() -> IterableDataset:
        return IterableDataset.from_generator(lambda: iter(rows))

    undisturbed = run(tmp_path / "whole", gpt2(), double=True, **settings | {"rows": stream()})
    disturbed, shortage = with_shortage(tmp_path / "short", tokens=500, **settings | {"rows": stream()})
    assert shortage.struck == [True]
    assert_same(disturbed, undisturbed, 1e-9)
    assert max(shortage.rows[-8:]) <= disturbed.trainer.path.max_tokens
    assert disturbed.trainer.stepper.plan.shape.max_tokens == disturbed.trainer.path.max_tokens


class MaskedTokens(ORPOTrainer):
    """A loss of one's own, for which the NLL targets of a step are counted."""

    def pair_losses(self, pairs):
        return super().pair_losses(pairs)._replace(nll=pairs.nll.where(pairs.nll.ids_BL % 3 > 0))


def test_the_budget_is_halved_until_the_step_fits(tmp_path, caplog):
    settings = {**STEPS, "max_tokens_per_microbatch": 2000, "subclass": MaskedTokens}
    undisturbed = run(tmp_path / "whole", gpt2(), double=True, **settings)
    caplog.clear()
    disturbed, shortage = with_shortage(tmp_path / "short", tokens=300, **settings)
    assert_same(disturbed, undisturbed, 1e-9)
    assert len(warnings_in(caplog)) == len(shortage.struck) in (2, 3)


@pytest.mark.parametrize(
    "settings",
    [{"max_tokens_per_microbatch": 2000}, {"max_tokens_per_microbatch": None}, {"prefix_forest": False}],
    ids=["single pairs do not fit", "no budget", "padded"],
)
def test_what_cannot_be_divided_raises(settings, tmp_path):
    trainer = trainer_of(tmp_path, gpt2(), **STEPS, **settings)
    Shortage(trainer, tokens=50)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2.00 GiB"):
        trainer.train()


def test_a_run_measures_what_it_keeps_as_it_trains(tmp_path, monkeypatch):
    """transformers switches checkpoints on when training begins, after the trainer is made."""
    budgets = []

    def noted(*args, **more):
        budgets.append(memory.token_budget(*args, **more))
        return budgets[-1]

    monkeypatch.setattr(paths, "token_budget", noted)
    for settings in ({}, NOT_REENTRANT, REENTRANT):
        run(tmp_path, tiny_model(num_hidden_layers=6), rows=2, **settings)
    plain, *checkpointed = (budget.bytes_per_token for budget in budgets)
    assert max(checkpointed) < plain / 2


def test_choosing_a_path_leaves_no_trace(tmp_path):
    trainer = trainer_of(tmp_path)
    weights = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    state, mode = torch.get_rng_state(), trainer.model.training
    assert trainer.path.max_tokens == memory.MAX_TOKENS["cpu"]
    assert trainer.model.training == mode
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, weights[name])


# ---- Which path


def bloom():
    torch.manual_seed(0)
    sizes = {"vocab_size": 264, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    return AutoModelForCausalLM.from_config(BloomConfig(**sizes, initializer_range=0.3))


def t5():
    sizes = {"vocab_size": 264, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, decoder_start_token_id=257))


def mixtral(**more):
    sizes = {"vocab_size": 264, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MixtralConfig(**sizes, **heads, **more))


class Collator(PairCollator):
    """A user's collator."""


class Regularised(ORPOTrainer):
    """Adds a little for long answers, as a script for TRL would."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = loss + 0.01 * (inputs["chosen_labels"] != -100).float().mean()
        return (loss, outputs) if return_outputs else loss


class Watching(ORPOTrainer):
    """Looks at what it trains on."""

    def training_step(self, model, inputs, *args):
        assert inputs["chosen_input_ids"].shape == inputs["chosen_attention_mask"].shape
        return super().training_step(model, inputs, *args)


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
IN_FRONT = "its adapter puts virtual tokens in front of every sequence"
FALLBACKS: dict[str, tuple[dict[str, Any], str]] = {
    "switched off": ({"prefix_forest": False}, "prefix_forest is off"),
    "collator": ({"data_collator": Collator(257)}, "the collator Collator makes padded batches"),
    "compute_loss": ({"subclass": Regularised}, "compute_loss may expect padded batches"),
    "training_step": ({"subclass": Watching}, "training_step may expect padded batches"),
    "encoder-decoder": ({"model": t5}, "it is an encoder-decoder"),
    "dropout": ({"model": gpt2, "disable_dropout": False}, "dropout is on"),
    "dropout in attention": (
        {"model": functools.partial(tiny_model, attention_dropout=0.1), "disable_dropout": False}, "dropout is on",
    ),
    "dropout in LoRA": ({"peft": lora(lora_dropout=0.1), "disable_dropout": False}, "dropout is on"),
    "noise": ({"neftune_noise_alpha": 5}, "neftune_noise_alpha"),
    "router loss": (
        {"model": functools.partial(mixtral, output_router_logits=True, router_aux_loss_coef=0.1)},
        "its router loss depends on how many sequences share a token",
    ),
    "prompt tuning": ({"peft": PromptTuningConfig(**VIRTUAL)}, IN_FRONT),
    "prefix tuning": ({"peft": PrefixTuningConfig(**VIRTUAL)}, IN_FRONT),
    "bloom": ({"model": bloom}, "its BloomAttention mixes tokens in its own way"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FALLBACKS)
def test_what_cannot_be_packed_trains_on_padded_batches_and_says_why(kind, tmp_path, caplog):
    settings, reason = FALLBACKS[kind]
    settings = {"model": tiny_model} | settings
    result = run(tmp_path, settings.pop("model")(), evaluate=ragged_pairs(3), eval_strategy="epoch", **settings)
    (said,) = warnings_in(caplog)
    assert said.startswith("Training on padded batches, which is slower: ")
    assert reason in said
    start = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert start["batches"] == {"layout": "padded batches", "reason": result.trainer.path.reason, "max_tokens": None}
    assert reason in start["batches"]["reason"]
    assert [line["step"] for line in result.lines if "loss" in line] == [1, 2, 3]
    assert all(line["grad_norm"] > 0 for line in result.lines if "loss" in line)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_in_front_shift_nothing(kind, tmp_path):
    rows = ragged_pairs(3)
    trainer = trainer_of(tmp_path, peft=kind(**VIRTUAL), evaluate=rows)
    found = trainer.predict(trainer.eval_dataset).predictions
    for row, logps in zip(trainer.eval_dataset, found, strict=True):
        for side, logp in zip(("chosen", "rejected"), logps, strict=True):
            ids = torch.tensor(row[f"{side}_input_ids"][: row[f"{side}_end"]])
            with torch.no_grad():
                logits = trainer.model(ids[None]).logits[0, -len(ids) :]
            by_hand = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[row[f"{side}_prompt_tokens"] - 1 :].mean()
            assert logp == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_model_with_few_positions_is_packed(tmp_path):
    trainer = run(tmp_path, gpt2(n_positions=64), max_length=64, max_steps=1).trainer
    assert trainer.path.name == "prefix forest"


@pytest.mark.parametrize("model", [tiny_model, mixtral, gpt2])
def test_what_can_be_packed_is_packed_and_logged(model, tmp_path, caplog):
    """Dropout is off by default, and a mixture of experts without a router loss is a model like others."""
    with caplog.at_level(logging.INFO, logger="oddsmith"):
        result = run(tmp_path, model())
    assert not warnings_in(caplog)
    (said,) = [record.getMessage() for record in caplog.records if record.funcName == "choose_path"]
    assert said.startswith("Training on prefix forests: packed and padded batches agree to ")
    start = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])["batches"]
    most = memory.MAX_TOKENS["cpu"]
    assert start == {"layout": "prefix forest", "reason": result.trainer.path.reason, "max_tokens": most}
    assert f"at most {memory.MAX_TOKENS['cpu']:,} tokens a micro-batch" in start["reason"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "packed without padding, and what answers share is computed once: the same results, sooner"),
        (["--no_prefix_forest"], "padded, which is slower, 8 a micro-batch: prefix_forest is off"),
    ],
)
def test_the_banner_names_the_path(words, line, tmp_path, capsys):
    model, pairs = save_model(tmp_path / "model"), save_pairs(tmp_path / "pairs.jsonl", 4)
    settings = {"model_name_or_path": str(model), "dataset_name": str(pairs), "output_dir": str(tmp_path / "run")}
    file = save_config(tmp_path / "run.yaml", **settings, max_steps=1, bf16=False, use_cpu=True)
    outcome = run_here(capsys, "train", file, *words)
    assert outcome.code == 0
    (batches,) = [text for text in (outcome.out + outcome.err).splitlines() if text.startswith("  batches")]
    assert batches.split(maxsplit=1)[1].startswith(line)


# ---- Scripts written for TRL


def test_a_script_gets_padded_batches_from_the_loaders(tmp_path):
    trainer = trainer_of(tmp_path, gpt2(), double=True, evaluate=ragged_pairs(3))
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == len(trainer.get_train_dataloader()) == 5
    names = {f"{side}_{name}" for side in ("chosen", "rejected") for name in ("input_ids", "attention_mask", "labels")}
    assert batches[0].keys() >= names
    assert next(iter(trainer.get_eval_dataloader())).keys() >= names
    # Its own loop makes the step that the trainer makes.
    trained = run(tmp_path, gpt2(), double=True, max_steps=1)
    assert trained.trainer.path.name == "prefix forest"
    for batch in batches[:2]:
        trainer.compute_loss(trainer.model.train(), batch).backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    assert norm.item() == pytest.approx(trained.lines[0]["grad_norm"], rel=1e-9)
    torch.optim.SGD(trainer.model.parameters(), lr=0.1).step()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), trained.weights[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained_before", [False, True])
def test_a_batch_from_the_collator_is_a_step_of_its_own(trained_before, tmp_path):
    trainer = trainer_of(tmp_path, gpt2(), double=True, max_steps=1)
    if trained_before:
        trainer.train()
    (batch,) = trainer_of(tmp_path, rows=2).get_train_dataloader()
    trainer.model.eval()  # a trained model has its dropout again
    expected = trainer.compute_loss(trainer.model, batch)
    counts = {"weight", "row", "position", "num_pairs", "num_nll_tokens"}
    collated = {name: value for name, value in batch.items() if name not in counts}
    loss, logps = trainer.compute_loss(trainer.model, collated, return_outputs=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert logps.logp_chosen_B.shape == (2,)


def test_a_user_s_collator_changes_what_is_trained_on(tmp_path):
    class Shortened(PairCollator):
        def __call__(self, features):
            return super().__call__([{name: value[:-3] for name, value in row.items()} for row in features])

    plain, short = (run(tmp_path, data_collator=make(257), max_steps=1) for make in (Collator, Shortened))
    assert short.lines[0]["logps/chosen"] != pytest.approx(plain.lines[0]["logps/chosen"], rel=1e-3)


def test_a_subclass_that_calls_ours_adds_its_own(tmp_path):
    ours, theirs = (run(tmp_path, subclass=kind, max_steps=1) for kind in (ORPOTrainer, Regularised))
    assert theirs.lines[0]["loss"] > ours.lines[0]["loss"]
    assert theirs.lines[0]["grad_norm"] == pytest.approx(ours.lines[0]["grad_norm"], rel=1e-5)


# ---- NaN


@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_microbatch": 60}, {"prefix_forest": False}])
def test_a_nan_log_probability_stops_the_run_before_the_optimizer_step(settings, tmp_path):
    rows = ragged_pairs(8)
    rows[5] = rows[5] | {"rejected": " \x07"}  # the only row with this byte, whose embedding is broken
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_tokenizer()("\x07").input_ids[0]] = torch.nan
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(tmp_path, model, rows, per_device_train_batch_size=4, max_skipped_steps=1, **settings)
    with pytest.raises(NonFiniteError, match=r"step 1: log-probabilities are NaN or infinite for dataset row 5,"):
        trainer.train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())
