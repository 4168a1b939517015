"""In the pattern of TRL's script ``orpo.py`` of 2024, with its flags: rendered texts, LoRA, three argument classes."""

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from oddsmith import ModelConfig, ORPOConfig, ORPOTrainer, ScriptArguments, get_peft_config

FLAGS = "--per_device_train_batch_size 4 --max_steps 2 --learning_rate 8e-6 --gradient_accumulation_steps 1"
FLAGS += " --logging_steps 10 --eval_steps 500 --warmup_steps 1 --report_to none --logging_first_step"
FLAGS += " --no_remove_unused_columns --use_peft --lora_r 4 --lora_alpha 4"


def main(model_name: str, data: str, out: str) -> ORPOTrainer:
    parser = HfArgumentParser((ScriptArguments, ORPOConfig, ModelConfig))
    places = ["--dataset_name", "json", "--model_name_or_path", model_name, "--output_dir", out]
    args, orpo_args, model_args = parser.parse_args_into_dataclasses([*places, *FLAGS.split()])
    code = {"trust_remote_code": model_args.trust_remote_code}
    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path, **code)
    peft_config = get_peft_config(model_args)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "test")}
    rows = load_dataset(args.dataset_name, data_files=files)

    def process(row):
        row["prompt"] = tokenizer.apply_chat_template(row["chosen"][:-1], tokenize=False)
        row["chosen"] = tokenizer.apply_chat_template([row["chosen"][-1]], tokenize=False)
        row["rejected"] = tokenizer.apply_chat_template([row["rejected"][-1]], tokenize=False)
        return row

    with PartialState().local_main_process_first():
        rows = rows.map(process, num_proc=orpo_args.dataset_num_proc)
    trainer = ORPOTrainer(
        model,
        args=orpo_args,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        tokenizer=tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(orpo_args.output_dir)
    return trainer
