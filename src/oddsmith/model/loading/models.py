"""Load models and tokenizers by name: a hub id, a folder, a GGUF file, a folder with an adapter, or ``builtin:...``.

name -> place (on disk or hub) -> configuration: does it generate text?  -> weights
                adapter there  -> its base, loaded in the same way       -> adapter on top
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...data.templates.environment import guard_chat_templates
from ...errors import ModelError
from ..adapter_bounds import require_bounded_adapter
from ..adapters import fit_vocabulary, for_text_alone, keep_weights_unpacked, repeatable_initialisation
from ..text_part import is_multimodal
from ..vocabulary import rows_of_adapter
from .adapter_base import adapter_settings, base_of, read_base_record, require_same_base
from .architecture import auto_class_for
from .completeness import complete_adapters, require_all_weights
from .gguf import as_model_folder, load_gguf_config, load_gguf_model, load_gguf_tokenizer
from .load_errors import clear_errors
from .place import ADAPTER_SETTINGS, MODEL_SETTINGS, TOKENIZER_FILES, is_gguf, locate
from .plausible import require_plausible_settings, require_plausible_size
from .processor_files import processor_files, processor_template
from .quiet import no_progress_bars
from .untrusted_files import (
    refuse_code_in_folder,
    refuse_code_in_hub_adapter,
    refuse_code_in_hub_model,
    refuse_code_in_options,
)

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
    """Load a model that generates text: decoder-only or encoder-decoder, with its parts for images or sound if any.

    Args:
        name: Hub id, folder, GGUF file, ``builtin:smollm2-135m-instruct``, or the folder or hub id of a PEFT adapter.
        dtype: Type of the weights, ``"auto"`` for the one they are stored in; float32 by default.
        revision: Branch, tag or commit on the hub; of the adapter, where ``name`` is one.
        trust_remote_code: Whether a model may run its own Python code. Only the command line may say so, never a file.
        attn_implementation: transformers' attention implementation.
        quantization_config: Quantise the weights while loading. A GGUF file is unpacked to float32 first.
        is_trainable: Whether an adapter that ``name`` holds can be trained further.
        dequantize: Whether quantised weights are unpacked again into ordinary ones of the same values.
        **kwargs: Further arguments of ``from_pretrained``.

    Returns:
        The model in evaluation mode, with its adapter on top where ``name`` is an adapter.

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
    hub_options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    refuse_code_in_options(options, trust_remote_code)
    refuse_code_in_folder(name, place, trust_remote_code)
    with no_progress_bars(), clear_errors(name, revision):
        adapter = adapter_settings(place, revision, hub_options)
        if adapter is not None:
            refuse_code_in_hub_adapter(name, place, revision, hub_options)
            base_name, base_revision = base_of(name, adapter)
            source: dict[str, Any] = {"revision": base_revision, "trust_remote_code": trust_remote_code}
            base = load_model(base_name, dequantize=dequantize, **source, **options)
            record = read_base_record(place, revision)
            if record is not None:  # checked only now: loading has brought a base on the hub to this disk
                require_same_base(name, record, base_name, base_revision)
            rows = max(rows_of_adapter(adapter), (record.embeddings or 0) if record else 0)
            fit_vocabulary(base, place, revision, rows=rows)
            require_bounded_adapter(f"{name}: its {ADAPTER_SETTINGS}", adapter, base)
            with repeatable_initialisation(adapter), complete_adapters(name):
                return PeftModel.from_pretrained(base, place, is_trainable=is_trainable, revision=revision)
        if is_gguf(place):
            auto_class_for(name, load_gguf_config(Path(place)))  # refuses what is no generator
            model = _load_gguf(Path(place), **options)
        else:
            model = _load(name, place, revision=revision, trust_remote_code=trust_remote_code, **options)
        if dequantize and getattr(model, "is_quantized", False):
            model = model.dequantize()
    # Adapters and model cards name it as their base: the name that loads it again, not a folder in the cache.
    model.name_or_path = model.config._name_or_path = name
    if revision != "main":
        model.revision = revision
    keep_weights_unpacked(model)
    return model


def load_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model, in its folder or on the hub; arguments and errors are those of ``load_model``.

    An adapter has none, which is an error, too.
    """
    place = locate(name)
    with clear_errors(name, revision):
        if Path(place).is_dir():
            require_plausible_settings(name, Path(place) / MODEL_SETTINGS)
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; arguments and errors are those of ``load_model``.

    An adapter that was saved without a tokenizer has its base's. The tokenizer pads on the right, with its end token if
    it has no pad token: masks come from lengths, so the two may be the same.
    """
    place = locate(name)
    refuse_code_in_folder(name, place, trust_remote_code)
    guard_chat_templates()
    with clear_errors(name, revision):
        if is_gguf(place):
            tokenizer = load_gguf_tokenizer(Path(place))
        else:
            adapter = adapter_settings(place, revision)
            if adapter is not None and not _has_tokenizer(place, revision):
                base_name, base_revision = base_of(name, adapter)
                return load_tokenizer(base_name, revision=base_revision, trust_remote_code=trust_remote_code)
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code)
            if not isinstance(tokenizer.model_max_length, int | float) or not tokenizer.model_max_length > 0:
                found = f"model_max_length is {str(tokenizer.model_max_length)[:40]!r}"
                raise ModelError(f"{name}: its {found}; expected a number of tokens")
            if tokenizer.chat_template is None:
                tokenizer.chat_template = processor_template(place, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _load(name: str, place: str, *, revision: str, trust_remote_code: bool, **options: Any) -> PreTrainedModel:
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    hub_options = {key: options[key] for key in HUB_OPTIONS if key in options}
    config = AutoConfig.from_pretrained(place, **source, **hub_options)
    auto_class = auto_class_for(name, config)
    refuse_code_in_hub_model(name, place, revision, trust_remote_code, options.get("cache_dir"))
    require_plausible_size(name, Path(place), config, auto_class)
    if "quantization_config" in options:
        options["quantization_config"] = for_text_alone(options["quantization_config"], auto_class, config)
    stored = config.dtype
    options |= {"use_safetensors": True, "output_loading_info": True}
    model, found = auto_class.from_pretrained(place, **source, **options)
    require_all_weights(name, found)
    if is_multimodal(model):
        model.stored_dtype = stored
        processor_files(name, revision=revision, **hub_options)  # now, for a run without a connection
    return model


def _load_gguf(path: Path, **options: Any) -> PreTrainedModel:
    if "quantization_config" not in options:
        return load_gguf_model(path, **options)
    with as_model_folder(path) as folder:  # transformers cannot requantise a GGUF file
        return _load(str(path), str(folder), revision="main", trust_remote_code=False, **options)


def _has_tokenizer(place: str, revision: str) -> bool:
    if Path(place).exists():
        return any((Path(place) / file).is_file() for file in TOKENIZER_FILES)
    try:
        hf_hub_download(place, TOKENIZER_FILES[0], revision=revision)
    except hub_errors.EntryNotFoundError:
        return False
    return True
