"""In the pattern of the ORPO notebook of Hugging Face's smol-course: a base model gets ChatML, then trains as it is."""

import os

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from oddsmith import ORPOConfig, ORPOTrainer, setup_chat_format


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    dataset = load_dataset("json", data_files={"train": f"{data}/train.jsonl", "test": f"{data}/test.jsonl"})
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        pretrained_model_name_or_path=model_name, torch_dtype=torch.float32
    ).to(device)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model, tokenizer = setup_chat_format(model, tokenizer)
    finetune_name = f"{out}/SmolLM2-FT-ORPO"
    orpo_args = ORPOConfig(
        learning_rate=8e-6,
        lr_scheduler_type="linear",
        max_length=256,
        max_prompt_length=128,
        beta=0.1,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        optim="paged_adamw_8bit" if device == "cuda" else "adamw_torch",
        num_train_epochs=1,
        evaluation_strategy="steps",
        eval_steps=0.2,
        logging_steps=1,
        warmup_steps=1,
        report_to="none",
        output_dir=f"{out}/results",
        use_mps_device=device == "mps",
        hub_model_id="SmolLM2-FT-ORPO",
    )
    trainer = ORPOTrainer(
        model=model,
        args=orpo_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(finetune_name)
    if os.getenv("HF_TOKEN"):
        trainer.push_to_hub(tags=["smol-course", "module_1"])
    return trainer
