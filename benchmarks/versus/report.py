"""From the runs of a comparison to its figures, its verdict and its tables.

A document is what ``versus_trl.py --json`` prints: machine, work, counts of the steps, floor, runs, and what
``summarise`` makes of them. Needs nothing but the standard library.
"""

from __future__ import annotations

from statistics import mean, median
from typing import Any

OURS = "ours"
LABELS = {
    OURS: "Oddsmith",
    "trl-default": "TRL, its defaults",
    "trl-best": "TRL, its best",
    "trl-split": "TRL, a pair at a time",
}
# Its step is a mean of four or eight means, so its losses and gradients are others by definition (docs/from-trl.md).
OTHER_AVERAGE = "trl-split"
WARM_UP_STEPS = 1

# How far two trainers may lie apart, relative to TRL's value; see agreement().
TOLERANCES = {
    True: {"first_loss": 2e-3, "loss": 1e-2, "grad_norm": 2e-2},  # bf16
    False: {"first_loss": 1e-5, "loss": 1e-4, "grad_norm": 1e-4},  # float32
}
GIB = 2**30


def summarise(runs: list[dict[str, Any]], pairs: int) -> dict[str, dict[str, Any]]:
    """The figures of each trainer.

    Every repeat sees the same rows in the same steps, so a step's time is its median over the repeats, and the speed is
    that of all timed steps together; the first step warms up.

    Args:
        runs: What the workers wrote, every repeat of every trainer.
        pairs: Pairs of a step.

    Returns:
        By trainer: ``step_s`` (mean over the timed steps), ``median_step_s``, ``pairs_per_second``, ``peak_bytes`` and
        ``before_bytes`` (medians over the repeats; device memory where there is a device), ``computed_tokens`` (mean
        over the timed steps), ``loss`` (of each step, first repeat), ``grad_norm`` (of the first step), ``repeats``,
        ``cpu_share`` (of all its threads, how much was at work; low: the machine had other things to do). A trainer
        that ran out of memory has ``{"failed": reason}``.
    """
    summary: dict[str, dict[str, Any]] = {}
    for trainer in LABELS:
        own = [run for run in runs if run["trainer"] == trainer]
        if not own:
            continue
        good = [run for run in own if "failed" not in run]
        if not good:
            summary[trainer] = {"failed": own[0]["failed"]}
            continue
        steps_s = [median(times) for times in zip(*(run["step_s"] for run in good), strict=True)][WARM_UP_STEPS:]
        spent = [(run["cpu_s"], sum(run["step_s"]) * run["threads"]) for run in good]
        summary[trainer] = {
            "step_s": mean(steps_s),
            "median_step_s": median(steps_s),
            "pairs_per_second": pairs / mean(steps_s),
            "peak_bytes": median(run["device_peak_bytes"] or run["peak_bytes"] for run in good),
            "before_bytes": median(run["before_bytes"] for run in good),
            "computed_tokens": mean(good[0]["computed_tokens"][WARM_UP_STEPS:]),
            "loss": good[0]["loss"],
            "grad_norm": good[0]["grad_norm"][0],
            "repeats": len(good),
            "cpu_share": sum(cpu_s for cpu_s, _ in spent) / sum(wall_s for _, wall_s in spent),
        }
    return summary


def disagreements(runs: list[dict[str, Any]], *, bf16: bool) -> list[str]:
    """What is not the same in two trainers although it has to be.

    Tokens and initial weights have to be equal in all, losses in all but ``OTHER_AVERAGE``. The loss of the first step
    differs by rounding alone: of float32, or of logits and activations that carry 8 bits in bf16 (2^-9 each, mostly
    averaged away over thousands of tokens). Later losses differ more, because AdamW moves a weight by its learning rate
    even where the gradient is all rounding. A gradient's norm does not average its errors away, hence its wider bound.
    Seen on SmolLM2-135M: 8e-4, 4e-3 and 1.2e-2 in bf16, 2e-7, 2e-7 and 3e-7 in float32. (The gradient that bf16 gives
    lies 4% of its norm away from float32's, whatever computes the attention, and is 0.5 to 1% shorter.)

    Args:
        runs: What the workers wrote.
        bf16: Whether they computed in bf16.

    Returns:
        One sentence for each difference beyond ``TOLERANCES``; none: they agree.
    """
    good = [run for run in runs if "failed" not in run]
    found = []
    for name, what in (("tokens", "tokens of the rows"), ("initial_weights", "initial trained weights")):
        if len({run[name] for run in good}) > 1:
            found.append(f"{what} differ")
    comparable = [run for run in good if run["trainer"] != OTHER_AVERAGE]
    reference = next((run for run in comparable if run["trainer"] != OURS), None)
    for run in comparable if reference else ():
        found += apart(run, reference, LABELS[run["trainer"]], bf16=bf16)
    return list(dict.fromkeys(found))


def apart(run: dict[str, Any], reference: dict[str, Any], label: str, *, bf16: bool) -> list[str]:
    """What of a run's losses and first gradient norm is beyond ``TOLERANCES``.

    Args:
        run: What a worker wrote.
        reference: What it is compared with.
        label: What the run is called.
        bf16: Whether they computed in bf16.

    Returns:
        One sentence for each.
    """
    allowed, found = TOLERANCES[bf16], []
    for step, (got, expected) in enumerate(zip(run["loss"], reference["loss"], strict=True)):
        most = allowed["loss" if step else "first_loss"]
        if not abs(got - expected) <= most * abs(expected):
            found.append(f"loss of step {step + 1}: {got:.6g} ({label}), {expected:.6g}; allowed: {most:g}")
    got, expected = run["grad_norm"][0], reference["grad_norm"][0]
    if not abs(got - expected) <= allowed["grad_norm"] * expected:
        found.append(f"gradient norm: {got:.5g} ({label}), {expected:.5g}; allowed: {allowed['grad_norm']:g}")
    return found


def verdict(runs: list[dict[str, Any]], differences: list[str], *, bf16: bool) -> str:
    """The outcome of ``disagreements`` in a sentence."""
    if differences:
        return f"They differ: {'; '.join(differences)}."
    if len({run["trainer"] for run in runs if "failed" not in run}) < 2:
        return "Only one trainer ran, so nothing was compared."
    allowed = ", ".join(f"{name} {most:g}" for name, most in TOLERANCES[bf16].items())
    return f"Tokens, initial weights, losses and gradient norms agree (relative tolerance: {allowed})."


def markdown(document: dict[str, Any]) -> str:
    """One comparison as Markdown: speed and memory, tokens and floor, losses."""
    work = document["work"]
    model = "LoRA r=16 on all linear layers" if work["adapter"] else "full fine-tuning"
    lines = [
        f"## {work['name']}",
        "",
        f"`{document['command']}`",
        "",
        f"{work['model']}, {model}, {'bf16 autocast' if work['bf16'] else 'float32'}, weights in {work['weights']};"
        f" {work['pairs']} pairs a step of `{document['data']}`, `max_length` {work['max_length']};"
        f" {work['steps']} steps, the first not timed; each trainer {document['repeats']} times, in alternation.",
        "",
        *_speed_table(document),
        "",
        *_tokens_and_floor(document),
        "",
        *_loss_table(document),
        "",
        document["verdict"],
    ]
    return "\n".join(lines) + "\n"


def _speed_table(document: dict[str, Any]) -> list[str]:
    ours = document["trainers"].get(OURS, {})
    memory = "device memory" if document["machine"]["device"] else "resident memory"
    rows = []
    for trainer, figures in document["trainers"].items():
        if "failed" in figures:
            rows.append([LABELS[trainer], figures["failed"], *[""] * 5])
            continue
        speed_up, share = "", ""
        if trainer != OURS and "step_s" in ours:
            speed_up = f"{figures['step_s'] / ours['step_s']:.2f}x"
            share = f"{ours['peak_bytes'] / figures['peak_bytes']:.0%}"
        rows.append(
            [
                LABELS[trainer],
                f"{figures['pairs_per_second']:.3g}",
                f"{figures['step_s']:.3g}",
                speed_up,
                f"{figures['peak_bytes'] / GIB:.2f} GiB",
                share,
                f"{figures['computed_tokens']:,.0f}",
            ]
        )
    head = ["", "pairs/s", "s a step", "Oddsmith is faster", f"peak {memory}", "Oddsmith's share", "tokens computed"]
    return _table(head, rows)


def _tokens_and_floor(document: dict[str, Any]) -> list[str]:
    timed = document["step_counts"][WARM_UP_STEPS:]
    padded, packed, forest, targets = (
        mean(step[name] for step in timed)
        for name in ("padded_tokens", "packed_tokens", "forest_tokens", "target_positions")
    )
    floor = document["floor"]
    floor_s = mean(floor["floor_s"][WARM_UP_STEPS:])
    lines = [
        f"Tokens of a step: {padded:,.0f} padded, {packed:,.0f} packed, {forest:,.0f} in the forest"
        f" ({targets:,.0f} of them predict).",
        "",
        f"Floor: {mean(floor['operations'][WARM_UP_STEPS:]) / 1e12:.3g} TFLOP a step at the"
        f" {floor['operations_per_second'] / 1e9:,.0f} GFLOP/s of this machine's matrix products are {floor_s:.3g} s.",
    ]
    ours = document["trainers"].get(OURS, {})
    if "step_s" in ours:
        lines[-1] += (
            f" Oddsmith's step takes {ours['step_s'] / floor_s:.2f} times that ({floor_s / ours['step_s']:.0%})."
        )
    return lines


def _loss_table(document: dict[str, Any]) -> list[str]:
    good = {name: figures for name, figures in document["trainers"].items() if "failed" not in figures}
    steps = zip(*(figures["loss"] for figures in good.values()), strict=True)
    rows = [[str(number), *(f"{loss:.6f}" for loss in losses)] for number, losses in enumerate(steps, 1)]
    rows.append(["gradient norm of step 1", *(f"{figures['grad_norm']:.6f}" for figures in good.values())])
    return _table(["loss of step", *(LABELS[name] for name in good)], rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns are aligned, so that it reads well in a terminal too."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def results_file(documents: list[dict[str, Any]]) -> str:
    """A results file: the machine, then each comparison."""
    first = documents[0]
    machine, versions = first["machine"], first["versions"]
    device = f", {machine['device']}" if machine["device"] else ""
    lines = [
        "# `python benchmarks/versus_trl.py`",
        "",
        f"{first['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / GIB:.0f} GiB{device};"
        f" {', '.join(f'{name} {version}' for name, version in versions.items())}; commit {first['commit']}.",
        "",
        "TRL's `ORPOTrainer` and ours in separate processes, in alternation, on the same rows, tokens, initial weights"
        " and settings. TRL's best is TRL without gradient checkpointing; a pair at a time: the same, with as many"
        " accumulation steps as pairs, which pads less but averages means of pairs, so its losses are others. Memory is"
        " the peak of the whole process.",
        "",
    ]
    return "\n".join(lines) + "\n" + "\n".join(markdown(document) for document in documents)
