"""``--from-weights``: start a new run from the weights of a checkpoint or a run, ours or another trainer's."""

from __future__ import annotations

from pathlib import Path

from ....checkpoint.manifest import file_of_another_trainer, verify
from ....checkpoint.store import checkpoints, step_of
from ....errors import CheckpointError, ConfigError
from ....system.run_folder import MANIFEST_FILE, require_plain_run
from ....system.words import counted
from ...parsing.config_file import Setting
from ...parsing.resolve import Resolved

FLAG = "--from-weights"
MODEL, ADAPTER = "config.json", "adapter_config.json"  # as in ``model/loading/place.py``, which imports torch


def take_weights(resolved: Resolved) -> None:
    """Make the model of a run the one that ``--from-weights`` names, in place of that of its configuration file.

    An adapter is trained further, so ``use_peft`` is on. Weights are new, and so is everything else: no optimizer, no
    step and no random state is taken. ``ConfigError`` for flags that contradict it, ``CheckpointError`` for a
    checkpoint of ours that is damaged, or none that could be taken.
    """
    for name in ("resume", "resume_from_checkpoint", "model_name_or_path"):
        flag = f"--{name.replace('_', '-')}"
        if name in resolved.options or (name in resolved.settings and resolved.settings[name].where.startswith("--")):
            what = "names the model, too" if name == "model_name_or_path" else "goes on with a run"
            raise ConfigError(f"{FLAG} starts a new run, and {flag} {what}; give one of them")
    for name in ("resume_from_checkpoint", "model_revision"):  # of the file's run, and of its model
        if name in resolved.settings and not resolved.settings[name].where.startswith("--"):
            del resolved.settings[name]
    place = weights_in(resolved.options["from_weights"])
    resolved.settings["model_name_or_path"] = Setting(place, FLAG)
    if (Path(place) / ADAPTER).is_file():
        resolved.settings["use_peft"] = Setting(True, f"{FLAG}: an adapter")


def weights_in(name: str) -> str:
    """Return where the weights are that a name stands for: a checkpoint, a run, or any other model.

    Of a run they are those at its root, where it puts them when it is done; before, those of its newest checkpoint that
    is whole.
    """
    folder = Path(name).expanduser()
    require_plain_run(folder)
    if (folder / MANIFEST_FILE).exists():
        verify(folder)
    found = checkpoints(folder)
    _require_joined(folder)
    if not folder.is_dir() or _holds_model(folder):
        return name
    for checkpoint in reversed(found):
        if file_of_another_trainer(checkpoint) is not None and _holds_model(checkpoint):
            return str(checkpoint)
        try:
            if verify(checkpoint).step == step_of(checkpoint):
                return str(checkpoint)
        except CheckpointError:
            continue
    if found:
        _require_joined(found[-1])
        raise CheckpointError(f"{folder}: none of its {counted(len(found), 'checkpoint')} holds a model that is whole")
    return name


def _require_joined(folder: Path) -> None:
    """Refuse weights that lie in shards, as DeepSpeed and FSDP write them; say what joins them."""
    if not folder.is_dir() or next(folder.glob("*.safetensors"), None) is not None:
        return
    sharded = next(folder.glob("pytorch_model_fsdp_*"), None)
    if sharded is not None and sharded.is_dir():
        what, join = "FSDP", f"accelerate merge-weights {sharded} {folder}"
    elif (folder / "zero_to_fp32.py").is_file():
        what, join = "DeepSpeed", f"python {folder}/zero_to_fp32.py {folder} {folder} --safe_serialization"
    else:
        return
    raise CheckpointError(
        f"{folder}: its weights lie in shards of {what}; join them first, where you trust them: {join}"
    )


def _holds_model(folder: Path) -> bool:
    return (folder / MODEL).is_file() or (folder / ADAPTER).is_file()
