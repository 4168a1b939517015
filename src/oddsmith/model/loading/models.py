"""Models and tokenizers by name: a hub id, a folder, a GGUF file, a folder with an adapter, or ``builtin:...``.

name -> place (on disk or hub) -> configuration: does it generate text? -> weights
                adapter there  -> its base, by the same road            -> adapter on top
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from peft import PeftConfig, PeftModel
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.templates.environment import guard_chat_templates
from ...errors import ModelError
from ..adapters import fit_vocabulary, keep_weights_unpacked, repeatable_initialisation
from .fingerprint import read_base_record, require_same_base
from .gguf import as_model_folder, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from .inert import require_inert, require_inert_adapter, require_inert_download, require_no_hub_code
from .load_errors import clear_errors
from .place import ADAPTER_SETTINGS, MODEL_SETTINGS, TOKENIZER_FILES, is_adapter_folder, is_gguf, locate
from .quiet import no_progress_bars

# Weights without a language-modelling head, by the end of their architecture's name.
HEADLESS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")

# Keyword arguments of ``from_pretrained`` that say how to reach the hub.
HUB_OPTIONS = ("token", "cache_dir", "local_files_only")


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype | None = None,
    revision: str = "main",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    is_trainable: bool = False,
    dequantize: bool = False,
    **kwargs: Any,
) -> PreTrainedModel | PeftModel:
    """Load a model that generates text: decoder-only or encoder-decoder.

    Args:
        name: Hub id, folder, GGUF file, ``builtin:smollm2-135m-instruct``, or the folder or hub id of a PEFT adapter.
        dtype: Type of the weights, ``"auto"`` for the one they are stored in; float32 by default.
        revision: Branch, tag or commit on the hub; of the adapter, where ``name`` is one.
        trust_remote_code: Whether a model may run Python code of its own. Never what a file says.
        attn_implementation: transformers' attention implementation.
        quantization_config: Quantise the weights while loading. A GGUF file is unpacked to float32 first.
        is_trainable: Whether an adapter that ``name`` holds can be trained further.
        dequantize: Whether quantised weights are unpacked again into ordinary ones of the same values.
        **kwargs: Passed on to ``from_pretrained``.

    Returns:
        The model in evaluation mode; with its adapter on top where ``name`` is an adapter.

    Raises:
        ModelError: Nothing is there, it cannot be reached or read, or it does not generate text.
    """
    place = locate(name)
    options = {
        "dtype": torch.float32 if dtype is None else dtype,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
        **kwargs,
    }
    options = {key: value for key, value in options.items() if value is not None}
    require_no_hub_code(options, trust_remote_code)
    require_inert(name, place, trust_remote_code)
    with no_progress_bars(), clear_errors(name, revision):
        adapter = _adapter_settings(place, revision, {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs})
        if adapter is not None:
            require_inert_adapter(name, place, revision, {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs})
            base_name, base_revision = _base_of(name, adapter)
            source: dict[str, Any] = {"revision": base_revision, "trust_remote_code": trust_remote_code}
            base = load_model(base_name, dequantize=dequantize, **source, **options)
            record = read_base_record(place, revision)
            if record is not None:  # here, and not before: a base on the hub has only now come to this disk
                require_same_base(name, record, base_name, base_revision)
            fit_vocabulary(base, place, revision)
            with repeatable_initialisation(adapter):
                return PeftModel.from_pretrained(base, place, is_trainable=is_trainable, revision=revision)
        if is_gguf(place):
            _require_generator(name, load_gguf_config(Path(place)))
            model = _load_gguf(Path(place), **options)
        else:
            model = _load(name, place, revision=revision, trust_remote_code=trust_remote_code, **options)
        if dequantize and getattr(model, "is_quantized", False):
            model = model.dequantize()
    # What adapters and model cards will name as their base: what brings it back, not a folder of this machine's cache.
    model.name_or_path = model.config._name_or_path = name
    if revision != "main":
        model.revision = revision
    keep_weights_unpacked(model)
    return model


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. It pads on the right, with its end token if it has no pad token.

    Args:
        name: As for ``load_model``. An adapter that was saved without a tokenizer has its base's.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether it may run Python code of its own.

    Returns:
        The tokenizer. Nothing here tells padding by its token, so pad and end token may be the same.

    Raises:
        ModelError: Nothing is there, or no tokenizer is.
    """
    place = locate(name)
    require_inert(name, place, trust_remote_code)
    guard_chat_templates()
    with clear_errors(name, revision):
        if is_gguf(place):
            tokenizer = load_gguf_tokenizer(Path(place))
        else:
            adapter = _adapter_settings(place, revision)
            if adapter is not None and not _has_tokenizer(place, revision):
                base_name, base_revision = _base_of(name, adapter)
                return load_tokenizer(base_name, revision=base_revision, trust_remote_code=trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def find_base(name: str, revision: str = "main") -> tuple[str, str] | None:
    """The base that an adapter stands on.

    Args:
        name: As for ``load_model``.
        revision: Branch, tag or commit on the hub.

    Returns:
        Name and revision of the base; ``None`` where ``name`` is a model itself.

    Raises:
        ModelError: Nothing is there, or an adapter whose base cannot be found.
    """
    place = locate(name)
    if is_gguf(place):
        return None
    with clear_errors(name, revision):
        adapter = _adapter_settings(place, revision)
        return None if adapter is None else _base_of(name, adapter)


def _load(name: str, place: str, *, revision: str, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    hub_options = {key: options[key] for key in HUB_OPTIONS if key in options}
    config = AutoConfig.from_pretrained(place, **source, **hub_options)
    _require_generator(name, config)
    require_inert_download(name, place, revision, trust_remote_code, options.get("cache_dir"))
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto_class.from_pretrained(place, **source, **{**options, "use_safetensors": True})


def _load_gguf(path: Path, **options: Any) -> PreTrainedModel:
    if "quantization_config" not in options:
        return load_gguf_model(path, **options)
    with as_model_folder(path) as folder:  # transformers cannot requantise a GGUF file
        return _load(str(path), str(folder), revision="main", trust_remote_code=False, **options)


def _require_generator(name: str, config: PreTrainedConfig) -> None:
    """Refuse what cannot be asked for log p(answer | prompt): an encoder, a classifier, a model of something else."""
    needs = "ORPO needs a model that generates text"
    mapping, own_class = MODEL_FOR_CAUSAL_LM_MAPPING, "AutoModelForCausalLM"
    if config.is_encoder_decoder:
        mapping, own_class = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "AutoModelForSeq2SeqLM"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ModelError(f"{name}: is an encoder ({config.model_type}); {needs}, such as Llama, Qwen or T5")
    architectures = config.architectures or []
    if architectures and all(architecture.endswith(HEADLESS) for architecture in architectures):
        raise ModelError(f"{name}: is a classifier ({', '.join(architectures)}); {needs}")
    if type(config) not in mapping and own_class not in (getattr(config, "auto_map", None) or {}):
        raise ModelError(
            f"{name}: transformers has no text generation for its model type {config.model_type!r}; {needs}"
        )


def _adapter_settings(place: str, revision: str, hub_options: dict[str, Any] | None = None) -> PeftConfig | None:
    """The adapter at a place; ``None`` where a model is. On the hub it is asked for once, and at most once in vain."""
    if Path(place).exists():
        return _read_adapter_settings(place) if is_adapter_folder(Path(place)) else None
    hub_options = hub_options or {}
    try:
        hf_hub_download(place, MODEL_SETTINGS, revision=revision, **hub_options)
        return None
    except hub_errors.LocalEntryNotFoundError:  # offline, and no such model in the cache
        cached = try_to_load_from_cache(place, ADAPTER_SETTINGS, hub_options.get("cache_dir"), revision)
        if not isinstance(cached, str):
            raise
    except hub_errors.EntryNotFoundError:
        try:
            hf_hub_download(place, ADAPTER_SETTINGS, revision=revision, **hub_options)
        except hub_errors.EntryNotFoundError:
            found = f"no model ({MODEL_SETTINGS}) and no adapter ({ADAPTER_SETTINGS})"
            raise ModelError(f"{place}: holds {found} on the hub; expected one of them") from None
    return _read_adapter_settings(place, revision=revision, **hub_options)


def _read_adapter_settings(place: str, **options: Any) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(place, **options)
    except json.JSONDecodeError as error:
        raise ModelError(f"{place}: its {ADAPTER_SETTINGS} is damaged ({error}); fetch or copy it again") from error
    except (KeyError, TypeError) as error:  # PEFT looks up what the file says, and builds from it
        found = f"its {ADAPTER_SETTINGS} is none that PEFT {version('peft')} knows"
        raise ModelError(f"{place}: {found} ({error})") from error


def _base_of(name: str, adapter: PeftConfig) -> tuple[str, str]:
    """Name and revision of the model that an adapter was trained on."""
    base = adapter.base_model_name_or_path
    if not base:
        raise ModelError(f"{name}: its {ADAPTER_SETTINGS} names no base model; add base_model_name_or_path there")
    try:
        locate(base)
    except ModelError as error:
        raise ModelError(
            f"{name}: is an adapter whose base model cannot be found: {error}"
            f" (base_model_name_or_path in its {ADAPTER_SETTINGS})"
        ) from error
    return base, adapter.revision or "main"


def _has_tokenizer(place: str, revision: str) -> bool:
    if Path(place).exists():
        return any((Path(place) / file).is_file() for file in TOKENIZER_FILES)
    try:
        hf_hub_download(place, TOKENIZER_FILES[0], revision=revision)
    except hub_errors.EntryNotFoundError:
        return False
    return True
