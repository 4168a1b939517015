"""How ``oddsmith train --help`` presents the settings: their groups, which are common, and plain words for some.

Only names and sentences stand here; types and defaults come from the dataclasses (``cli/parsing/schema.py``). A setting
that is named nowhere below falls into the group of its prefix, or into "Other".
"""

from __future__ import annotations

# Group -> (common settings, in the order of the help; the rest of the group, for --help-all).
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ORPO": (
        ("beta", "max_length", "max_prompt_length", "nll_on", "bad_rows"),
        ("max_completion_length", "orpo_alpha", "orpo_beta", "padding_value", "is_encoder_decoder", "disable_dropout"),
    ),
    "Model": (
        ("model_name_or_path", "dtype", "trust_remote_code"),
        ("model_revision", "attn_implementation", "model_init_kwargs"),
    ),
    "Adapter and quantisation": (
        ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "load_in_4bit", "load_in_8bit"),
        (
            "use_dora",
            "use_rslora",
            "init_lora_weights",
            "lora_target_parameters",
            "lora_modules_to_save",
            "lora_task_type",
            "bnb_4bit_quant_type",
            "bnb_4bit_quant_storage",
            "use_bnb_nested_quant",
        ),
    ),
    "Data": (
        ("dataset_name", "dataset_train_split", "dataset_test_split", "eval_dataset_name", "test_split_size"),
        ("dataset_config", "datasets", "dataset_streaming", "dataset_num_proc"),
    ),
    "Training": (
        (
            "learning_rate",
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "warmup_steps",
            "lr_scheduler_type",
            "weight_decay",
            "max_grad_norm",
            "max_tokens_per_microbatch",
            "gradient_checkpointing",
            "bf16",
            "use_cpu",
            "seed",
        ),
        (
            "prefix_forest",
            "max_skipped_steps",
            "loss_spikes",
            "fp16",
            "tf32",
            "optim",
            "optim_args",
            "optim_target_modules",
            "neftune_noise_alpha",
            "auto_find_batch_size",
        ),
    ),
    "Evaluation": (
        ("eval_strategy", "eval_steps", "per_device_eval_batch_size"),
        ("eval_on_start", "generate_during_eval", "metric_for_best_model", "greater_is_better"),
    ),
    "Logging": (
        ("logging_steps", "report_to", "run_name"),
        ("logging_first_step", "logging_strategy", "log_level", "disable_tqdm", "project"),
    ),
    "Saving": (
        ("output_dir", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end"),
        ("resume_from_checkpoint", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    ),
    "Hub": (("push_to_hub", "hub_model_id"), ()),
    "Other": ((), ()),
}

# Beginning of a name -> its group, for settings that are not named above.
PREFIXES: dict[str, str] = {
    "adam_": "Training",
    "lr_": "Training",
    "activation_checkpointing": "Training",
    "gradient_checkpointing": "Training",
    "torch_compile": "Training",
    "eval_": "Evaluation",
    "batch_eval": "Evaluation",
    "prediction_": "Evaluation",
    "include_for_metrics": "Evaluation",
    "bf16_full_eval": "Evaluation",
    "fp16_full_eval": "Evaluation",
    "log": "Logging",
    "trackio_": "Logging",
    "include_num_input": "Logging",
    "save_": "Saving",
    "hub_": "Hub",
}

# Settings of transformers whose own help does not fit a line, in our words.
WORDS: dict[str, str] = {
    "activation_checkpointing": "Recompute activations in the backward pass: less memory, slower steps.",
    "auto_find_batch_size": "Halve the batch size until it fits into memory.",
    "bf16": "Compute in bf16. By default: wherever the hardware multiplies bf16.",
    "bf16_full_eval": "Evaluate wholly in bf16.",
    "deepspeed": "DeepSpeed configuration: a JSON file, or a mapping.",
    "disable_tqdm": "Leave out the progress bars of the libraries. The command has its own.",
    "eval_steps": "Evaluate every so many optimizer steps; below 1: this share of all steps.",
    "eval_strategy": "When to evaluate.",
    "fp16": "Compute in fp16 with loss scaling, for GPUs without bf16.",
    "fsdp": "Shard the model over the processes (PyTorch FSDP).",
    "fsdp_config": "FSDP configuration: a JSON file, or a mapping.",
    "full_determinism": "Use deterministic algorithms only; slower.",
    "gradient_accumulation_steps": "Micro-batches that make one optimizer step, per device.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, slower steps.",
    "gradient_checkpointing_kwargs": "Keyword arguments of gradient checkpointing.",
    "greater_is_better": "Whether a higher metric_for_best_model is better.",
    "hub_model_id": "Name of the hub repository, as in user/name.",
    "hub_token": "Token for the hub. Safer: log in once with `hf auth login`.",
    "learning_rate": "Highest learning rate of the schedule; about 8e-6 for a whole model, 2e-4 with LoRA.",
    "load_best_model_at_end": "End with the checkpoint that evaluated best.",
    "logging_strategy": "When to log.",
    "lr_scheduler_kwargs": "Keyword arguments of the schedule.",
    "lr_scheduler_type": "How the learning rate falls after the warm-up.",
    "max_grad_norm": "Clip the gradient to this norm; 0: no clipping.",
    "max_steps": "Stop after so many optimizer steps, whatever num_train_epochs says.",
    "metric_for_best_model": "Which evaluation metric decides what is best, e.g. rewards/accuracies.",
    "neftune_noise_alpha": "Add NEFTune noise of this size to the embeddings.",
    "num_train_epochs": "How often to go through the pairs.",
    "optim": "Optimizer.",
    "optim_target_modules": "Modules that the optimizer treats specially (GaLore, APOLLO).",
    "output_dir": "Run folder: settings, events, checkpoints, and the model at the end.",
    "per_device_eval_batch_size": "Pairs of an evaluation batch, per device. It does not change the results.",
    "per_device_train_batch_size": "Pairs of a micro-batch, per device.",
    "push_to_hub": "Upload the model when it is saved.",
    "report_to": "Trackers that get the logs: wandb, tensorboard, trackio, mlflow, ...; none; all.",
    "resume_from_checkpoint": "Same as --resume PATH.",
    "run_name": "Name of the run in the trackers.",
    "save_steps": "Save a checkpoint every so many optimizer steps; below 1: this share of all steps.",
    "save_strategy": "When to save a checkpoint.",
    "save_total_limit": "Keep at most so many checkpoints; the oldest go first.",
    "seed": "Seed of everything random: order of the pairs, adapter weights, dropout.",
    "tf32": "Multiply float32 in TF32 on NVIDIA GPUs since Ampere.",
    "use_cpu": "Train on the CPU even where there is an accelerator.",
    "warmup_steps": "Steps until the learning rate is at its highest; below 1: this share of all steps.",
    "weight_decay": "Weight decay of the optimizer.",
}
