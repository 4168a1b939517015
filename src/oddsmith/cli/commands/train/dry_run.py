"""``--dry-run``: print what a run would do, without loading weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ....checkpoint.space import Room, measure_room, require_writable
from ....data.report import counted
from ....data.sources import RunRows, is_local, load_datasets
from ....data.sources.mixture import share_lines
from ....model.adapters import get_peft_config
from ....model.loading.models import load_tokenizer
from ....model.loading.outline import outline_model
from ....model.loading.place import locate
from ....system.secrets import without_secrets
from ....training.preflight import require_room, saves_to_come, size_in_training
from ...parsing.resolve import Resolved, Settings
from ...terminal.console import say, working
from .assembly import base_dtype
from .run_folder import to_yaml
from .summary import precision


def show(resolved: Resolved, settings: Settings, processes: int) -> dict[str, Any]:
    """Print the settings that are not defaults and the size of the run; return the same as JSON values."""
    locate(str(settings.model.model_name_or_path))
    changed = {
        name: {"value": without_secrets(name, given.value)[0], "origin": given.where}
        for name, given in resolved.changed().items()
    }
    texts = {name: f"{name}: {to_yaml(part['value'])}" for name, part in changed.items()}
    width = max(map(len, texts.values()))
    for name, text in texts.items():
        print(f"{text:<{width}}  # {changed[name]['origin']}")
    orpo = settings.orpo
    pairs = orpo.per_device_train_batch_size * orpo.gradient_accumulation_steps * processes
    read = _local_rows(settings)
    rows, shares = (None, []) if read is None else (len(read.train), read.shares)
    steps = orpo.max_steps if orpo.max_steps > 0 else None
    if steps is None and rows is not None:
        steps = math.ceil(math.ceil(rows / pairs) * orpo.num_train_epochs)
    print()
    for line in share_lines(shares) if shares else []:
        print(line)
    print(f"rows: {'not counted, they are on the hub' if rows is None else f'{rows:,}'}")
    print(f"steps: {'unknown' if steps is None else f'{steps:,} if no row is dropped'}, {counted(pairs, 'pair')} each")
    print(f"precision: {precision(settings)}")
    room = _room(settings, steps)
    print(f"disk: {'unknown, the model is not on this machine yet' if room is None else room}")
    return {
        "command": "train",
        "dry_run": True,
        "settings": changed,
        "rows": rows,
        "mixture": [share.to_dict() for share in shares],
        "steps": steps,
        "pairs_per_step": pairs,
        "precision": precision(settings),
        "checkpoint_bytes": None if room is None else sum(room.size),
        "checkpoints_that_fit": None if room is None else room.fits,
    }


def _room(settings: Settings, steps: int | None) -> Room | None:
    """Measure what the run will write and what is free for it; ``None`` where the model is not on this machine."""
    orpo, chosen, _ = settings
    run, name = Path(str(orpo.output_dir)), str(chosen.model_name_or_path)
    require_writable(run)
    with working("estimating the size of a checkpoint"):
        model = outline_model(name, dtype=base_dtype(settings), peft_config=get_peft_config(chosen))
        if model is None:
            return None
        tokenizer = load_tokenizer(name, revision=chosen.model_revision)
    state = TrainerState(max_steps=steps or 1, num_train_epochs=math.ceil(orpo.num_train_epochs))
    state.compute_steps(orpo, state.max_steps)
    size = size_in_training(orpo, state, model, tokenizer, optimizer=None)
    room = measure_room(run, size, saves=saves_to_come(orpo, state), limit=orpo.save_total_limit)
    warning = require_room(run, room)
    if warning:
        say(f"warning: {warning}", "yellow", hang=4)
    return room


def _local_rows(settings: Settings) -> RunRows | None:
    """Read the training rows, if they are on this machine."""
    data = settings.data
    mixed = [part.get("path") for part in data.datasets or [] if isinstance(part, dict)]
    if data.dataset_streaming or not all(is_local(str(name)) for name in mixed or [data.dataset_name]):
        return None
    with working("reading the pairs"):
        return load_datasets(data, seed=settings.orpo.seed, evaluate=False)
