"""In the pattern of AutoTrain's ORPO trainer: settings in a dict, columns renamed and rendered, LoRA on all layers."""

import torch
from datasets import load_dataset
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from oddsmith import ORPOConfig, ORPOTrainer

PARAMETERS = {
    "block_size": 256, "model_max_length": 512, "padding": "right", "logging_steps": -1, "evaluation_strategy": "epoch",
    "save_total_limit": 1, "auto_find_batch_size": False, "mixed_precision": None, "lr": 1e-5, "epochs": 1,
    "batch_size": 1, "warmup_ratio": 0.1, "gradient_accumulation": 4, "optimizer": "paged_adamw_8bit",
    "scheduler": "cosine", "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 42, "lora_r": 16, "lora_alpha": 32,
    "lora_dropout": 0.05, "dpo_beta": 0.1, "max_prompt_length": 128, "max_completion_length": None,
    "prompt_text_column": "question", "text_column": "chosen", "rejected_text_column": "rejected",
}  # fmt: skip


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    config = dict(PARAMETERS)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.model_max_length = config["model_max_length"]
    tokenizer.padding_side = config["padding"]

    def process(example):
        example["prompt"] = tokenizer.apply_chat_template(example["chosen"][:-1], tokenize=False)
        for side in ("chosen", "rejected"):
            example[side] = tokenizer.apply_chat_template(example[side][-1:], tokenize=False)
        return example

    files = {"train": f"{data}/train.jsonl", "validation": f"{data}/test.jsonl"}
    dataset = load_dataset("json", data_files=files).rename_column("prompt", config["prompt_text_column"])
    dataset = dataset.map(process)
    logging_steps = config["logging_steps"]
    if logging_steps == -1:
        logging_steps = max(1, min(25, int(0.2 * len(dataset["validation"]) / config["batch_size"])))
    training_args = {
        "output_dir": out,
        "per_device_train_batch_size": config["batch_size"],
        "per_device_eval_batch_size": config["batch_size"],
        "learning_rate": config["lr"],
        "num_train_epochs": config["epochs"],
        "eval_strategy": config["evaluation_strategy"],
        "logging_steps": logging_steps,
        "save_total_limit": config["save_total_limit"],
        "save_strategy": config["evaluation_strategy"],
        "gradient_accumulation_steps": config["gradient_accumulation"],
        "report_to": "none",
        "auto_find_batch_size": config["auto_find_batch_size"],
        "lr_scheduler_type": config["scheduler"],
        "optim": config["optimizer"],
        "warmup_ratio": config["warmup_ratio"],
        "weight_decay": config["weight_decay"],
        "max_grad_norm": config["max_grad_norm"],
        "push_to_hub": False,
        "load_best_model_at_end": True,
        "ddp_find_unused_parameters": False,
        "gradient_checkpointing": True,
        "remove_unused_columns": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": config["seed"],
        "max_length": config["block_size"],
        "max_prompt_length": config["max_prompt_length"],
        "max_completion_length": config["max_completion_length"],
        "beta": config["dpo_beta"],
        "fp16": config["mixed_precision"] == "fp16",
        "bf16": config["mixed_precision"] == "bf16",
    }
    model = AutoModelForCausalLM.from_pretrained(model_name)
    model.resize_token_embeddings(len(tokenizer))
    peft_config = LoraConfig(
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config["lora_dropout"],
        bias="none",
        task_type="CAUSAL_LM",
        target_modules="all-linear",
    )
    trainer = ORPOTrainer(
        model=model,
        args=ORPOConfig(**training_args),
        train_dataset=dataset["train"],
        eval_dataset=dataset["validation"],
        tokenizer=tokenizer,
        peft_config=peft_config,
    )
    for name, module in trainer.model.named_modules():
        if isinstance(module, LoraLayer) and config["mixed_precision"] == "bf16":
            module.to(torch.bfloat16)
        if "norm" in name:
            module.to(torch.float32)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.model.config.use_cache = True
    trainer.save_model(out)
    return trainer
