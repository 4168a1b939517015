"""In the pattern of Unsloth's ORPO notebook, without Unsloth: 4-bit base and LoRA by transformers and PEFT.

``FastLanguageModel`` patches layers and ``PatchDPOTrainer`` patches TRL. Here layers, head and batches save that memory
and time by themselves; all else is as it stands there.
"""

import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from oddsmith import ORPOConfig, ORPOTrainer

ALPACA = """Below is an instruction that describes a task, with an input. Write a response that completes the request.

### Instruction:
{}

### Input:
{}

### Response:
{}"""


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    max_seq_length = 512
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(model_name, quantization_config=quantization)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = get_peft_model(
        model,
        LoraConfig(
            r=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )

    def format_prompt(sample):
        sample["prompt"] = ALPACA.format(sample["instruction"], sample["input"], "")
        sample["chosen"] = sample["accepted"] + tokenizer.eos_token
        sample["rejected"] = sample["refused"] + tokenizer.eos_token
        return sample

    dataset = load_dataset("json", data_files=f"{data}/instructions.jsonl", split="train").map(format_prompt)
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    orpo_trainer = ORPOTrainer(
        model=model,
        train_dataset=dataset,
        tokenizer=tokenizer,
        args=ORPOConfig(
            max_length=max_seq_length,
            max_prompt_length=max_seq_length // 2,
            max_completion_length=max_seq_length // 2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            beta=0.1,
            logging_steps=1,
            optim="adamw_8bit",
            lr_scheduler_type="linear",
            learning_rate=8e-6,
            warmup_ratio=0.1,
            max_steps=3,
            fp16=torch.cuda.is_available() and not has_bf16,
            bf16=has_bf16,
            output_dir=out,
            report_to="none",
        ),
    )
    orpo_trainer.train()
    model.save_pretrained(f"{out}/lora_model")
    tokenizer.save_pretrained(f"{out}/lora_model")
    return orpo_trainer
