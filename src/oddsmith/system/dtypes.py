"""Name types of numbers: one table of spellings for settings, flags and keyword arguments. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError

SPELLINGS = {
    "auto": (),  # as the weights are stored
    "bfloat16": ("bf16",),
    "float16": ("fp16", "half"),
    "float32": ("fp32", "float"),
    "float64": ("fp64", "double"),
}
OLD_KEY = "torch_dtype"  # of transformers before 5, for ``dtype``
_NAMES = {spelling: name for name, others in SPELLINGS.items() for spelling in (name, *others)}


def dtype_name(value: Any) -> Any:
    """Return torch's name of a type, as in ``bfloat16`` for ``bf16``, ``torch.bfloat16`` and ``"torch.bfloat16"``.

    Anything else than a known type is returned as it is, for the message of whoever wants a type.
    """
    return _NAMES.get(str(value).lower().removeprefix("torch."), value)


def with_dtype(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return keyword arguments of ``from_pretrained`` with the type under ``dtype``, by torch's name.

    A mapping from parts of a model to types stays as it is, and ``None`` is left out. ``where`` the arguments were
    given is for the message. Raise ``ConfigError`` for a name that is no type, and for two types.
    """
    options = dict(options)
    given = {key: options.pop(key, None) for key in ("dtype", OLD_KEY)}
    named = {
        key: value if isinstance(value, Mapping) else dtype_name(value)
        for key, value in given.items()
        if value is not None
    }
    for key, value in named.items():
        if not isinstance(value, Mapping) and (not isinstance(value, str) or value not in SPELLINGS):
            raise ConfigError(f"{where}: {key} is {value!r}; expected one of {', '.join(map(repr, SPELLINGS))}")
    if len(named) == 2 and named["dtype"] != named[OLD_KEY]:
        raise ConfigError(f"{where}: dtype is {named['dtype']!r} and {OLD_KEY} {named[OLD_KEY]!r}; give one of them")
    return {**options, "dtype": next(iter(named.values()))} if named else options
