"""``oddsmith export``: turn a run into a model folder or GGUF files, each compared with the run before it appears."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...system.output import printing_may_fail
from ..parsing.resolve import Option, resolve_word
from ..terminal.console import STARTING, quiet_libraries, say, show, working
from ..terminal.outcome import JSON, TRACEBACK, termination_as_interruption

if TYPE_CHECKING:
    from ...export.divergence import Divergence
    from ...export.gguf.export import GgufReport
    from ...export.merge import MergeReport

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
GGUF_OPTIONS = ("quantize", "converter")
# The stages of a merge and of making GGUF files, as they are printed on stderr.
STAGES = {
    "merge": "merging",
    "write": "writing {}",
    "merged": "writing the merged model, which the files are made from",
    "check": "loading it again and comparing",
    "reference": "running the model itself, to compare the files with it",
    "convert": "writing {}",
    "quantise": "quantising to {}",
    "prove": "running {} in llama.cpp and comparing",
}


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``oddsmith export``; return the result and its comparison with the run as JSON values."""
    quiet_libraries()
    name, options = resolve_word(arguments, OPTIONS, "run", "oddsmith export RUN --to merged|gguf")
    to = options.get("to")
    if to not in ("merged", "gguf"):
        found = "is missing" if to is None else f"is {to!r}"
        raise ConfigError(f"--to {found}; expected merged (a model folder) or gguf (files for llama.cpp)")
    if options.get("merge_into", "16bit") not in ("16bit", "dequantized"):
        raise ConfigError(f"--merge-into is {options['merge_into']!r}; expected 16bit or dequantized")
    foreign = [option for option in GGUF_OPTIONS if option in options]
    if foreign and to == "merged":
        raise ConfigError(f"--{foreign[0]} is for --to gguf; leave it out")
    from ...export.gguf.quantise import check_types
    from ...model.loading.first_look import look_at_model

    if to == "gguf":
        check_types(_types(options))
    look_at_model(name)
    if "push_to_hub" in options:
        from ...export.publish import require_publishable

        require_publishable(options["push_to_hub"])
    # An upload is made even if nobody reads what is printed before it.
    with printing_may_fail() if "push_to_hub" in options else nullcontext(), termination_as_interruption():
        document, folder = (_export_gguf if to == "gguf" else _export_merged)(name, options)
        if "push_to_hub" in options:
            from ...export.publish import publish

            say("uploading")
            document["url"] = publish(folder, options["push_to_hub"])
            show(f"uploaded to {document['url']}")
    for command in document["next"]:
        show(f"  next: {command}")
    return document


def _types(options: Mapping[str, str]) -> list[str]:
    return options.get("quantize", "q4_k_m").split(",")


def _export_merged(name: str, options: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """Merge the adapter; return the result as JSON values, and its folder."""
    with working(STARTING):
        from ...export.merge import merge_adapter
        from ...export.named_model import find_model

    folder = Path(options["output"]).expanduser() if "output" in options else find_model(name).default_output("merged")
    report = merge_adapter(
        name,
        folder,
        dtype=options.get("dtype"),
        merge_into="dequantized" if options.get("merge_into") == "dequantized" else "16bit",
        overwrite="overwrite" in options,
        title=options.get("push_to_hub"),
        on_stage=_say_stage,
    )
    show("\n".join(_merge_lines(report)))
    path = shlex.quote(str(folder))
    commands = [f"oddsmith chat {path}", f"oddsmith export {path} --to gguf --quantize q4_k_m"]
    return {"command": "export", "to": "merged", **asdict(report), "next": commands}, folder


def _export_gguf(name: str, options: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """Make the files; return the result as JSON values, and their folder."""
    from ...export.gguf.llama_cpp import load_cyllama

    load_cyllama("an export to GGUF")  # without torch, which takes seconds
    with working(STARTING):
        from ...export.gguf.export import export_gguf

    report = export_gguf(
        name,
        types=_types(options),
        output=Path(options["output"]).expanduser() if "output" in options else None,
        dtype=options.get("dtype"),
        merge_into="dequantized" if options.get("merge_into") == "dequantized" else "16bit",
        converter=Path(options["converter"]).expanduser() if "converter" in options else None,
        overwrite="overwrite" in options,
        on_stage=lambda stage, detail: _say_stage("merged" if stage == "write" else stage, detail),
    )
    show("\n".join(_gguf_lines(report)))
    if report.left_out:
        say(report.left_out)
    for file in report.files:
        for warning in file.warnings:
            say(f"warning: {warning}", style="yellow", hang=2)
    folder = Path(report.modelfile).parent
    commands = [
        f"oddsmith chat {shlex.quote(report.files[0].path)}",
        f"cd {shlex.quote(str(folder))} && ollama create {shlex.quote(report.title.lower())} -f Modelfile",
    ]
    return {"command": "export", "to": "gguf", **report.to_dict(), "next": commands}, folder


def _say_stage(stage: str, detail: Any) -> None:
    if stage == "trained":
        say(f"loading {detail.name} on its base in {detail.bits} bits, as it was trained")
    elif stage == "load":
        say(f"loading {detail.name}" + (f" on {detail.base}" if detail.base else ""))
    elif stage in STAGES:
        say(STAGES[stage].format(detail))


def _gguf_lines(report: GgufReport) -> list[str]:
    lines = _merge_lines(report.merge)[1:] if report.merge else []
    width = max(len(Path(file.path).name) for file in report.files)
    lines += [
        f"{Path(report.modelfile).parent}: {report.name} for llama.cpp and Ollama",
        f"  {'':<{width}}  {'MB':>9}  {'KL a token':>10}  {'same next token':>15}  {'perplexity':>10}",
    ]
    for file in report.files:
        found = file.proof.divergence
        lines.append(
            f"  {Path(file.path).name:<{width}}  {file.size_bytes / 1e6:>9,.1f}  {found.kl:>10.2g}"
            f"  {found.same_top:>15.1%}  {found.perplexity_other:>10.2f}"
        )
    reference = report.files[0].proof.divergence
    precision = "" if report.is_exact else "; computed in 16 bits, as float32 does not fit into memory"
    lines.append(
        f"  the model itself has perplexity {reference.perplexity:.2f} on the same {reference.tokens} tokens{precision}"
    )
    return lines


def _merge_lines(report: MergeReport) -> list[str]:
    """Format what a merge made, for reading."""
    what = f"{report.name} merged into {report.base}" if report.base else f"{report.name}, trained whole"
    lines = [
        f"{report.folder}: {what}",
        f"  {report.parameters / 1e6:,.1f} M parameters in {report.dtype}, {report.size_bytes / 1e6:,.1f} MB",
    ]
    if report.merged is not None:
        lines.append(f"  merged in float32, before rounding: {_distance(report.merged)}")
    lines.append(
        f"  loaded again, against {'base + adapter' if report.base else 'the run'}: {_distance(report.written)}"
        f" (at most {report.tolerance:.0e} is accepted for {report.dtype})"
    )
    if report.bits < 16:
        lines += _about_quantisation(report)
    return lines


def _about_quantisation(report: MergeReport) -> list[str]:
    """Format the distance from the model that was trained on a quantised base, and the alternative."""
    base = "the 16-bit base" if report.merge_into == "16bit" else f"the base that {report.bits} bits stand for"
    if report.from_trained is None:
        return [f"  trained on {report.bits} bits, merged into {base}; the difference: {report.trained_missing}"]
    lines = [f"  trained on {report.bits} bits, merged into {base}: {_distance(report.from_trained)} from the trained"]
    if report.merge_into == "16bit":
        lines.append("    (--merge-into dequantized stays closer to what was trained)")
    return lines


def _distance(found: Divergence) -> str:
    return f"KL {found.kl:.1e} a token, same next token {found.same_top:.1%}"
