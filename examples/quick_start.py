"""TRL's quick-start for ORPO with one import changed.

python examples/quick_start.py [MODEL] [DATASET]
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from oddsmith import ORPOConfig, ORPOTrainer

model_name = sys.argv[1] if len(sys.argv) > 1 else "Qwen/Qwen2-0.5B-Instruct"
dataset_name = sys.argv[2] if len(sys.argv) > 2 else "trl-lib/ultrafeedback_binarized"

model = AutoModelForCausalLM.from_pretrained(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_name)
train_dataset = load_dataset(dataset_name, split="train")

training_args = ORPOConfig(output_dir="Qwen2-0.5B-ORPO")
trainer = ORPOTrainer(model=model, args=training_args, processing_class=tokenizer, train_dataset=train_dataset)
trainer.train()
