"""Open a model for a chat: in llama.cpp, or in transformers.

Each backend is imported when it is opened: a GGUF file needs no torch, and answers seconds sooner without it.
"""

from __future__ import annotations

from ...model.loading.place import is_gguf, locate
from .interface import DEFAULT_MAX_NEW_TOKENS, ChatBackend, Sampling

__all__ = ["DEFAULT_MAX_NEW_TOKENS", "ChatBackend", "Sampling", "open_backend"]


def open_backend(name: str, *, as_trained: bool = False) -> ChatBackend:
    """Load a model to chat with: llama.cpp runs a GGUF file, transformers everything else.

    ``name`` is a run, a model folder, an adapter, a hub id, ``builtin:...`` or a GGUF file. Raise ``ModelError`` where
    nothing is there or it does not generate text, and ``MissingExtraError`` where a GGUF file or a base in 4 bits needs
    an extra that is not installed. ``as_trained`` is that of ``load_for_inference``.
    """
    place = locate(name)
    if is_gguf(place):
        from .with_llama_cpp import GgufBackend

        return GgufBackend(name, place)
    from ..loading import load_for_inference
    from .with_transformers import TransformersBackend

    return TransformersBackend(name, *load_for_inference(name, as_trained=as_trained))
