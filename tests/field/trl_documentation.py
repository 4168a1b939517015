"""In the pattern of the page on ORPO in TRL's documentation: the quick start, and a mixture-of-experts setting."""

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from oddsmith import ORPOConfig, ORPOTrainer


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    train_dataset = load_dataset("json", data_files=f"{data}/train.jsonl", split="train")
    model.config.output_router_logits = False
    training_args = ORPOConfig(output_dir=out, max_steps=2)
    trainer = ORPOTrainer(model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset)
    trainer.train()
    return trainer
