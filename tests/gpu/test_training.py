"""Training on a GPU: packed rows against padded batches, the self-check, memory, waits and copies, a resumed run.

What needs no GPU runs on the CPU as well, at the same size.
"""

import logging
import warnings
from contextlib import nullcontext
from hashlib import sha256

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.config import ModelConfig
from oddsmith.model.adapters import get_quantization_config
from oddsmith.model.loading.models import load_model
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from oddsmith.model.logprobs.padded import pair_logps
from oddsmith.model.logprobs.self_check import check_forest
from tests.equivalence.test_forest import EXACT, loss_and_gradients, model_of, rows_of
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import make_trainer

from .devices import NEEDS_GPU, on_devices, skip_without

needs_gpu = [pytest.param("cuda", marks=NEEDS_GPU)]
CHECKPOINTING = {
    "kept": {},
    "checkpointed": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


@pytest.fixture(autouse=True)
def empty_caches():
    """Few compiled graphs at a time, and all of the memory."""
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def small_model(device, dtype=torch.float32, **overrides):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return tiny_model(dtype=dtype, **{**sizes, **overrides}).to(device)


def four_bit_model(folder, device, dtype):
    """A base in NF4, as ``load_in_4bit`` makes it, computing in a type."""
    small_model("cpu").save_pretrained(folder)
    quantised = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    quantised.bnb_4bit_compute_dtype = dtype
    return load_model(str(folder), dtype=dtype, quantization_config=quantised, device_map=device)


def trainer_of(
    folder, device, *, forest=True, kind="full", precision="float32", pairs=None, model=None, callbacks=None, **settings
):
    """A trainer for three steps of four pairs; ``kind``: what is trained, over what base."""
    fixed = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-3, "beta": 0.3}
    fixed |= {"use_cpu": device == "cpu", "bf16": precision == "bf16", "fp16": precision == "fp16"}
    fixed |= {"tf32": False} if device == "cuda" else {}
    order = {"prefix_forest": forest, "train_sampling_strategy": "sequential"}
    if model is None and kind == "4bit":
        model = four_bit_model(folder / "base", device, DTYPES[precision])
    elif model is None:
        model = small_model(device, DTYPES[precision] if kind == "adapter" else torch.float32)
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if kind != "full" else None
    return make_trainer(
        folder,
        model,
        Dataset.from_list(pairs or ragged_pairs(12)),
        peft_config=adapter,
        callbacks=callbacks,
        **{**fixed, **order, **settings},
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


KINDS = ("adapter", "full", "4bit")
# The quick ones first: one compiled kernel serves the trainings in float32.
RUNS = [(kind, precision, "kept") for precision in DTYPES for kind in KINDS]
RUNS += [(kind, "bf16", how) for how in ("checkpointed", "reentrant") for kind in KINDS]
QUICK = len(RUNS)
RUNS += [(kind, dtype, how) for dtype in ("fp16", "float32") for how in ("checkpointed", "reentrant") for kind in KINDS]


@pytest.mark.parametrize(
    ("device", "case"),
    on_devices(RUNS, [("full", "float32", "kept"), ("4bit", "float32", "checkpointed")], quick=QUICK),
)
def test_both_paths_train_alike(tmp_path, device, case):
    kind, precision, checkpointing = case
    skip_without(device, DTYPES[precision])
    if kind == "4bit":
        pytest.importorskip("bitsandbytes")
    options = {"kind": kind, "precision": precision, **CHECKPOINTING[checkpointing]}
    packed, padded = (trainer_of(tmp_path / str(forest), device, forest=forest, **options) for forest in (True, False))
    for trainer in (packed, padded):
        trainer.train()
    assert (packed.path.name, padded.path.name) == ("prefix forest", "padded batches"), packed.path.reason
    loss_tolerance, norm_tolerance = (1e-5, 1e-3) if precision == "float32" else (1e-2, 5e-2)
    assert logged(packed, "loss") == pytest.approx(logged(padded, "loss"), rel=loss_tolerance)
    assert logged(packed, "grad_norm") == pytest.approx(logged(padded, "grad_norm"), rel=norm_tolerance)


SELF_CHECKED = ["llama", "gemma2", "mistral", "qwen3", *(kind for kind in EXACT if kind not in ("llama", "gemma2"))]
SELF_CHECKED = list(dict.fromkeys(SELF_CHECKED))


@pytest.mark.parametrize(("device", "kind"), on_devices(SELF_CHECKED, quick=4))
def test_models_are_packed_in_bf16(device, kind):
    """A model that is exact in float32 on a CPU is admitted to packed rows on a GPU too."""
    skip_without(device, torch.bfloat16)
    model = model_of.__wrapped__(kind, torch.float32).to(device, torch.bfloat16)
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    assert verdict.forest, verdict.reason


@pytest.mark.parametrize(("device", "kind"), on_devices(["gemma2", "llama", "mistral", "deepseek_v3"], quick=2))
def test_losses_and_gradients_of_models(device, kind):
    """Windows, soft caps and unequal heads on their way through a whole model, in float32."""
    model = model_of.__wrapped__(kind, torch.float32).to(device)
    rows = rows_of([([3, 4, 5] * 9, [4] * 11, [4, 5] * 7), ([3, 4, 5] * 4, [5, 3], [4, 4, 4]), ([3], [5] * 30, [4])])

    def on_device(batch):
        return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    padded = on_device(PairCollator(0)([trl_features(row) for row in rows]))
    plain = pair_logps(model, padded, pad_token_id=0)
    expected_loss, expected = loss_and_gradients(model, plain)
    with forest_attention_in(model):
        packed = on_device(forest_batch(rows, "sequence"))
        logps = forest_logps(model, packed, transform=output_transform(model.config))
        loss, gradients = loss_and_gradients(model, logps)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    scale = max(torch.linalg.vector_norm(gradient) for gradient in expected)
    for found, gradient in zip(gradients, expected, strict=True):
        assert torch.linalg.vector_norm(found - gradient) <= 1e-4 * scale


# ---- A resumed run


def bytes_of(folder):
    files = sorted([*folder.glob("*.safetensors"), *(folder / "checkpoint-6").glob("*.safetensors")])
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(("device", "precision"), on_devices(["bf16", "fp16", "float32"], ["float32"]))
def test_a_resumed_run_ends_as_an_undisturbed_one(tmp_path, device, precision):
    """Same bytes, where two undisturbed runs have the same bytes: some kernels add up with atomics on a GPU."""
    skip_without(device, DTYPES[precision])
    options = {"kind": "adapter", "precision": precision, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    for name in ("first", "second"):
        trainer = trainer_of(tmp_path / name, device, **options)
        trainer.train()
        trainer.save_model()
    losses = logged(trainer, "loss")
    trainer_of(tmp_path / "resumed", device, **options, callbacks=[StopAt(4)]).train()
    resumed = trainer_of(tmp_path / "resumed", device, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-3"))
    resumed.save_model()
    assert logged(resumed, "loss") == pytest.approx(losses, rel=1e-6 if precision == "float32" else 1e-2)
    first, second, third = (bytes_of(tmp_path / name) for name in ("first", "second", "resumed"))
    assert len(first) >= 3
    if first == second:
        assert third == first
    else:
        assert device == "cuda", "undisturbed runs differ on the CPU"
        warnings.warn(f"two undisturbed runs in {precision} have other bytes on this GPU", stacklevel=1)


class StopAt(TrainerCallback):
    """End a run in the step after a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


# ---- Waits and copies of a step


class OneStep(TrainerCallback):
    """Look at the fourth step: which waits and copies from the host it has. There are none of either on the CPU."""

    def __init__(self, device, what):
        self.on_gpu, self.what, self.waits, self.copies = device == "cuda", what, [], []
        self.profiler, self.before, self.looked = None, None, False

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step != 3:
            return
        if self.what == "waits":
            self.before, warnings.showwarning = warnings.showwarning, self.note
            self.warn("warn")
        else:
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if self.on_gpu else []
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()

    def warn(self, mode):
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)

    def note(self, message, category, filename, lineno, *others):
        if "synchronizing CUDA operation" in str(message):
            self.waits.append(f"{filename}:{lineno}")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 4:
            return
        self.looked = True
        if self.what == "waits":
            self.warn("default")
            warnings.showwarning = self.before
            return
        self.warn("default")
        self.profiler.stop()
        self.copies = [event.name for event in self.profiler.events() if "Memcpy HtoD" in event.name]


SEVERAL = {"max_steps": 6, "logging_steps": 100, "max_tokens_per_microbatch": 300}  # micro-batches


@pytest.mark.parametrize(("device", "kind"), on_devices(["adapter", "full"]))
def test_a_step_waits_for_the_gpu_once(tmp_path, device, kind):
    """Of several micro-batches in two accumulation steps."""
    look = OneStep(device, "waits")
    precision = "bf16" if device == "cuda" else "float32"
    skip_without(device, DTYPES[precision])
    options = SEVERAL | {"gradient_accumulation_steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        trainer_of(tmp_path, device, kind=kind, precision=precision, callbacks=[look], **options).train()
    assert look.looked
    assert len(look.waits) <= 1, look.waits


@pytest.mark.parametrize(("device", "kind"), on_devices(["adapter", "full"]))
def test_the_tensors_of_an_item_are_copied_at_once(tmp_path, device, kind):
    look = OneStep(device, "copies")
    precision = "bf16" if device == "cuda" else "float32"
    skip_without(device, DTYPES[precision])
    trainer_of(tmp_path, device, kind=kind, precision=precision, callbacks=[look], **SEVERAL).train()
    assert look.looked
    least = 1 if device == "cuda" else 0
    assert least <= len(look.copies) <= 2, look.copies  # the item, and what the optimizer has of its step


# ---- Memory


# Long enough, and a vocabulary large enough, that memory is what a step needs and not what a process needs.
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGE |= {"num_key_value_heads": 4, "vocab_size": 8192, "initializer_range": 0.02}


def long_pairs(count):
    return [
        {"prompt": row["prompt"] * 6, "chosen": row["chosen"] * 8, "rejected": row["rejected"] * 5}
        for row in ragged_pairs(count, seed=1)
    ]


class Hog(TrainerCallback):
    """After the first step, take all memory except a share of what that step needed.

    On the CPU, which lacks none, micro-batches of more than a share of the first step's tokens are said to lack it.
    """

    def __init__(self, device, share):
        self.device, self.share, self.taken, self.needed_bytes = device, share, None, 0
        self.longest, self.limit = 0, None

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before_bytes = torch.cuda.memory_allocated()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 1:
            return
        if self.device == "cpu":
            self.needed_bytes, self.limit = 1 << 30, int(self.share * self.longest)
            return
        torch.cuda.synchronize()
        self.needed_bytes = torch.cuda.max_memory_allocated() - self.before_bytes
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info()
        leave = int(self.share * self.needed_bytes)
        self.taken = torch.empty(free_bytes - leave, dtype=torch.uint8, device="cuda")

    def look(self, module, inputs):
        """Note a micro-batch, and refuse one that is too long."""
        self.longest = max(self.longest, inputs[0].numel())
        if self.limit is not None and inputs[0].numel() > self.limit:
            raise torch.OutOfMemoryError("more than a CPU may take in this test")


SIZES = {"cpu": {}, "cuda": LARGE}


@pytest.mark.parametrize("device", ["cpu", *needs_gpu])
def test_a_step_that_does_not_fit_is_repeated_in_halves(tmp_path, caplog, device):
    pairs = long_pairs(32) if device == "cuda" else ragged_pairs(32, seed=1)
    precision = "bf16" if device == "cuda" else "float32"
    options = {"pairs": pairs, "per_device_train_batch_size": 16, "max_steps": 2, "precision": precision}
    options |= {"max_tokens_per_microbatch": 10**6}
    whole = trainer_of(tmp_path / "whole", device, model=small_model(device, **SIZES[device]), **options)
    whole.train()
    if device == "cuda":
        torch.cuda.empty_cache()
    hog, model = Hog(device, 0.75), small_model(device, **SIZES[device])
    short = trainer_of(tmp_path / "short", device, model=model, callbacks=[hog], **options)
    assert short.path.max_tokens == 10**6
    if device == "cpu":
        model.get_input_embeddings().register_forward_pre_hook(hog.look)
    with caplog.at_level(logging.WARNING, logger="oddsmith"):
        short.train()
    assert hog.needed_bytes > 200 << 20, "the step is too small for this test"
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(said) >= 1
    assert short.path.max_tokens < 10**6
    loss_tolerance, norm_tolerance = (1e-5, 1e-3) if precision == "float32" else (1e-2, 5e-2)
    assert logged(short, "loss") == pytest.approx(logged(whole, "loss"), rel=loss_tolerance)
    assert logged(short, "grad_norm") == pytest.approx(logged(whole, "grad_norm"), rel=norm_tolerance)


@pytest.mark.parametrize("checkpointing", ["kept", "checkpointed"])
@pytest.mark.parametrize("device", needs_gpu)
def test_the_automatic_budget_fits_and_is_used(tmp_path, caplog, device, checkpointing):
    """With 3 GiB free, micro-batches are as long as that allows: a step full of them needs half of it or more."""
    model = small_model(device, **LARGE)
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free_bytes - (3 << 30), dtype=torch.uint8, device=device)
    options = {"pairs": long_pairs(256), "per_device_train_batch_size": 128, "max_steps": 2, "precision": "bf16"}
    trainer = trainer_of(tmp_path, device, model=model, **options, **CHECKPOINTING[checkpointing])
    torch.cuda.reset_peak_memory_stats()
    with caplog.at_level(logging.WARNING, logger="oddsmith"):
        trainer.train()
    used = torch.cuda.max_memory_allocated() - hog.nbytes
    del hog
    assert not [record for record in caplog.records if "out of memory" in record.getMessage()]
    assert 256 <= trainer.path.max_tokens <= 32768
    if trainer.path.max_tokens < 32768:
        assert used > 1.5 * 2**30, f"{used / 2**30:.1f} of 3 GiB: {trainer.path.reason}"
