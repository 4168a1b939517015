"""Read settings under the names of older scripts, and suggest a name for one that is unknown. Needs no torch.

``OLDER`` has every argument that ``TrainingArguments`` (transformers 4.40 to today), TRL's ``ORPOConfig``,
``ModelConfig`` and ``ScriptArguments`` (0.8 to today) or alignment-handbook's recipes had and no longer have, and what
scripts that were written for TRL's other trainers bring along. The same table serves Python, YAML files and flags.
``docs/from-trl.md`` shows it (:func:`markdown_table`).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigError
from ..system.dtypes import OLD_KEY
from ..system.secrets import SECRET_NAME
from .inherited import Verdict

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=type)
Convert = Callable[[Any, Mapping[str, Any]], dict[str, Any]]

_PLACEHOLDER = re.compile(r"<\w+_TOKEN>")  # what transformers' to_dict has for a token
MAX_SHOWN = 60  # characters of a value in a line


@dataclass(frozen=True)
class Older:
    """A name that a setting had, or that a setting had which is gone.

    Attributes:
        name: The older name.
        verdict: ``WORKS``: it is taken under its new name; ``TOLD``: it has no effect; ``REFUSED``.
        note: What to know about the new name, what happens instead, or why it is refused.
        new: The settings of today that take its value.
        kind: Types of its value for a command line, as in ``cli/parsing/schema.py``; those of ``new`` where empty.
        unset: Values that change nothing, so that nothing is said: mostly the old default.
        convert: Returns the settings of today from its value and from the other settings that were given.
        yields: Whether a value other than 0 under the new name counts instead, as it did in transformers.
    """

    name: str
    verdict: Verdict
    note: str = ""
    new: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    unset: tuple[Any, ...] = (None,)
    convert: Convert | None = None
    yields: bool = False

    def taken(self, value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of today that ``value`` stands for."""
        return self.convert(value, given) if self.convert else dict.fromkeys(self.new, value)


def _share_of_steps(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(
            f"warmup_ratio is {value!r}; expected a share of all steps, 0 to 1 (warmup_steps takes a number of steps)"
        )
    return {"warmup_steps": min(float(value), math.nextafter(1, 0))}  # 1 would be one step


def _of_organisation(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    name = given.get("push_to_hub_model_id") or given.get("hub_model_id") or Path(given.get("output_dir") or "").name
    return {"hub_model_id": str(name) if "/" in str(name) else f"{value}/{name or 'trainer_output'}"}


def _model_id(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return {} if given.get("push_to_hub_organization") else {"hub_model_id": value}


def _mixture(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the datasets, splits and shares of alignment-handbook's recipes as settings of today."""
    splits = given.get("dataset_splits") or ["train", "test"]
    train, test = ([split for split in splits if word in split] for word in ("train", "test"))
    if not isinstance(value, Mapping) or not value or not train or len(test) > 1:
        raise ConfigError(
            "dataset_mixer is not understood: expected shares by dataset, and dataset_splits such as train"
        )
    configs = given.get("dataset_configs") or [None] * len(value)
    if len(configs) != len(value):
        raise ConfigError(f"dataset_configs holds {len(configs)}, and dataset_mixer {len(value)}; name one for each")
    parts = [
        {"path": path, "name": config, "split": first_share(split, share, "dataset_mixer")}
        for (path, share), config in zip(value.items(), configs, strict=True)
        for split in train
    ]
    if len(parts) == 1:
        (part,) = parts
        names = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
        today = {new: part[key] for key, new in names.items() if part[key] is not None}
    else:
        today = {"datasets": [{key: named for key, named in part.items() if named is not None} for part in parts]}
        today |= {"eval_dataset_name": ",".join(value)} if test else {}
    return today | dict.fromkeys(["dataset_test_split"] * len(test), *test)


def first_share(split: str, share: Any, setting: str) -> str:
    """Return a share of a split, its first rows, as ``train[:25%]``; ``setting`` is where it was given."""
    percent = share * 100 if isinstance(share, int | float) else 0
    if not 0 < percent <= 100 or not float(f"{percent:.9g}").is_integer():
        raise ConfigError(f"{setting} holds the share {share!r}; expected a whole percentage, such as 0.25, up to 1")
    return split if percent == 100 else f"{split}[:{percent:.0f}%]"


def _same_model(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    if value != given.get("model_name_or_path"):
        raise ConfigError(
            f"tokenizer_name_or_path is {value!r}; the model's own tokenizer is taken: save that one into the model's"
            " folder, or give processing_class in Python"
        )
    return {}


def _always(name: str, new: Any) -> Convert:
    return lambda value, given: {name: new}


def _inside(name: str, key: str, read: Callable[[Any], Any] = lambda value: value) -> Convert:
    return lambda value, given: {name: {key: read(value)}}


def _renamed(name: str, new: str, note: str = "", **more: Any) -> Older:
    return Older(name, Verdict.WORKS, note, tuple(new.split()), **more)


def _switch(name: str, new: str, note: str = "", **more: Any) -> Older:
    return _renamed(name, new, note, kind=("bool",), unset=(None, False), **more)


def _gone(names: str, note: str, kind: str = "bool", unset: tuple[Any, ...] = (None, False)) -> tuple[Older, ...]:
    return tuple(Older(name, Verdict.TOLD, note, kind=(kind,), unset=unset) for name in names.split())


def _refused(names: str, note: str, kind: str = "str", unset: tuple[Any, ...] = (None,)) -> tuple[Older, ...]:
    return tuple(Older(name, Verdict.REFUSED, note, kind=(kind,), unset=unset) for name in names.split())


def _taken_with(names: str, other: str, kind: str) -> tuple[Older, ...]:
    def read(value: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        if not given.get(other):
            raise ConfigError(f"{names.replace(' ', ' and ')} belong to {other}, which is missing")
        return {}

    return tuple(_renamed(name, "datasets", f"with {other}", kind=(kind,), convert=read) for name in names.split())


_AUTOCAST = "fp16 and bf16 use torch's autocast"
_ONE_PARALLELISM = "each process trains on pairs of its own; leave it out, and let fsdp or deepspeed shard the weights"
_NO_REFERENCE = "ORPO has no reference model"

_TABLE: tuple[Older, ...] = (
    # transformers
    _renamed("evaluation_strategy", "eval_strategy"),
    _switch("evaluate_during_training", "eval_strategy", convert=_always("eval_strategy", "steps")),
    _renamed("warmup_ratio", "warmup_steps", "below 1 it is a share of all steps", kind=("float",), unset=(None, 0),
             convert=_share_of_steps, yields=True),
    _switch("no_cuda", "use_cpu"),
    _renamed("per_gpu_train_batch_size", "per_device_train_batch_size"),
    _renamed("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    _switch("adafactor", "optim", convert=_always("optim", "adafactor")),
    _renamed("torchdynamo", "torch_compile_backend"),
    _switch("include_inputs_for_metrics", "include_for_metrics", convert=_always("include_for_metrics", ["inputs"])),
    _renamed("push_to_hub_token", "hub_token"),
    _renamed("push_to_hub_model_id", "hub_model_id", convert=_model_id),
    _renamed("push_to_hub_organization", "hub_model_id", kind=("str",), convert=_of_organisation),
    _renamed("fsdp_min_num_params", "fsdp_config", kind=("int",), unset=(None, 0),
             convert=_inside("fsdp_config", "min_num_params")),
    _renamed("fsdp_transformer_layer_cls_to_wrap", "fsdp_config", kind=("str",),
             convert=_inside("fsdp_config", "transformer_layer_cls_to_wrap", lambda value: [value])),
    _renamed("xpu_backend", "ddp_backend"),
    _switch("group_by_length", "train_sampling_strategy",
            convert=_always("train_sampling_strategy", "group_by_length")),
    *_gone("overwrite_output_dir", "train() begins anew unless it is told to resume; oddsmith train replaces a run only"
           " with the flag --overwrite-output-dir"),
    *_gone("use_mps_device", "Apple's GPU is found by itself; use_cpu leaves it unused"),
    *_gone("save_safetensors", "weights are always saved as safetensors", unset=(None, True)),
    *_gone("include_tokens_per_second", "log lines have tokens_per_second in any case"),
    *_gone("fp16_backend half_precision_backend", _AUTOCAST, "str", (None, "auto")),
    *_gone("fp16_opt_level", _AUTOCAST, "str", (None, "O1")),
    *_gone("use_ipex jit_mode_eval", "transformers no longer has it"),
    *_gone("dispatch_batches split_batches", "batches are planned for each process"),
    *_gone("tpu_num_cores tpu_metrics_debug", "the launcher says how many processes there are", "int"),
    *_gone("ray_scope", "give scope to hyperparameter_search", "str", (None, "last")),
    *_gone("use_legacy_prediction_loop", "there is one evaluation loop"),
    *_gone("past_index", "every pair is computed by itself", "int", (None, -1)),
    *_gone("mp_parameters sharded_ddp", "fsdp or deepspeed shard the weights", "str", (None, "", False, [])),
    *_gone("sortish_sampler", "micro-batches have about equal numbers of tokens in any case"),
    *_gone("predict_with_generate", "generate_during_eval answers held-out prompts"),
    *_gone("generation_max_length generation_num_beams", "no answer is generated for an evaluation's metrics", "int"),
    *_gone("generation_config", "the model's own generation settings are used", "str"),
    # TRL
    *_gone("label_pad_token_id", "which tokens are learned is told by lengths, not by token ids", "int", (None, -100)),
    *_refused("truncation_mode", "a prompt that is too long is cut from the left, down to max_prompt_length; leave it"
              " out, and shorten the prompts yourself where their beginnings should be kept", unset=(None, "keep_end")),
    _renamed("max_target_length", "max_completion_length"),
    _renamed(OLD_KEY, "dtype"),
    _switch("use_flash_attention_2", "attn_implementation",
            convert=_always("attn_implementation", "flash_attention_2")),
    _renamed("gradient_checkpointing_use_reentrant", "gradient_checkpointing_kwargs", kind=("bool",),
             convert=_inside("gradient_checkpointing_kwargs", "use_reentrant")),
    *_gone("ignore_bias_buffers", "today's models have no such buffers"),
    *_gone("sanity_check", "all rows are taken; dataset_train_split: train[:1000] takes some"),
    # TRL's other trainers
    *_gone("ref_model ref_model_init_kwargs ref_adapter_name precompute_ref_log_probs sync_ref_model reference_free"
           " force_use_ref_model ref_model_mixup_alpha ref_model_sync_steps", _NO_REFERENCE, "str"),
    *_gone("packing eval_packing", "batches are packed without padding wherever that is exact (prefix_forest)"),
    *_gone("model_adapter_name", "the active adapter is trained", "str", (None, "default")),
    *_refused("loss_type", "the loss is ORPO's; leave it out, or override pair_losses", unset=(None, "orpo")),
    *_refused("label_smoothing rpo_alpha", "the loss of ORPO has no such term; leave it out", "float",
              (None, 0)),
    *_refused("tp_size cp_size sp_size ep_size pp_size tensor_parallel_size context_parallel_size"
              " sequence_parallel_size expert_parallel_size pipeline_parallel_size parallelism_config_tp_size"
              " parallelism_config_cp_size parallelism_config_sp_size", _ONE_PARALLELISM, "int", (None, 1)),
    *_refused("tp_plan device_mesh distributed_config", _ONE_PARALLELISM),
    *_refused("dataset_text_field formatting_func", "rows are pairs with prompt, chosen and rejected; map them first"),
    # alignment-handbook
    _renamed("preprocessing_num_workers", "dataset_num_proc"),
    _renamed("hub_model_revision", "hub_revision"),
    _renamed("dataset_mixer", "dataset_name dataset_train_split dataset_test_split datasets", "with dataset_splits and"
             " dataset_configs; a share of a dataset are its first rows", kind=("dict",), convert=_mixture),
    *_taken_with("dataset_splits dataset_configs", "dataset_mixer", "list"),
    _renamed("tokenizer_name_or_path", "model_name_or_path", "refused if it is another model's", convert=_same_model),
    *_gone("auto_insert_empty_system_msg", "no empty system message is added; system_prompt adds one", unset=(None,)),
    *_gone("text_column", "rows are pairs with prompt, chosen and rejected", "str", (None, "text")),
    *_refused("base_model_revision model_code_revision", "give model_revision, and record a base in its adapter",
              unset=(None, "main")),
    *_refused("truncation_side", "a prompt that is too long is cut from the left, down to max_prompt_length; leave it"
              " out", unset=(None, "left")),
)  # fmt: skip

OLDER: dict[str, Older] = {older.name: older for older in _TABLE}


class Place(NamedTuple):
    """How settings are written where they were given, for messages: in Python, in a file, or as flags."""

    where: Callable[[str], str] = lambda name: ""  # before a line: ``c.yaml:6: ``
    name: Callable[[str], str] = lambda name: name
    value: Callable[[str, Any], str] = lambda name, value: f"{name}={value!r}"


IN_PYTHON = Place()


class Today(NamedTuple):
    """Settings under today's names."""

    settings: dict[str, Any]
    origin: dict[str, str]  # name of a setting -> older name that it was given under
    lines: list[str]  # what to say about older names


def under_todays_names(given: Mapping[str, Any], known: Collection[str], place: Place = IN_PYTHON) -> Today:
    """Give settings the names of today.

    Args:
        given: Names and values. Names that are neither older ones nor ``known`` stay as they are.
        known: The settings of today that may be given here.
        place: Where they were given.

    Returns:
        The settings, and what to say about the older names.

    Raises:
        ConfigError: One is refused, or stands beside its new name with another value.
    """
    given = {name: _without_placeholder(value) for name, value in given.items()}
    older = [name for name in given if name not in known and name in OLDER and set(OLDER[name].new) <= set(known)]
    today = Today({name: value for name, value in given.items() if name not in older}, {}, [])
    for name in older:
        _translate(today, OLDER[name], given, place)
    return today


def _translate(today: Today, older: Older, given: Mapping[str, Any], place: Place) -> None:
    value, start = given[older.name], f"{place.where(older.name)}{place.name(older.name)}"
    if value in older.unset:
        return
    if older.verdict is Verdict.REFUSED:
        shown = "set" if len(repr(value)) > MAX_SHOWN else repr(value)
        raise ConfigError(f"{start} is {shown}; {older.note}")
    try:
        taken = older.taken(value, given)
    except ConfigError as error:
        raise ConfigError(f"{place.where(older.name)}{error}") from None
    if older.verdict is Verdict.TOLD:
        today.lines.append(f"{start} has no effect: {older.note}")
    elif older.yields and any(given.get(new) for new in taken):
        today.lines.append(f"{start} has no effect beside {place.name(older.new[0])}, which counts")
    elif taken:
        for new, meant in taken.items():
            _add(today, older.name, new, meant, place)
        written = " and ".join(_written(new, meant, place) for new, meant in taken.items())
        today.lines.append(f"{start} is an older name: write {written}" + (f" ({older.note})" if older.note else ""))


def _add(today: Today, older: str, new: str, value: Any, place: Place) -> None:
    """Add a setting that an older one stands for; refuse it where it has another value already."""
    now = today.settings.get(new)
    if isinstance(now, Mapping) and isinstance(value, Mapping) and value.items() <= {**value, **now}.items():
        value = {**value, **now}
    elif now is not None and now != value and not (OLDER[older].yields and not now):
        raise ConfigError(
            f"{place.where(older)}{place.name(older)} and {place.name(today.origin.get(new, new))} are one setting,"
            f" with two values; remove {place.name(older)}"
        )
    today.settings[new], today.origin[new] = value, older


def _written(name: str, value: Any, place: Place) -> str:
    """Write a setting for a line, without the value where that is a secret, or long."""
    is_short = len(repr(value)) <= MAX_SHOWN and not SECRET_NAME.search(name)
    return place.value(name, value) if is_short else place.name(name)


def _without_placeholder(value: Any) -> Any:
    """Return ``None`` for ``<HUB_TOKEN>``, which transformers' ``to_dict`` writes for every token, also for none."""
    return None if isinstance(value, str) and _PLACEHOLDER.fullmatch(value) else value


def refuse_unknown(what: str, unknown: Mapping[str, str | None], otherwise: str) -> None:
    """Raise one ``ConfigError`` for all unknown names, if there is any.

    Args:
        what: What they should have been, as in ``"setting"``.
        unknown: The names, as they were given, each with the hint, such as ``did you mean beta?``.
        otherwise: The hint where a name has none.
    """
    if len(unknown) == 1:
        ((name, hint),) = unknown.items()
        raise ConfigError(f"unknown {what} {name}; {hint or otherwise}")
    if unknown:
        parts = [f"{name} ({hint})" if hint else name for name, hint in unknown.items()]
        end = f"; {otherwise}" if None in unknown.values() else ""
        raise ConfigError(f"unknown {what}s {', '.join(parts)}{end}")


def markdown_table() -> str:
    """Return the table of ``docs/from-trl.md``."""
    rows: dict[tuple[str, str], list[str]] = {}
    for older in OLDER.values():
        if older.verdict is Verdict.WORKS:
            note = f"; {older.note}" if older.note else ""
            what = f"{', '.join(f'`{new}`' for new in older.new)}{note}"
        else:
            what = older.note
        rows.setdefault((older.verdict.value, what), []).append(f"`{older.name}`")
    heads = {"works": "taken as", "told": "no effect", "refused": "refused"}
    lines = [f"| {', '.join(names)} | {heads[verdict]} | {what} |" for (verdict, what), names in rows.items()]
    return "\n".join(["| older name | | |", "|---|---|---|", *lines])
