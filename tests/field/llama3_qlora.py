"""In the pattern of the walk-through "Fine-tune Llama 3 with ORPO": QLoRA, and answers rendered by ``dataset.map``.

The rows have a raw ``prompt`` beside whole conversations, so each text is the question, and then question and answer
once more in the template. It trains as it does in TRL, and the report says so.
"""

import gc
import os

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from oddsmith import ORPOConfig, ORPOTrainer, setup_chat_format


def main(base_model: str, data: str, out: str) -> ORPOTrainer:
    new_model = f"{out}/OrpoLlama-3-8B"
    bnb_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )
    peft_config = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=["up_proj", "down_proj", "gate_proj", "k_proj", "q_proj", "v_proj", "o_proj"],
    )
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model, quantization_config=bnb_config, device_map="auto")
    model, tokenizer = setup_chat_format(model, tokenizer)
    model = prepare_model_for_kbit_training(model)

    dataset = load_dataset("json", data_files=f"{data}/train.jsonl", split="all").shuffle(seed=42).select(range(8))

    def format_chat_template(row):
        row["chosen"] = tokenizer.apply_chat_template(row["chosen"], tokenize=False)
        row["rejected"] = tokenizer.apply_chat_template(row["rejected"], tokenize=False)
        return row

    dataset = dataset.map(format_chat_template, num_proc=min(2, os.cpu_count() or 1))
    dataset = dataset.train_test_split(test_size=0.25)
    orpo_args = ORPOConfig(
        learning_rate=8e-6,
        beta=0.1,
        lr_scheduler_type="linear",
        max_length=1024,
        max_prompt_length=512,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        optim="paged_adamw_8bit",
        num_train_epochs=1,
        evaluation_strategy="steps",
        eval_steps=0.2,
        logging_steps=1,
        warmup_steps=10,
        report_to="none",
        output_dir=f"{out}/results/",
    )
    trainer = ORPOTrainer(
        model=model,
        args=orpo_args,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        peft_config=peft_config,
        tokenizer=tokenizer,
    )
    trainer.train()
    trainer.save_model(new_model)

    del model
    gc.collect()
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    model = AutoModelForCausalLM.from_pretrained(base_model, low_cpu_mem_usage=True, return_dict=True)
    model, tokenizer = setup_chat_format(model, tokenizer)
    model = PeftModel.from_pretrained(model, new_model).merge_and_unload()
    model.save_pretrained(f"{out}/merged")
    tokenizer.save_pretrained(f"{out}/merged")
    return trainer
