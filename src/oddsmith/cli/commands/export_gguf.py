"""``oddsmith export RUN --to gguf``: what is made, and how far each file is from the model, as a small table."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..terminal.console import say
from .export_merged import finish, merge_lines, tell_merging

if TYPE_CHECKING:
    from ...export.gguf.export import GgufReport


def export_gguf(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Run the command.

    Args:
        name: The run, or another model.
        options: The flags of ``oddsmith export`` that were given, by name.

    Returns:
        What was made, with its proof, as JSON values.
    """
    from ...export.gguf.export import export_gguf as export
    from ...export.publish import require_publishable

    if "push_to_hub" in options:
        require_publishable(options["push_to_hub"])
    report = export(
        name,
        types=options.get("quantize", "q4_k_m").split(","),
        output=Path(options["output"]).expanduser() if "output" in options else None,
        dtype=options.get("dtype"),
        merge_into="dequantized" if options.get("merge_into") == "dequantized" else "16bit",
        converter=Path(options["converter"]).expanduser() if "converter" in options else None,
        overwrite="overwrite" in options,
        on_stage=_tell,
    )
    for line in _lines(report):
        print(line)
    for file in report.files:
        for warning in file.warnings:
            say(f"warning: {warning}", style="yellow", hang=2)
    document = {"command": "export", "to": "gguf", **report.to_dict()}
    folder = Path(report.modelfile).parent
    chat = f"oddsmith chat {shlex.quote(report.files[0].path)}"
    create = f"cd {shlex.quote(str(folder))} && ollama create {shlex.quote(report.title.lower())} -f Modelfile"
    return finish(document, folder, options, [chat, create])


def _tell(stage: str, detail: Any) -> None:
    """Say on stderr what is being done."""
    if stage == "reference":
        say("asking the model itself, to compare the files with")
    elif stage == "convert":
        say(f"writing {detail}")
    elif stage == "quantise":
        say(f"quantising to {detail}")
    elif stage == "prove":
        say(f"running {detail} in llama.cpp and comparing")
    elif stage == "write":
        say("writing the merged model, which the files are made from")
    else:
        tell_merging(stage, detail)


def _lines(report: GgufReport) -> list[str]:
    lines = merge_lines(report.merge)[1:] if report.merge else []
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
