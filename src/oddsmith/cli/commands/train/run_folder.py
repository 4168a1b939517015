"""Check that a folder may become a run folder, and write the settings of the run into it (``run.yaml``)."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from .... import __version__
from ....checkpoint.lock import is_lock_file
from ....checkpoint.manifest import file_of_another_trainer
from ....checkpoint.store import checkpoints
from ....errors import ConfigError
from ....system.files import replacing
from ....system.run_folder import SETTINGS_FILE, require_writable_run
from ....system.secrets import SECRET_NAME, masked, without_secrets
from ...parsing.resolve import TYPED_ONLY, Resolved, Settings

_PLAIN_TEXT = re.compile(r"[A-Za-z_][\w./:+-]*")
_WORDS_OF_YAML = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless a run continues there or may be replaced, and one that leads elsewhere.

    A folder without ``run.yaml`` is never replaced, as it is no run folder.
    """
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if there.exists() and not there.is_dir():
        what = "is a file" if there == folder else f"cannot be made: {there} is a file"
        raise ConfigError(f"output_dir {folder} {what}; expected a folder, or the name of a new one")
    if not folder.is_dir() or resume or all(map(is_lock_file, folder.iterdir())):
        require_writable_run(folder)
        return
    if not (folder / SETTINGS_FILE).is_file():
        others = [one for one in (folder, *checkpoints(folder)) if file_of_another_trainer(one)]
        if others:
            raise ConfigError(
                f"output_dir {folder} holds a run of another trainer; choose another folder, and to start from the"
                f" weights of that run give --from-weights {others[-1]}"
            )
        raise ConfigError(f"output_dir {folder} is not empty and holds no run ({SETTINGS_FILE}); choose another folder")
    if not overwrite:
        raise ConfigError(
            f"output_dir {folder} already holds a run; choose another folder, continue it with --resume,"
            " or replace it with --overwrite-output-dir"
        )
    require_writable_run(folder)


def require_elsewhere(folder: Path, resolved: Resolved) -> None:
    """Refuse to replace a run that holds the model or the pairs that the new one begins with."""
    for name in ("model_name_or_path", "dataset_name"):
        given = resolved.get(name)
        place = None if given is None else Path(given).expanduser().resolve()
        if place is not None and place.exists() and folder.resolve() in (place, *place.parents):
            raise ConfigError(
                f"{name} {given} lies in output_dir {folder}, which --overwrite-output-dir would empty;"
                " choose another folder"
            )


def clear_folder(folder: Path) -> None:
    """Remove everything in a run folder but its lock; only in one that :func:`check_folder` accepted."""
    if not (folder / SETTINGS_FILE).is_file():
        return
    for entry in folder.iterdir():
        if is_lock_file(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def changed_settings(resolved: Resolved) -> dict[str, dict[str, Any]]:
    """Return what was given and differs from the default: value, without secrets, and origin."""
    return {
        name: {"value": without_secrets(name, given.value)[0], "origin": given.where}
        for name, given in resolved.changed().items()
    }


def settings_lines(changed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Format what :func:`changed_settings` returns in aligned lines."""
    texts = {name: f"{name}: {to_yaml(part['value'])}" for name, part in changed.items()}
    width = max(map(len, texts.values()), default=0)
    return [f"{text:<{width}}  # {changed[name]['origin']}" for name, text in texts.items()]


def write_settings(folder: Path, resolved: Resolved, settings: Settings) -> None:
    """Write ``run.yaml``: what was given, each with its origin, then the defaults; secrets are masked.

    The file is a configuration file itself: ``oddsmith train run.yaml --output-dir ANOTHER`` repeats the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(settings_text(resolved, settings), encoding="utf-8")


def settings_text(resolved: Resolved, settings: Settings) -> str:
    """Format ``run.yaml``."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch", "peft", "datasets"))
    lines = [
        f"# Oddsmith {__version__} ({versions}, Python {platform.python_version()})",
        f"# To repeat this run: oddsmith train {SETTINGS_FILE} --output-dir ANOTHER_FOLDER",
        "",
        "# Given, with where",
    ]
    # A run that is repeated or continued from its run.yaml was given everything; what it had by default is not named.
    given = {
        name: setting
        for name, setting in resolved.settings.items()
        if f"{SETTINGS_FILE}:" not in setting.where or setting.value != resolved.fields[name].default
    }
    lines += [_line(name, setting.value, setting.where) for name, setting in given.items()]
    lines += ["", "# Defaults"]
    built = {**vars(settings.orpo), **vars(settings.model), **vars(settings.data)}
    for name, known in resolved.fields.items():
        if name not in given:
            chosen = "" if known.default is not None or built.get(name) is None else f"here {built[name]}"
            if name == "bf16":
                chosen += f" ({settings.orpo.precision_reason})"
            lines.append(_line(name, known.default, "" if SECRET_NAME.search(name) else masked(chosen)))
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any, remark: str) -> str:
    if name == TYPED_ONLY and value:  # a file cannot turn it on, so this one does not try
        value, remark = False, f"{remark} was given; give it again to repeat the run"
    shown, hidden = without_secrets(name, value)
    remark = ", ".join(filter(None, [remark, "masked" if hidden else ""]))
    return f"{name}: {to_yaml(shown)}" + (f"  # {' '.join(remark.split())}" if remark else "")


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, which quotes texts that any YAML reader might take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN_TEXT.fullmatch(text) and text.lower() not in _WORDS_OF_YAML and not text.endswith(":")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def shareable(name: str, value: Any) -> tuple[str, str]:
    """Return a setting as a line of a recipe that is given to others, and what to say of it: a secret is left out."""
    shown, hidden = without_secrets(name, value)
    remark = "a secret is not written: put it here, or into the environment" if hidden else ""
    return f"{name}: {to_yaml(shown)}", remark


def to_yaml(value: Any) -> str:
    """Format a value on one line of YAML."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
