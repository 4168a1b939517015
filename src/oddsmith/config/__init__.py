"""Settings: ``ORPOConfig`` (training), ``ModelConfig`` (model and adapter), ``ScriptArguments`` (data).

Field names and meanings are those of TRL 1.16, so that its scripts and command lines move over unchanged; what is ours
stands at the end of each class. Everything is checked here, before a model is loaded.
"""

from .data import ScriptArguments
from .model import ModelConfig
from .training import ORPOConfig

__all__ = ["ModelConfig", "ORPOConfig", "ScriptArguments"]
