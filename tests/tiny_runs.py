"""Train tiny models for two steps with the real trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.model.loading.models import load_model, load_tokenizer
from oddsmith.system import precision
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

# On the CPU in float32, with nothing reported or saved.
PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
    "disable_tqdm": True, "bf16": False, "use_cpu": True,
}  # fmt: skip
SETTINGS: dict[str, Any] = {**PLAIN, "learning_rate": 1e-2, "max_length": 64, "max_steps": 2}


def make_trainer(
    folder: Path,
    model: Any = None,
    pairs: Any = 12,
    evaluate: Any = None,
    *,
    kind: type[ORPOTrainer] = ORPOTrainer,
    tokenizer: Any = None,
    **options: Any,
) -> ORPOTrainer:
    """Make a trainer; ``options`` are fields of ``ORPOConfig``, ``PLAIN`` by default, and arguments of the trainer."""
    settings = {name: options.pop(name) for name in list(options) if name in ORPOConfig.__dataclass_fields__}
    return kind(
        model or (None if "model_init" in options else tiny_model()),
        ORPOConfig(**{**PLAIN, "output_dir": str(folder), **settings}),
        train_dataset=ragged_pairs(pairs) if isinstance(pairs, int) else pairs,
        eval_dataset=evaluate,
        processing_class=tokenizer or tiny_tokenizer(),
        **options,
    )


def let_transformers_add(model: Any, adapter: LoraConfig) -> None:
    """Let transformers add an adapter to a model, or skip the test where it asks for a PEFT that is not out yet."""
    try:
        model.add_adapter(adapter)
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers {transformers.__version__}: {error}")


def train_run(base: Path | str, folder: Path, lora: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Train a tiny model into a run folder, and return the folder.

    ``lora``: settings of ``LoraConfig``, ``{}`` for LoRA on all linear layers, ``None`` to train the whole model.
    ``settings``: fields of ``ORPOConfig``; ``dtype`` and ``quantization_config`` are for loading the base.
    """
    options = {name: settings.pop(name) for name in ("dtype", "quantization_config") if name in settings}
    torch.manual_seed(0)
    model = load_model(str(base), **options)
    adapter = None
    if lora is not None:
        adapter = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    held_out, tokenizer = ragged_pairs(3, seed=1), load_tokenizer(str(base))
    settings = {**SETTINGS, **settings}
    with pytest.MonkeyPatch.context() as patch:
        if "dtype" in options:  # a base in bfloat16 stays in it, also on a CPU that emulates it
            patch.setattr(precision, "_cpu_bf16_unit", lambda: "AVX512-BF16")
        trainer = make_trainer(folder, model, 6, held_out, tokenizer=tokenizer, peft_config=adapter, **settings)
    trainer.train()
    trainer.evaluate()
    if lora is not None:  # a few steps change an adapter little; losing it in a merge has to show
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    trainer.save_model()
    trainer.create_model_card()
    return folder
