"""Turn the runs on a GPU into figures, differences and tables. Needs only the standard library.

A document is what ``gpu.py --json`` prints: machine, and for each work its checks, its runs, and what ``summarise``
makes of them.
"""

from __future__ import annotations

from statistics import mean, median
from typing import Any

from versus.report import GIB, OURS, apart
from versus.report import _table as table

LABELS = {
    OURS: "Oddsmith",
    "trl-default": "TRL, its defaults",
    "trl-best": "TRL, its best",
    "ours-checkpointed": "Oddsmith, checkpointing",
}
PLAIN_LABELS = {"trl-default": "padded batches, checkpointing", "trl-best": "padded batches"}
WARM_UP_STEPS = 2
H100_OPERATIONS_PER_SECOND = 989e12  # dense bf16, NVIDIA's data sheet (SXM)


def is_ours(trainer: str) -> bool:
    """Return whether a trainer is Oddsmith's."""
    return trainer.startswith(OURS)


def label(run: dict[str, Any]) -> str:
    """Return the label of a run's trainer."""
    plain = str(run["reference"]).startswith("plain")
    return PLAIN_LABELS[run["trainer"]] if plain else LABELS[run["trainer"]]


def summarise(work: dict[str, Any], operations_per_second: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each trainer.

    Every repeat sees the same rows in the same steps, so a step's time is its median over the repeats.

    Args:
        work: ``runs``, ``pairs``, ``counts`` (tokens of each step), ``operations_per_token``.
        operations_per_second: What the device does in a large matrix product.

    Returns:
        By trainer: ``label``, ``step_s`` (median over the timed steps), ``pairs_per_second`` (over all of them
        together), ``peak_bytes`` (largest of the repeats), ``operations_share`` (operations that the forest of a step
        needs, over those that the device could have done meanwhile), ``computed_tokens`` (mean of the timed steps),
        ``loss`` and ``grad_norm`` (of each step, first repeat), ``micro_batch``, ``layout``, ``repeats``. A trainer
        without a good run: ``label``, ``failed``.
    """
    needed = work["operations_per_token"] * sum(count["forest"] for count in work["counts"][WARM_UP_STEPS:])
    summary: dict[str, dict[str, Any]] = {}
    for trainer in LABELS:
        own = [run for run in work["runs"] if run["trainer"] == trainer]
        good = [run for run in own if "failed" not in run]
        if good:
            steps_s = [median(times) for times in zip(*(run["step_s"] for run in good), strict=True)][WARM_UP_STEPS:]
            summary[trainer] = {
                "label": label(good[0]),
                "step_s": median(steps_s),
                "pairs_per_second": work["pairs"] / mean(steps_s),
                "peak_bytes": max(run["peak_bytes"] for run in good),
                "operations_share": needed / sum(steps_s) / operations_per_second,
                "computed_tokens": mean(good[0]["computed_tokens"][WARM_UP_STEPS:]),
                **{name: good[0][name] for name in ("loss", "grad_norm", "micro_batch", "layout")},
                "repeats": len(good),
            }
        elif own:
            summary[trainer] = {"label": LABELS[trainer], "failed": own[-1]["failed"]}
    return summary


def comparable(work: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the good runs with a comparable loss: TRL's loss of several micro-batches is a mean of their means."""
    good = [run for run in work["runs"] if "failed" not in run]
    return [run for run in good if is_ours(run["trainer"]) or run["micro_batch"] == work["pairs"]]


def differences(work: dict[str, Any]) -> list[str]:
    """Return a sentence for each result that must not differ but does, with the tolerances of ``versus/report.py``."""
    good = [run for run in work["runs"] if "failed" not in run]
    found = [f"{name} differ" for name in ("tokens", "initial_weights") if len({run[name] for run in good}) > 1]
    runs = comparable(work)
    reference = next((run for run in runs if not is_ours(run["trainer"])), None)
    for run in runs if reference else ():
        found += apart(run, reference, label(run), bf16=True)
    return list(dict.fromkeys(found))


def verdict(work: dict[str, Any]) -> str:
    """Return a sentence about the losses."""
    if work["differences"]:
        return "; ".join(work["differences"])
    if not any(not is_ours(run["trainer"]) for run in comparable(work)):
        return "Losses are not compared: no other trainer took a whole step in one micro-batch."
    return "Losses and first gradient norms agree."


def markdown(document: dict[str, Any]) -> str:
    """Return all works as Markdown."""
    return "\n".join(line for work in document["works"] for line in _work_lines(document, work))


def _work_lines(document: dict[str, Any], work: dict[str, Any]) -> list[str]:
    lines = [f"## {work['name']}", "", *_check_table(work["checks"]), ""]
    if not work["trainers"]:
        return lines
    references = {run["reference"] for run in work["runs"] if run.get("reference")}
    counts = work["counts"][WARM_UP_STEPS:]
    padded, packed, forest = (mean(count[name] for count in counts) for name in ("padded", "packed", "forest"))
    return [
        *lines,
        f"{work['parameters'] / 1e9:.3g} billion parameters in matrix products,"
        f" {'LoRA r=16 on all linear layers' if work['adapter'] else 'full fine-tuning'}, weights in {work['weights']},"
        f" {'bf16 autocast' if work['bf16'] else 'no autocast'}; {work['pairs']} pairs a step,"
        f" `max_length` {work['max_length']}; {len(counts)} steps after {WARM_UP_STEPS} that are not timed."
        f" Against {', '.join(sorted(references)) or 'nothing'}.",
        "",
        *_speed_table(document, work),
        "",
        f"Tokens of a step: {padded:,.0f} padded, {packed:,.0f} packed, {forest:,.0f} in the forest. Shares of peak"
        f" count {work['operations_per_token'] // work['parameters']} operations a parameter and token of the forest,"
        " for every trainer alike.",
        "",
        *_loss_table(work["trainers"]),
        "",
        verdict(work),
        "",
    ]


def _check_table(checks: list[dict[str, Any]]) -> list[str]:
    rows = [
        [check["dtype"], check["what"], *(f"{check[name]:.2g}" for name in ("ours", "padded", "allowed"))]
        for check in checks
    ]
    for row, check in zip(rows, checks, strict=True):
        row.append("yes" if check["agrees"] else "NO")
    return table(["type", "distance from padded float32", "packed", "padded", "allowed", "agrees"], rows)


def _speed_table(document: dict[str, Any], work: dict[str, Any]) -> list[str]:
    ours = work["trainers"].get(OURS, {})
    rate = document["operations_per_second"]
    memory = "device memory" if document["device"] else "resident memory"
    rows = []
    for trainer, figures in work["trainers"].items():
        if "failed" in figures:
            rows.append([figures["label"], figures["failed"], *[""] * 8])
            continue
        faster = share = ""
        if trainer != OURS and "step_s" in ours:
            faster = f"{ours['pairs_per_second'] / figures['pairs_per_second']:.2f}x"
            share = f"{ours['peak_bytes'] / figures['peak_bytes']:.0%}"
        rows.append(
            [
                figures["label"],
                str(figures["micro_batch"]) if not is_ours(trainer) else "auto",
                f"{figures['step_s']:.3g}",
                f"{figures['pairs_per_second']:.3g}",
                faster,
                f"{figures['peak_bytes'] / GIB:.1f} GiB",
                share,
                f"{figures['computed_tokens']:,.0f}",
                f"{figures['operations_share']:.0%}",
                f"{figures['operations_share'] * rate / H100_OPERATIONS_PER_SECOND:.0%}",
            ]
        )
    head = ["", "pairs a micro-batch", "s a step", "pairs/s", "Oddsmith is faster", f"peak {memory}"]
    head += ["Oddsmith's share", "tokens computed", f"of {rate / 1e12:.3g} TFLOP/s", "of 989 TFLOP/s"]
    return table(head, rows)


def _loss_table(trainers: dict[str, dict[str, Any]]) -> list[str]:
    good = [figures for figures in trainers.values() if "failed" not in figures]
    steps = zip(*(figures["loss"] for figures in good), strict=True)
    rows = [[str(number), *(f"{loss:.6f}" for loss in losses)] for number, losses in enumerate(steps, 1)]
    rows.append(["gradient norm of step 1", *(f"{figures['grad_norm'][0]:.6f}" for figures in good)])
    return table(["loss of step", *(figures["label"] for figures in good)], rows)


def results_file(document: dict[str, Any]) -> str:
    """Return the text of a results file: command, machine, versions, then the works."""
    device = document["device"] or "no GPU: a toy run, which shows that the script works and nothing else"
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        f"# `{document['command']}`",
        "",
        f"{document['date']}, {device}; {document['cores']} cores; {versions}; commit {document['commit']}.",
        "",
        f"A bf16 product of {document['matrix_size']} x {document['matrix_size']} matrices runs at"
        f" {document['operations_per_second'] / 1e12:.3g} TFLOP/s here. Weights and words are random; lengths are"
        " drawn like UltraFeedback's. Each trainer ran in processes of its own, in alternation. The best of TRL is TRL"
        " without gradient checkpointing; a step that does not fit is taken in as many micro-batches as are needed.",
        "",
    ]
    return "\n".join(lines) + "\n" + markdown(document)
