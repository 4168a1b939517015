"""Define the settings: ``ORPOConfig`` (training), ``ModelConfig`` (model and adapter), ``ScriptArguments`` (data).

Field names and meanings are those of TRL 1.16, so that its scripts and command lines move over unchanged; our own
fields are at the end of each class. The dataclasses check everything before a model is loaded. ``catalogue`` says what
each setting is for; the dataclasses are imported when they are first used, so that it can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import ScriptArguments
    from .model import ModelConfig
    from .training import ORPOConfig

__all__ = ["ModelConfig", "ORPOConfig", "ScriptArguments"]

_HOME = {"ORPOConfig": ".training", "ModelConfig": ".model", "ScriptArguments": ".data"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for home in (".data", ".model"):  # cheap; an unknown setting of one class may be that of another
        import_module(home, __name__)
    return getattr(import_module(_HOME[name], __name__), name)
