"""State for every field of ``ORPOConfig`` whether it works here, and refuse or tell what does not. Needs no torch.

``docs/from-trl.md`` has this table (:func:`markdown_table`), and the help of the command leaves out what has no use
there. A field of another version of transformers that the table lacks is taken as it is; a test fails for one that the
installed version has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from ..errors import ConfigError
from ..system.words import word_of

MAX_SHOWN = 60  # characters of a value in a line


class Verdict(StrEnum):
    """What happens when a field gets a value other than those that are accepted."""

    WORKS = "works"
    TOLD = "told"  # the run goes on, and one line says what is different
    REFUSED = "refused"


@dataclass(frozen=True)
class Fields:
    """Some fields of which the same is to say."""

    names: tuple[str, ...]
    verdict: Verdict
    note: str  # for the documentation; of a field that is told or refused also the end of the line that says so
    accepted: tuple[Any, ...] = ()  # values without a line; of a field that works all are
    has_use: bool = True  # for the command: otherwise its help leaves the field out
    of_python: bool = False  # without use for the command, because a script has to pass something that belongs to it


def _fields(verdict: Verdict, names: str, note: str = "as in transformers", **more: Any) -> Fields:
    return Fields(tuple(names.split()), verdict, note, **more)


works = partial(_fields, Verdict.WORKS)
of_python = partial(works, has_use=False, of_python=True)
told = partial(_fields, Verdict.TOLD, has_use=False)
refused = partial(_fields, Verdict.REFUSED, has_use=False)

TABLE = (
    works("beta max_length disable_dropout generate_during_eval dataset_num_proc trust_remote_code", "as in TRL"),
    works("padding_value", "as in TRL; it never affects the result"),
    works("model_init_kwargs", "as in TRL; for a model that is given by name"),
    works("max_completion_length", "as in TRL, for encoder-decoders; told for other models, where it has no effect"),
    of_python("is_encoder_decoder", "as in TRL, with `model_init`; refused if the model is of the other kind"),
    works(
        "max_prompt_length nll_on orpo_alpha orpo_beta bad_rows chat_template_on_text chat_template system_prompt"
        " min_score_margin prefix_forest max_tokens_per_microbatch max_skipped_steps loss_spikes"
        " async_save early_stopping_patience early_stopping_threshold",
        "Oddsmith's own",
    ),
    # Steps
    works(
        "learning_rate num_train_epochs max_steps warmup_steps lr_scheduler_type lr_scheduler_kwargs weight_decay"
        " adam_beta1 adam_beta2 adam_epsilon optim_args max_grad_norm"
    ),
    works("optim optim_target_modules", "optimizers that make whole steps; others are refused, see above"),
    works("per_device_train_batch_size gradient_accumulation_steps", "both say how many pairs a step has"),
    works("auto_find_batch_size", "steps then have fewer pairs; `max_tokens_per_microbatch` leaves them as they are"),
    works("neftune_noise_alpha", "on padded batches, because the noise depends on the length of a sequence"),
    refused("label_smoothing_factor", "the loss of ORPO has no label smoothing; leave it out", accepted=(0, None)),
    told(
        "average_tokens_across_devices",
        "it has no effect: a step has the mean over the tokens of all devices",
        accepted=(True,),
    ),
    # Precision and memory
    works("bf16 bf16_full_eval", "in float32 on a CPU that would emulate it; one line says so"),
    works("fp16", "the default on NVIDIA GPUs with units for fp16 and none for bf16; refused without a GPU"),
    works("fp16_full_eval tf32"),
    works(
        "activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs"
    ),
    works(
        "torch_compile torch_compile_backend torch_compile_mode",
        "on padded batches (`prefix_forest: false`); otherwise told, without effect: packed rows differ in length",
    ),
    works("torch_empty_cache_steps"),
    works("use_cache", "only written into `config.json`: training computes without a cache"),
    told(
        "use_liger_kernel liger_kernel_config",
        "it has no effect: layers and head save that memory here (docs/speed.md)",
        accepted=(False, None),
    ),
    # Data
    works("seed data_seed full_determinism"),
    works(
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers"
        " dataloader_prefetch_factor dataloader_multiprocessing_context",
        "as in transformers; a stream is read without workers",
    ),
    refused(
        "dataloader_in_order", "the micro-batches of a step have to come in their order; leave it on", accepted=(True,)
    ),
    told(
        "train_sampling_strategy",
        "`random`, `sequential` and `group_by_length` work (the last not on a stream); others are taken as `random`:"
        " processes get about equal numbers of tokens in any case",
        accepted=("random", "sequential", "group_by_length"),
        has_use=True,
    ),
    told("length_column_name", "it has no effect: lengths are those of the tokens", accepted=("length",)),
    of_python(
        "remove_unused_columns",
        "off: padded batches, and your `data_collator`, also get the texts `prompt`, `chosen`, `rejected` and the other"
        " columns of your rows (not those of a stream)",
    ),
    told("label_names", "it has no effect: labels are those of the pairs", accepted=(None,)),
    # Logs
    works(
        "logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm"
        " report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"
    ),
    told(
        "logging_dir",
        "it counts for TensorBoard alone; newer transformers read the environment variable TENSORBOARD_LOGGING_DIR",
        accepted=(None,),
        has_use=True,
    ),
    works("include_num_input_tokens_seen", "the tokens that are computed: packed, a shared prompt counts once"),
    told(
        "logging_nan_inf_filter",
        "it has no effect: a step with a NaN is skipped and reported, and enters no mean (max_skipped_steps)",
        accepted=(False,),
    ),
    # Evaluation
    works("eval_strategy eval_steps eval_delay eval_on_start"),
    works("per_device_eval_batch_size", "without influence on the figures"),
    of_python("prediction_loss_only eval_do_concat_batches include_for_metrics batch_eval_metrics"),
    of_python(
        "eval_accumulation_steps eval_use_gather_object",
        "for what a `prediction_step` of yours returns; our predictions are on the CPU in any case",
    ),
    # Checkpoints and hub
    works("output_dir", "a name that begins with `-`, or is too long, is refused"),
    works("save_strategy save_steps save_only_model save_on_each_node"),
    works("save_total_limit", "1 means 2: no checkpoint is removed before the next one is complete"),
    works(
        "load_best_model_at_end metric_for_best_model greater_is_better",
        "as in transformers; saving follows evaluation, and of equal evaluations the one with the lower loss is the"
        " best",
    ),
    works("push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision"),
    works(
        "resume_from_checkpoint",
        "`true` is the newest one; what `train` is given in Python goes first",
    ),
    works("ignore_data_skip"),
    works("restore_callback_states_from_checkpoint", "the states are restored in any case", has_use=False),
    refused(
        "enable_jit_checkpoint",
        "it saves in the middle of a step; leave it out: oddsmith train stops with a checkpoint on SIGTERM by itself,"
        " and in Python StopOnRequest does",
        accepted=(False,),
    ),
    # Devices and processes
    works("use_cpu", "as in transformers; on by itself for several processes without an accelerator"),
    works("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_static_graph ddp_backend ddp_timeout"),
    works("ddp_broadcast_buffers", "off unless it is set: buffers of language models are constants"),
    told(
        "fsdp deepspeed",
        "sharding is left to transformers and accelerate; our tests cover FSDP 2 and ZeRO 1 to 3, on CPUs alone",
        accepted=(None, "", False, {}, []),
        has_use=True,
    ),
    told("fsdp_config", "it has no effect without `fsdp`: set that too", accepted=(None, "", {}), has_use=True),
    told(
        "accelerator_config",
        "only gradient_accumulation_kwargs have an effect: batches are planned for each process",
        has_use=True,
    ),
    works(
        "parallelism_config",
        "dp_replicate_size and dp_shard_size, in a mapping too: FSDP 2 within replicas; tensor, context and sequence"
        " parallelism are refused",
    ),
    works("debug", "on padded batches"),
    works("skip_memory_metrics"),
    # For scripts
    works("do_train", "for scripts: no trainer reads it", has_use=False),
    told("do_eval", "it has no effect on the trainer; eval_strategy says when to evaluate", accepted=(False,)),
    told("do_predict", "it has no effect on the trainer; call predict", accepted=(False,)),
    told("local_rank", "it has no effect; the launcher's variable LOCAL_RANK counts", accepted=(-1,)),
)

FIELDS: dict[str, Fields] = {name: fields for fields in TABLE for name in fields.names}
# What the help leaves out: it can only be refused, has no effect, or needs a script.
WITHOUT_USE = frozenset(name for name, fields in FIELDS.items() if not fields.has_use)


def refuse(args: Any) -> None:
    """Raise ``ConfigError`` for the first field of ``args``, an ``ORPOConfig``, with a value that is refused."""
    for name, fields in FIELDS.items():
        if fields.verdict is Verdict.REFUSED and (line := _line(args, name, fields)):
            raise ConfigError(line)


def lines_about(args: Any) -> list[str]:
    """Return a line for each field of ``args`` that is told. They are the values after transformers has read them."""
    return [
        line
        for name, fields in FIELDS.items()
        if fields.verdict is Verdict.TOLD and (line := _line(args, name, fields))
    ]


def refuse_of_python(given: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """Refuse fields that only a script can use, in the settings of a command.

    Args:
        given: Settings with values that are not the default.
        where: Returns the file and line, or the flag, of one.

    Raises:
        ConfigError: There is one.
    """
    for name in given:
        if name in FIELDS and FIELDS[name].of_python:
            raise ConfigError(f"{where(name)}: {name} is for scripts in Python, without use for the command; remove it")


def _line(args: Any, name: str, fields: Fields) -> str | None:
    value = getattr(args, name, fields.accepted[0] if fields.accepted else None)
    if name == "accelerator_config":
        parts = _changed_parts(value)
        return f"{name} holds {', '.join(parts)}: {fields.note}" if parts else None
    if name == "do_eval" and word_of(args.eval_strategy) != "no":
        return None  # transformers has set it
    if value in fields.accepted or (name == "fsdp_config" and (args.fsdp or not any(dict(value or {}).values()))):
        return None
    shown: Any = ("off", "on")[value] if isinstance(value, bool) else repr(value)
    if len(shown) > MAX_SHOWN:
        shown = "set"
    return f"{name} is {shown}; {fields.note.replace('`', '')}"


def _changed_parts(config: Any) -> list[str]:
    """Return what accelerate's configuration of data loaders has beside its defaults."""
    plain = {"gradient_accumulation_kwargs", "use_configured_state"}
    return [
        name
        for name, value in vars(config).items()
        if name not in plain and value != getattr(type(config), name, value)
    ]


def markdown_table() -> str:
    """Return the table of ``docs/from-trl.md``."""
    rows = [
        f"| {', '.join(f'`{name}`' for name in fields.names)} | {fields.verdict} | {fields.note} |" for fields in TABLE
    ]
    return "\n".join(["| fields | | |", "|---|---|---|", *rows])
