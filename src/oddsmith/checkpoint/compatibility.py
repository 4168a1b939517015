"""Check that a resumed run is the run that was saved: the same settings, pairs, base model and step size.

Settings of logging, saving, evaluation and speed may differ freely, and a run may become longer. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..system.words import counted
from .manifest import Manifest

SHOWN_CHANGES = 6


def require_possible(folder: Path, saved: Manifest, now: Manifest) -> None:
    """Raise a ``CheckpointError`` for a checkpoint that this run cannot continue at all.

    Its steps have another number of pairs, so that they are not the same data, or its files are sharded in another way.
    ``saved`` is its manifest, ``now`` the one that this run would write.
    """
    if saved.pairs_per_step != now.pairs_per_step:
        raise CheckpointError(
            f"{folder}: its steps had {counted(saved.pairs_per_step, 'pair')} ({_processes(saved)}), these would have"
            f" {now.pairs_per_step} ({_processes(now)}), so its {counted(saved.step, 'step')} would not be the same"
            " data; keep per_device_train_batch_size x gradient_accumulation_steps x processes as it was"
        )
    if saved.sharded_by != now.sharded_by:
        was, here = (f"with {m.sharded_by}" if m.sharded_by else "without sharding" for m in (saved, now))
        raise CheckpointError(
            f"{folder}: was saved by {_processes(saved)} {was}, and cannot be read {here}; resume it {was}, in any"
            " number of processes"
        )


def require_length(folder: Path, done: int, steps: int, length: str) -> None:
    """Raise a ``CheckpointError`` for a checkpoint of ``done`` steps in a run that now ends before, after ``steps``.

    ``length`` is the setting that says so, with its value.
    """
    if steps < done:
        raise CheckpointError(
            f"{folder}: is of step {done}, and with {length} this run ends after step {steps}; make it longer, or"
            " resume from an earlier checkpoint"
        )


def changed_settings(saved: Manifest, now: Manifest) -> list[str]:
    """Return the names of the settings that are not as they were."""
    return [name for name in now.settings if name in saved.settings and saved.settings[name] != now.settings[name]]


def changes(saved: Manifest, now: Manifest, free: Collection[str] = ()) -> list[str]:
    """Return the differences that affect the weights, a line each: ``learning_rate: 8e-06 -> 1e-05``.

    ``saved`` is the manifest of a checkpoint, ``now`` the one that this run would write, and ``free`` are the settings
    that may change, because they say how long the run is.
    """
    lines = [
        f"{name}: {_shown(saved.settings[name])} -> {_shown(now.settings[name])}"
        for name in changed_settings(saved, now)
        if name not in free
    ]
    for name, found in now.data.items():
        was = saved.data.get(name)
        if was is not None and was.get("sha256") != found.get("sha256"):
            lines.append(f"{name} pairs: others than before ({_pairs(was)} -> {_pairs(found)})")
    if saved.base and now.base and saved.base.get("files") and now.base.get("files"):
        before, here = (sorted(map(str, base["files"].values())) for base in (saved.base, now.base))
        if before != here:
            commits = f" (commit {saved.base.get('commit')} -> {now.base.get('commit')})"
            lines.append("base model: other weights than before" + (commits if now.base.get("commit") else ""))
    return lines


def require_unchanged(folder: Path, saved: Manifest, now: Manifest, free: Collection[str] = ()) -> None:
    """Raise a ``CheckpointError`` that names the :func:`changes` of a run since its checkpoint, where there are any."""
    lines = changes(saved, now, free)
    if lines:
        more = [f"and {len(lines) - SHOWN_CHANGES} more"] if len(lines) > SHOWN_CHANGES else []
        raise CheckpointError(
            f"{folder}: is of a run with other settings or data: {'; '.join([*lines[:SHOWN_CHANGES], *more])}."
            " Set them back, or continue anyway with --allow-changed (in Python: train(..., allow_changed=True))"
        )


def _processes(manifest: Manifest) -> str:
    return f"{manifest.world_size} process{'es' if manifest.world_size != 1 else ''}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _pairs(data: Mapping[str, Any]) -> str:
    count = data.get("pairs")
    return "a stream" if count is None else counted(count, "pair") if isinstance(count, int) else "?"
