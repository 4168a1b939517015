"""Keep what a script written for TRL's ``ORPOTrainer`` expects of the trainer, or refuse it before a step is made.

methods       a subclass's method of TRL or transformers that is never called here is refused, with what to override
signatures    so is one that cannot take the arguments with which it is called
attributes    those of TRL read the settings; one that can no longer change says why
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transformers import Trainer

from ..batching.collate import IGNORED, PairCollator
from ..config.ranges import require_beta
from ..errors import ConfigError
from ..loss import orpo_loss
from ..system.words import enumerated

Kind = TypeVar("Kind", bound=type)

_LOSS = "override pair_losses (a loss of your own) or compute_loss"
# Methods of TRL's ORPOTrainer -> what to do instead.
OF_TRL = {
    **dict.fromkeys(("get_batch_loss_metrics", "odds_ratio_loss", "concatenated_forward", "get_batch_logps"), _LOSS),
    "concatenated_inputs": "pass a data_collator, or override compute_loss",
    **dict.fromkeys(
        ("tokenize_row", "build_tokenized_answer"),
        "change the rows before they are passed, or the tokenizer and its chat template",
    ),
    "store_metrics": "return metrics from pair_losses, or add them in log",
    "generate_from_model": "set generate_during_eval, or generate in a callback",
    "_shift_right": "override compute_loss",
}
# Methods of a trainer that people override -> the arguments they are called with, by position and by name.
_CALLED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pair_losses": (("pairs",), ()),
    "compute_loss": (("model", "inputs"), ("return_outputs", "num_items_in_batch")),
    "training_step": (("model", "inputs", "num_items_in_batch"), ()),
    "prediction_step": (("model", "inputs", "prediction_loss_only"), ("ignore_keys",)),
    "get_batch_samples": (("epoch_iterator", "num_batches", "device"), ()),
    "log": (("logs", "start_time"), ()),
}


def require_called(trainer: Any, bypassed: Mapping[str, str]) -> None:
    """Refuse a trainer with a method that is never called, or that cannot take what it is called with.

    The method may be a subclass's or an attribute of the object. ``bypassed`` are the methods of transformers'
    ``Trainer`` that are not called here, and what to do instead. ``ConfigError`` if there is one.
    """
    lost: dict[str, list[str]] = {}
    for name, instead in {**OF_TRL, **bypassed}.items():
        if name in vars(trainer) or getattr(type(trainer), name, None) is not getattr(Trainer, name, None):
            lost.setdefault(instead, []).append(name)
    if lost:
        fixes = "; ".join(f"instead of {enumerated(names)}, {instead}" for instead, names in lost.items())
        raise ConfigError(
            f"{type(trainer).__name__} replaces methods that are never called here: {fixes} (docs/from-trl.md)"
        )
    if vars(trainer).get("compute_loss_func") not in (None, orpo_loss):
        raise ConfigError(f"compute_loss_func is never called here: {_LOSS}")
    for name, (positional, by_name) in _CALLED.items():
        try:
            inspect.signature(getattr(trainer, name)).bind(*positional, **dict.fromkeys(by_name))
        except TypeError as error:
            call = ", ".join([*positional, *(f"{argument}=..." for argument in by_name)])
            raise ConfigError(
                f"{type(trainer).__name__}.{name} is called as {name}({call}), which it does not take ({error})"
            ) from None


class Attribute:
    """An attribute of TRL's trainer.

    Args:
        read: Returns its value from the trainer.
        write: Sets it; ``None`` for one that cannot change once the trainer is made.
        why: The reason for that, for the ``ConfigError`` that another value raises.
    """

    def __init__(self, read: Callable[[Any], Any], write: Callable[[Any, Any], None] | None = None, *, why: str = ""):
        self._read, self._write, self._why, self._name = read, write, why, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, trainer: Any, owner: type | None = None) -> Any:
        return self if trainer is None else self._read(trainer)

    def __set__(self, trainer: Any, value: Any) -> None:
        try:
            now = self._read(trainer)
        except AttributeError:
            raise ConfigError(f"{self._name} is set before the trainer is made; give it in ORPOConfig") from None
        if value is now or value == now:
            return
        if self._write is None:
            raise ConfigError(f"{self._name} is {now!r} and cannot become {value!r}: {self._why}")
        self._write(trainer, value)


def _set_beta(trainer: Any, value: float) -> None:
    require_beta(value)
    trainer.args.beta = value


def _set_generation(trainer: Any, value: bool) -> None:
    trainer.args.generate_during_eval = value


def _of_rows(name: str) -> Attribute:
    def read(trainer: Any) -> Any:
        if name == "max_completion_length" and trainer.is_encoder_decoder:
            return trainer.pair_tokenizer.max_completion_length  # with its default
        return getattr(trainer.args, name)

    return Attribute(read, why=f"the rows are tokenized when the trainer is made; give {name} in ORPOConfig")


_NO_PART = "it never takes part in the result"


def with_attributes_of_trl(kind: Kind) -> Kind:
    """Give a trainer class the attributes of TRL's trainer, as properties over its settings and its model."""
    attributes = {
        "beta": Attribute(lambda trainer: trainer.args.beta, _set_beta),  # of the steps after this one
        "generate_during_eval": Attribute(lambda trainer: trainer.args.generate_during_eval, _set_generation),
        "max_length": _of_rows("max_length"),
        "max_prompt_length": _of_rows("max_prompt_length"),
        "max_completion_length": _of_rows("max_completion_length"),
        "truncation_mode": Attribute(
            lambda trainer: "keep_end",
            why="prompts are cut from the left, down to max_prompt_length, and then responses from the right",
        ),
        "processing_class": Attribute(lambda trainer: trainer._tokenizer, why="the rows are tokenized with it"),
        "tokenizer": Attribute(lambda trainer: trainer._tokenizer, why="the rows are tokenized with it"),
        "padding_value": Attribute(lambda trainer: trainer.pad_token_id, why=_NO_PART),
        "label_pad_token_id": Attribute(lambda trainer: IGNORED, why=_NO_PART),
        "use_dpo_data_collator": Attribute(
            lambda trainer: type(trainer.data_collator) is PairCollator, why="it says whether the collator is ours"
        ),
        "decoder_start_token_id": Attribute(
            lambda trainer: getattr(trainer.model.config, "decoder_start_token_id", None), why="it is the model's"
        ),
        "is_encoder_decoder": Attribute(lambda trainer: trainer._is_encoder_decoder, why="it is the model's"),
        "aux_loss_enabled": Attribute(
            lambda trainer: trainer.router_loss,
            why="set output_router_logits in the model's config before the trainer is made",
        ),
        "aux_loss_coef": Attribute(
            lambda trainer: trainer.router_coefficient,
            why="set router_aux_loss_coef in the model's config before the trainer is made",
        ),
    }
    for name, attribute in attributes.items():
        attribute.__set_name__(kind, name)
        setattr(kind, name, attribute)
    kind.__getattr__ = _without_attribute  # type: ignore[attr-defined]
    return kind


def _without_attribute(trainer: Any, name: str) -> Any:
    """Raise the error for an attribute that a trainer lacks; for a method of TRL it says what to do instead."""
    line = f"{type(trainer).__name__!r} object has no attribute {name!r}"
    raise AttributeError(f"{line}, a method of TRL's trainer: {OF_TRL[name]}" if name in OF_TRL else line, name=name)
