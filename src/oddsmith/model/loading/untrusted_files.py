"""Refuse files of a model or adapter that would run code without being allowed to, or put other files into exports.

    refused                                          because
    pickled weights (.bin, .pt, ...)                 unpickling runs what the pickle says
    an index of weights that names such files        the same, one step later
    trust_remote_code inside a JSON file             only the command line may allow code
    attention, experts or kernels as owner/name      downloads compiled code from the hub and runs it
    an adapter that names modules or other files     PEFT would import the modules and unpickle the files
    a link to a file outside of the folder           it would be copied into exports and uploads, whatever it is

transformers refuses code that a folder brings itself (``auto_map``): every call passes it ``trust_remote_code``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download, try_to_load_from_cache

from ...errors import ModelError
from ...system.outside import read_text
from ...system.strict_json import read_object
from .place import ADAPTER_SETTINGS, MODEL_SETTINGS

ALLOW_CODE = "give --trust-remote-code on the command line (in Python: trust_remote_code=True)"
CONVERT = (
    "pickles can run code and are not read here; convert them where you trust them: load the model in transformers,"
    " then save_pretrained writes safetensors"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers and PEFT read beside the weights.
SETTINGS = (
    MODEL_SETTINGS,
    ADAPTER_SETTINGS,
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
MAX_CONFIG_BYTES = 8 * 2**20  # with 100,000 labels
MAX_SETTINGS_BYTES = 32 * 2**20  # a tokenizer_config.json with 100,000 added tokens has 20 MB

# In adapter_config.json: key -> what PEFT would do with it.
ACTIVE_ADAPTER_SETTINGS = {
    "megatron_config": "import the module that megatron_core names",
    "prompt_tuning_init_state_dict_path": "unpickle that file",
    "tokenizer_kwargs": "load another tokenizer with them",
    "adapters": "load other adapters",
}


def refuse_code_in_folder(name: str, place: str, trust_remote_code: bool) -> None:
    """Raise ``ModelError`` if files in the folder of a model or adapter would run code, are pickles, or lead out of it.

    ``name`` is the user's name of the model, for messages. Models on the hub are checked by the two functions below,
    after their files have been downloaded.
    """
    folder = Path(place)
    if not folder.is_dir():
        return
    _refuse_links(name, folder)
    for file in SETTINGS:
        if (folder / file).is_file():
            _check_settings(name, folder / file, trust_remote_code)
    _check_index(name, folder / INDEX)
    is_adapter = (folder / ADAPTER_SETTINGS).is_file()
    if (folder / ADAPTER_WEIGHTS if is_adapter else next(folder.glob("*.safetensors"), folder / "")).is_file():
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ModelError(f"{name}: holds {pickles[0]} and no safetensors; {CONVERT}")


def _refuse_links(name: str, folder: Path) -> None:
    """Raise ``ModelError`` for a link out of the folder, and for what is no file at all: a pipe would be read for ever.

    Weights may lie elsewhere, for they must be safetensors; and the files of a snapshot in the hub's cache are links to
    its blobs.
    """
    inside = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        inside.append(folder.resolve().parents[1] / "blobs")
    for file in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")]):
        if file.suffix == ".safetensors" and file.is_file():
            continue
        target = file.resolve()
        if file.is_symlink() and not any(target.is_relative_to(place) for place in inside):
            raise ModelError(
                f"{name}: {file.name} is a link to a file outside of the folder, which would be copied into exports;"
                " put the file itself there"
            )
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise ModelError(f"{name}: {file.name} is a pipe, a socket or a device; expected a file")


def refuse_code_in_hub_adapter(name: str, place: str, revision: str, hub_options: dict[str, Any]) -> None:
    """Check an adapter on the hub as a folder; PEFT would take a pickle where there are no safetensors."""
    if Path(place).exists():
        return
    _check_settings(name, Path(hf_hub_download(place, ADAPTER_SETTINGS, revision=revision, **hub_options)))
    try:
        hf_hub_download(place, ADAPTER_WEIGHTS, revision=revision, **hub_options)
    except hub_errors.LocalEntryNotFoundError:  # not in the cache, and offline
        raise
    except hub_errors.EntryNotFoundError:
        raise ModelError(f"{name}: has no {ADAPTER_WEIGHTS}; {CONVERT}") from None


def refuse_code_in_hub_model(name: str, place: str, revision: str, trust_remote_code: bool, cache_dir: Any) -> None:
    """Check the settings of a model on the hub, which are in the cache now, before its weights are loaded."""
    if Path(place).exists():
        return
    for file in SETTINGS:
        cached = try_to_load_from_cache(place, file, cache_dir, revision)
        if isinstance(cached, str):
            _check_settings(name, Path(cached), trust_remote_code)


def refuse_code_in_options(options: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise ``ModelError`` if options of ``from_pretrained`` download and run code, or allow pickles."""
    for path, value in _leaves(options):
        if value and path[-1] == "use_kernels" and not trust_remote_code:
            raise ModelError(f"use_kernels downloads code from the hub and runs it; to allow that, {ALLOW_CODE}")
        _refuse_kernel("", path, value, trust_remote_code)
    if options.get("use_safetensors") is False or options.get("weights_only") is False:
        raise ModelError(f"use_safetensors and weights_only cannot be turned off; {CONVERT}")


def _check_settings(name: str, file: Path, trust_remote_code: bool = False) -> None:
    most_bytes = MAX_CONFIG_BYTES if file.name in (MODEL_SETTINGS, ADAPTER_SETTINGS) else MAX_SETTINGS_BYTES
    if file.stat().st_size > most_bytes:
        raise ModelError(
            f"{name}: its {file.name} has {file.stat().st_size:,} bytes; expected a short file of settings"
        )
    try:
        settings = read_object(read_text(file))
    except ValueError as error:
        raise ModelError(f"{name}: its {file.name} is damaged ({error}); fetch or copy it again") from error
    for path, value in _leaves(settings):
        if value and path[-1] == "trust_remote_code":
            raise ModelError(f"{name}: its {file.name} asks for trust_remote_code; a file cannot: {ALLOW_CODE}")
        _refuse_kernel(f"{name}: its {file.name}: ", path, value, trust_remote_code)
    if file.name == ADAPTER_SETTINGS:
        for key, effect in ACTIVE_ADAPTER_SETTINGS.items():
            if settings.get(key):
                raise ModelError(f"{name}: its {ADAPTER_SETTINGS} sets {key}, so that PEFT would {effect}; remove it")


def _refuse_kernel(where: str, path: tuple[str, ...], value: Any, trust_remote_code: bool) -> None:
    is_implementation = any("attn_implementation" in key or "experts_implementation" in key for key in path)
    if is_implementation and isinstance(value, str) and "/" in value and not trust_remote_code:
        raise ModelError(
            f"{where}{path[0]} is {value!r}, which downloads code from the hub and runs it; to allow that, {ALLOW_CODE}"
        )


def _check_index(name: str, file: Path) -> None:
    """Require that every file of an index of weights lies in the same folder and is no pickle."""
    if not file.is_file():
        return
    try:
        files = set(read_object(read_text(file))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name}: its {INDEX} is damaged ({error}); fetch or copy it again") from error
    odd = sorted(str(one) for one in files if Path(str(one)).name != one or not str(one).endswith(".safetensors"))
    if odd:
        raise ModelError(f"{name}: its {INDEX} names {odd[0]!r}; expected safetensors beside it; {CONVERT}")


def _leaves(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the values inside nested mappings and lists, with the keys that lead to them; without recursion."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, dict):
            waiting += [((*path, str(key)), item) for key, item in one.items()]
        elif isinstance(one, list | tuple):
            waiting += [(path, item) for item in one]
        elif path:
            yield path, one
