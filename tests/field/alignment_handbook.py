"""In the pattern of alignment-handbook's ``run_orpo.py`` and its recipe: settings in YAML, columns of rendered text."""

import logging
import os
from pathlib import Path

import yaml
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from oddsmith import (
    ModelConfig,
    ORPOConfig,
    ORPOTrainer,
    get_peft_config,
    get_quantization_config,
)

logger = logging.getLogger(__name__)
RECIPE = Path(__file__).with_suffix(".yaml")
MODEL_ARGUMENTS = ("model_name_or_path", "model_revision", "torch_dtype", "use_flash_attention_2")


def apply_chat_template(example, tokenizer):
    """Split each conversation before its last message, and render both parts."""
    for side in ("chosen", "rejected"):
        example[f"text_{side}"] = tokenizer.apply_chat_template(example[side][-1:], tokenize=False)
    example["text_prompt"] = tokenizer.apply_chat_template(example["chosen"][:-1], tokenize=False)
    return example


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe |= {"model_name_or_path": model_name, "output_dir": out, "learning_rate": float(recipe["learning_rate"])}
    model_args = ModelConfig(**{name: recipe.pop(name) for name in MODEL_ARGUMENTS})
    training_args = ORPOConfig(**recipe)
    last_checkpoint = get_last_checkpoint(training_args.output_dir) if os.path.isdir(training_args.output_dir) else None
    set_seed(training_args.seed)
    raw_datasets = load_dataset("json", data_files={"train": f"{data}/train.jsonl", "test": f"{data}/test.jsonl"})
    column_names = list(raw_datasets["train"].features)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, revision=model_args.model_revision)
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        use_cache=not training_args.gradient_checkpointing,
        quantization_config=get_quantization_config(model_args),
    )
    raw_datasets = raw_datasets.map(
        apply_chat_template,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=column_names,
        desc="Formatting comparisons with prompt template",
    )
    for split in raw_datasets:
        raw_datasets[split] = raw_datasets[split].rename_columns(
            {"text_prompt": "prompt", "text_chosen": "chosen", "text_rejected": "rejected"}
        )
    trainer = ORPOTrainer(
        model,
        args=training_args,
        train_dataset=raw_datasets["train"],
        eval_dataset=raw_datasets.get("test"),
        tokenizer=tokenizer,
        peft_config=get_peft_config(model_args),
    )
    train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last_checkpoint)
    metrics = train_result.metrics
    metrics["train_samples"] = len(raw_datasets["train"])
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    trainer.save_model(training_args.output_dir)
    kwargs = {
        "finetuned_from": model_args.model_name_or_path,
        "dataset": ["pairs"],
        "dataset_tags": ["pairs"],
        "tags": ["alignment-handbook"],
    }
    if trainer.accelerator.is_main_process:
        trainer.create_model_card(**kwargs)
        trainer.model.config.use_cache = True
        trainer.model.config.save_pretrained(training_args.output_dir)
    if training_args.do_eval:
        metrics = trainer.evaluate()
        metrics["eval_samples"] = len(raw_datasets["test"])
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    return trainer
