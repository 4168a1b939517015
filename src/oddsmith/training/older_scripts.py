"""Read what older scripts give the trainer instead of today's arguments, each with one warning.

tokenizer=                       processing_class
a processor                      its tokenizer
TrainingArguments                ORPOConfig with the same settings
settings beside args             settings of args
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ..config import ORPOConfig
from ..config.meant import nearest
from ..config.spellings import refuse_unknown, under_todays_names
from ..errors import ConfigError

Trainer = TypeVar("Trainer", bound=type)

logger = logging.getLogger(__name__)

# Settings that some trainer's constructor took once, so that ours takes them: what is no setting of transformers'.
_BESIDE_ARGS = {field.name for field in fields(ORPOConfig)} - {field.name for field in fields(TrainingArguments)}
_BESIDE_ARGS |= {"neftune_noise_alpha"}
_OF_TRANSFORMERS = {
    "compute_loss_func": "override pair_losses, or compute_loss",
    "optimizer_cls_and_kwargs": "give optimizers, or override create_optimizer",
}


def with_older_arguments(trainer: Trainer) -> Trainer:
    """Let the constructor of a trainer take what older scripts give it, and refuse all unknown arguments together."""
    plain = trainer.__init__  # type: ignore[misc]
    form = signature(plain)

    @wraps(plain)
    def read(self: Any, *positional: Any, **given: Any) -> None:
        more = {name: given.pop(name) for name in tuple(given) if name not in form.parameters}
        call = form.bind(self, *positional, **given)
        args, tokenizer = call.arguments.get("args"), call.arguments.get("processing_class")
        args, tokenizer = _arguments_of_today(args, tokenizer, more, type(self))
        call.arguments |= {"args": args, "processing_class": tokenizer}
        plain(*call.args, **call.kwargs)
        _use_logging_dir(self)

    trainer.__init__ = read  # type: ignore[misc]
    return trainer


def _arguments_of_today(
    args: TrainingArguments | None, processing_class: Any, more: Mapping[str, Any], trainer: type
) -> tuple[ORPOConfig, PreTrainedTokenizerBase | None]:
    """Return the settings and the tokenizer that were given to the constructor of a trainer in some way.

    Args:
        args: The settings; a plain ``TrainingArguments`` becomes an ``ORPOConfig``.
        processing_class: The tokenizer, a processor that has one, or ``None``.
        more: Further arguments by name: ``tokenizer``, and settings, which are set in ``args``.
        trainer: The class of the trainer, for its arguments' names.

    Returns:
        Settings and tokenizer.

    Raises:
        ConfigError: An argument is unknown, of another kind, or given twice.
    """
    lines: list[str] = []
    more = {name: value for name, value in more.items() if value is not None}  # None stood for what args says
    tokenizer = more.pop("tokenizer", None)
    if tokenizer is not None:
        if processing_class is not None and processing_class is not tokenizer:
            raise ConfigError("processing_class and tokenizer are one argument, with two values; give processing_class")
        processing_class = tokenizer
        lines.append("tokenizer is an older name: write processing_class=...")
    today = under_todays_names(more, {field.name for field in fields(ORPOConfig)})
    unknown = {name: _hint(name, trainer) for name in today.settings if name not in _BESIDE_ARGS}
    refuse_unknown(f"{trainer.__name__} argument", unknown, "docs/from-trl.md lists what it takes")
    settings = _settings(args, lines)
    if today.settings:
        settings.change(today.settings)
        written = ", ".join(f"{name}={value!r}" for name, value in today.settings.items())
        lines.append(f"settings belong in args: write ORPOConfig({written})")
    tokenizer = _tokenizer(processing_class, lines)
    for line in [*lines, *today.lines] if settings.process_index == 0 else ():
        logger.warning(line)
    return settings, tokenizer


def _hint(name: str, trainer: type) -> str | None:
    settings = [field.name for field in fields(ORPOConfig)]
    if name in _OF_TRANSFORMERS:
        return f"instead, {_OF_TRANSFORMERS[name]}"
    meant = name if name in settings else nearest(name, [*signature(trainer.__init__).parameters, *settings])  # type: ignore[misc]
    if meant in settings:
        return f"{meant} is a setting: give it in args, as ORPOConfig({meant}=...)"
    return meant and f"did you mean {meant}?"


def _settings(args: Any, lines: list[str]) -> ORPOConfig:
    """Return ``args`` as an ``ORPOConfig``."""
    if args is None:
        return ORPOConfig(output_dir="tmp_trainer")
    if isinstance(args, ORPOConfig):
        return args
    if not isinstance(args, TrainingArguments):
        raise ConfigError(f"args is a {type(args).__name__}; expected an ORPOConfig")
    given = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    given.pop("logging_nan_inf_filter", None)  # on by default there, and without effect here
    known = {field.name for field in fields(ORPOConfig) if field.init}
    today = under_todays_names(given, known)
    settings = ORPOConfig(**{name: value for name, value in today.settings.items() if name in known})
    for name, value in today.settings.items():  # of a class of the user's own
        if name not in known:
            setattr(settings, name, value)
    lines.append(
        f"args is a {_name(type(args))}: write Oddsmith's ORPOConfig; the settings in args are taken"
        f" (learning_rate={args.learning_rate}), the others have ORPOConfig's defaults"
    )
    lines += today.lines
    return settings


def _name(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    return f"{package}.{kind.__name__}" if kind.__name__ == ORPOConfig.__name__ else kind.__name__


def _tokenizer(processing_class: Any, lines: list[str]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer; that of a processor, because pairs are texts."""
    if processing_class is None or hasattr(processing_class, "pad_token_id"):
        return processing_class
    tokenizer = getattr(processing_class, "tokenizer", None)
    kind = type(processing_class).__name__
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(f"processing_class is a {kind}; expected a tokenizer, or a processor that has one")
    lines.append(f"processing_class is a {kind}: its tokenizer is taken, as pairs are texts")
    return tokenizer


def _use_logging_dir(trainer: Any) -> None:
    """Let TensorBoard write into ``logging_dir`` of the settings, if that is given."""
    folder = trainer.args.logging_dir
    for callback in trainer.callback_handler.callbacks if folder else ():
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(folder).expanduser())
