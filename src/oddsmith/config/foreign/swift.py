"""Translate a recipe of ms-swift (``swift rlhf --rlhf_type orpo``): its YAML or JSON, or the flags of a shell script.

Source: ms-swift's ``arguments`` (names and defaults), ``trainers/arguments.py`` and ``rlhf_mixin.py`` (what the NLL is
over); versions 2 to 4, with the defaults of 3.6 and later.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .recipe import LOSS_OF_A_STEP, PROCESSES, Given, Recipe, names_of, part_of_rows, set_datasets, set_held_out

NAME = "ms-swift"
METHODS = frozenset({"rlhf_type"})
MARKS = METHODS | {"tuner_type", "train_type", "sft_type", "split_dataset_ratio", "truncation_strategy", "quant_bits"}

_SAME_RESULT = {
    "attn_impl": "packed rows have an attention of their own; attn_implementation chooses that of padded ones",
    "packing padding_free padding_side use_liger_kernel use_liger use_flash_ckpt lazy_tokenize tuner_backend"
    " device_map max_memory vit_gradient_checkpointing": "layers and batches save that time and memory here by"
    " themselves",
    "load_from_cache_file download_mode use_hf check_model dataset_shuffle val_dataset_shuffle strict add_version"
    " create_checkpoint_symlink acc_strategy model_kwargs_json template_backend logging_dir lora_dtype"
    " ref_model freeze_vit freeze_aligner save_safetensors loss_type custom_dataset_info": "has no use here",
    "swanlab_project swanlab_exp_name swanlab_mode swanlab_token swanlab_workspace": "set SwanLab's own variables in"
    " the environment",
}
_OTHER_TRAINING = {
    "adapters resume_only_model": "set model_name_or_path to that adapter's folder to go on training it",
    "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters"
    " trainable_parameters_regex freeze_llm": "all layers are trained, or those of lora_target_modules",
    "lorap_lr_ratio lora_lr_ratio vit_lr aligner_lr": "all weights have one learning rate; leave it out",
    "use_galore lisa_activated_layers optimizer": "name an optimizer in optim",
    "loss_scale enable_channel_loss enable_dft_loss router_aux_loss_coef label_smoothing rpo_alpha": "the loss of ORPO"
    " has no such term; override pair_losses in Python",
    "lora_bias lora_bias_trainable target_regex": "name layers in lora_target_modules",
    "interleave_prob": "give datasets with weights",
    "sequence_parallel_size external_plugins new_special_tokens rope_scaling": "is not possible here; leave it out",
    "agent_template": "the model's chat template writes the tools",
    "model_type": "give model_name_or_path a hub id or a folder",
}


def translate(given: Given, folder: Path) -> Recipe:
    """Translate a recipe; ``folder`` is not used, because it names datasets by path or hub id."""
    recipe = Recipe(NAME, given)
    if (kind := recipe.take("rlhf_type")) != "orpo":
        recipe.refuse_method("rlhf_type", kind, "rlhf_type: orpo")
    name = recipe.first("model model_id_or_path model_name_or_path")
    if recipe.has(name):
        note = "" if recipe.take("use_hf") else "ms-swift takes it from ModelScope; look whether the hub has the same"
        recipe.set("model_name_or_path", recipe.take(name), name, note if "/" in str(recipe.take(name)) else "")
        recipe.take("model_type")
    recipe.rename("model_revision", "model_revision")
    _translate_data(recipe)
    recipe.rename("beta", "beta", 0.1)
    recipe.set("nll_on", "response")
    _translate_lengths(recipe)
    recipe.change(*LOSS_OF_A_STEP)
    is_full = _translate_adapter(recipe)
    _translate_steps(recipe, is_full)
    recipe.leave_all(_SAME_RESULT, off=(True,))
    recipe.leave_all(_OTHER_TRAINING, decides=True, off=("default", "last_round", 1))
    if recipe.has("deepspeed") and not str(recipe.given["deepspeed"].value).endswith((".json", "}")):
        recipe.leave("deepspeed", "give a file of DeepSpeed's settings; it changes memory and speed alone")
    recipe.take_rest()
    return recipe


def _translate_lengths(recipe: Recipe) -> None:
    if recipe.has("max_length"):
        recipe.rename("max_length", "max_length", note="ms-swift drops pairs that are longer; here answers are cut")
    else:
        recipe.set("max_length", None, note="as long as the model reads; give one that fits into memory")
    strategy = recipe.take("truncation_strategy", "delete")
    if strategy == "left":
        recipe.leave("truncation_strategy", "give max_prompt_length, down to which prompts are cut", decides=True)


def _translate_data(recipe: Recipe) -> None:
    recipe.require("dataset", "a dataset's path or hub id")
    parts, note = _datasets(recipe, "dataset")
    set_datasets(recipe, parts, "dataset", note)
    if recipe.has("columns"):
        recipe.leave("columns", "give columns the other way round: prompt=theirs", decides=True)
    held_out = recipe.number("split_dataset_ratio", 0)
    if recipe.take("val_dataset"):
        parts, note = _datasets(recipe, "val_dataset")
        set_held_out(recipe, parts, "val_dataset", note)
    elif held_out:
        recipe.set("test_split_size", held_out, "split_dataset_ratio", "other rows are held out than ms-swift's")
    if held_out or recipe.has("val_dataset"):
        for what in ("strategy", "steps"):
            default = recipe.given.get(f"save_{what}")
            recipe.rename(
                f"eval_{what}", f"eval_{what}", default.value if default else {"strategy": "steps"}.get(what, 500)
            )
    else:
        for name in ("eval_steps", "eval_strategy", "evaluation_strategy"):
            recipe.take(name)
    recipe.rename("streaming", "dataset_streaming")
    recipe.rename("system", "system_prompt")
    if recipe.has("template"):
        recipe.change(
            "template", "the model's own chat template is taken; compare with --dry-run, chat_template sets one"
        )
    else:
        recipe.take("template")
    recipe.rename("use_chat_template", "chat_template_on_text", True)
    recipe.change("template", "ms-swift's own, with its default system message; here the model's, without one")


def _datasets(recipe: Recipe, setting: str) -> tuple[list[dict[str, Any]], str]:
    """Return the datasets that a setting names, and what to say about their rows."""
    given = recipe.take(setting)
    parts = [_dataset(one, setting) for one in (given if isinstance(given, list) else names_of(str(given)))]
    return parts, "first rows, not random ones" if any("[" in part["split"] for part in parts) else ""


def _dataset(name: Any, setting: str) -> dict[str, Any]:
    """Return ``path:subset#rows`` as a dataset of ours."""
    text, _, rows = str(name).partition("#")
    path, _, subset = text.partition(":") if not Path(text).exists() and "://" not in text else (text, "", "")
    if rows and not rows.isdecimal():
        raise ConfigError(f"{setting} is {name!r}; expected path:subset#rows")
    found = {"path": path, "split": part_of_rows("train", int(rows) if rows else None)}
    return found | ({"name": subset} if subset else {})


def _translate_adapter(recipe: Recipe) -> bool:
    """Translate the adapter; return whether all weights are trained."""
    name = recipe.first("tuner_type train_type sft_type")
    kind = recipe.take(name, "lora")
    targets = names_of(recipe.take(recipe.first("target_modules lora_target_modules"), "all-linear"))
    if kind == "lora":
        recipe.set("use_peft", True, name if recipe.has(name) else "")
        recipe.rename("lora_rank", "lora_r", 8)
        recipe.rename("lora_alpha", "lora_alpha", 32)
        recipe.rename("lora_dropout", "lora_dropout", 0.05)
        is_all = {target.lower() for target in targets} & {"all-linear", "all", "default"}
        source = recipe.first("target_modules lora_target_modules")
        recipe.set("lora_target_modules", ["all-linear"] if is_all else targets, source if recipe.has(source) else "")
        if more := recipe.take("modules_to_save"):
            recipe.set("lora_modules_to_save", names_of(more), "modules_to_save")
        for switch in ("use_rslora", "use_dora"):
            recipe.rename(switch, switch)
        start = recipe.take(recipe.first("init_weights init_lora_weights"), True)
        if str(start).lower() not in ("true", "false"):
            recipe.set("init_lora_weights", start, recipe.first("init_weights init_lora_weights"))
    elif kind != "full":
        recipe.leave(name, "give lora, or full for all weights", decides=True)
    for other in ["lora_rank", "lora_alpha", "lora_dropout", "modules_to_save", "init_weights", "init_lora_weights"]:
        recipe.take(other)
    bits = recipe.take(recipe.first("quant_bits quantization_bit"))
    if bits in (4, 8) and recipe.take("quant_method", "bnb") == "bnb":
        recipe.set(f"load_in_{bits}bit", True, recipe.first("quant_bits quantization_bit"))
    elif bits:
        recipe.leave("quant_bits", "4 and 8 bits of bitsandbytes are possible", decides=True)
    recipe.take("quant_method")
    recipe.rename("bnb_4bit_use_double_quant", "use_bnb_nested_quant")
    kind_of_weights = recipe.take(recipe.first("torch_dtype dtype"))
    if kind == "full":
        note = "float32 rounds small updates away less"
        source = recipe.first("torch_dtype dtype") if kind_of_weights else ""
        recipe.set("dtype", kind_of_weights or "auto", source, note if kind_of_weights != "float32" else "")
    recipe.take("bnb_4bit_compute_dtype")
    return bool(kind == "full")


def _translate_steps(recipe: Recipe, is_full: bool) -> None:
    recipe.rename("learning_rate", "learning_rate", 1e-5 if is_full else 1e-4)
    name = recipe.first("per_device_train_batch_size batch_size")
    recipe.rename(name, "per_device_train_batch_size", 1)
    pairs = recipe.count(name, 1)
    if recipe.has("gradient_accumulation_steps"):
        recipe.rename("gradient_accumulation_steps", "gradient_accumulation_steps")
    else:
        devices = recipe.count(PROCESSES, 1)
        note = f"makes 16 pairs a step of all devices; this is for {devices}"
        recipe.set("gradient_accumulation_steps", max(1, math.ceil(16 / pairs / devices)), note=note)
    recipe.rename("per_device_eval_batch_size", "per_device_eval_batch_size")
    recipe.rename("weight_decay", "weight_decay", 0.1)
    recipe.rename("adam_beta2", "adam_beta2", 0.95)
    recipe.rename("lr_scheduler_type", "lr_scheduler_type", "cosine")
    recipe.rename("gradient_checkpointing", "gradient_checkpointing", True)
    recipe.rename("logging_steps", "logging_steps", 5)
    if not recipe.has("report_to"):
        recipe.change(
            "report_to", "ms-swift writes TensorBoard's files by default; give report_to: tensorboard for them"
        )
    if not recipe.take("train_dataloader_shuffle", True):
        recipe.set("train_sampling_strategy", "sequential", "train_dataloader_shuffle")
