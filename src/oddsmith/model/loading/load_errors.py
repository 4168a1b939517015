"""Explain in one line why a model cannot be loaded: transformers, PEFT and the hub raise many different errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError

from ...errors import MissingExtraError, ModelError, OddsmithError, first_line
from ...system.files import error_chain
from ...system.memory import is_of_the_machine
from .place import TOKENIZER_FILES
from .untrusted_files import ALLOW_CODE, CONVERT

_READERS = ("oddsmith", "transformers", "peft", "tokenizers", "huggingface_hub", "safetensors", "torch", "gguf")


@contextmanager
def clear_errors(name: str, revision: str) -> Iterator[None]:
    """Raise ``ModelError`` instead of the errors of transformers, PEFT and the hub: what is wrong and what to do.

    Where they lack a package that an extra of ours has, it is a ``MissingExtraError``.

    Any error may be raised inside for an odd value in a file of a stranger, such as a ``TypeError`` or the panic of a
    library in Rust. Those of the machine (memory, a device) pass.
    """
    try:
        yield
    except (OddsmithError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception
        if is_of_the_machine(error):
            raise
        if any(isinstance(one, ImportError) and "requires bitsandbytes" in str(one) for one in error_chain(error)):
            raise MissingExtraError(f"{name}: a model in 4 or 8 bits", "4bit") from error
        raise ModelError(f"{name}: {_explain(name, revision, error)}") from error


def _explain(name: str, revision: str, error: BaseException) -> str:
    causes = list(error_chain(error))
    for kinds, explanation in (
        (
            hub_errors.GatedRepoError,
            f"is a gated model; accept its terms at https://huggingface.co/{name}, then log in with: hf auth login",
        ),
        (hub_errors.RevisionNotFoundError, f"has no revision {revision!r} on the hub; check model_revision"),
        (
            hub_errors.RepositoryNotFoundError,
            "is neither a folder here nor a model on the hub; check the spelling,"
            " or log in with `hf auth login` if it is private",
        ),
        (
            (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled),
            "is no folder here, and the hub cannot be reached for it (no connection, or HF_HUB_OFFLINE is set);"
            " give a folder, a GGUF file or builtin:smollm2-135m-instruct",
        ),
        (hub_errors.HFValidationError, "is neither a folder here nor a possible name on the hub (owner/name)"),
        (SafetensorError, "its weights are damaged; fetch or copy them again"),
    ):
        if any(isinstance(cause, kinds) for cause in causes):
            return explanation
    if "trust_remote_code" in str(error):
        return f"needs its own Python code; read that code, then {ALLOW_CODE}; it allows custom code"
    if "file named model.safetensors" in str(error):
        return f"holds no model.safetensors; fetch or copy the whole model. If it has other weights: {CONVERT}"
    if "instantiate the backend tokenizer" in str(error):
        return f"holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); save the model's tokenizer there"
    if isinstance(error, json.JSONDecodeError):
        return "one of its JSON files is damaged; fetch or copy them again"
    if isinstance(error, RecursionError):
        return "cannot be loaded: its JSON is nested too deeply, or it and its base are adapters that name each other"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights do not have the shapes that its configuration states"
    said = first_line(error)
    if isinstance(error, OSError | ValueError | ImportError) and said:
        return f"cannot be loaded: {said}"
    return (
        f"cannot be loaded: a value in one of its settings or tokenizer files is not what {_reader(error)} expects"
        f" ({type(error).__name__}{': ' * bool(said)}{said})"
    )


def _reader(error: BaseException) -> str:
    """Return the package in which an error was raised."""
    name = "transformers"
    trace = error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        name, trace = package if package in _READERS else name, trace.tb_next
    return name
