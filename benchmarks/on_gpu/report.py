"""Turn what first_minutes.py has found into figures, differences and tables. Needs only the standard library.

A document is ``command``, ``date``, ``commit``, ``device``, ``toy``, and ``sections``: by name, what a section returned
and its ``seconds``.
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


def is_ours(trainer: str) -> bool:
    """Return whether a trainer is Oddsmith's."""
    return trainer.startswith(OURS)


def label(run: dict[str, Any]) -> str:
    """Return the label of a run's trainer."""
    plain = str(run["reference"]).startswith("plain")
    return PLAIN_LABELS[run["trainer"]] if plain else LABELS[run["trainer"]]


def timed(values: list[Any]) -> list[Any]:
    """Return the values of the timed steps: not those to warm up, nor the last one, which may be profiled."""
    return values[WARM_UP_STEPS:-1]


def summarise(work: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of each trainer.

    Every repeat sees the same rows in the same steps, so a step's time is its median over the repeats.

    Args:
        work: ``runs``, ``pairs``, ``counts`` (tokens of each step), ``operations_per_token``.

    Returns:
        By trainer: ``label``, ``step_s`` (median over the timed steps), ``pairs_per_second`` (over all of them
        together), ``tokens_per_second`` (of the forest), ``peak_bytes`` (largest of the repeats),
        ``operations_per_second`` (those that the forest of a step needs), ``computed_tokens`` (mean of the timed
        steps), ``loss`` and ``grad_norm`` (of each step, first repeat), ``micro_batch``, ``layout``, ``repeats``. A
        trainer without a good run: ``label``, ``failed``.
    """
    tokens = sum(count["forest"] for count in timed(work["counts"]))
    summary: dict[str, dict[str, Any]] = {}
    for trainer in LABELS:
        own = [run for run in work["runs"] if run["trainer"] == trainer]
        good = [run for run in own if "failed" not in run]
        if good:
            steps_s = timed([median(times) for times in zip(*(run["step_s"] for run in good), strict=True)])
            summary[trainer] = {
                "label": label(good[0]),
                "step_s": median(steps_s),
                "pairs_per_second": work["pairs"] / mean(steps_s),
                "tokens_per_second": tokens / sum(steps_s),
                "peak_bytes": max(run["peak_bytes"] for run in good),
                "operations_per_second": work["operations_per_token"] * tokens / sum(steps_s),
                "computed_tokens": mean(timed(good[0]["computed_tokens"])),
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
        found += apart(run, reference, label(run), bf16=work["bf16"])
    return list(dict.fromkeys(found))


def verdict(work: dict[str, Any]) -> str:
    """Return a sentence about the losses."""
    if work["differences"]:
        return "; ".join(work["differences"])
    if not any(not is_ours(run["trainer"]) for run in comparable(work)):
        return "Losses are not compared: no other trainer took a whole step in one micro-batch."
    return "Losses and first gradient norms agree."


def results_file(document: dict[str, Any]) -> str:
    """Return the text of a results file."""
    place = document["sections"].get("environment", {})
    device = (place.get("card") or {}).get("name") or ("CPU" if document["device"] == "cpu" else "an NVIDIA GPU")
    toy = "A rehearsal at toy size: it shows that the script works and nothing else. " if document["toy"] else ""
    lines = [
        f"# {device}, {document['date']}",
        "",
        f"{toy}`bash {document['command']}`, commit {document['commit']}. Weights and words are random; lengths are"
        " drawn like UltraFeedback's.",
        "",
        *_overview(document["sections"]),
    ]
    for name, found in document["sections"].items():
        lines += ["", f"## {name}", ""]
        if "failed" in found:
            lines += [f"**Failed**: {found['failed']}"]
            continue
        lines += DRAWN[name](found)
        lines += [f"- **wrong**: {sentence}" for sentence in found.get("wrong", [])]
    return "\n".join(lines) + "\n"


def _overview(sections: dict[str, dict[str, Any]]) -> list[str]:
    rows = []
    for name, found in sections.items():
        wrong = found.get("wrong", [])
        outcome = found.get("failed") or (f"{len(wrong)} wrong: {wrong[0]}" if wrong else "fine")
        rows.append([name, f"{found['seconds']:.0f} s", outcome.replace("|", "/")])
    return table(["section", "took", "outcome"], rows)


def _environment(found: dict[str, Any]) -> list[str]:
    card, rates = found["card"], found["rates"]
    rows = [[name, str(value)] for name, value in card.items() if name not in ("name", "memory_bytes")]
    if card.get("memory_bytes"):
        rows.insert(0, ["memory", f"{card['memory_bytes'] / GIB:.1f} GiB"])
    rows += [["CPU cores", str(found["cores"])], ["flash-attn", found["flash_attn"]]]
    size = found["matrix_size"]
    rows += [
        [f"product of {size} x {size}, {name}", f"{rates[name] / 1e12:.3g} TFLOP/s"]
        for name in ("bfloat16", "float16", "float32")
    ]
    rows.append(["copy on the device, bytes read and written", f"{rates['copy'] / 1e12:.3g} TB/s"])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())])
    return table([card.get("name") or "CPU", ""], rows)


WAYS = ("packed", "packed, plain layers", "padded")


def _paths(found: dict[str, Any]) -> list[str]:
    rows, said = [], []
    for name, work in found["works"].items():
        if "failed" in work:
            said.append(f"- {name}: {work['failed']}")
            continue
        for check in work["checks"]:
            away = [f"{check[way]:.2g}" for way in WAYS]
            agrees = "yes" if check["agrees"] else "NO"
            rows.append([name, check["dtype"], check["what"], *away, f"{check['allowed']:.2g}", agrees])
    head = ["work, 2 layers", "type", "distance from padded float32", *WAYS, "allowed", "agrees"]
    return [*table(head, rows), *said]


def _works(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for work in found["works"]:
        lines += [f"### {work['name']}", ""]
        lines += [work["failed"], ""] if "failed" in work else _work(work)
    return lines


def _work(work: dict[str, Any]) -> list[str]:
    references = {run["reference"] for run in work["runs"] if run.get("reference")}
    if not work["trainers"]:
        return [f"No run ended well: {'; '.join(run['failed'] for run in work['runs'])}", ""]
    counts = timed(work["counts"])
    padded, packed, forest = (mean(count[name] for count in counts) for name in ("padded", "packed", "forest"))
    return [
        f"{work['parameters'] / 1e9:.3g} billion parameters in matrix products,"
        f" {'LoRA r=16 on all linear layers' if work['adapter'] else 'full fine-tuning'}, weights in {work['weights']},"
        f" {'bf16 autocast' if work['bf16'] else 'no autocast'}; {work['pairs']} pairs a step,"
        f" `max_length` {work['max_length']}; {len(counts)} timed steps after {WARM_UP_STEPS}. Against"
        f" {', '.join(sorted(references)) or 'nothing'}; each run in a process of its own, in alternation.",
        "",
        *_speed_table(work),
        "",
        f"Tokens of a step: {padded:,.0f} padded, {packed:,.0f} packed, {forest:,.0f} in the forest. TFLOP/s count"
        f" {work['operations_per_token'] // work['parameters']} operations a parameter and token of the forest, for"
        " every trainer alike.",
        "",
        *_memory_table(work),
        "",
        *_loss_table(work["trainers"]),
        "",
        verdict(work),
        "",
        *_profile(work),
    ]


def _speed_table(work: dict[str, Any]) -> list[str]:
    ours, rows = work["trainers"].get(OURS, {}), []
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
                f"{figures['step_s'] * 1e3:.0f}",
                f"{figures['pairs_per_second']:.3g}",
                f"{figures['tokens_per_second']:,.0f}",
                faster,
                f"{figures['peak_bytes'] / GIB:.1f} GiB",
                share,
                f"{figures['computed_tokens']:,.0f}",
                f"{figures['operations_per_second'] / 1e12:.3g}",
            ]
        )
    head = ["", "pairs a micro-batch", "ms a step", "pairs/s", "tokens/s", "Oddsmith is faster", "peak memory"]
    return table([*head, "Oddsmith's share", "tokens computed", "TFLOP/s"], rows)


def _memory_table(work: dict[str, Any]) -> list[str]:
    """Draw what a token took (peak over what stays, by the longest micro-batch) beside what the budget said."""
    rows = []
    for run in work["runs"]:
        if "failed" in run or not is_ours(run["trainer"]):
            continue
        step_bytes = run["peak_bytes"] - run["between_bytes"]
        a_token = f"{step_bytes / max(run['longest'], 1) / 1e6:.2f} MB"
        kept, peak = (f"{run[name] / GIB:.1f} GiB" for name in ("between_bytes", "peak_bytes"))
        rows.append([LABELS[run["trainer"]], kept, peak, f"{run['longest']:,}", a_token, run["layout"]])
    head = ["", "between steps", "peak", "tokens of the longest micro-batch", "peak over between steps, a token"]
    return table([*head, "self-check and budget"], rows)


def _profile(work: dict[str, Any]) -> list[str]:
    found = next((run["profile"] for run in work["runs"] if run.get("profile")), None)
    if found is None:
        return []
    busy = found["device_s"] / found["seconds"]
    lines = [
        f"One step under the profiler: {found['seconds'] * 1e3:.0f} ms; its kernels take"
        f" {found['device_s'] * 1e3:.0f} ms ({busy:.0%}), {found['kernels']:,} launches.",
        "",
    ]
    for what, head in (("device", "kernel"), ("host", "on the host, without what it calls")):
        total = found["device_s"] if what == "device" else found["seconds"]
        rows = [
            [
                f"`{line['name'].replace('|', '/')}`",
                str(line["calls"]),
                f"{line['seconds'] * 1e3:.2f}",
                f"{line['seconds'] / total:.1%}",
            ]
            for line in found[what]
        ]
        if rows:
            lines += [*table([head, "calls", "ms", "share"], rows), ""]
    return lines


def _loss_table(trainers: dict[str, dict[str, Any]]) -> list[str]:
    good = [figures for figures in trainers.values() if "failed" not in figures]
    steps = zip(*(figures["loss"] for figures in good), strict=True)
    rows = [[str(number), *(f"{loss:.6f}" for loss in losses)] for number, losses in enumerate(steps, 1)]
    rows.append(["gradient norm of step 1", *(f"{figures['grad_norm'][0]:.6f}" for figures in good)])
    return table(["loss of step", *(figures["label"] for figures in good)], rows)


def _tests(found: dict[str, Any]) -> list[str]:
    counts = found["counts"]
    return [f"{sum(counts.values())} tests: {', '.join(f'{n} {outcome}' for outcome, n in counts.items()) or 'none'}."]


def _restart(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, what in (("repeated", "the same run again"), ("resumed", "killed in step 6, resumed at step 4")):
        differ = found[name]["files"]
        rows.append([what, f"others: {', '.join(differ)}" if differ else "the same", f"{found[name]['loss']:.2g}"])
    return [
        f"LoRA in the training's precision, {found['layout']}, 8 steps, against one undisturbed run.",
        "",
        *table(["run", "bytes of weights, optimizer and random states", "largest relative difference of a loss"], rows),
    ]


def _processes(found: dict[str, Any]) -> list[str]:
    rows = []
    for name in ("alone", "both"):
        run = found[name]
        losses = " ".join(f"{loss:.7f}" for loss in run["loss"])
        backend = run["backend"] or "none"
        rows.append([str(run["processes"]), backend, run["layout"], f"{run['step_s'] * 1e3:.0f} ms", losses])
    return [
        *table(["processes", "backend", "layout", "a step, with the start", "losses"], rows),
        "",
        f"Largest relative difference: loss {found['loss']:.2g}, gradient norm {found['grad_norm']:.2g}.",
    ]


DRAWN = {
    "environment": _environment,
    "paths": _paths,
    "works": _works,
    "tests": _tests,
    "restart": _restart,
    "processes": _processes,
}
