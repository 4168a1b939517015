"""What is printed around a run is Oddsmith's own few lines; other libraries' progress bars and asides are kept back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Said by libraries to each other; nobody who runs Oddsmith can act on them.
ASIDES = (
    "Could not find a config file in builtin:",  # PEFT, which looks every base up on the hub when it saves an adapter
    "`is_gradient_checkpointing` is deprecated",  # transformers to PEFT
)


def hush_dependencies() -> None:
    """Keep back what libraries say that is of no use here. For programs of our own; call it before importing torch.

    bitsandbytes, which transformers imports wherever it is installed, misses a compiled kernel on CPUs with
    AVX512-BF16. The kernel is for repacked weights, which are switched off (``adapters.keep_weights_unpacked``).
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for aside in ASIDES:
        warnings.filterwarnings("ignore", message=aside)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' progress bars off, and back on afterwards if they were on."""
    from transformers.utils import logging as transformers_logging  # slow; hush_dependencies comes before it

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
