"""What is searched: ranges and choices of settings, as they are given with ``--search``.

learning_rate=1e-6:1e-4:log     numbers between two, evenly on a logarithmic scale
warmup_steps=0:50               evenly; whole numbers where the setting takes no others
beta=0.05,0.1,0.5               one of these
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

from ..errors import ConfigError

LOG = "log"
# What may be searched: settings that change the training and nothing else. Others would change the tokens of the
# held-out pairs (lengths, templates), or give a probe more pairs to learn from (batch sizes), so that costs of two
# probes could not be compared.
SEARCHABLE = (
    *("learning_rate", "beta", "nll_on", "warmup_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm"),
    *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha", "disable_dropout"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora"),
)
DEFAULT = ("learning_rate", "beta")  # what is searched where nothing is said
AROUND = 10.0  # learning rates from a tenth of the recipe's own to ten times it
BETAS = (0.05, 0.1, 0.25, 0.5)  # from the paper's 0.1 to 0.25 for 2.7B to 7B to the authors' advice for small models
FORM = "expected NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..., such as learning_rate=1e-6:1e-4:log"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    @property
    def corners(self) -> tuple[Any, ...]:
        """Return the values that are likeliest to be refused."""
        return (self.low, self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.is_log else ''}"


@dataclass(frozen=True)
class Choices:
    """One of some values, of the types of their setting."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.values

    @property
    def corners(self) -> tuple[Any, ...]:
        """Return all values."""
        return self.values

    def __str__(self) -> str:
        return ", ".join(map(shown, self.values))


Space = Mapping[str, "Range | Choices"]


def shown(value: Any) -> str:
    """Return a value for reading: numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def size_of(space: Space) -> int | None:
    """Return how many combinations a space has; ``None`` with a range of fractions in it."""
    counts: list[int] = []
    for part in space.values():
        if isinstance(part, Range) and not part.is_whole:
            return None
        counts.append(len(part.values) if isinstance(part, Choices) else int(part.high - part.low) + 1)
    return prod(counts)


def parse_search(
    text: str, read: Callable[[str, str], Any], is_whole: Callable[[str], bool]
) -> tuple[str, Range | Choices]:
    """Read what was given with ``--search``.

    Args:
        text: ``NAME=LOW:HIGH[:log]`` or ``NAME=VALUE,VALUE,...``.
        read: Called with the name of a setting and the text of a value; returns the value, and raises a
            ``ConfigError`` where there is no such setting or it does not take the value.
        is_whole: Whether a setting takes whole numbers alone.

    Returns:
        The name of the setting, and its values.

    Raises:
        ConfigError: The text is none of the forms above, or has no two values to choose from.
    """
    name, equals, given = text.partition("=")
    name, where = name.strip().replace("-", "_"), f"--search {text}"
    if not equals or not name or not given.strip():
        raise ConfigError(f"{where}: {FORM}")
    if ":" not in given:
        values = tuple(dict.fromkeys(read(name, part.strip()) for part in given.split(",")))
        if len(values) < 2:
            raise ConfigError(f"{where}: one value is no choice; give two or more, or set it in the recipe")
        return name, Choices(values)
    low, high, *scale = (part.strip() for part in given.split(":"))
    if scale not in ([], [LOG]):
        raise ConfigError(f"{where}: {FORM}")
    ends = [read(name, end) for end in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not isfinite(end) for end in ends):
        raise ConfigError(f"{where}: {name} takes no numbers; give its values as {name}=VALUE,VALUE,...")
    if ends[0] >= ends[1]:
        raise ConfigError(f"{where}: from {low} to {high} is no range; the first has to be lower")
    if scale and ends[0] <= 0:
        raise ConfigError(f"{where}: a logarithmic range begins above 0")
    kind = int if is_whole(name) else float
    return name, Range(kind(ends[0]), kind(ends[1]), is_log=bool(scale), is_whole=kind is int)


def default_space(own: Mapping[str, Any]) -> dict[str, Range | Choices]:
    """Return what is searched where nothing is said, around the recipe's own settings."""
    rate, beta = float(own["learning_rate"]), float(own["beta"])
    return {
        "learning_rate": Range(rate / AROUND, rate * AROUND, is_log=True),
        "beta": Choices(tuple(sorted({*BETAS, beta}))),
    }
