"""From resolved settings to the three dataclasses. The first step of a command that imports torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ConfigError
from .resolve import Resolved

if TYPE_CHECKING:
    from ...config import ModelConfig, ORPOConfig, ScriptArguments


class Settings(NamedTuple):
    """The dataclasses of a run."""

    orpo: ORPOConfig
    model: ModelConfig
    data: ScriptArguments


def build(resolved: Resolved) -> Settings:
    """Make the dataclasses, which check ranges and contradictions.

    Args:
        resolved: The settings that were given.

    Returns:
        All settings.

    Raises:
        ConfigError: A value is out of range or contradicts another; the message ends with where it was given.
    """
    from ...config import ModelConfig, ORPOConfig, ScriptArguments

    try:
        settings = Settings(
            ORPOConfig(**resolved.of("ORPOConfig")),
            ModelConfig(**resolved.of("ModelConfig")),
            ScriptArguments(**resolved.of("ScriptArguments")),
        )
        if settings.data.dataset_streaming and settings.orpo.max_steps <= 0:
            raise ConfigError(
                "dataset_streaming does not know how many rows there are; set max_steps, the run's length"
            )
        return settings
    except ConfigError as error:
        raise ConfigError(_with_origin(str(error), resolved)) from error
    except (ValueError, TypeError, ArithmeticError, ImportError, OSError) as error:  # transformers' own checks
        raise ConfigError(_with_origin(" ".join(str(error).split()) or type(error).__name__, resolved)) from error


def _with_origin(message: str, resolved: Resolved) -> str:
    """The message with the places of the settings it names."""
    words = dict.fromkeys(re.findall(r"\w+", message))
    places = [f"{word}: {resolved.settings[word].where}" for word in words if word in resolved.settings]
    return f"{message} ({', '.join(places)})" if places else message
