"""Make LoRA adapters and quantisation from the settings, and add adapters to a frozen, possibly quantised base."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..config import ModelConfig
from ..config.model import require_bitsandbytes
from ..errors import ModelError
from ..system.precision import best_precision
from .adapter_bounds import require_bounded_adapter
from .bypassed import bypassed_layers
from .merging import is_tied
from .text_part import outside_text, pattern_of
from .vocabulary import grow_embeddings

ALL_LINEAR = "all-linear"
# How the name of an embedding ends in an adapter: as it is, under LoRA, with rows that are trained.
SAVED_EMBEDDINGS = (".weight", ".base_layer.weight", ".token_adapter.base_layer.weight")


def get_peft_config(model_config: ModelConfig) -> LoraConfig | None:
    """Return PEFT's configuration of the adapter from the settings; ``None`` without ``use_peft``.

    ``lora_target_modules`` holds module names, or one regular expression, or ``"all-linear"``, which is also the
    default: every linear layer but the output head.
    """
    if not model_config.use_peft:
        return None
    options = {
        "target_parameters": model_config.lora_target_parameters,
        "init_lora_weights": model_config.init_lora_weights,
    }
    return LoraConfig(
        task_type=model_config.lora_task_type or TaskType.CAUSAL_LM,
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        target_modules=_target_modules(model_config.lora_target_modules),
        modules_to_save=model_config.lora_modules_to_save,
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        **{name: value for name, value in options.items() if value is not None},
    )


def get_quantization_config(
    model_config: ModelConfig, *, compute_dtype: torch.dtype | None = None
) -> BitsAndBytesConfig | None:
    """Return bitsandbytes' settings for the base; ``None`` without ``load_in_4bit`` and ``load_in_8bit``.

    4 bit is NF4 with double quantisation unless the settings say otherwise. Source: Dettmers et al., QLoRA, arXiv
    2305.14314. Matrix products are computed in ``dtype`` where that is set, else in ``compute_dtype``, the type of the
    run; by default in fp16 on a GPU that has units for it and none for bf16, and in bf16 elsewhere. Raise
    ``MissingExtraError`` where bitsandbytes is not installed.
    """
    if not (model_config.load_in_4bit or model_config.load_in_8bit):
        return None
    require_bitsandbytes(model_config)
    if model_config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    compute: Any = model_config.dtype
    if compute in (None, "auto"):
        compute = compute_dtype or ("float16" if best_precision().name == "fp16" else "bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=model_config.bnb_4bit_quant_storage,
    )


def for_text_alone(quantization: Any, auto_class: Any, config: PreTrainedConfig) -> Any:
    """Return bitsandbytes' settings with what text does not reach, and the head, left in the type it is stored in.

    ``auto_class`` and ``config`` make the model. Towers are kept as they are that way, also where the base is
    dequantised later. Settings that name modules to skip, and of other kinds, stay as they are.
    """
    if not isinstance(quantization, BitsAndBytesConfig) or quantization.llm_int8_skip_modules:
        return quantization
    with torch.device("meta"):
        model = auto_class.from_config(config)
    outside = outside_text(model)
    if not outside:
        return quantization
    head = model.get_output_embeddings()
    quantization = copy.deepcopy(quantization)
    quantization.llm_int8_skip_modules = [*outside, *(path for path, module in model.named_modules() if module is head)]
    return quantization


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Freeze a model, quantised or not, and add a trainable adapter to it in place.

    Adapter weights are float32, also over a bf16 or quantised base; ``peft_config`` is not changed. Raise
    ``ModelError`` where the model has an adapter already, a target does not exist, or the two do not fit together.
    """
    if not isinstance(peft_config, PeftConfig):
        raise ModelError(
            f"peft_config is a {type(peft_config).__name__}; expected a peft config such as LoraConfig(r=16)"
        )
    if isinstance(model, PeftModel) or has_adapter_layers(model):
        raise ModelError(
            "the model has an adapter already and peft_config asks for another; leave peft_config out and give the"
            " PeftModel to train on, or pass its merge_and_unload(), or unload() to drop the adapter"
        )
    require_bounded_adapter("the adapter", peft_config, model)
    peft_config = copy.deepcopy(peft_config)
    if model.config.is_encoder_decoder and peft_config.task_type in (None, TaskType.CAUSAL_LM):
        peft_config.task_type = TaskType.SEQ_2_SEQ_LM
    outside = outside_text(model)
    _check_targets(model, peft_config, outside)
    is_all_linear = getattr(peft_config, "target_modules", None) == ALL_LINEAR
    bypassed = bypassed_layers(model) if is_all_linear else []
    if outside and is_all_linear:
        peft_config.target_modules = _linear_layers(model, re.compile(pattern_of(outside)))
    _leave_out(peft_config, [*outside, *bypassed])
    _check_initialisation(model, peft_config)
    _keep_tied(model, peft_config)
    # No prepare_model_for_kbit_training: it casts norms, embeddings and head to float32, which on SmolLM2-135M (NF4,
    # bf16) took 44% more memory and brought the gradient no nearer to float32's (5.4% off with it, 5.3% without).
    try:
        with repeatable_initialisation(peft_config):
            return get_peft_model(model, peft_config, revision=getattr(model, "revision", None))
    except ValueError as error:
        raise ModelError(f"this adapter does not fit the model: {error}") from error


def has_adapter_layers(model: nn.Module) -> bool:
    """Return whether layers of an adapter are in a model, as in the base of a ``PeftModel`` that was made of it."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def require_whole(model: nn.Module) -> None:
    """Refuse the base inside of a ``PeftModel``: it would be saved with layers that nothing can load."""
    by_transformers = getattr(model, "_hf_peft_config_loaded", False)  # which saves the adapter alone
    if not (isinstance(model, PeftModel) or by_transformers) and has_adapter_layers(model):
        raise ModelError(
            "the model is the base inside of a PeftModel, and cannot be saved without it; give the PeftModel (trainer"
            ".model, if a trainer made it), or its merge_and_unload(), or unload() to drop the adapter"
        )


def keep_weights_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16; undo it where it has happened.

    bitsandbytes 0.50 repacks them in the first evaluation-mode forward, for a faster product. Training then reads the
    repacked weights as plain ones: gradients are wrong from then on, and so is every merge.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # unpacks in place, so that checkpoints hold plain 4-bit weights


def require_dora_possible(model: nn.Module) -> None:
    """Refuse DoRA over 8-bit weights on a CPU, where PEFT 0.21 loses their scales in the first forward pass."""
    for layer in model.modules():
        base: Any = getattr(layer, "base_layer", None)
        is_8_bit = type(base).__name__ == "Linear8bitLt"
        if is_8_bit and getattr(layer, "lora_variant", None) and base.weight.device.type == "cpu":
            raise ModelError(
                "use_dora over an 8-bit base fails on a CPU (PEFT loses the scales of its weights); take load_in_4bit,"
                " or leave use_dora out"
            )


def fit_vocabulary(base: PreTrainedModel, place: str, revision: str = "main", *, rows: int = 0) -> None:
    """Resize a base's embeddings to those of an adapter that was trained with more tokens.

    Args:
        base: The base.
        place: The adapter's folder, or its id on the hub. Embeddings in it replace those of the base later.
        revision: Branch, tag or commit on the hub.
        rows: How many rows they have at least, where the adapter holds only those that it trains.
    """
    saved = _saved_rows(base, place, revision)
    if saved and saved != base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(saved, mean_resizing=False)
    grow_embeddings(base, rows)


def _saved_rows(base: PreTrainedModel, place: str, revision: str) -> int:
    """Return how many rows the embeddings in an adapter have; 0 where it has none."""
    file = Path(place) / SAFETENSORS_WEIGHTS_NAME
    if not Path(place).exists():
        try:
            file = Path(hf_hub_download(place, SAFETENSORS_WEIGHTS_NAME, revision=revision))
        except (hub_errors.EntryNotFoundError, hub_errors.LocalEntryNotFoundError):
            return 0
    if not file.is_file():
        return 0
    embedding = base.get_input_embeddings()
    path = next(path for path, module in base.named_modules() if module is embedding)
    with safe_open(file, framework="pt") as weights:
        names = {f"base_model.model.{path}{end}" for end in SAVED_EMBEDDINGS} & set(weights.keys())
        return max((weights.get_slice(name).get_shape()[0] for name in names), default=0)


@contextmanager
def repeatable_initialisation(peft_config: PeftConfig) -> Iterator[None]:
    """Seed a fast PiSSA, so that it finds the same singular vectors each time for the same weights.

    PiSSA subtracts the adapter's initial value from the frozen weights. Only the adapter is saved, so loading it has to
    subtract the same value again; ``pissa_niter_N`` finds it with random projections.
    """
    if not str(getattr(peft_config, "init_lora_weights", "")).startswith("pissa_niter"):
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        yield


def _target_modules(names: str | list[str] | None) -> str | list[str]:
    """Put a plain name into a list: PEFT reads a string as a regular expression over whole module paths."""
    if names is None:
        return ALL_LINEAR
    if isinstance(names, str) and names != ALL_LINEAR and re.fullmatch(r"[\w.]+", names):
        return [names]
    return names


def _check_targets(model: PreTrainedModel, peft_config: PeftConfig, outside: list[str]) -> None:
    """Require that every target exists, and list the candidates otherwise; PEFT complains only where none exists."""
    is_outside = re.compile(pattern_of(outside)) if outside else None
    reached = [(path, module) for path, module in model.named_modules() if path]
    if is_outside:
        reached = [(path, module) for path, module in reached if not is_outside.fullmatch(path)]
    paths = [path for path, _ in reached]
    targets = getattr(peft_config, "target_modules", None) or []
    if isinstance(targets, str):
        missing = [] if targets == ALL_LINEAR or any(re.fullmatch(targets, path) for path in paths) else [targets]
    else:
        missing = [target for target in targets if not _names_any(target, paths)]
    missing += [name for name in getattr(peft_config, "modules_to_save", None) or [] if not _names_any(name, paths)]
    if missing:
        head = model.get_output_embeddings()
        linear = [(path, module) for path, module in reached if isinstance(module, (nn.Linear, Conv1D))]
        candidates = dict.fromkeys(path.rpartition(".")[2] for path, module in linear if module is not head)
        where = "this model" if not outside else "what pairs of text train of this model"
        raise ModelError(
            f"LoRA target {', '.join(sorted(missing))} is not in {where} ({model.config.model_type});"
            f" expected all-linear or some of: {', '.join(candidates)}"
        )


def _leave_out(peft_config: PeftConfig, outside: list[str]) -> None:
    """Keep an adapter out of what text does not reach, or does not call, whatever its targets are called."""
    if not outside or not hasattr(peft_config, "exclude_modules"):
        return
    already: Any = peft_config.exclude_modules
    if already and not isinstance(already, str):
        already = rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(already)))})"
    peft_config.exclude_modules = "|".join(filter(None, (already, pattern_of(outside))))


def _linear_layers(model: PreTrainedModel, is_outside: re.Pattern[str]) -> list[str]:
    """Name the linear layers of the text part but the head, by their last names where those name nothing else.

    PEFT's own search takes routers that are a subclass of a linear layer and return more than one tensor (Llama 4), and
    shortens ``merger.mlp.0`` of a vision tower to ``0``, which names every first layer.
    """
    head = model.get_output_embeddings()
    named = [(path, module) for path, module in model.named_modules() if path and not is_outside.fullmatch(path)]
    layers = [path for path, module in named if _is_plain_linear(module) and module is not head]
    last_names = {path.rpartition(".")[2] for path in layers}
    with_these = [path for path, _ in named if path.rpartition(".")[2] in last_names]
    return sorted(last_names) if len(with_these) == len(layers) else layers


def _is_plain_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D)) and not type(module).__module__.startswith("transformers.models.")


def _check_initialisation(model: PreTrainedModel, peft_config: PeftConfig) -> None:
    start = str(getattr(peft_config, "init_lora_weights", None))
    if start.startswith(("pissa", "corda")) and getattr(model, "is_quantized", False):
        raise ModelError(
            f"init_lora_weights={start!r} subtracts the adapter's initial value from the base's weights, which is not"
            " possible with quantised weights; leave init_lora_weights or the quantisation out"
        )


def _keep_tied(model: PreTrainedModel, peft_config: PeftConfig) -> None:
    """Where head and input embedding are one weight, keep them one, or refuse the adapter.

    Trained in full (``modules_to_save``) the two stay one weight. LoRA on either cannot be merged: in the one weight it
    would change the other as well (logits off by 7 in our test), with ``ensure_weight_tying`` too.
    """
    if not is_tied(model):
        return
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    path_of = {module: path for path, module in model.named_modules()}
    tied = [path_of[embedding], path_of[head]]
    targets = getattr(peft_config, "target_modules", None) or []
    if isinstance(targets, str):
        adapted = targets != ALL_LINEAR and any(re.fullmatch(targets, path) for path in tied)
    else:
        adapted = any(_names_any(target, tied) for target in targets)
    in_full = getattr(peft_config, "modules_to_save", None) or []
    untied = [name for name in in_full if not _names_any(name, tied)]
    embedding_name = tied[0].rpartition(".")[2]
    if adapted or (len(untied) < len(in_full) and embedding_name != "embed_tokens"):  # the one name that PEFT ties
        raise ModelError(
            f"{' and '.join(tied)} are one weight in this model, so an adapter on one of them cannot be merged;"
            " leave both out of the LoRA targets"
            + (f", or train them in full with lora_modules_to_save={embedding_name}" if adapted else "")
        )
    if len(untied) < len(in_full):
        peft_config.modules_to_save = [*untied, embedding_name]
        peft_config.ensure_weight_tying = True
        peft_config.modules_to_tie = peft_config.target_modules_to_tie = None


def _names_any(name: str, paths: list[str]) -> bool:
    """Return whether a target names one of the modules by its path or the end of it, as PEFT matches lists."""
    return any(path == name or path.endswith("." + name) for path in paths)
