"""Recipes of other trainers, made after their public examples, and the settings of ours that mean the same."""

from typing import Any, NamedTuple


class Example(NamedTuple):
    """A recipe of another trainer."""

    file: str
    text: str
    settings: dict[str, Any]  # ours, all of them
    changed: set[str]  # names of what means something else
    same: set[str] = frozenset()  # of what has no counterpart, with the same result
    undecided: set[str] = frozenset()  # and with another


AXOLOTL = Example(
    "axolotl.yaml",
    """\
base_model: org/base-1B
model_type: LlamaForCausalLM
load_in_8bit: false
load_in_4bit: true
strict: false

rl: orpo
orpo_alpha: 0.2
remove_unused_columns: false
chat_template: chatml
datasets:
  - path: org/pairs
    type: chat_template.argilla
    split: train[:90%]
val_set_size: 0.1
output_dir: ./out
adapter: qlora
lora_model_dir:
sequence_len: 2048
sample_packing: false
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 64
lora_target_linear: true
lora_target_modules: [q_proj]
gradient_accumulation_steps: 3
micro_batch_size: 2
num_epochs: 2
optimizer: adamw_bnb_8bit
learning_rate: 0.0002
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
flash_attention: true
evals_per_epoch: 4
saves_per_epoch: 1
warmup_ratio: 0.1
weight_decay: 0.01
special_tokens:
  pad_token: <pad>
""",
    {
        "model_name_or_path": "org/base-1B",
        "dataset_name": "org/pairs",
        "dataset_train_split": "train[:90%]",
        "test_split_size": 0.1,
        "chat_template": "chatml",
        "beta": 0.2,
        "nll_on": "sequence",
        "max_length": 2048,
        "use_peft": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "lora_target_modules": ["all-linear"],
        "load_in_4bit": True,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "optim": "adamw_bnb_8bit",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "gradient_checkpointing": True,
        "tf32": False,
        "save_strategy": "steps",
        "save_steps": 0.5,
        "eval_strategy": "steps",
        "eval_steps": 0.125,
        "save_total_limit": 4,
        "logging_steps": 0.005,
        "num_train_epochs": 2,
        "weight_decay": 0.01,
        "output_dir": "./out",
    },
    {"datasets", "val_set_size", "chat_template", "system message", "sequence_len", "loss"},
    {"flash_attention", "pad_to_sequence_len", "model_type", "special_tokens"},
)

AXOLOTL_FULL = Example(  # all weights, and silent wherever it may be
    "full.yaml",
    """\
base_model: org/base-1B
rl: orpo
datasets:
  - path: pairs.jsonl
    ds_type: json
    field_prompt: question
learning_rate: 8e-6
micro_batch_size: 4
gradient_accumulation_steps: 1
bf16: true
""",
    {
        "model_name_or_path": "org/base-1B",
        "dataset_name": "pairs.jsonl",
        "columns": {"prompt": "question"},
        "beta": 0.1,
        "nll_on": "sequence",
        "max_length": 512,
        "learning_rate": 8e-6,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "bf16": True,
        "dtype": "bfloat16",
        "save_strategy": "epoch",
        "save_total_limit": 4,
        "logging_steps": 0.005,
        "num_train_epochs": 1.0,
        "weight_decay": 0.0,
        "output_dir": "./model-out",
    },
    {"system message", "loss", "warmup_steps", "bf16"},
)

DATASET_INFO = {
    "alpaca": {
        "file_name": "alpaca.json",
        "ranking": True,
        "columns": {"prompt": "task", "query": "context", "chosen": "chosen", "rejected": "bad"},
    },
    "shared": {
        "hf_hub_url": "org/pairs",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "instructions": {"file_name": "instructions.json"},
    "tagged": {"file_name": "t.json", "ranking": True, "formatting": "sharegpt", "tags": {"user_tag": "asker"}},
}
LLAMA_FACTORY = Example(
    "factory.yaml",
    """\
### model
model_name_or_path: org/chat-8B
trust_remote_code: true

### method
stage: dpo
do_train: true
finetuning_type: lora
lora_target: all
pref_beta: 0.3
pref_loss: orpo
pref_ftx: 0.5

### dataset
dataset: alpaca, shared
dataset_dir: lists
template: llama3
max_samples: 1000
preprocessing_num_workers: 16
overwrite_cache: true

### output
output_dir: saves/orpo
logging_steps: 10
save_steps: 500
plot_loss: true

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
eval_strategy: steps
eval_steps: 500
""",
    {
        "model_name_or_path": "org/chat-8B",
        "datasets": [
            {
                "path": "lists/alpaca.json",
                "split": "train[:1000]",
                "columns": {"instruction": "task", "input": "context", "rejected": "bad"},
            },
            {"path": "org/pairs", "split": "train[:1000]"},
        ],
        "test_split_size": 0.1,
        "chat_template_on_text": True,
        "beta": 0.2,
        "nll_on": "response",
        "max_length": 2048,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": ["all-linear"],
        "bf16": True,
        "gradient_checkpointing": True,
        "learning_rate": 5e-5,
        "logging_steps": 10,
        "output_dir": "saves/orpo",
        "save_steps": 500,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine",
        "ddp_timeout": 180000000,
        "eval_strategy": "steps",
        "eval_steps": 500,
        "dataset_num_proc": 16,
        "warmup_steps": 0.1,
    },
    {"dataset", "template", "pref_ftx", "NLL", "loss", "val_size"},
    {"overwrite_cache", "plot_loss", "trust_remote_code"},
)

SWIFT = Example(
    "swift.sh",
    """\
#!/bin/bash
export MODEL=org/chat-4B
DATA=${DATA:-pairs.jsonl}
# LoRA
NPROC_PER_NODE=2 \\
swift rlhf \\
    --rlhf_type orpo \\
    --model "$MODEL" \\
    --train_type lora \\
    --dataset "${DATA}#500" \\
    --torch_dtype bfloat16 \\
    --num_train_epochs 1 \\
    --per_device_train_batch_size 3 \\
    --target_modules q_proj v_proj \\
    --warmup_ratio=0.05 \\
    --max_length 2048 \\
    --deepspeed zero2 && echo done
""",
    {
        "model_name_or_path": "org/chat-4B",
        "dataset_name": "pairs.jsonl",
        "dataset_train_split": "train[:500]",
        "chat_template_on_text": True,
        "beta": 0.1,
        "nll_on": "response",
        "max_length": 2048,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_target_modules": ["q_proj", "v_proj"],
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 3,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": True,
        "logging_steps": 5,
        "num_train_epochs": 1,
        "warmup_steps": 0.05,
    },
    {"model", "dataset", "template", "max_length", "loss", "gradient_accumulation_steps", "report_to"},
    {"deepspeed", "NPROC_PER_NODE"},
)

HANDBOOK = Example(
    "handbook.yaml",
    """\
model_name_or_path: org/base-7B
model_revision: main
torch_dtype: bfloat16
chat_template: "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
dataset_mixer:
  org/pairs: 1.0
dataset_splits:
- train
preprocessing_num_workers: 12
bf16: true
beta: 0.05
gradient_checkpointing_kwargs:
  use_reentrant: true
learning_rate: 5.0e-6
lr_scheduler_type: inverse_sqrt
max_length: 2048
max_prompt_length: 1792
num_train_epochs: 3
optim: adamw_bnb_8bit
output_dir: data/out
per_device_train_batch_size: 8
save_strategy: "no"
warmup_steps: 100
overwrite_output_dir: true
""",
    {
        "model_name_or_path": "org/base-7B",
        "model_revision": "main",
        "chat_template": "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}",
        "bf16": True,
        "beta": 0.05,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "learning_rate": 5e-6,
        "lr_scheduler_type": "inverse_sqrt",
        "max_length": 2048,
        "max_prompt_length": 1792,
        "num_train_epochs": 3,
        "optim": "adamw_bnb_8bit",
        "output_dir": "data/out",
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "warmup_steps": 100,
        "dtype": "bfloat16",
        "dataset_name": "org/pairs",
        "dataset_train_split": "train",
        "dataset_num_proc": 12,
        "gradient_checkpointing": True,
    },
    {"chat_template", "loss"},
    {"overwrite_output_dir"},
)

MIXTURE = Example(  # a newer recipe of alignment-handbook
    "mixture.yaml",
    """\
model_name_or_path: org/base-7B
dataset_mixture:
  datasets:
    - id: org/pairs
      config: default
      split: train_prefs
      columns: [chosen, rejected]
      weight: 0.25
    - id: org/more
  test_split_size: 1000
  seed: 0
use_peft: true
""",
    {
        "model_name_or_path": "org/base-7B",
        "datasets": [
            {"path": "org/pairs", "name": "default", "split": "train_prefs[:25%]"},
            {"path": "org/more", "split": "train"},
        ],
        "test_split_size": 1000,
        "use_peft": True,
        "learning_rate": 1e-6,
        "max_length": 1024,
        "beta": 0.1,
        "gradient_checkpointing": True,
    },
    {"dataset_mixture", "max_prompt_length", "loss", "lora_target_modules"},
)

UNSLOTH = Example(
    "unsloth.py",
    """\
from unsloth import FastLanguageModel, is_bfloat16_supported
max_seq_length = 4096
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name = "org/model-bnb-4bit", max_seq_length = max_seq_length, dtype = None, load_in_4bit = True,
)
model = FastLanguageModel.get_peft_model(
    model, r = 32, target_modules = ["q_proj", "v_proj"], lora_alpha = 16, bias = "none",
    use_gradient_checkpointing = "unsloth", random_state = 3407, loftq_config = None,
)
from datasets import load_dataset
dataset = load_dataset("org/pairs", split = "train[:1000]")
from trl import ORPOConfig, ORPOTrainer
trainer = ORPOTrainer(model = model, train_dataset = dataset, args = ORPOConfig(
    max_length = max_seq_length, max_prompt_length = max_seq_length // 2, beta = 0.1,
    per_device_train_batch_size = 2, gradient_accumulation_steps = 4, optim = "adamw_8bit",
    fp16 = not is_bfloat16_supported(), bf16 = is_bfloat16_supported(), max_steps = 30, output_dir = "outputs",
))
if False:
    model, tokenizer = FastLanguageModel.from_pretrained(model_name = "lora_model", load_in_4bit = False)
""",
    {
        "lora_r": 32,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "model_name_or_path": "org/model-bnb-4bit",
        "max_length": 4096,
        "load_in_4bit": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "gradient_checkpointing": True,
        "dataset_name": "org/pairs",
        "dataset_train_split": "train[:1000]",
        "max_prompt_length": 2048,
        "beta": 0.1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "optim": "adamw_8bit",
        "max_steps": 30,
        "output_dir": "outputs",
        "use_peft": True,
        "learning_rate": 5e-5,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "seed": 3407,
    },
    {"kernels", "loss"},
    {"fp16", "bf16"},
)

EXAMPLES = (AXOLOTL, AXOLOTL_FULL, LLAMA_FACTORY, SWIFT, HANDBOOK, MIXTURE, UNSLOTH)
