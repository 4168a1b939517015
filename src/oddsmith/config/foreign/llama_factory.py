"""Translate a recipe of LLaMA-Factory (``stage: dpo`` with ``pref_loss: orpo``).

Source: LLaMA-Factory's ``hparams`` (names and defaults), ``train/dpo/trainer.py`` (the loss), ``data/parser.py`` and
``data/processor/pairwise.py`` (rows); version 0.9.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...system.outside import open_file
from ...system.strict_json import read_json
from .recipe import LOSS_OF_A_STEP, Given, Recipe, names_of, part_of_rows, set_datasets, set_held_out

NAME = "LLaMA-Factory"
METHODS = frozenset({"stage", "pref_loss"})
MARKS = METHODS | {"finetuning_type", "pref_beta", "cutoff_len", "dataset_dir", "lora_target", "quantization_bit"}
DATASETS_FILE = "dataset_info.json"
MAX_BYTES = 4_000_000
Listed = tuple[Path, dict[str, Any]] | None  # dataset_info.json and what it lists; None where names are hub ids

_SAME_RESULT = {
    "flash_attn": "packed rows have an attention of their own; attn_implementation chooses that of padded ones",
    "enable_liger_kernel use_unsloth use_unsloth_gc use_v1_kernels use_kt upcast_layernorm upcast_lmhead_output"
    " low_cpu_mem_usage use_fast_tokenizer print_param_status": "layers and head save that time and memory here by"
    " themselves",
    "packing neat_packing": "batches are packed without padding wherever that is exact (prefix_forest)",
    "overwrite_cache tokenized_path preprocessing_batch_size cache_dir data_shared_file_system buffer_size": "tokens"
    " are kept in a cache of ours",
    "plot_loss": "`oddsmith monitor` draws the curves",
    "use_swanlab": "give report_to: swanlab",
    "swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir": "set SwanLab's"
    " own variables in the environment",
    "ref_model ref_model_adapters ref_model_quantization_bit": "ORPO has no reference model",
    "simpo_gamma pref_bco_weight dpo_label_smoothing kto_chosen_weight kto_rejected_weight reward_model": "is for its"
    " other losses",
    "use_reentrant_gc": "gradient checkpointing needs no choice here",
    "ray_run_name ray_storage_path ray_num_workers resources_per_worker placement_strategy": "--num-processes or"
    " torchrun starts several processes",
    "eval_num_beams predict_with_generate compute_accuracy include_effective_tokens_per_second eval_on_each_dataset"
    " ignore_pad_token_for_loss infer_backend infer_dtype do_sample temperature top_p top_k max_new_tokens"
    " freeze_vision_tower freeze_multi_modal_projector image_max_pixels image_min_pixels video_max_pixels"
    " video_min_pixels": "has no use here",
}
_OTHER_TRAINING = {
    "loraplus_lr_ratio loraplus_lr_embedding": "all weights have one learning rate; leave it out",
    "use_galore use_apollo use_badam use_adam_mini use_muon": "name an optimizer in optim",
    "use_llama_pro freeze_language_model mixture_of_depths shift_attn moe_aux_loss_coef use_mca train_from_scratch"
    " use_dft_loss fp8 ld_alpha": "is not possible here; leave it out",
    "rope_scaling": "write it into the model's config.json",
    "resize_vocab add_tokens add_special_tokens new_special_tokens_config split_special_tokens": "save a tokenizer and"
    " a model with these tokens, and name their folder",
    "train_on_prompt mask_history": "nll_on says what the NLL is over",
    "interleave_probs": "give datasets with weights",
    "tool_format": "the model's chat template writes the tools",
    "adapter_folder": "give model_name_or_path the adapter's whole path",
}


def translate(given: Given, folder: Path) -> Recipe:
    """Translate a recipe; its datasets are looked up in ``dataset_info.json``, also relative to ``folder``."""
    recipe = Recipe(NAME, given)
    if (stage := recipe.take("stage")) != "dpo":
        recipe.refuse_method("stage", stage, "stage: dpo with pref_loss: orpo")
    if (loss := recipe.take("pref_loss")) != "orpo":
        recipe.refuse_method("pref_loss", loss, "pref_loss: orpo")
    recipe.take("do_train")
    recipe.set("model_name_or_path", recipe.require("model_name_or_path", "a hub id or a folder"), "model_name_or_path")
    _translate_data(recipe, folder)
    _translate_loss(recipe)
    _translate_adapter(recipe)
    _translate_precision(recipe)
    recipe.rename("learning_rate", "learning_rate", 5e-5)
    recipe.rename("logging_steps", "logging_steps", 500)
    recipe.rename("early_stopping_steps", "early_stopping_patience")
    if recipe.take("disable_shuffling"):
        recipe.set("train_sampling_strategy", "sequential", "disable_shuffling")
    recipe.leave_all(_SAME_RESULT, off=("auto", "huggingface"))
    recipe.leave_all(_OTHER_TRAINING, decides=True)
    recipe.take_rest()
    return recipe


def _translate_loss(recipe: Recipe) -> None:
    name = "pref_beta" if recipe.has("pref_beta") else ""
    beta, more = recipe.number("pref_beta", 0.1), recipe.number("pref_ftx", 0)
    if more > 0:
        note = "pref_ftx adds to the NLL; this beta weighs the two terms alike, and the loss is smaller by a factor"
        recipe.set("beta", float(f"{beta / (1 + more):.6g}"), "pref_ftx", note)
    else:
        recipe.set("beta", beta, name)
    recipe.set("nll_on", "response")
    recipe.rename(
        "cutoff_len",
        "max_length",
        2048,
        "prompts are not cut here (LLaMA-Factory: prompt and answer, by their lengths)",
    )
    recipe.change("NLL", "LLaMA-Factory takes the mean over an answer, then over pairs; here over the answers' tokens")
    recipe.change(*LOSS_OF_A_STEP)


def _translate_data(recipe: Recipe, folder: Path) -> None:
    listed = _listed(recipe, folder)
    rows = recipe.count("max_samples", 1) if recipe.has("max_samples") else None
    recipe.take("max_samples")
    parts = _datasets(recipe, "dataset", listed, rows)
    note = "" if rows is None else f"the first {rows} rows of each"
    if parts:
        set_datasets(recipe, parts, "dataset", note)
    elif not recipe.has("dataset"):
        recipe.require("dataset", "the name of a dataset")
    held_out = _datasets(recipe, "eval_dataset", listed, rows)
    if held_out:
        set_held_out(recipe, held_out, "eval_dataset", note)
    if recipe.number("val_size", 0):
        recipe.set("test_split_size", recipe.take("val_size"), "val_size", "other rows are held out")
    recipe.rename("streaming", "dataset_streaming")
    recipe.rename("default_system", "system_prompt")
    if recipe.take("mix_strategy", "concat") != "concat":
        recipe.leave("mix_strategy", "give datasets with weights, shares of the mixture's rows", decides=True)
    recipe.set("chat_template_on_text", True)  # its template writes all rows
    if recipe.has("template"):
        recipe.change("template", "the model's own chat template is taken: look at the first pair that --dry-run shows")
    if recipe.take("enable_thinking", True) is not True:
        recipe.leave("enable_thinking", "give chat_template_kwargs in the rows", decides=True)


def _datasets(recipe: Recipe, name: str, listed: Listed, rows: int | None) -> list[dict[str, Any]]:
    """Return the datasets that a setting names, without those that are in no list."""
    parts = []
    for one in names_of(recipe.take(name)) if recipe.has(name) else ():
        if listed is None or one in listed[1]:
            parts.append(_dataset(recipe, one, listed, rows, name))
        else:
            new = {"dataset": "dataset_name", "eval_dataset": "eval_dataset_name"}[name]
            recipe.leave(name, f"{one} is not in {listed[0]}; give {new} its file or hub id", decides=True)
    recipe.take(name)
    return parts


def _listed(recipe: Recipe, folder: Path) -> Listed:
    """Return the file that lists the datasets, and what it lists; ``None`` where names are hub ids (``ONLINE``)."""
    place = str(recipe.take("dataset_dir", "data"))
    if place == "ONLINE":
        return None
    candidates = [Path(place).expanduser() / DATASETS_FILE, folder / place / DATASETS_FILE]
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        return candidates[0], {}
    try:
        with open_file(file) as opened:
            listed = read_json(opened.read(MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read as JSON ({error}); expected LLaMA-Factory's list of datasets"
        ) from error
    if not isinstance(listed, dict) or not all(isinstance(entry, dict) for entry in listed.values()):
        raise ConfigError(f"{file}: expected a mapping of names to mappings, LLaMA-Factory's list of datasets")
    return file, listed


def _dataset(recipe: Recipe, name: str, listed: Listed, rows: int | None, source: str) -> dict[str, Any]:
    """Return a dataset of LLaMA-Factory's list, which the setting ``source`` names, as one of ours."""
    if listed is None:
        return {"path": name, "split": part_of_rows("train", rows)}
    file, entry = listed[0], listed[1][name]
    if not entry.get("ranking"):
        raise ConfigError(f"{file}: {name} has no `ranking: true`, so it holds no pairs; expected a preference dataset")
    path = entry.get("hf_hub_url") or (str(file.parent / str(entry["file_name"])) if entry.get("file_name") else None)
    if path is None:
        raise ConfigError(f"{file}: {name} has neither hf_hub_url nor file_name; give it one of them")
    split = part_of_rows(str(entry.get("split") or "train"), entry.get("num_samples") or rows)
    found = {"path": path, "split": split} | ({"name": entry["subset"]} if entry.get("subset") else {})
    given, told = entry.get("columns") or {}, entry.get("tags") or {}
    if not (isinstance(given, dict) and isinstance(told, dict)):
        raise ConfigError(f"{file}: {name}: columns and tags: expected mappings")
    is_alpaca = entry.get("formatting", "alpaca") == "alpaca"
    ours = {"prompt": "instruction", "query": "input"} if is_alpaca else {"messages": "conversations"}
    of_pairs = {key: column for key, column in given.items() if column and key not in ("response", "kto_tag")}
    columns = {ours.get(key, key): column for key, column in of_pairs.items() if ours.get(key, key) != column}
    if columns:
        found["columns"] = columns
    tags = {key: tag for key, tag in told.items() if not _is_usual(key, tag)}
    media = [key for key in ("images", "videos", "audios") if key in of_pairs]
    if tags or media or entry.get("folder"):
        others = json.dumps(tags) if tags else ", ".join(media) or f"folder {entry['folder']}"
        recipe.leave(source, f"{name}: {others}: write these rows in a format that docs/data.md lists", decides=True)
    return found


def _is_usual(key: str, tag: Any) -> bool:
    """Return whether a name of a role or of a message's part is one that our formats read."""
    usual = {
        "role_tag": ("from", "role"),
        "content_tag": ("value", "content"),
        "user_tag": ("human", "user"),
        "assistant_tag": ("gpt", "assistant"),
        "system_tag": ("system",),
        "observation_tag": ("observation", "tool"),
        "function_tag": ("function_call",),
    }
    return tag in usual.get(key, ())


def _translate_adapter(recipe: Recipe) -> None:
    kind = recipe.take("finetuning_type", "lora")
    rank = recipe.count("lora_rank", 8)
    alpha = recipe.number("lora_alpha", 2 * rank)
    targets = names_of(recipe.take("lora_target", "all"))
    names = {"lora_dropout": 0.0, "use_rslora": False, "use_dora": False}
    if kind == "lora":
        recipe.set("use_peft", True, "finetuning_type" if recipe.has("finetuning_type") else "")
        recipe.set("lora_r", rank, "lora_rank" if recipe.has("lora_rank") else "")
        recipe.set("lora_alpha", alpha, "lora_alpha" if recipe.has("lora_alpha") else "")
        source = "lora_target" if recipe.has("lora_target") else ""
        recipe.set("lora_target_modules", ["all-linear"] if "all" in targets else targets, source)
        for name, default in names.items():
            recipe.rename(name, name, default if name == "lora_dropout" else None)
        if more := recipe.take("additional_target"):
            recipe.set("lora_modules_to_save", names_of(more), "additional_target")
        rounds = recipe.take("pissa_iter", 16)
        if recipe.take("pissa_init"):
            recipe.set("init_lora_weights", "pissa" if rounds == -1 else f"pissa_niter_{rounds}", "pissa_init")
    elif kind != "full":
        recipe.leave("finetuning_type", "give lora, or full for all weights", decides=True)
    for name in (*names, "additional_target", "pissa_init", "pissa_iter", "pissa_convert", "create_new_adapter"):
        recipe.take(name)
    if recipe.has("adapter_name_or_path"):
        text = "set model_name_or_path to that adapter's folder to go on training it"
        recipe.leave("adapter_name_or_path", text, decides=True)
    _translate_quantization(recipe)


def _translate_quantization(recipe: Recipe) -> None:
    bits = recipe.take("quantization_bit")
    method = recipe.take("quantization_method", "bitsandbytes")
    if bits in (4, 8) and method in ("bitsandbytes", "bnb"):
        recipe.set(f"load_in_{bits}bit", True, "quantization_bit")
        if bits == 4:
            recipe.rename("quantization_type", "bnb_4bit_quant_type", "nf4")
            recipe.rename("double_quantization", "use_bnb_nested_quant", True)
    elif bits:
        recipe.leave("quantization_bit", "4 and 8 bits of bitsandbytes are possible", decides=True)
    for name in ("quantization_type", "double_quantization", "quantization_device_map"):
        recipe.take(name)


def _translate_precision(recipe: Recipe) -> None:
    if recipe.take("pure_bf16"):
        recipe.set("bf16", True, "pure_bf16")
        if "use_peft" not in recipe.lines:
            recipe.set("dtype", "bfloat16", "pure_bf16")
    for name in ("bf16", "fp16"):
        recipe.rename(name, name)
    if not recipe.has("fp16") and "bf16" not in recipe.lines:
        recipe.set("bf16", False, note="LLaMA-Factory's default; weights are float32 here, there as they are stored")
    if not recipe.flag("disable_gradient_checkpointing"):
        recipe.set("gradient_checkpointing", True)
