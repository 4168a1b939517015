"""Look whether a model is there before anything slow is imported: on this disk, in the hub's cache, or on the hub."""

from __future__ import annotations

from pathlib import Path

from .place import MODEL_SETTINGS, locate


def look_at_model(name: str, revision: str = "main") -> str:
    """Return the model's place, as :func:`place.locate`; raise ``ModelError`` where there is none of this name.

    On the hub only the configuration is looked for, which a run reads anyway. An adapter there may have none.
    """
    place = locate(name)
    if Path(place).exists():
        return place
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    from .load_errors import clear_errors

    with clear_errors(name, revision):
        try:
            if try_to_load_from_cache(name, MODEL_SETTINGS, revision=revision) is None:
                hf_hub_download(name, MODEL_SETTINGS, revision=revision)
        except RemoteEntryNotFoundError:
            pass
    return place
