"""Finished runs of tiny models: trained for two steps by the real trainer, with weights unlike the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.tiny import ragged_pairs

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "max_length": 64,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 2,
}


def train_run(base: Path | str, folder: Path, lora: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Train a tiny model, with an adapter if ``lora`` is given, into a run folder.

    Args:
        base: Folder of the base.
        folder: The run folder.
        lora: Settings of ``LoraConfig``; ``{}`` for LoRA on all linear layers.
        **settings: Fields of ``ORPOConfig``; ``dtype`` and ``quantization_config`` are for loading the base.

    Returns:
        The run folder.
    """
    options = {name: settings.pop(name) for name in ("dtype", "quantization_config") if name in settings}
    torch.manual_seed(0)
    model = load_model(str(base), **options)
    adapter = None
    if lora is not None:
        adapter = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
    trainer = ORPOTrainer(
        model,
        args=ORPOConfig(output_dir=str(folder), **{**SETTINGS, **settings}),
        train_dataset=ragged_pairs(6),
        eval_dataset=ragged_pairs(3, seed=1),
        processing_class=load_tokenizer(str(base)),
        peft_config=adapter,
    )
    trainer.train()
    trainer.evaluate()
    if lora is not None:  # a few steps move an adapter little; a merge that loses it has to show
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name or "lora_embedding_B" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    trainer.save_model()
    trainer.create_model_card()
    return folder
