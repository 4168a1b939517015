"""Decide where a model is from its name, before anything is loaded; the error has a hint where nothing is."""

from __future__ import annotations

import difflib
from pathlib import Path

from ...errors import ModelError
from ...system.outside import require_file
from ...system.run_folder import require_plain_run
from .builtin import builtin_model, is_builtin

ADAPTER_SETTINGS = "adapter_config.json"
MODEL_SETTINGS = "config.json"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def locate(name: str) -> str:
    """Return the argument for ``from_pretrained``: a folder, a GGUF file, or the name itself if the hub may have it.

    ``name`` is a hub id, a folder, a GGUF file or ``builtin:...``. Raise ``ModelError`` for a path to nothing, or to
    something that is no model.
    """
    expected = "expected a model folder, a .gguf file or a hub id"
    if not name.strip():
        raise ModelError(f"the model's name is empty; {expected}")
    if is_builtin(name):
        return str(builtin_model(name))
    path = Path(name).expanduser()
    if path.is_dir():
        _require_model_folder(name, path)
        return str(path)
    if path.exists():
        require_file(path)
        if not is_gguf(name):
            raise ModelError(f"{name}: is a file but no GGUF; {expected}")
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or is_gguf(name):
        raise ModelError(f"{name}: nothing there{_nearest(path)}; {expected}")
    return name


def is_gguf(place: str) -> bool:
    """Return whether a place is a GGUF file, by its ending."""
    return place.lower().endswith(".gguf")


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_SETTINGS).is_file()


def _require_model_folder(name: str, folder: Path) -> None:
    require_plain_run(folder)
    for file in (folder / MODEL_SETTINGS, folder / ADAPTER_SETTINGS):
        if file.exists() and not file.is_dir():
            require_file(file)
    if (folder / MODEL_SETTINGS).is_file() or is_adapter_folder(folder):
        return
    settings = [*folder.glob(f"*/{MODEL_SETTINGS}"), *folder.glob(f"*/{ADAPTER_SETTINGS}")]
    folders = sorted((file.parent for file in settings), key=lambda found: (len(found.name), found.name))
    found = folders or sorted(folder.glob("*.gguf"))  # checkpoint-1000 after checkpoint-900
    hint = f"; did you mean {found[-1]}?" if found else "; expected a folder that save_pretrained wrote"
    raise ModelError(f"{name}: holds no model ({MODEL_SETTINGS}) and no adapter ({ADAPTER_SETTINGS}){hint}")


def _nearest(path: Path) -> str:
    """Return a hint at a similar name in the same folder."""
    if not path.parent.is_dir():
        return ""
    models = [other.name for other in path.parent.iterdir() if other.is_dir() or is_gguf(other.name)]
    near = difflib.get_close_matches(path.name, models, n=1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""
