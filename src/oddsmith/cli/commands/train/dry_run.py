"""``--dry-run``: print what a run would do with settings and data, without loading weights."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import TrainerState

from ....checkpoint.space import Room, measure_room, require_writable
from ....config.processes import require_sharding
from ....data.sources.mixture import share_lines
from ....model.adapters import get_peft_config
from ....model.loading.models import load_tokenizer
from ....model.loading.outline import outline_model
from ....model.loading.place import locate
from ....system.words import counted
from ....training.preflight import require_room, saves_to_come, size_in_training, steps_of_run
from ....usual import too_low_for_adapter
from ...parsing.resolve import Resolved, Settings
from ...terminal.console import say, show_line, working
from ...terminal.data_table import print_example
from .assembly import base_dtype, require_trainable
from .banner import precision
from .rehearsal import rehearse
from .run_folder import changed_settings


def show(resolved: Resolved, settings: Settings, processes: int, *, full: bool) -> dict[str, Any]:
    """Print what a run would do with its data; return the same, and its settings, as JSON values.

    ``full`` tokenizes all rows, not a sample. What the run would refuse is raised, after all that can be told of it.
    """
    locate(str(settings.model.model_name_or_path))
    sets, shares = rehearse(settings, full=full)
    for line in chain(share_lines(shares) if shares else (), *(found.lines() for found in sets.values())):
        show_line(line)
    train = sets["train"]
    if train.example is not None:
        print_example(train.example)
    require_trainable(settings)
    for found in sets.values():
        if found.refusal is not None:
            raise found.refusal
    orpo = settings.orpo
    pairs = orpo.per_device_train_batch_size * orpo.gradient_accumulation_steps * processes
    kept = train.report.kept if train.is_whole else train.rows
    steps = orpo.max_steps if kept is None else steps_of_run(orpo, kept, pairs)
    is_certain = train.is_whole or orpo.max_steps > 0
    show_line("")
    show_line(f"steps: {steps:,}{'' if is_certain else ' if no row is dropped'}, {counted(pairs, 'pair')} each")
    show_line(f"precision: {precision(settings)}")
    if settings.model.use_peft and (low := too_low_for_adapter(orpo.learning_rate)):
        say(f"warning: {low}", "yellow", hang=4)
    room = _room(settings, steps)
    show_line(f"disk: {'unknown, the model is not on this machine yet' if room is None else room}")
    require_sharding(orpo, is_launched_later=processes > 1)
    return {
        "command": "train",
        "dry_run": True,
        "settings": changed_settings(resolved),
        "rows": train.rows,
        "mixture": [share.to_dict() for share in shares],
        "data": {name: found.report.to_dict() for name, found in sets.items()},
        "example": None if train.example is None else train.example.to_dict(),
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
