"""Say which packages the server of a model needs, before anything slow is imported."""

from __future__ import annotations

import importlib.util

from ...errors import MissingExtraError
from ...model.loading.place import is_gguf

BY_LLAMA_CPP = ("xllamacpp", "starlette", "uvicorn", "httpx2")
BY_TRANSFORMERS = ("fastapi", "uvicorn", "openai")


def require_server_for(place: str) -> None:
    """Raise ``MissingExtraError`` where the server for a GGUF file, or for a folder or hub id, is not installed."""
    is_file = is_gguf(place)
    if any(importlib.util.find_spec(name) is None for name in (BY_LLAMA_CPP if is_file else BY_TRANSFORMERS)):
        raise MissingExtraError(f"serving a {'GGUF file' if is_file else 'model folder'}", "serve")
