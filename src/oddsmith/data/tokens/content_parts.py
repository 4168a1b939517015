"""Give a chat template the text of a message in the form that it reads: a string, or a list of parts.

Templates of models that read images write parts, and leave a string out without a word:

    {% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}

Which of the two a template reads is found by rendering a short conversation both ways, once for each template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..formats import Message
from ..templates.limits import LimitReached

PROBES = ("oddsmith-probe-question", "oddsmith-probe-answer")
_reads_parts: dict[str, bool] = {}


def as_template_reads(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Message]:
    """Return messages with their texts as parts, where the chat template of a tokenizer reads nothing else."""
    template = str(tokenizer.chat_template)
    if "type" not in template:
        return list(messages)
    if template not in _reads_parts:
        plain = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), PROBES, strict=True)]
        _reads_parts[template] = not _writes(tokenizer, plain) and _writes(tokenizer, [*map(_in_parts, plain)])
    return [*map(_in_parts, messages)] if _reads_parts[template] else list(messages)


def _in_parts(message: Any) -> Any:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _writes(tokenizer: PreTrainedTokenizerBase, messages: list[Any]) -> bool:
    """Return whether the template writes both texts of the probe."""
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, LimitReached):
        return False
    return all(probe in text for probe in PROBES)
