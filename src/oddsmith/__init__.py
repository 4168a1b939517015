"""Oddsmith: one-step preference alignment of language models (ORPO)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cli.commands.train.recipe import trainer_from_recipe
    from .config import ModelConfig, ORPOConfig, ScriptArguments
    from .errors import (
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        Interrupted,
        MissingExtraError,
        ModelError,
        NonFiniteError,
        NotAFileError,
        OddsmithError,
        OutOfMemoryError,
        OutputError,
        RowError,
        SaveError,
        ServerError,
        UndecidedRow,
        UsageError,
        WorkerError,
    )
    from .model.adapters import get_peft_config, get_quantization_config
    from .model.chat_format import setup_chat_format
    from .model.logprobs.pair_tokens import PairLosses, PairTokens
    from .training.stopping import StopOnRequest
    from .training.trainer import ORPOTrainer

__version__ = "0.1.0"

NOT_ON_WINDOWS = "Oddsmith runs on Linux and macOS; on Windows, install it inside WSL (https://aka.ms/wsl)"

# Name -> module; the other names of `__all__` are errors. Loaded on first use, so that `import oddsmith` and `oddsmith
# --help` never wait for torch.
_HOME = {
    "ORPOConfig": ".config",
    "ORPOTrainer": ".training.trainer",
    "ModelConfig": ".config",
    "ScriptArguments": ".config",
    "PairLosses": ".model.logprobs.pair_tokens",
    "PairTokens": ".model.logprobs.pair_tokens",
    "StopOnRequest": ".training.stopping",
    "get_peft_config": ".model.adapters",
    "get_quantization_config": ".model.adapters",
    "setup_chat_format": ".model.chat_format",
    "trainer_from_recipe": ".cli.commands.train.recipe",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "Interrupted",
    "MissingExtraError",
    "ModelConfig",
    "ModelError",
    "NonFiniteError",
    "NotAFileError",
    "ORPOConfig",
    "ORPOTrainer",
    "OddsmithError",
    "OutOfMemoryError",
    "OutputError",
    "PairLosses",
    "PairTokens",
    "RowError",
    "SaveError",
    "ScriptArguments",
    "ServerError",
    "StopOnRequest",
    "UndecidedRow",
    "UsageError",
    "WorkerError",
    "__version__",
    "get_peft_config",
    "get_quantization_config",
    "setup_chat_format",
    "trainer_from_recipe",
]


if not TYPE_CHECKING:  # a type checker would take it for a promise of every name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'oddsmith' has no attribute {name!r}")
        if sys.platform == "win32":
            raise ImportError(NOT_ON_WINDOWS)
        return getattr(import_module(_HOME.get(name, ".errors"), __name__), name)


def __dir__() -> list[str]:
    return __all__
