"""From resolved settings to the three dataclasses. The first step of a command that imports torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ConfigError
from .resolve import Resolved

if TYPE_CHECKING:
    from ..config import ModelConfig, ORPOConfig, ScriptArguments


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
    from ..config import ModelConfig, ORPOConfig, ScriptArguments

    try:
        return Settings(
            ORPOConfig(**resolved.of("ORPOConfig")),
            ModelConfig(**resolved.of("ModelConfig")),
            ScriptArguments(**resolved.of("ScriptArguments")),
        )
    except ConfigError as error:
        raise ConfigError(_with_origin(str(error), resolved)) from error
    except (ValueError, TypeError, ImportError, OSError) as error:  # transformers' own checks
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(_with_origin(first_line, resolved)) from error


def _with_origin(message: str, resolved: Resolved) -> str:
    """The message with the places of the settings it names."""
    words = dict.fromkeys(re.findall(r"\w+", message))
    places = [f"{word}: {resolved.settings[word].where}" for word in words if word in resolved.settings]
    return f"{message} ({', '.join(places)})" if places else message
