"""Room for checkpoints: how large one becomes, and whether enough of them fit. Known before the first step.

    checkpoint    trained weights + what the optimizer keeps of each + tokenizer, log, random states
    final model   trained weights + tokenizer

The trained weights are the adapter's, or all of the model's. They are in the type they are trained in.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..system.files import free_bytes, in_words, nearest_folder
from .choose import LEAST_KEPT, checkpoints

if TYPE_CHECKING:
    from torch import Tensor, nn

# Settings, card, curves and manifest of a checkpoint; random states of a process; a line of trainer_state.json; names
# and shapes of what the optimizer keeps of a tensor.
SMALL_FILES_BYTES, PROCESS_BYTES, LOG_LINE_BYTES, TENSOR_BYTES = 48_000, 24_000, 1_000, 700

# Written to see whether a folder can be.
TRIED_BYTES = 65_536

# Numbers that an optimizer keeps of each weight, by the beginning of its name in `optim`; two where none is named.
_KEPT = {"sgd": 0, "lomo": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3, "adamw_anyprecision": 3}
# torch's own keep them in the type of the weight, the others in float32, or in 8 bits with a scale for 256 of them.
_OWN_TYPE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
_BYTES_IN_8_BITS = 1 + 4 / 256


class CheckpointSize(NamedTuple):
    """What a checkpoint will take on the disk.

    Args:
        weights_bytes: Of the weights that are saved.
        optimizer_bytes: Of its state; 0 with ``save_only_model``.
        tokenizer_bytes: Of the tokenizer's files.
        rest_bytes: Of everything else.
    """

    weights_bytes: int
    optimizer_bytes: int
    tokenizer_bytes: int
    rest_bytes: int

    @property
    def final_bytes(self) -> int:
        """What the model takes that the run ends with."""
        return self.weights_bytes + self.tokenizer_bytes + SMALL_FILES_BYTES

    @property
    def largest_file_bytes(self) -> int:
        """The largest of its files."""
        return max(self.weights_bytes, self.optimizer_bytes)


class Room(NamedTuple):
    """What a run will write, and what is free for it.

    Args:
        size: Of a checkpoint.
        free: Bytes free on the file system of the run folder.
        wanted: Checkpoints that will lie there at once, beside those that do already; 0 if the run saves none.
    """

    size: CheckpointSize
    free: int
    wanted: int

    @property
    def fits(self) -> int:
        """How many checkpoints fit beside the final model."""
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
    """Estimate what a checkpoint takes.

    Args:
        model: The model as it is trained; its weights need no storage (``torch.device("meta")``).
        tokenizer: What is saved beside it.
        optim: Name of the optimizer, as in the settings.
        optimizer: The optimizer itself: once it has made a step, what it keeps is counted instead of estimated.
        save_only_model: Whether its state is left out.
        processes: Processes of the run.
        log_lines: Lines that ``trainer_state.json`` will have at the end.

    Returns:
        The parts.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if hasattr(model, "peft_config") else list(model.parameters())
    rest = SMALL_FILES_BYTES + LOG_LINE_BYTES * log_lines
    kept = 0
    if not save_only_model:
        kept = _kept_bytes(getattr(optimizer, "state", None)) or _optimizer_bytes(trained, optim)
        rest += PROCESS_BYTES * processes + TENSOR_BYTES * len(trained)
    return CheckpointSize(sum(map(_bytes_of, saved)), kept, _tokenizer_bytes(tokenizer), rest)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept_bytes(state: Any) -> int:
    """Bytes of an optimizer's state."""
    if hasattr(state, "element_size"):
        return _bytes_of(state)
    return sum(map(_kept_bytes, state.values())) if isinstance(state, dict) else 0


def _optimizer_bytes(trained: Iterable[Tensor], optim: str) -> int:
    """What an optimizer will keep, by its name; at most that, where it compresses in its own way (GaLore, APOLLO)."""
    name = optim.removeprefix("paged_")
    if "adafactor" in name or name == "adalomo":  # a row and a column for a matrix
        return sum(
            4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.dim() > 1 else p.numel()) for p in trained
        )
    numbers = next((count for start, count in _KEPT.items() if name.startswith(start)), 2)
    total = 0
    for parameter in trained:
        each: float = parameter.element_size() if name in _OWN_TYPE else 4
        if name.endswith(("8bit", "4bit", "8bit_layerwise")) and parameter.numel() >= 4096:
            each = _BYTES_IN_8_BITS
        total += math.ceil(numbers * each * parameter.numel())
    return total


def _tokenizer_bytes(tokenizer: Any) -> int:
    """Size of its files: of ``tokenizer.json``, or of the vocabulary that it was read from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return len(backend.to_str(pretty=True).encode())
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    return file.stat().st_size if file.is_file() else 0


def checkpoints_at_once(saves: int, limit: int | None, there: int) -> int:
    """How many more checkpoints will lie in the run folder at the same time.

    Args:
        saves: Saves that are still to come.
        limit: ``save_total_limit``: older ones go, once the newer one is whole.
        there: Checkpoints that lie there already.

    Returns:
        The number; at least 1 where the run saves at all.
    """
    if limit is None or limit <= 0:
        return saves
    return min(saves, max(1, max(limit, LEAST_KEPT) + 1 - there))


def measure_room(run: Path, size: CheckpointSize, *, saves: int, limit: int | None) -> Room:
    """What a run will write, and what is free for it.

    Args:
        run: The run folder; it need not exist yet.
        size: Of a checkpoint.
        saves: Saves that are still to come.
        limit: ``save_total_limit``.

    Returns:
        The room.
    """
    return Room(size, free_bytes(run), checkpoints_at_once(saves, limit, len(checkpoints(run))))


def require_writable(run: Path) -> None:
    """Refuse a run folder that cannot be written, by writing there; nothing of it stays.

    Args:
        run: The run folder; where it does not exist yet, the nearest folder above it is tried.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    try:
        with TemporaryFile(dir=nearest_folder(run)) as file:
            file.write(bytes(TRIED_BYTES))
    except OSError as error:
        why = in_words(error.errno) if error.errno else str(error)
        raise ConfigError(f"output_dir {run}: cannot be written ({why}); choose another output_dir") from error


def file_size_limit() -> int | None:
    """The size that a file of this process may have, in bytes; ``None`` where there is no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def in_units(size_bytes: float) -> str:
    """A size to read: ``"1.2 GB"``, ``"350 MB"``, ``"12 kB"``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= unit:
            value = size_bytes / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:,.0f} {name}"
    return f"{size_bytes / 1e3:,.0f} kB"
