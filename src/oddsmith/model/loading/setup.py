"""Turn what a user gives (a name, a model, an adapter) into a model that is ready to train, and its tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...config import ORPOConfig
from ...errors import ConfigError, ModelError, UsageError, first_line
from ...system.dtypes import with_dtype
from ...system.memory import clear_memory_errors, is_of_the_machine
from ...system.precision import NO_BF16_UNIT, emulates_bf16
from ..adapters import add_adapter, keep_weights_unpacked, require_dora_possible, require_whole
from .chat_template import fit_model, set_chat_template
from .models import load_model, load_tokenizer

logger = logging.getLogger(__name__)


def default_dtype(args: ORPOConfig, *, adapter: bool) -> torch.dtype:
    """Return the type that weights are loaded in where none is asked for.

    The frozen base of an adapter gets the run's precision. A model with all weights trained gets float32, because an
    update of 1e-6 of a bfloat16 weight would be rounded away.
    """
    return run_dtype(args) if adapter else torch.float32


def run_dtype(args: ORPOConfig) -> torch.dtype:
    """Return the type in which a run computes."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def resolve_model(
    model: PreTrainedModel | str | None, args: ORPOConfig, *, model_init: Callable | None = None, adapter: bool = False
) -> PreTrainedModel | None:
    """Return the model, loaded if only its name was given; ``None`` where ``model_init`` will make it later.

    ``model_init_kwargs`` of the settings go to ``from_pretrained``; ``adapter`` says whether an adapter will be trained
    on the model. Raise ``ConfigError`` without a model, or with ``model_init_kwargs`` for a model that is already made,
    and ``ModelError`` for a model that does not generate text.
    """
    if isinstance(model, str):
        options = _init_options(args)
        options.setdefault("dtype", default_dtype(args, adapter=adapter))
        # Where the name is that of an adapter and no new one is asked for, training continues with that adapter.
        options.setdefault("is_trainable", True)
        with clear_memory_errors(device=False), clear_option_errors(args.model_init_kwargs):
            return load_model(model, trust_remote_code=args.trust_remote_code, **options)
    if args.model_init_kwargs:
        raise ConfigError("model_init_kwargs is for a model given by name, but the model is already made")
    if model is None and model_init is None:
        raise ConfigError("model is missing; give a model, its name, or model_init")
    if model is not None and hasattr(model, "can_generate") and not model.can_generate():
        raise ModelError(f"{type(model).__name__} does not generate text; ORPO needs a causal or encoder-decoder model")
    return model


def resolve_kind(model: PreTrainedModel | None, args: ORPOConfig) -> bool:
    """Return whether the model is an encoder-decoder; ``ConfigError`` if the settings say something else."""
    if model is None:  # model_init will make it
        return bool(args.is_encoder_decoder)
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    if args.is_encoder_decoder not in (None, is_encoder_decoder):
        kind = "one" if is_encoder_decoder else "none"
        raise ConfigError(f"is_encoder_decoder is {args.is_encoder_decoder}, but the model is {kind}; leave it out")
    if args.max_completion_length is not None and not is_encoder_decoder and args.process_index == 0:
        logger.warning(
            "max_completion_length is %s; it has no effect: it is for encoder-decoders, and max_length cuts answers",
            args.max_completion_length,
        )
    return is_encoder_decoder


def resolve_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel | str | None, args: ORPOConfig
) -> PreTrainedTokenizerBase:
    """Return the given tokenizer, or the one of the model (or model name), with a token to pad with.

    Raise ``ConfigError`` where none was given and the model has no name to load one by.
    """
    if tokenizer is None:
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", None)
        if not name:
            raise ConfigError(
                "processing_class is missing, and the model does not say where its tokenizer is; give one"
            )
        revision = _init_options(args).get("revision", "main")
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if args.chat_template is not None:
        set_chat_template(tokenizer, args.chat_template, is_main=args.process_index == 0)
    return tokenizer


def _init_options(args: ORPOConfig) -> dict[str, Any]:
    options = args.model_init_kwargs
    if isinstance(options, dict) and "trust_remote_code" in options:
        raise ConfigError("model_init_kwargs holds trust_remote_code; use the setting of that name instead")
    return with_dtype(options, "model_init_kwargs") if isinstance(options, dict) else {}


@contextmanager
def clear_option_errors(options: Any) -> Iterator[None]:
    """Raise ``ConfigError`` for any error of loading a model with ``model_init_kwargs``, where there are some.

    Their names are transformers', of each architecture and of its ``from_pretrained``, and so are their errors.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        cause = (error.__cause__ or error) if isinstance(error, UsageError) else error
        is_foreseen = isinstance(error, UsageError) and not isinstance(cause, TypeError | AttributeError | KeyError)
        if not options or is_foreseen or is_of_the_machine(error):
            raise
        reason = f"{type(cause).__name__} {first_line(cause)}".strip()
        names = ", ".join(map(str, options))[:200]  # and no value, which may be a secret
        raise ConfigError(
            f"model_init_kwargs: with these arguments ({names}) the model cannot be loaded: {reason[:300]}"
        ) from error


def ready_model(
    model: PreTrainedModel, args: ORPOConfig, peft_config: Any = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Any:
    """Make a model of any kind that a user has made ready: quantised, with an adapter, evaluated before.

    It gets an adapter, where settings of one are given, and rows in its embeddings for the tokens that the chat
    template of its tokenizer writes.
    """
    keep_weights_unpacked(model)
    if emulates_bf16(use_cpu=bool(args.use_cpu)) and compute_in_float32(model) and args.process_index == 0:
        logger.warning("The model's weights were bfloat16, and %s; they are float32 now.", NO_BF16_UNIT)
    if tokenizer is not None:
        is_main = args.process_index == 0
        is_set = args.chat_template is not None
        peft_config = fit_model(model, tokenizer, peft_config, is_set=is_set, is_main=is_main)
    if peft_config is not None:
        model = add_adapter(model, peft_config)
    require_whole(model)
    require_dora_possible(model)
    if args.fp16 and train_in_float32(model) and peft_config is None and args.process_index == 0:
        logger.warning("The weights that are trained were float16, in which steps get lost; they are float32 now.")
    return model


def train_in_float32(model: nn.Module) -> bool:
    """Cast float16 parameters that are trained to float32, in place: loss scaling needs gradients in float32.

    Return whether any was cast. PEFT casts its adapters' own, but no layer that is trained in full beside them.
    """
    trained = [p for p in model.parameters() if p.requires_grad and p.dtype is torch.float16]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return bool(trained)


def compute_in_float32(model: nn.Module) -> bool:
    """Cast bfloat16 weights to float32, in place, for a CPU that emulates bfloat16: layers are 20 times as fast.

    4-bit weights stay in 4 bits, and their products are computed in float32. Return whether any weight was cast.
    """
    cast = False
    for module in model.modules():
        if getattr(module, "compute_dtype", None) is torch.bfloat16:  # bitsandbytes' Linear4bit
            module.compute_dtype, module.compute_type_is_set = torch.float32, True  # type: ignore[assignment]
    for parameter in model.parameters():
        # 4-bit weights may lie in bfloat16 storage (bnb_4bit_quant_storage): those bits are not bfloat16 numbers.
        if parameter.dtype is torch.bfloat16 and not hasattr(parameter, "quant_state"):
            parameter.data, cast = parameter.data.float(), True
    return cast


def disable_dropout(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Set every dropout of a model to 0; return the modules, the names of their attributes, and the rates before."""
    rates = [(module, name, getattr(module, name)) for module, name in dropout_rates(model)]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    return rates


def dropout_rates(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the modules with a dropout rate above 0, each with the name of the attribute that holds the rate.

    Dropout is a module, or a number that a layer (mostly of attention) keeps as an attribute.
    """
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
        and value > 0
        and ("dropout" in name or (isinstance(module, nn.Dropout) and name == "p"))
    ]
