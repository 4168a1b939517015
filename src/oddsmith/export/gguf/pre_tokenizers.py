"""Which of llama.cpp's pre-tokenizers a byte-level tokenizer has: how it cuts text before anything is merged.

llama.cpp knows them by name only. Its converter tells one from another by a fingerprint, the hash of the tokens of one
awkward text, which catches a difference wherever it comes from; ``pre_tokenizers.json`` holds fingerprints and names.
A begin token that was switched on or off changes the fingerprint, too. Where it is unknown, the pattern itself decides.
Source: llama.cpp (MIT), conversion/base.py, ``get_vocab_base_pre``.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...model.loading.gguf import WHOLE_WORDS_FIRST, byte_level_pre_tokenizer

# The text of the fingerprint; every character counts.
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33"
    " 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======="
    " нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure"
    " I'll make it, 'D you like some tea? We'Ve a'lL"
)
# One name for each pattern that can be rebuilt.
REBUILT = ("gpt-2", "smollm", "llama-bpe", "qwen2")


@cache
def known_fingerprints() -> dict[str, str]:
    """Fingerprint -> llama.cpp's name of the pre-tokenizer."""
    return json.loads(files(__package__).joinpath("pre_tokenizers.json").read_text(encoding="utf-8"))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The fingerprint of a tokenizer: SHA-256 of the list of its tokens of ``PROBE``, written as Python does."""
    return hashlib.sha256(str(tokenizer.encode(PROBE)).encode()).hexdigest()


def pre_tokenizer_name(tokenizer: PreTrainedTokenizerBase, backend: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer cuts text.

    Args:
        tokenizer: A byte-level one.
        backend: Its ``tokenizer.json``.

    Returns:
        The name; ``None`` where llama.cpp has none for it.
    """
    if name := known_fingerprints().get(fingerprint(tokenizer)):
        return name
    for name in REBUILT:
        same_pattern = _without_defaults(backend["pre_tokenizer"]) == _pattern(name)
        whole_words_first = bool(backend["model"].get("ignore_merges"))
        if same_pattern and whole_words_first == (name in WHOLE_WORDS_FIRST):
            return name
    return None


@cache
def _pattern(name: str) -> Any:
    pre_tokenizer = byte_level_pre_tokenizer(name)
    return _without_defaults(json.loads(pre_tokenizer.__getstate__())) if pre_tokenizer else None


def _without_defaults(settings: Any) -> Any:
    """Without what says nothing about where text is cut."""
    if isinstance(settings, list):
        return [_without_defaults(value) for value in settings]
    if isinstance(settings, dict):
        return {key: _without_defaults(value) for key, value in settings.items() if key != "trim_offsets"}
    return settings
