"""Silence warnings and progress bars of other libraries, so that a run prints only its own lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Warnings about how one library uses another; users of Oddsmith can do nothing about them.
IGNORED_WARNINGS = (
    "Could not find a config file in builtin:",  # PEFT, which looks every base up on the hub when it saves an adapter
    "`is_gradient_checkpointing` is deprecated",  # transformers to PEFT
)


def hush_dependencies() -> None:
    """Silence warnings that users can do nothing about, for the command line; call it before importing torch.

    bitsandbytes, which transformers imports wherever it is installed, misses a compiled kernel on CPUs with
    AVX512-BF16. The kernel is for repacked weights, which are switched off (``adapters.keep_weights_unpacked``). In 8
    bits it says at each product of an evaluation that it casts the input.

    DeepSpeed, which accelerate imports wherever it is installed when a model is saved, warns on stdout that there is no
    GPU. It sets the level of its logger itself, so a filter takes its warnings.
    """
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    for module in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{module}").setLevel(logging.ERROR)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' progress bars off, and back on afterwards if they were on."""
    from transformers.utils import logging as transformers_logging  # slow, and only after hush_dependencies

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
