"""``oddsmith export``: a run becomes an ordinary model folder, or GGUF files; each proved before it appears."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigError
from .console import quiet_libraries, say
from .outcome import JSON, TRACEBACK
from .resolve import Option, resolve

if TYPE_CHECKING:
    from ..export.divergence import Divergence
    from ..export.merge import MergeReport

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
OF_GGUF = ("quantize", "converter")


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
        return _export_merged(resolved.positional[0], options)


def _export_merged(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    foreign = [option for option in OF_GGUF if option in options]
    if foreign:
        raise ConfigError(f"--{foreign[0]} is for --to gguf; leave it out")
    from ..export.finished import find_finished
    from ..export.merge import merge_adapter
    from ..export.publish import publish, require_publishable

    if "push_to_hub" in options:
        require_publishable(options["push_to_hub"])
    folder = Path(options["output"]) if "output" in options else find_finished(name).folder_for("merged")
    report = merge_adapter(
        name,
        folder,
        dtype=options.get("dtype"),
        merge_into="dequantized" if options.get("merge_into") == "dequantized" else "16bit",
        overwrite="overwrite" in options,
        title=options.get("push_to_hub"),
        on_stage=tell_merging,
    )
    print("\n".join(merge_lines(report)))
    document = {"command": "export", "to": "merged", **report.to_dict()}
    if "push_to_hub" in options:
        say("uploading")
        document["url"] = publish(folder, options["push_to_hub"])
        print(f"uploaded to {document['url']}")
    path = shlex.quote(str(folder))
    document["next"] = [f"oddsmith chat {path}", f"oddsmith export {path} --to gguf --quantize q4_k_m"]
    for command in document["next"]:
        print(f"  next: {command}")
    return document


def tell_merging(stage: str, detail: Any) -> None:
    """Say on stderr what ``merge_adapter`` is doing.

    Args:
        stage: Its name.
        detail: What it is about.
    """
    if stage == "trained":
        say(f"loading {detail.name} on its base in {detail.bits} bits, as it was trained")
    elif stage == "load":
        say(f"loading {detail.name}" + (f" on {detail.base}" if detail.base else ""))
    elif stage == "merge":
        say("merging")
    elif stage == "write":
        say(f"writing {detail}")
    elif stage == "check":
        say("loading it again and comparing")


def merge_lines(report: MergeReport) -> list[str]:
    """The outcome of a merge for reading.

    Args:
        report: The outcome.

    Returns:
        Its lines.
    """
    what = f"{report.name} merged into {report.base}" if report.base else f"{report.name}, trained whole"
    lines = [
        f"{report.folder}: {what}",
        f"  {report.parameters / 1e6:,.1f} M parameters in {report.dtype}, {report.size_bytes / 1e6:,.1f} MB",
    ]
    if report.merged is not None:
        lines.append(f"  merged in float32, before rounding: {_distance(report.merged)}")
    lines.append(
        f"  loaded again, against {'base + adapter' if report.base else 'the run'}: {_distance(report.written)}"
        f" (at most {report.tolerance:.0e} is let pass for {report.dtype})"
    )
    if report.bits < 16:
        lines += _about_quantisation(report)
    return lines


def _about_quantisation(report: MergeReport) -> list[str]:
    """How far the model is from the one that was trained on a quantised base, and what else could be done."""
    base = "the 16-bit base" if report.merge_into == "16bit" else f"the base that {report.bits} bits stand for"
    if report.from_trained is None:
        return [f"  trained on {report.bits} bits, merged into {base}; the difference: {report.trained_missing}"]
    lines = [f"  trained on {report.bits} bits, merged into {base}: {_distance(report.from_trained)} from the trained"]
    if report.merge_into == "16bit":
        lines.append("    (--merge-into dequantized stays closer to what was trained)")
    return lines


def _distance(found: Divergence) -> str:
    return f"KL {found.kl:.1e} a token, same next token {found.same_top:.1%}"


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
