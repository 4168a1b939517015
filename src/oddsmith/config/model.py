"""Define the settings of the model and the adapter: ``ModelConfig``."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from typing import Optional

from ..errors import ConfigError, MissingExtraError
from ..system.dtypes import dtype_name
from .catalogue import with_help
from .constructors import with_older_names

# HfArgumentParser reads these annotations at run time; it knows Optional[X] and Literal, not every newer spelling.
# ruff: noqa: UP045


MAX_RANK = 2**16
MAX_ITERATIONS = 1_000  # of an initialisation


@with_older_names
@with_help
@dataclass
class ModelConfig:
    """The settings of model, precision and adapter: the fields of TRL's ``ModelConfig``, and ours at the end.

    Args:
        model_name_or_path: Hub id, folder, GGUF file, or ``builtin:smollm2-135m-instruct``.
        model_revision: Branch, tag or commit on the hub.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"auto"`` (as the weights are stored), in any spelling of
            ``system/dtypes.py``. By default float32 for full fine-tuning, and the precision of the run for a base that
            is frozen under an adapter.
        attn_implementation: transformers' attention implementation, e.g. ``"sdpa"``.
        use_peft: Train a LoRA adapter instead of the whole model.
        lora_r, lora_alpha, lora_dropout: Rank, scale (alpha / r) and dropout of the adapter.
        lora_target_modules: Modules that get one; all linear layers but the head by default.
        lora_target_parameters: Bare parameters that get one (the experts of a mixture-of-experts model).
        lora_modules_to_save: Modules trained in full beside the adapter.
        lora_task_type: PEFT task type; follows the model by default.
        use_rslora, use_dora: Rank-stabilised scale alpha / sqrt(r); weight-decomposed LoRA.
        load_in_8bit, load_in_4bit: Quantise the frozen base with bitsandbytes.
        bnb_4bit_quant_type, use_bnb_nested_quant, bnb_4bit_quant_storage: NF4 or FP4, double quantisation, storage.
        init_lora_weights: PEFT's initialisation of the adapter: ``"pissa"``, ``"pissa_niter_4"``, ``"gaussian"``, ...

    Raises:
        ConfigError: Contradictory or impossible values.
    """

    model_name_or_path: Optional[str] = None
    model_revision: str = "main"
    dtype: Optional[str] = field(default=None, metadata={"choices": ["auto", "bfloat16", "float16", "float32"]})
    attn_implementation: Optional[str] = None
    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    lora_target_modules: Optional[list[str]] = None
    lora_target_parameters: Optional[list[str]] = None
    lora_modules_to_save: Optional[list[str]] = None
    lora_task_type: Optional[str] = None
    use_rslora: bool = False
    use_dora: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"choices": ["fp4", "nf4"]})
    use_bnb_nested_quant: bool = True
    bnb_4bit_quant_storage: Optional[str] = None

    # Ours.
    init_lora_weights: Optional[str] = None

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise ConfigError("load_in_8bit and load_in_4bit are both on; choose one")
        if (self.load_in_8bit or self.load_in_4bit) and not self.use_peft:
            bits = "load_in_8bit" if self.load_in_8bit else "load_in_4bit"
            raise ConfigError(f"{bits} freezes the model, so it trains nothing without an adapter; add use_peft")
        if self.lora_r < 1:
            raise ConfigError(f"lora_r is {self.lora_r}; expected at least 1")
        if self.lora_r > MAX_RANK:
            raise ConfigError(f"lora_r is {self.lora_r:,}; expected at most {MAX_RANK:,}")
        rounds = re.search(r"niter_(\d+)$", str(self.init_lora_weights))
        if rounds and int(rounds[1][:9]) > MAX_ITERATIONS:
            raise ConfigError(
                f"init_lora_weights is {str(self.init_lora_weights)[:60]!r}; expected at most {MAX_ITERATIONS:,} rounds"
            )
        self.dtype, self.bnb_4bit_quant_storage = dtype_name(self.dtype), dtype_name(self.bnb_4bit_quant_storage)
        if self.dtype not in (None, "auto", "bfloat16", "float16", "float32"):
            raise ConfigError(f"dtype is {self.dtype!r}; expected 'auto', 'bfloat16', 'float16' or 'float32'")
        if self.lora_target_modules is not None and len(self.lora_target_modules) == 1:
            # One name may be a pattern or "all-linear", which PEFT takes only as a string.
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]

    @property
    def trust_remote_code(self) -> bool:
        """``False``: what TRL's older scripts read here is a setting of ``ORPOConfig``, in TRL today, too."""
        return False


def require_bitsandbytes(config: ModelConfig) -> None:
    """Raise ``MissingExtraError`` where a model is to be loaded in 4 or 8 bits and bitsandbytes is not installed."""
    if (config.load_in_4bit or config.load_in_8bit) and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"{4 if config.load_in_4bit else 8}-bit loading", "4bit")
