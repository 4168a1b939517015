"""In the pattern of the ORPO page of Hugging Face's smol-course, whose settings no released trainer has had."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from oddsmith import ORPOConfig, ORPOTrainer


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    dataset = load_dataset("json", data_files=f"{data}/train.jsonl", split="train")
    orpo_config = ORPOConfig(
        learning_rate=1e-5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        orpo_alpha=1.0,
        orpo_beta=0.1,
        output_dir=out,
        report_to="none",
    )
    trainer = ORPOTrainer(model=model, args=orpo_config, train_dataset=dataset, tokenizer=tokenizer)
    trainer.train()
    return trainer
