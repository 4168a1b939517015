"""``oddsmith export``: a run becomes an ordinary model folder, or GGUF files; each proved before it appears."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from ...errors import ConfigError
from ..parsing.resolve import Option, resolve
from ..terminal.console import quiet_libraries
from ..terminal.outcome import JSON, TRACEBACK

USAGE = "oddsmith export RUN --to merged|gguf [--output PATH] [--quantize q4_k_m,f16]"
INTRO = (
    "Makes a finished run ready to use elsewhere: with `--to merged` the adapter is put into its base's weights, for"
    " transformers, vLLM and others; with `--to gguf` the model becomes files for llama.cpp and Ollama. RUN is a run"
    " folder, a checkpoint, an adapter or a model, here or on the hub. The result is loaded again and compared with"
    " what it was made from before it appears.",
)
OPTIONS = (
    Option("to", "value", "What to make.", "merged|gguf"),
    Option("output", "value", "Where to. [RUN/merged or RUN/gguf]", "PATH"),
    Option("quantize", "value", "GGUF: one type or several. [q4_k_m]", "TYPE,..."),
    Option("dtype", "value", "Type of merged weights. [the base's, if it has 16 bits; bfloat16]", "TYPE"),
    Option(
        "merge_into",
        "value",
        "After training on 4 bits: the base in 16 bits, or what the 4 bits stand for. [16bit]",
        "16bit|dequantized",
    ),
    Option("converter", "value", "GGUF: llama.cpp's own convert_hf_to_gguf.py, for other architectures.", "PATH"),
    Option("overwrite", "switch", "Replace an earlier export there."),
    Option(
        "push_to_hub", "value", "Upload the result, once it is verified; a new repository is private.", "OWNER/NAME"
    ),
    JSON,
    TRACEBACK,
)


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command.

    Args:
        arguments: The words after ``oddsmith export``.

    Returns:
        What was made, with its proof, as JSON values.

    Raises:
        OddsmithError: Bad input, no room, or a result that is not what it was made from.
    """
    quiet_libraries()
    resolved = resolve(arguments, {}, OPTIONS, most_positional=1)
    options = resolved.options
    if not resolved.positional:
        raise ConfigError("no run is given; expected oddsmith export RUN --to merged|gguf")
    to = options.get("to")
    if to not in ("merged", "gguf"):
        found = "is missing" if to is None else f"is {to!r}"
        raise ConfigError(f"--to {found}; expected merged (a model folder) or gguf (files for llama.cpp)")
    if options.get("merge_into", "16bit") not in ("16bit", "dequantized"):
        raise ConfigError(f"--merge-into is {options['merge_into']!r}; expected 16bit or dequantized")
    with _termination_as_interruption():
        if to == "gguf":
            from .export_gguf import export_gguf

            return export_gguf(resolved.positional[0], options)
        from .export_merged import export_merged

        return export_merged(resolved.positional[0], options)


@contextmanager
def _termination_as_interruption() -> Iterator[None]:
    """Let a polite kill unwind like Ctrl-C, so that half-written files are removed."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
