"""List every setting with its group in the help, its help, and its effect on the weights. Needs no torch.

The help, ``schema.json``, the comparison of a resumed run with its checkpoint, the ``start`` event, the model card and
``oddsmith eval`` read this table. Our settings are fields of the dataclasses beside this module; all others are fields
of ``transformers.TrainingArguments``. A test fails for a field without an entry. The facts are not ``metadata`` of the
fields, because ``HfArgumentParser`` passes all of that on to ``argparse``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields
from enum import Enum, Flag, auto
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeVar

Settings = TypeVar("Settings", bound=type)


class Effect(Enum):
    """The effect of a setting on the trained weights, and so whether it may change when a run is resumed.

    DECIDES: The setting itself is compared with that in the checkpoint, and a change is refused.
    LENGTH: It says how long the run is, and may change to any length that is not over yet.
    BY_RESULT: Its result is compared instead: the tokens of the pairs, the files and type of the base model, the
    adapter, the number of pairs of a step. So a dataset may be renamed.
    FREE: It may change: logging, saving, evaluation, speed, memory. The weights differ by rounding at most.
    """

    DECIDES = auto()
    LENGTH = auto()
    BY_RESULT = auto()
    FREE = auto()


class Trait(Flag):
    """Where else a setting is used."""

    NONE = 0
    COMMON = auto()  # listed in the short help
    SUMMARY = auto()  # recorded in the start event, for the model card and the monitor: no path, name or secret
    EVAL = auto()  # `oddsmith eval` takes it from the run, so that its metrics can be compared with the run's


DECIDES, LENGTH, BY_RESULT, FREE = Effect
COMMON, SUMMARY, EVAL = Trait


class Facts(NamedTuple):
    """The facts about one setting, beside its type and default."""

    effect: Effect
    name: str
    help: str = ""  # one line; where empty, the help shows the first sentence of transformers' own
    traits: Trait = Trait.NONE


decides, length, by_result, free = (partial(Facts, effect) for effect in Effect)


def each(make: Callable[[str], Facts], names: str) -> tuple[Facts, ...]:
    """Return the facts of several settings that have transformers' help and are used nowhere else."""
    return tuple(map(make, names.split()))


OTHER = "Other"  # includes settings of other versions of transformers, which this table lacks

ORPO = (
    decides(
        "beta", "Weight of the odds-ratio term: the paper's lambda, the authors' code's alpha.", COMMON | SUMMARY | EVAL
    ),
    decides(
        "max_length", "Most tokens of a sequence (prompt + response); a longer one is cut.", COMMON | SUMMARY | EVAL
    ),
    decides(
        "max_prompt_length",
        "Where a sequence is too long, first cut its prompt from the left to this many tokens.",
        COMMON | SUMMARY | EVAL,
    ),
    decides(
        "nll_on",
        "NLL over the chosen sequence (prompt + response) or over the response alone.",
        COMMON | SUMMARY | EVAL,
    ),
    by_result("bad_rows", "Stop at an invalid row, or leave it out and count it.", COMMON | EVAL),
    decides(
        "max_completion_length", "Most tokens of a response of an encoder-decoder model (default 128 there).", EVAL
    ),
    by_result("orpo_alpha", "With orpo_beta, another spelling of beta: beta = orpo_alpha * orpo_beta."),
    by_result("orpo_beta", "See orpo_alpha."),
    free("padding_value", "Token id to pad with; the tokenizer's pad token by default."),
    by_result("is_encoder_decoder", "With model_init: whether the model it returns is an encoder-decoder."),
    decides("disable_dropout", "Set every dropout of the model to 0."),
)
MODEL = (
    by_result("model_name_or_path", "Hub id, folder, GGUF file, or builtin:smollm2-135m-instruct.", COMMON),
    by_result(
        "dtype",
        "Weights in this type. By default float32 for full fine-tuning, the run's precision under LoRA.",
        COMMON,
    ),
    free("trust_remote_code", "Let a model from the hub run Python code of its own.", COMMON),
    by_result("model_revision", "Branch, tag or commit on the hub."),
    free("attn_implementation", "Attention implementation of transformers, e.g. sdpa."),
    by_result("model_init_kwargs", "Keyword arguments of from_pretrained where the model is given by name."),
)
ADAPTER = (
    by_result("use_peft", "Train a LoRA adapter instead of the whole model.", COMMON | EVAL),
    by_result("lora_r", "Rank of the adapter.", COMMON),
    by_result("lora_alpha", "Scale of the adapter (alpha / r).", COMMON),
    by_result("lora_dropout", "Dropout of the adapter; 0 with disable_dropout.", COMMON),
    by_result("lora_target_modules", "Modules that get an adapter; all linear layers by default.", COMMON),
    by_result("load_in_4bit", "Quantise the frozen base to 4 bits. Needs LoRA.", COMMON | EVAL),
    by_result("load_in_8bit", "Quantise the frozen base to 8 bits. Needs LoRA.", COMMON | EVAL),
    by_result("use_dora", "Weight-decomposed LoRA."),
    by_result("use_rslora", "Scale the adapter by alpha / sqrt(r)."),
    by_result("init_lora_weights", "Initialisation of the adapter: pissa, pissa_niter_4, gaussian, olora, ..."),
    by_result("lora_target_parameters", "Bare parameters that get an adapter (experts of a mixture-of-experts model)."),
    by_result("lora_modules_to_save", "Modules trained in full beside the adapter."),
    free("lora_task_type", "PEFT task type; follows the model by default."),
    by_result("bnb_4bit_quant_type", "4-bit number format.", EVAL),
    by_result("bnb_4bit_quant_storage", "Type that 4-bit weights lie in."),
    by_result("use_bnb_nested_quant", "Quantise the quantisation constants too.", EVAL),
)
DATA = (
    by_result(
        "dataset_name", "Hub id, file (JSONL, JSON, CSV, Parquet), folder, or builtin:house-style.", COMMON | EVAL
    ),
    by_result("dataset_train_split", "Split to train on.", COMMON | EVAL),
    by_result("dataset_test_split", "Split to evaluate on.", COMMON | EVAL),
    by_result("eval_dataset_name", "Another dataset to evaluate on.", COMMON | EVAL),
    by_result("test_split_size", "Hold out this share (below 1) or number of rows for evaluation.", COMMON | EVAL),
    by_result(
        "chat_template_on_text",
        "Render plain text with the chat template, as a question and its answers; by default it stays as it is.",
        COMMON | EVAL,
    ),
    by_result(
        "min_score_margin",
        "Leave out pairs whose chosen answer scores less than this above the rejected one, where rows have scores.",
        COMMON | EVAL,
    ),
    by_result(
        "columns",
        "Columns of other names, as in prompt=question,chosen=good,rejected=bad; answers.0.text leads into a column.",
        COMMON | EVAL,
    ),
    by_result(
        "chat_template", "Chat template for a model without one: chatml, a file (.jinja), or a chat model.", COMMON
    ),
    by_result("system_prompt", "System message for conversations that have none.", COMMON | SUMMARY | EVAL),
    by_result("dataset_config", "Configuration of the hub dataset.", EVAL),
    by_result(
        "datasets", "A mixture: a list of {path, name, split, weight, columns}, in YAML or as JSON.", COMMON | EVAL
    ),
    by_result("dataset_streaming", "Read rows as they are needed; needs max_steps."),
    free("dataset_num_proc", "Processes that tokenize."),
)
TRAINING = (
    decides(
        "learning_rate",
        "Highest learning rate of the schedule; about 8e-6 for a whole model, 2e-4 with LoRA.",
        COMMON | SUMMARY,
    ),
    length("num_train_epochs", "How often to go through the pairs.", COMMON | SUMMARY),
    length("max_steps", "Stop after so many optimizer steps, whatever num_train_epochs says.", COMMON | SUMMARY),
    by_result(
        "per_device_train_batch_size",
        "Pairs of a batch, per device; max_tokens_per_microbatch bounds how many are computed at once.",
        COMMON | SUMMARY,
    ),
    by_result("gradient_accumulation_steps", "Batches that make one optimizer step, per device.", COMMON | SUMMARY),
    decides(
        "warmup_steps",
        "Steps until the learning rate is at its highest; below 1: this share of all steps.",
        COMMON | SUMMARY,
    ),
    decides("lr_scheduler_type", "How the learning rate falls after the warm-up.", COMMON | SUMMARY),
    decides("weight_decay", "Weight decay of the optimizer.", COMMON | SUMMARY),
    decides("max_grad_norm", "Clip the gradient to this norm; 0: no clipping.", COMMON | SUMMARY),
    free(
        "max_tokens_per_microbatch",
        "Most tokens of a micro-batch; auto: what fits in memory; none: as the batch sizes say.",
        COMMON,
    ),
    free("gradient_checkpointing", "Recompute activations in the backward pass: less memory, slower steps.", COMMON),
    decides("bf16", "Compute in bf16. By default: wherever the hardware multiplies bf16.", COMMON),
    free("use_cpu", "Train on the CPU even where there is an accelerator.", COMMON),
    decides(
        "seed", "Seed of everything random: order of the pairs, adapter weights, dropout.", COMMON | SUMMARY | EVAL
    ),
    free("prefix_forest", "Compute what sequences share once, without padding, where the model can do it exactly."),
    decides(
        "max_skipped_steps",
        "Skip at most so many NaN steps in a row, then roll back to the last good checkpoint, or stop.",
    ),
    decides("loss_spikes", "What to do with a step whose loss is far above those before it."),
    decides("fp16", "Compute in fp16 with loss scaling. By default: on NVIDIA GPUs that multiply fp16 but not bf16."),
    decides("tf32", "Multiply float32 in TF32 on NVIDIA GPUs since Ampere."),
    decides("optim", "Optimizer.", SUMMARY),
    decides("optim_args"),
    decides("optim_target_modules", "Modules that the optimizer treats specially (GaLore, APOLLO)."),
    decides("neftune_noise_alpha", "Add NEFTune noise of this size to the embeddings."),
    by_result("auto_find_batch_size", "Halve the batch size until it fits into memory."),
    decides("lr_scheduler_kwargs", "Keyword arguments of the schedule."),
    *each(decides, "adam_beta1 adam_beta2 adam_epsilon"),
    free("activation_checkpointing", "Recompute activations in the backward pass: less memory, slower steps."),
    free("activation_checkpointing_kwargs"),
    free("gradient_checkpointing_kwargs", "Keyword arguments of gradient checkpointing."),
    *each(free, "torch_compile torch_compile_backend torch_compile_mode"),
)
EVALUATING = (
    free("eval_strategy", "When to evaluate.", COMMON),
    free("eval_steps", "Evaluate every so many optimizer steps; below 1: this share of all steps.", COMMON),
    free(
        "per_device_eval_batch_size",
        "Pairs of an evaluation batch, per device. It does not change the results.",
        COMMON,
    ),
    free("eval_on_start", "Evaluate before the first step, too: what the run starts from.", COMMON),
    free("generate_during_eval", "At each evaluation answer a few held-out prompts and record the answers."),
    decides(
        "metric_for_best_model",
        "Which evaluation metric decides what is best, e.g. rewards/accuracies; of equal ones the lower loss does.",
        COMMON,
    ),
    decides("greater_is_better", "Whether a higher metric_for_best_model is better."),
    length(
        "early_stopping_patience",
        "Stop after so many evaluations in a row that do not improve metric_for_best_model (the loss by default).",
        COMMON | SUMMARY,
    ),
    length("early_stopping_threshold", "With early_stopping_patience: an improvement of at most this much is none."),
    free("bf16_full_eval", "Evaluate wholly in bf16."),
    *each(free, "fp16_full_eval eval_delay prediction_loss_only eval_do_concat_batches eval_use_gather_object"),
    *each(free, "eval_accumulation_steps include_for_metrics batch_eval_metrics"),
)
LOGGING = (
    free("logging_steps", "Log every so many optimizer steps; below 1: this share of all steps.", COMMON),
    free("report_to", "Trackers that get the logs: wandb, tensorboard, trackio, mlflow, ...; none; all.", COMMON),
    free("run_name", "Name of the run in the trackers.", COMMON),
    free("logging_dir", "Folder of TensorBoard's logs; one in output_dir by default."),
    free("logging_first_step"),
    free("logging_strategy", "When to log."),
    free("log_level"),
    free("disable_tqdm", "Leave out the progress bars of the libraries. The command has its own."),
    *each(free, "project log_on_each_node"),
    free("logging_nan_inf_filter", "Leave NaN losses out of the logged average. Off: a NaN is never hidden."),
    *each(free, "include_num_input_tokens_seen log_level_replica trackio_space_id trackio_bucket_id"),
    free("trackio_static_space_id"),
)
SAVING = (
    free("output_dir", "Run folder: settings, events, checkpoints, and the model at the end.", COMMON),
    free("save_strategy", "When to save a checkpoint.", COMMON),
    free("save_steps", "Save a checkpoint every so many optimizer steps; below 1: this share of all steps.", COMMON),
    free(
        "async_save",
        "Train on while a checkpoint is flushed to the disk and verified; steps wait for the writing alone.",
        COMMON,
    ),
    free("save_total_limit", "Keep at most so many checkpoints; the oldest go first.", COMMON),
    decides(
        "load_best_model_at_end", "End with the checkpoint that evaluated best; each evaluation saves one.", COMMON
    ),
    free("resume_from_checkpoint", "Same as --resume PATH."),
    *each(free, "restore_callback_states_from_checkpoint enable_jit_checkpoint save_only_model save_on_each_node"),
)
HUB = (
    free("push_to_hub", "Upload the model when it is saved.", COMMON),
    free("hub_model_id", "Name of the hub repository, as in user/name.", COMMON),
    free("hub_token", "Token for the hub. Safer: log in once with `hf auth login`."),
    *each(free, "hub_private_repo hub_strategy hub_always_push hub_revision"),
)
OTHERS = (
    *each(decides, "average_tokens_across_devices label_smoothing_factor"),
    *each(free, "use_liger_kernel liger_kernel_config torch_empty_cache_steps"),
    free("use_cache", "Write use_cache into config.json; training computes without a cache."),
    decides("ignore_data_skip"),
    free("full_determinism", "Use deterministic algorithms only; slower."),
    decides("data_seed"),
    free("accelerator_config", "gradient_accumulation_kwargs of accelerate; the rest of it has no effect."),
    decides("dataloader_drop_last"),
    *each(free, "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers"),
    *each(free, "dataloader_prefetch_factor dataloader_multiprocessing_context"),
    decides("dataloader_in_order"),
    *each(free, "remove_unused_columns label_names"),
    decides(
        "train_sampling_strategy",
        "Order of the pairs. group_by_length: a step has pairs of similar length, so that processes wait less.",
    ),
    decides("length_column_name"),
    *each(free, "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend"),
    free("ddp_timeout"),
    free("fsdp", "Shard the model over the processes (PyTorch FSDP)."),
    free("fsdp_config", "FSDP configuration: a JSON file, or a mapping."),
    free("deepspeed", "DeepSpeed configuration: a JSON file, or a mapping."),
    *each(free, "debug skip_memory_metrics do_train do_eval do_predict local_rank"),
    free("parallelism_config", "dp_replicate_size and dp_shard_size: FSDP within replicas of the model."),
)
# Group of the help -> its settings, both in the order of the help.
CATALOGUE: dict[str, tuple[Facts, ...]] = {
    "ORPO": ORPO,
    "Model": MODEL,
    "Adapter and quantisation": ADAPTER,
    "Data": DATA,
    "Training": TRAINING,
    "Evaluation": EVALUATING,
    "Logging": LOGGING,
    "Saving": SAVING,
    "Hub": HUB,
    OTHER: OTHERS,
}

SETTINGS: dict[str, Facts] = {facts.name: facts for group in CATALOGUE.values() for facts in group}
GROUPS: dict[str, str] = {facts.name: group for group, members in CATALOGUE.items() for facts in members}
LENGTH_SETTINGS = tuple(name for name, facts in SETTINGS.items() if facts.effect is LENGTH)
# What a checkpoint records.
DECIDING_SETTINGS = tuple(name for name, facts in SETTINGS.items() if facts.effect in (DECIDES, LENGTH))
SUMMARY_SETTINGS = tuple(name for name, facts in SETTINGS.items() if SUMMARY in facts.traits)
EVAL_SETTINGS = frozenset(name for name, facts in SETTINGS.items() if EVAL in facts.traits)


def with_help(settings: Settings) -> Settings:
    """Give the fields that a dataclass adds their ``help`` from the catalogue, where ``HfArgumentParser`` reads it."""
    for field in own_fields(settings):
        field.metadata = MappingProxyType({"help": SETTINGS[field.name].help, **field.metadata})
    return settings


def own_fields(settings: type) -> list[Field]:
    """Return the fields that a dataclass adds to its base, or redefines."""
    return [field for field in fields(settings) if field.name in vars(settings)["__annotations__"]]
