"""``oddsmith export RUN --to merged``: what is done, and how near the merged model is to what it was made from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..terminal.console import say

if TYPE_CHECKING:
    from ...export.divergence import Divergence
    from ...export.merge import MergeReport

OF_GGUF = ("quantize", "converter")


def export_merged(name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Run the command.

    Args:
        name: The run, or another model.
        options: The flags of ``oddsmith export`` that were given, by name.

    Returns:
        What was made, with its proof, as JSON values.

    Raises:
        OddsmithError: Bad input, no room, or a result that is not what it was made from.
    """
    foreign = [option for option in OF_GGUF if option in options]
    if foreign:
        raise ConfigError(f"--{foreign[0]} is for --to gguf; leave it out")
    from ...export.merge import merge_adapter
    from ...export.named_model import find_model
    from ...export.publish import require_publishable

    if "push_to_hub" in options:
        require_publishable(options["push_to_hub"])
    folder = Path(options["output"]).expanduser() if "output" in options else find_model(name).default_output("merged")
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
    document = {"command": "export", "to": "merged", **asdict(report)}
    path = shlex.quote(str(folder))
    return finish(
        document, folder, options, [f"oddsmith chat {path}", f"oddsmith export {path} --to gguf --quantize q4_k_m"]
    )


def finish(document: dict[str, Any], folder: Path, options: Mapping[str, str], commands: list[str]) -> dict[str, Any]:
    """Upload an export if that is wanted, and say what can be done with it; the end of both kinds.

    Args:
        document: What was made; gains ``url`` and ``next``.
        folder: Where it is.
        options: The flags of ``oddsmith export`` that were given, by name.
        commands: What can be done next.

    Returns:
        The document.
    """
    if "push_to_hub" in options:
        from ...export.publish import publish

        say("uploading")
        document["url"] = publish(folder, options["push_to_hub"])
        print(f"uploaded to {document['url']}")
    document["next"] = commands
    for command in commands:
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
