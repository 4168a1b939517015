"""Define and check the settings of the training: ``ORPOConfig``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Optional, Union

import torch
from transformers import TrainingArguments

from ..errors import ConfigError
from ..system.compilers import keep_kernels_apart
from ..system.dtypes import with_dtype
from ..system.launchers import is_on, join_processes
from ..system.names import require_folder_name
from ..system.outside import require_file
from ..system.precision import NO_BF16_UNIT, best_precision, emulated_bf16_on_gpu, emulates_bf16
from ..system.words import word_of
from . import parallelism
from .catalogue import with_help
from .constructors import with_older_names
from .inherited import lines_about, refuse
from .optimizers import require_usable
from .processes import choose_cpu, leave_agent_store, let_one_speak, lines_about_precision, require_one_run
from .ranges import (
    BETA,
    MINIMUM,
    read_budget,
    require_early_stopping,
    require_ranges,
    resolved_beta,
    saving_as_evaluated,
)
from .trackers import trackers

# HfArgumentParser reads these annotations at run time; it knows Optional[X] and Literal, not every newer spelling.
# ruff: noqa: UP007, UP045

logger = logging.getLogger(__name__)

BF16_EMULATED = f"bf16 is asked for, but {NO_BF16_UNIT} and would take several times as long; float32 is used"

EARLY_WITHOUT_BEST = (
    "early_stopping_patience is set without load_best_model_at_end: the run will end with the weights of its last step,"
    " not with its best"
)

NOT_COMPILED = (
    "torch_compile is on; it has no effect on packed rows, each of another length, whose layers are written out here:"
    " leave it out, or set prefix_forest to false, and padded batches are compiled"
)


@with_older_names
@with_help
@dataclass
class ORPOConfig(TrainingArguments):
    """Arguments of an ORPO run: all of ``transformers.TrainingArguments`` and the ones below.

    Defaults that differ from ``TrainingArguments``: ``learning_rate`` 1e-6 and ``logging_steps`` 10 (as in TRL),
    ``bf16`` and ``fp16`` by what the hardware can do (``system/precision.py``), ``logging_nan_inf_filter`` off (a NaN
    is never averaged away). A ``save_total_limit`` of 1 means 2: no checkpoint is removed before another one is known
    to be complete.
    Defaults that differ from TRL: gradient checkpointing is off, ``bf16`` as above.

    Args:
        beta: Weight of the odds-ratio term: the paper's lambda, ``alpha`` in the authors' code.
        max_length: Most tokens a sequence (prompt + response) may have; a longer one is cut, see ``max_prompt_length``.
        max_prompt_length: Where a sequence is too long, its prompt is first cut from the left to this many tokens.
            ``None`` never cuts a prompt. What is still too long loses tokens of the response, from the right.
        max_completion_length: Most tokens of a response of an encoder-decoder model (default 128 there).
        disable_dropout: Set every dropout of the model, adapters included, to 0.
        padding_value: Token id to pad with; the tokenizer's pad token by default. It never takes part in the result.
        generate_during_eval: At each evaluation answer a few held-out prompts and record the answers.
        is_encoder_decoder: Needed only with ``model_init``: whether the model it returns is an encoder-decoder.
        model_init_kwargs: Keyword arguments of ``from_pretrained`` where the model is given by name.
        trust_remote_code: Whether a model from the hub may run Python code of its own.
        dataset_num_proc: Processes that tokenize.
        nll_on: NLL over the chosen ``"sequence"`` (prompt + response: the paper, TRL) or its ``"response"`` alone.
        orpo_alpha: With ``orpo_beta``, another spelling of ``beta``: beta = orpo_alpha * orpo_beta.
        orpo_beta: See ``orpo_alpha``.
        bad_rows: An invalid row (a null, an unknown role, a last turn that is not the assistant's) stops the run
            (``"error"``) or is left out and counted (``"drop"``).
        chat_template_on_text: Plain text is rendered by the chat template as a question and its answers (``True``), or
            trained on as it is (``False``). By default it is trained on as it is, and a dataset that holds both text
            and conversations is refused.
        chat_template: Give the tokenizer this chat template: ``"chatml"``, a file (``.jinja``), or a model that has
            one. Markers that it writes become tokens, with rows in the embeddings; an adapter trains these rows, too.
        system_prompt: Put this system message in front of the conversations that have none. Text that is not rendered
            by the chat template is refused.
        min_score_margin: Leave out and count pairs of which the score of the chosen answer exceeds that of the rejected
            one by less than this, where rows have scores; by default pairs are kept whatever their scores are.
        prefix_forest: Compute what the sequences of a micro-batch share once and without padding, wherever the model
            can do that exactly (it is checked at the start). Off: padded batches.
        max_tokens_per_microbatch: With prefix forests, most tokens of a micro-batch; their number follows, and the
            batch sizes only say how many pairs a step has. ``"auto"``: what fits in the free memory. ``None``
            or ``"none"``: micro-batches as the batch sizes say. The result of a step does not depend on it.
        max_skipped_steps: A step whose log-probabilities or gradient are NaN or infinite is skipped. After so many in a
            row the run rolls back to the weights of its last good checkpoint, once; the second time it stops.
        loss_spikes: A step whose loss is more than six standard deviations above the mean of the last 128 is reported
            (``"warn"``), skipped (``"skip"``) or ignored (``"ignore"``).
        async_save: Train on while a checkpoint is flushed to the disk, hashed and made complete: steps wait only until
            its files are written.
        early_stopping_patience: Stop after so many evaluations in a row in which ``metric_for_best_model`` (the loss by
            default) does not improve on the best one. ``None``: never.
        early_stopping_threshold: An improvement of at most this much counts as none.
        parallelism_config: ``dp_replicate_size`` and ``dp_shard_size``, FSDP 2 within replicas of the model: a mapping,
            or accelerate's object. Tensor, context and sequence parallelism are refused.
        logging_dir: Folder of TensorBoard's logs, a setting of transformers before 5.2; by default one in
            ``output_dir``.

    Raises:
        ConfigError: A value is out of range or contradicts another.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    learning_rate: float = 1e-6
    logging_steps: float = 10
    logging_nan_inf_filter: bool = False
    bf16: Optional[bool] = None
    max_length: Optional[int] = 1024
    max_completion_length: Optional[int] = None
    beta: float = BETA
    disable_dropout: bool = True
    padding_value: Optional[int] = None
    generate_during_eval: bool = False
    is_encoder_decoder: Optional[bool] = None
    # A JSON string on the command line; transformers has made a dict of it by the end of __post_init__.
    model_init_kwargs: Union[dict[str, Any], str, None] = None
    trust_remote_code: bool = False
    dataset_num_proc: Optional[int] = None
    parallelism_config: Union[dict[str, Any], str, None] = None  # accelerate's object after __post_init__

    # Ours.
    max_prompt_length: Optional[int] = None
    nll_on: Literal["sequence", "response"] = "sequence"
    orpo_alpha: Optional[float] = None
    orpo_beta: Optional[float] = None
    bad_rows: Literal["error", "drop"] = "error"
    chat_template_on_text: Optional[bool] = None
    chat_template: Optional[str] = None
    system_prompt: Optional[str] = None
    min_score_margin: Optional[float] = None
    prefix_forest: bool = True
    max_tokens_per_microbatch: Union[int, str, None] = "auto"
    max_skipped_steps: int = 3
    loss_spikes: Literal["warn", "skip", "ignore"] = "warn"
    async_save: bool = False
    early_stopping_patience: Optional[int] = None
    early_stopping_threshold: float = 0.0
    logging_dir: Optional[str] = None

    def __post_init__(self):
        if self.output_dir is not None:
            require_folder_name(self.output_dir, "output_dir")
        launched = join_processes()
        leave_agent_store()
        choose_cpu(self, launched)
        self._read_numbers()
        self._check_values()
        if self.fp16 and self.bf16:
            raise ConfigError("fp16 and bf16 are both on; choose one (bf16 where the hardware has it)")
        if self.fp16 and (self.use_cpu or not torch.accelerator.is_available()):  # accelerate would take float32
            raise ConfigError("fp16 is on, but it needs a GPU; leave it out, or take bf16, which CPUs compute too")
        refuse(self)
        self.parallelism_config: Any = parallelism.read_parallelism(self.parallelism_config)
        parallelism.require_data_parallel(self.parallelism_config, self.model_init_kwargs)
        for file in (self.deepspeed, self.fsdp_config, self.accelerator_config):  # or a mapping, or its JSON
            if isinstance(file, str) and os.path.exists(file):
                require_file(file, typed=True)
        lines = self._save_as_evaluated() + self._resolve_precision()
        is_not_compiled = self._resolve_compilation()
        self.report_to: Any = trackers(self.report_to)
        if self.save_total_limit == 1:  # a second one is there while one is written, or if one is damaged
            self.save_total_limit: Any = 2
        super().__post_init__()
        require_one_run(self, launched)
        let_one_speak(self)
        self._check_processes()
        require_usable(self)
        if (self.gradient_checkpointing_kwargs or {}).get("offload") and self.device.type == "cpu":
            raise ConfigError("activation_checkpointing_kwargs has offload on, which needs a GPU; leave it out")
        self._check_model_options()
        lines += [EARLY_WITHOUT_BEST] * self._ends_after_its_best
        lines += [NOT_COMPILED] * is_not_compiled
        lines += lines_about_precision(self)
        self._tell(lines + self._lines_on_lengths() + lines_about(self))
        self.use_liger_kernel: bool = False  # its layers would take the place of ours
        self.logging_nan_inf_filter = False

    def change(self, settings: Mapping[str, Any]) -> None:
        """Give settings that ``ORPOConfig`` adds to transformers' other values, and check them all again."""
        for name, value in settings.items():
            setattr(self, name, value)
        self._read_numbers()
        self._check_values()
        self._check_model_options()
        self._tell(self._lines_on_lengths() if {"max_length", "max_prompt_length"} & settings.keys() else [])

    def _tell(self, lines: list[str]) -> None:
        for line in lines if self.process_index == 0 else ():
            logger.warning(line)

    def _check_processes(self) -> None:
        plugin = self.deepspeed_plugin
        if plugin is not None:
            parallelism.require_data_parallel_deepspeed(plugin.deepspeed_config)
        is_fsdp = bool(self.fsdp) or is_on("ACCELERATE_USE_FSDP")
        parallelism.require_sizes(
            self.parallelism_config, self.world_size, is_fsdp=is_fsdp, is_deepspeed=plugin is not None
        )

    def _check_model_options(self) -> None:
        if self.model_init_kwargs is not None:
            if not isinstance(self.model_init_kwargs, dict):
                raise ConfigError(f"model_init_kwargs is {self.model_init_kwargs!r}; expected a mapping")
            self.model_init_kwargs = with_dtype(self.model_init_kwargs, "model_init_kwargs")
            parallelism.require_data_parallel(None, self.model_init_kwargs)  # a JSON text before

    def _lines_on_lengths(self) -> list[str]:
        if not (self.max_length and self.max_prompt_length and self.max_prompt_length >= self.max_length):
            return []
        return [
            f"max_prompt_length ({self.max_prompt_length}) is not below max_length ({self.max_length}), so it has no"
            " effect: pairs whose prompt leaves no room for a response are dropped; make it smaller to cut prompts"
        ]

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: one at most. transformers would use all that it sees, by ``DataParallel``."""
        return min(self.visible_gpus, 1)

    @property
    def visible_gpus(self) -> int:
        """GPUs that transformers would use in this process."""
        return super().n_gpu

    def loader_options(self) -> dict[str, Any]:
        """Return the keyword arguments of a ``DataLoader`` that follow from the settings."""
        options = {
            "num_workers": self.dataloader_num_workers,
            # torch warns where nothing could copy from pinned memory.
            "pin_memory": self.dataloader_pin_memory and torch.accelerator.is_available(),
            "persistent_workers": self.dataloader_persistent_workers,
            "prefetch_factor": self.dataloader_prefetch_factor,
        }
        if self.dataloader_num_workers:  # transformers before 5.23 has no such field
            options["multiprocessing_context"] = getattr(self, "dataloader_multiprocessing_context", None)
        return options

    def _save_as_evaluated(self) -> list[str]:
        """Save at each evaluation if the best model is wanted; return a line for each setting that this changes."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lines = []
        for name, value in saving_as_evaluated(values).items():
            given = getattr(self, name)
            setattr(self, name, value)
            if word_of(given) != word_of(defaults[name]):
                was = word_of(given)
                lines.append(f"{name} is {word_of(value)}, not {was}: load_best_model_at_end saves at each evaluation")
        return lines

    def _resolve_precision(self) -> list[str]:
        """Set ``bf16``, ``fp16`` and the reason for them; return a line where a device would emulate bf16."""
        self.precision_reason = "set by hand"
        if self.bf16 is None:
            best = best_precision(use_cpu=bool(self.use_cpu))
            if not self.fp16:
                self.precision_reason = best.reason
                self.fp16: bool = best.name == "fp16"
            self.bf16 = best.name == "bf16" and not self.fp16
        if not (self.bf16 or self.bf16_full_eval):
            return []
        if emulates_bf16(use_cpu=bool(self.use_cpu)):
            self.bf16: Optional[bool] = False
            self.bf16_full_eval: bool = False
            self.precision_reason = BF16_EMULATED
            return [f"float32: {BF16_EMULATED}"]
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu: bool = True  # what transformers asks for before it computes in bf16 on a CPU
        line = emulated_bf16_on_gpu(use_cpu=bool(self.use_cpu))
        return [] if line is None else [line]

    def _resolve_compilation(self) -> bool:
        """Turn ``torch_compile`` off where rows are packed, and return whether it was on; a backend turns it on.

        Compiled layers would run their own forwards, in a graph for each kind of length, and gain nothing.
        """
        if not self.prefix_forest:
            if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
                keep_kernels_apart()
            return False
        # What `accelerate config` asked for; transformers leaves its own wish there as well.
        is_wished = os.environ.pop("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"
        if not (is_wished or self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            return False
        self.torch_compile: bool = False
        self.torch_compile_backend: Optional[str] = None
        self.torch_compile_mode: Optional[str] = None
        return True

    def _read_numbers(self) -> None:
        """Read numbers that are given as texts: PyYAML takes ``1e-5`` for one."""
        for field in fields(self):
            kind, value = type(field.default), getattr(self, field.name, None)
            kind = int if field.name in MINIMUM and field.default is None else kind
            if kind not in (int, float) or not isinstance(value, str):
                continue
            try:
                setattr(self, field.name, kind(value))
            except ValueError:
                raise ConfigError(f"{field.name} is {value!r}; expected a number") from None

    def _check_values(self) -> None:
        """Refuse what makes no sense whatever the machine is, and give settings the form they are used in."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in resolved_beta(values, type(self).beta).items():
            setattr(self, name, value)
            values[name] = value
        require_ranges(values)
        require_early_stopping(values)
        self.max_tokens_per_microbatch = read_budget(self.max_tokens_per_microbatch)
        if self.early_stopping_patience is not None:
            self.metric_for_best_model: Any = self.metric_for_best_model or "loss"

    @property
    def _ends_after_its_best(self) -> bool:
        return self.early_stopping_patience is not None and not self.load_best_model_at_end
