"""Estimate before the first step how large a checkpoint becomes, and how many of them fit on the disk.

    checkpoint    trained weights + optimizer state + tokenizer, log, random states
    final model   trained weights + tokenizer

The trained weights are the adapter's, or all of the model's, in the type in which they are trained.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..system.files import free_bytes, in_units, in_words, nearest_folder
from ..system.shards import whole_numel, whole_shape
from .store import MIN_KEPT, checkpoints

if TYPE_CHECKING:
    from torch import Tensor, nn

# Settings, card, curves and manifest of a checkpoint; random states of a process; a line of trainer_state.json; names
# and shapes of the optimizer state of a tensor.
SMALL_FILES_BYTES, PROCESS_BYTES, LOG_LINE_BYTES, TENSOR_BYTES = 48_000, 24_000, 1_000, 700

TRIAL_BYTES = 65_536  # written to find out whether a folder is writable

# Numbers in the optimizer state for each weight, by the beginning of the name in `optim`; two for all others.
_STATE_NUMBERS = {"sgd": 0, "lomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3, "adamw_anyprecision": 3}
# torch's optimizers store them in the type of the weight, others in float32, or in 8 bits with a scale for 256 of them.
_IN_WEIGHT_TYPE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
_BYTES_IN_8_BITS = 1 + 4 / 256


class CheckpointSize(NamedTuple):
    """The sizes of the parts of a checkpoint; ``optimizer_bytes`` is 0 with ``save_only_model``."""

    weights_bytes: int
    optimizer_bytes: int
    tokenizer_bytes: int
    rest_bytes: int

    @property
    def final_bytes(self) -> int:
        """Return the size of the final model of a run."""
        return self.weights_bytes + self.tokenizer_bytes + SMALL_FILES_BYTES

    @property
    def largest_file_bytes(self) -> int:
        """Return the size of the largest file."""
        return max(self.weights_bytes, self.optimizer_bytes)


class Room(NamedTuple):
    """The disk space that a run needs and has."""

    size: CheckpointSize
    free: int  # bytes free on the file system of the run folder
    wanted: int  # checkpoints that will exist at once, besides those that do already; 0 if the run saves none

    @property
    def fits(self) -> int:
        """Return how many checkpoints fit beside the final model."""
        return max(0, (self.free - self.size.final_bytes) // sum(self.size))

    def __str__(self) -> str:
        fits = f"{self.fits:,}" if self.fits < 1000 else "over 1,000"
        return (
            f"a checkpoint takes about {in_units(sum(self.size))}; {fits} of them fit beside the final model"
            f" ({in_units(self.free)} free)"
        )


def checkpoint_size(
    model: nn.Module,
    tokenizer: Any,
    *,
    optim: str,
    optimizer: Any = None,
    save_only_model: bool = False,
    processes: int = 1,
    log_lines: int = 0,
) -> CheckpointSize:
    """Estimate the size of a checkpoint.

    Args:
        model: The model as it is trained; its weights need no storage (``torch.device("meta")``).
        tokenizer: What is saved beside it.
        optim: Name of the optimizer, as in the settings.
        optimizer: The optimizer: after its first step its state is counted instead of estimated.
        save_only_model: Whether the optimizer state is left out.
        processes: Number of processes.
        log_lines: Number of lines of ``trainer_state.json`` at the end of the run.

    Returns:
        The sizes of the parts.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    rest = SMALL_FILES_BYTES + LOG_LINE_BYTES * log_lines
    state_bytes = 0
    if not save_only_model:
        state_bytes = _bytes_in(getattr(optimizer, "state", None)) or estimated_state_bytes(trained, optim)
        rest += PROCESS_BYTES * processes + TENSOR_BYTES * len(trained)
    return CheckpointSize(sum(map(_bytes_in, saved)), state_bytes, _tokenizer_bytes(tokenizer), rest)


def _bytes_in(state: Any) -> int:
    """Return the size of a tensor, or of all tensors in the state of an optimizer."""
    if hasattr(state, "element_size"):
        return whole_numel(state) * state.element_size()
    return sum(map(_bytes_in, state.values())) if isinstance(state, dict) else 0


def estimated_state_bytes(trained: Iterable[Tensor], optim: str) -> int:
    """Estimate an optimizer's state by its name; too high for those with their own compression (GaLore, APOLLO)."""
    name = optim.removeprefix("paged_")
    if "adafactor" in name or name == "adalomo":  # a row and a column for a matrix
        return sum(
            4 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else math.prod(shape))
            for shape in map(whole_shape, trained)
        )
    numbers = next((count for start, count in _STATE_NUMBERS.items() if name.startswith(start)), 2)
    total = 0
    for parameter in trained:
        each: float = parameter.element_size() if name in _IN_WEIGHT_TYPE else 4
        if name.endswith(("8bit", "4bit", "8bit_layerwise")) and whole_numel(parameter) >= 4096:
            each = _BYTES_IN_8_BITS
        total += math.ceil(numbers * each * whole_numel(parameter))
    return total


def _tokenizer_bytes(tokenizer: Any) -> int:
    """Return the size of ``tokenizer.json``, or of the vocabulary that the tokenizer was read from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return len(backend.to_str(pretty=True).encode())
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    return file.stat().st_size if file.is_file() else 0


def checkpoints_at_once(saves: int, limit: int | None, there: int) -> int:
    """Return how many checkpoints will exist at once, besides those ``there`` already; at least 1 if the run saves.

    ``saves`` are still to come; with a ``limit`` older checkpoints are removed when the newer one is complete.
    """
    if limit is None or limit <= 0:
        return saves
    return min(saves, max(1, max(limit, MIN_KEPT) + 1 - there))


def measure_room(run: Path, size: CheckpointSize, *, saves: int, limit: int | None) -> Room:
    """Return the disk space that a run needs and has; its folder need not exist (see :func:`checkpoints_at_once`)."""
    return Room(size, free_bytes(run), checkpoints_at_once(saves, limit, len(checkpoints(run))))


def require_writable(run: Path) -> None:
    """Write a temporary file to a run folder or the nearest existing one above it; ``ConfigError`` where that fails."""
    try:
        with TemporaryFile(dir=nearest_folder(run)) as file:
            file.write(bytes(TRIAL_BYTES))
    except OSError as error:
        why = in_words(error.errno) if error.errno else str(error)
        raise ConfigError(f"output_dir {run}: cannot be written ({why}); choose another output_dir") from error


def file_size_limit() -> int | None:
    """Return the largest size of a file that this process may write, in bytes; ``None`` where there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
