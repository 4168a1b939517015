"""Translate a recipe of axolotl (``rl: orpo``).

Source: axolotl's ``utils/schemas`` (names and defaults), ``core/builders`` (what becomes of them), ``utils/data/rl.py``
(rows); versions 0.4 to 0.18.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .recipe import LOSS_OF_A_STEP, Given, Recipe, names_of, set_datasets, set_held_out

NAME = "axolotl"
METHODS = frozenset({"rl"})
MARKS = METHODS | {"base_model", "sequence_len", "micro_batch_size", "num_epochs", "lora_target_linear", "val_set_size"}

_CUSTOM_OPTIMIZERS = (
    "adopt_adamw",
    "ao_adamw_4bit",
    "ao_adamw_8bit",
    "ao_adamw_fp8",
    "came_pytorch",
    "dion",
    "muon",
    "optimi_adamw",
)
# axolotl's name -> ours, and its default where that is not ours (None: it has none, or ours).
_RENAMED: dict[str, tuple[str, Any]] = {
    "revision_of_model": ("model_revision", None),
    "eval_batch_size": ("per_device_eval_batch_size", None),
    "num_epochs": ("num_train_epochs", 1.0),
    "weight_decay": ("weight_decay", 0.0),
    "seed": ("seed", None),
    "dataset_processes": ("dataset_num_proc", None),
    "dataset_num_proc": ("dataset_num_proc", None),
    "default_system_message": ("system_prompt", None),
    "output_dir": ("output_dir", "./model-out"),
    "noisy_embedding_alpha": ("neftune_noise_alpha", None),
    "attn_implementation": ("attn_implementation", None),
}
_SAME_RESULT = {
    "flash_attention sdp_attention xformers_attention flex_attention eager_attention s2_attention flash_optimum"
    " flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp": "packed rows have an"
    " attention of their own; attn_implementation chooses that of padded ones",
    "sample_packing eval_sample_packing pad_to_sequence_len batch_flattening sample_packing_group_size"
    " sample_packing_bin_size": "batches are packed without padding wherever that is exact (prefix_forest)",
    "lora_mlp_kernel lora_qkv_kernel lora_o_kernel unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv"
    " unsloth_lora_o unsloth_rms_norm unsloth_rope liger_rope liger_rms_norm liger_layer_norm liger_glu_activation"
    " liger_fused_linear_cross_entropy liger_cross_entropy torch_compile": "layers and head save that time and memory"
    " here by themselves",
    "dataset_prepared_path dataset_keep_in_memory push_dataset_to_hub hf_use_auth_token": "tokens are kept in a cache"
    " of ours",
    "wandb_project wandb_entity wandb_watch wandb_run_id wandb_mode wandb_log_model mlflow_tracking_uri"
    " mlflow_experiment_name": "set the tracker's own variable in the environment (WANDB_PROJECT, ...)",
    "gc_steps gpu_memory_limit max_memory low_cpu_mem_usage device_map qlora_sharded_model_loading lora_on_cpu device"
    " experimental_skip_move_to_device": "memory is managed by itself; --num-processes takes several devices",
    "model_type tokenizer_type tokenizer_use_fast tokenizer_legacy is_llama_derived_model is_mistral_derived_model"
    " is_falcon_derived_model is_qwen_derived_model model_config_type": "found out from the model",
    "strict debug save_first_step profiler_steps include_tokens_per_second use_ray local_rank ddp world_size"
    " eval_table_size eval_max_new_tokens save_safetensors remove_unused_columns auto_resume_from_checkpoints"
    " lora_fan_in_fan_out mean_resizing_embeddings": "has no use here",
    "train_on_inputs": "the NLL is over prompt and answer in both, the odds ratio over the answer (nll_on)",
    "loss_watchdog_threshold loss_watchdog_patience": "loss_spikes and max_skipped_steps watch the loss here",
    "gradient_checkpointing_kwargs": "gradient checkpointing needs no choice here",
    "trl vllm": "is for its other methods",
}
_OTHER_TRAINING = {
    "lora_model_dir": "set model_name_or_path to that adapter's folder to go on training it",
    "loraplus_lr_ratio embedding_lr embedding_lr_scale lr_groups": "all weights have one learning rate; leave it out",
    "relora relora_steps jagged_restart_steps lisa_n_layers unfrozen_parameters peft_layers_to_transform"
    " peft_layers_pattern peft_layer_replication peft_trainable_token_indices": "all layers are trained, or those of"
    " lora_target_modules; leave it out",
    "plugins trainer_cls": "subclass ORPOTrainer in Python instead",
    "tokenizer_config base_model_config cls_model_config tokens added_tokens_overrides"
    " resize_token_embeddings_to_32x fix_untrained_tokens": "the model's own tokenizer is taken; save the changed one"
    " into the model's folder",
    "rope_scaling overrides_of_model_config overrides_of_model_kwargs model_kwargs": "write it into the model's"
    " config.json, or give model_init_kwargs in Python",
    "rpo_alpha": "the loss of ORPO has no such term; leave it out",
    "cosine_constant_lr_ratio lr_quadratic_warmup": "give another lr_scheduler_type and lr_scheduler_kwargs",
    "gptq bnb_config_kwargs peft quantization qat": "give load_in_4bit or load_in_8bit",
    "curriculum_sampling": "set train_sampling_strategy: sequential",
    "dataset_exact_deduplication": "run `oddsmith data check --fix`, which leaves duplicates out",
    "pretraining_dataset sequence_parallel_degree context_parallel_size tensor_parallel_size": "is not possible here",
    "excess_length_strategy": "leave it out",
}


def translate(given: Given, folder: Path) -> Recipe:
    """Translate a recipe; ``folder`` is not used, because it names datasets by path or hub id."""
    recipe = Recipe(NAME, given)
    if (rl := recipe.take("rl")) != "orpo":
        recipe.refuse_method("rl", rl, "rl: orpo")
    recipe.take("remove_unused_columns")
    recipe.set("model_name_or_path", recipe.require("base_model", "a hub id or a folder"), "base_model")
    _translate_data(recipe)
    _translate_loss(recipe)
    _translate_adapter(recipe)
    _translate_steps(recipe)
    _translate_precision(recipe)
    _translate_saving(recipe)
    _translate_reports(recipe)
    for name, (new, default) in _RENAMED.items():
        recipe.rename(name, new, default)
    recipe.leave_all(_SAME_RESULT)
    if isinstance(tokens := recipe.take("special_tokens"), dict) and not tokens.keys() - {"pad_token"}:
        if tokens:
            recipe.leave("special_tokens", "which token pads never changes the result")
    elif tokens:
        recipe.leave("special_tokens", "save the tokenizer with them into the model's folder", decides=True)
    recipe.leave_all(_OTHER_TRAINING, decides=True)
    if not recipe.take("shuffle_merged_datasets", True):
        recipe.leave("shuffle_merged_datasets", "set train_sampling_strategy: sequential", decides=True)
    recipe.take_rest()
    return recipe


def _translate_loss(recipe: Recipe) -> None:
    trl = recipe.take("trl")
    if isinstance(trl, dict) and trl.get("beta") is not None:
        recipe.set("beta", trl["beta"], "trl")
        recipe.leave_all({"rl_beta dpo_beta orpo_alpha": "trl.beta goes before it, as in axolotl"})
    else:
        name = recipe.first("rl_beta dpo_beta orpo_alpha")
        recipe.rename(name, "beta", 0.1)
        recipe.leave_all(
            {other: f"{name} goes before it, as in axolotl" for other in ("dpo_beta", "orpo_alpha") if other != name}
        )
    recipe.set("nll_on", "sequence")
    recipe.rename("sequence_len", "max_length", 512, "axolotl drops pairs that are longer; here their answers are cut")
    recipe.rename("max_prompt_len", "max_prompt_length", note="newer versions of axolotl do not use it for ORPO")
    recipe.change(*LOSS_OF_A_STEP)


def _translate_data(recipe: Recipe) -> None:
    datasets = recipe.require("datasets", "a list of datasets, each with its path")
    if not isinstance(datasets, list) or not all(isinstance(part, dict) and part.get("path") for part in datasets):
        raise ConfigError(f"{recipe.given['datasets'].where}: datasets: expected a list of mappings, each with a path")
    set_datasets(recipe, [_dataset(recipe, part, "datasets") for part in datasets], "datasets")
    held_out = recipe.number("val_set_size", 0)
    if held_out:
        recipe.set("test_split_size", held_out, "val_set_size", "other rows are held out than axolotl's")
    tests = recipe.take("test_datasets")
    if tests and isinstance(tests, list) and len(tests) == 1 and isinstance(tests[0], dict) and tests[0].get("path"):
        set_held_out(recipe, [_dataset(recipe, tests[0], "test_datasets")], "test_datasets")
    elif tests:
        recipe.leave("test_datasets", "give one eval_dataset_name, with dataset_test_split", decides=True)
    template = recipe.take("chat_template")
    if template in (None, "tokenizer_default"):
        pass
    elif template == "chatml":
        recipe.set("chat_template", "chatml", "chat_template", "<|im_start|> and <|im_end|> become tokens, with rows")
    elif template == "jinja":
        recipe.set("chat_template", recipe.take("chat_template_jinja"), "chat_template_jinja")
    else:
        recipe.change("chat_template", "the model's own is taken; for another, name a .jinja file or a chat model")
    recipe.take("chat_template_jinja")
    recipe.change("system message", "axolotl puts an empty one before rows that have none; here system_prompt adds one")


def _dataset(recipe: Recipe, part: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a dataset of axolotl's, which the setting ``source`` holds, as one of ours."""
    files = names_of(part.get("data_files") or [])
    found: dict[str, Any] = {"path": files[0] if files else part["path"]}
    if part.get("name"):
        found["name"] = part["name"]
    if part.get("split") not in (None, "train"):
        found["split"] = part["split"]
    fields = {f"field_{name}": name for name in ("prompt", "chosen", "rejected", "system")}
    kind = part.get("type")
    sources = part | (kind if isinstance(kind, dict) else {})
    columns = {name: sources[key] for key, name in fields.items() if sources.get(key) and sources[key] != name}
    if columns:
        found["columns"] = columns
    known = {"path", "name", "split", "type", "ds_type", "data_files", "chat_template", *fields}
    others = [key for key in sources if key not in known and sources[key]] + (["data_files"] if len(files) > 1 else [])
    if others:
        text = (
            f"{', '.join(others)}: rows are recognised by their columns; columns names them, and anything else is yours"
        )
        recipe.leave(source, text, decides=True)
    elif kind:
        shown = kind if isinstance(kind, str) else "of its fields"
        recipe.change(source, f"type {shown}: rows are recognised by their columns; look at them with --dry-run")
    return found


def _translate_adapter(recipe: Recipe) -> None:
    adapter = recipe.take("adapter")
    names = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear"]
    if not adapter:
        for name in (
            *names,
            "load_in_8bit",
            "load_in_4bit",
            "peft_use_dora",
            "peft_use_rslora",
            "lora_modules_to_save",
        ):
            recipe.take(name)
        return
    if adapter not in ("lora", "qlora"):
        recipe.leave("adapter", "give lora, qlora, or none for all weights", decides=True)
        return
    recipe.set("use_peft", True, "adapter")
    recipe.set("lora_r", recipe.require("lora_r", "the rank of the adapter"), "lora_r")
    recipe.set("lora_alpha", recipe.require("lora_alpha", "the scale of the adapter"), "lora_alpha")
    recipe.rename("lora_dropout", "lora_dropout", 0.0)
    modules = recipe.take("lora_target_modules")
    if recipe.take("lora_target_linear") or not modules:
        recipe.set(
            "lora_target_modules", ["all-linear"], "lora_target_linear" if recipe.has("lora_target_linear") else ""
        )
    else:
        recipe.set("lora_target_modules", names_of(modules), "lora_target_modules")
    recipe.rename("lora_modules_to_save", "lora_modules_to_save")
    recipe.rename("peft_use_dora", "use_dora")
    recipe.rename("peft_use_rslora", "use_rslora")
    if isinstance(start := recipe.take("peft_init_lora_weights"), str):
        recipe.set("init_lora_weights", start, "peft_init_lora_weights")
    if adapter == "qlora" or recipe.take("load_in_4bit"):
        recipe.set("load_in_4bit", True, "adapter" if adapter == "qlora" else "load_in_4bit")
    elif recipe.take("load_in_8bit"):
        recipe.set("load_in_8bit", True, "load_in_8bit")
    for name in ("load_in_4bit", "load_in_8bit"):
        recipe.take(name)


def _translate_steps(recipe: Recipe) -> None:
    recipe.set("learning_rate", recipe.require("learning_rate", "a number"), "learning_rate")
    micro = recipe.count("micro_batch_size", 1)
    recipe.set("per_device_train_batch_size", micro, "micro_batch_size" if recipe.has("micro_batch_size") else "")
    if recipe.has("batch_size") and not recipe.has("gradient_accumulation_steps"):
        recipe.set("gradient_accumulation_steps", max(1, recipe.count("batch_size", 1) // micro), "batch_size")
    else:
        recipe.rename("gradient_accumulation_steps", "gradient_accumulation_steps", 1)
        recipe.leave_all({"batch_size": "gradient_accumulation_steps says it"})
    optimizer = recipe.take("optimizer")
    if optimizer in _CUSTOM_OPTIMIZERS:
        recipe.leave("optimizer", "name another in optim; adamw_torch_fused is taken", decides=True)
    elif optimizer:
        recipe.set("optim", optimizer, "optimizer")
    arguments = recipe.take("optim_args")
    if arguments:
        is_table = isinstance(arguments, dict)
        text = ",".join(f"{key}={value}" for key, value in arguments.items()) if is_table else arguments
        recipe.set("optim_args", text, "optim_args")
    _translate_schedule(recipe)
    if recipe.take("group_by_length"):
        recipe.set("train_sampling_strategy", "group_by_length", "group_by_length")


def _translate_schedule(recipe: Recipe) -> None:
    schedule, lowest = recipe.take("lr_scheduler", "cosine"), recipe.take("cosine_min_lr_ratio")
    if schedule in ("one_cycle", "rex"):
        recipe.leave("lr_scheduler", "name another in lr_scheduler_type", decides=True)
    elif lowest and schedule == "cosine":
        recipe.set("lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        recipe.set("lr_scheduler_kwargs", {"min_lr_rate": lowest}, "cosine_min_lr_ratio")
    else:
        recipe.set("lr_scheduler_type", schedule, "lr_scheduler" if recipe.has("lr_scheduler") else "")
        recipe.rename("lr_scheduler_kwargs", "lr_scheduler_kwargs")
    if recipe.has("warmup_steps"):
        recipe.rename("warmup_steps", "warmup_steps")
        recipe.take("warmup_ratio")
    elif recipe.has("warmup_ratio"):
        recipe.set("warmup_steps", recipe.number("warmup_ratio", 0), "warmup_ratio")
    else:
        recipe.take("warmup_ratio")
        recipe.set("warmup_steps", 0.03, note="3% of the steps; axolotl's are at most 100")


def _translate_precision(recipe: Recipe) -> None:
    name = recipe.first("bf16 bfloat16")
    wanted = recipe.take(name, "auto")
    fp16 = bool(recipe.take(recipe.first("fp16 float16")))
    source = name if recipe.has(name) else ""
    half = bool(wanted)
    if wanted != "auto":  # which is found out here in the same way, and fp16 where bf16 is impossible
        recipe.set("bf16", half, source)
    if fp16 and not half:
        recipe.set("fp16", True, recipe.first("fp16 float16"))
    for other in ("bfloat16", "float16", "fp16", "float32"):
        recipe.take(other)
    if half and "use_peft" not in recipe.lines:
        recipe.set("dtype", "bfloat16", source, "axolotl keeps weights in bf16; float32 rounds small updates away less")
    checkpointing = recipe.take("gradient_checkpointing")
    if checkpointing:
        note = "activations stay on the device" if isinstance(checkpointing, str) else ""
        recipe.set("gradient_checkpointing", True, "gradient_checkpointing", note)
    if isinstance(recipe.take("tf32"), bool):
        recipe.set("tf32", recipe.take("tf32"), "tf32")


def _translate_saving(recipe: Recipe) -> None:
    _translate_times(recipe, "save", "saves_per_epoch")
    if "save_strategy" not in recipe.lines and not recipe.has("save_strategy"):
        recipe.set("save_strategy", "epoch")
    if not recipe.has("save_total_limit"):
        recipe.set("save_total_limit", 4)
    if "test_split_size" in recipe.lines or "eval_dataset_name" in recipe.lines:
        _translate_times(recipe, "eval", "evals_per_epoch")
    else:  # nothing is evaluated
        for name in ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"):
            recipe.take(name)
    if recipe.has("hub_model_id"):
        for name, value in {"push_to_hub": True, "hub_private_repo": True, "hub_always_push": True}.items():
            recipe.set(name, value, "hub_model_id")


def _translate_times(recipe: Recipe, what: str, per_epoch: str) -> None:
    """Translate when to save or to evaluate: so many times an epoch are a share of all steps."""
    times = recipe.number(per_epoch, 0) * recipe.number("num_epochs", 1)
    if times > 1:
        recipe.set(f"{what}_strategy", "steps", per_epoch)
        recipe.set(f"{what}_steps", float(f"{1 / times:.6g}"), per_epoch)
    elif recipe.has(f"{what}_steps"):
        recipe.set(f"{what}_strategy", "steps", f"{what}_steps")


def _translate_reports(recipe: Recipe) -> None:
    trackers = {
        "wandb": "use_wandb wandb_project",
        "mlflow": "use_mlflow mlflow_experiment_name",
        "tensorboard": "use_tensorboard",
        "comet_ml": "use_comet comet_project_name",
    }
    used = {tracker: recipe.first(names) for tracker, names in trackers.items()}
    used = {tracker: name for tracker, name in used.items() if recipe.has(name) and recipe.given[name].value}
    for name in ("use_wandb", "use_mlflow", "use_tensorboard", "use_comet"):
        recipe.take(name)
    if used:
        recipe.set("report_to", list(used), next(iter(used.values())))
    recipe.rename(recipe.first("wandb_name mlflow_run_name"), "run_name")
    if not recipe.has("logging_steps"):
        recipe.set("logging_steps", 0.005)
