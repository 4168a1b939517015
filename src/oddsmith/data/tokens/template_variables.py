"""Say which variables of the chat template a row may set: those that no library sets, and that change no template."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import lru_cache

from jinja2.defaults import DEFAULT_NAMESPACE
from transformers import PreTrainedTokenizerBase

from ...errors import RowError
from ...system.words import enumerated

# Of ``apply_chat_template``, what a conversation may well say itself: texts to answer from (Command R, Granite).
ALLOWED = frozenset(["documents"])
OF_TRANSFORMERS = frozenset(["messages", "raise_exception", "strftime_now"])


def require_free_variables(names: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``RowError`` where ``chat_template_kwargs`` of a row sets more than a variable of the template.

    The names are also keyword arguments of ``apply_chat_template``: ``chat_template`` would replace the model's.
    """
    taken = [name for name in names if name in _reserved(tuple(tokenizer.special_tokens_map))]
    if taken:
        raise RowError(
            "malformed chat_template_kwargs",
            f"it sets {enumerated(taken)}, which no row may; expected variables of the template, such as"
            " enable_thinking",
        )


@lru_cache(maxsize=8)
def _reserved(special_tokens: tuple[str, ...]) -> frozenset[str]:
    arguments = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset([*arguments, *DEFAULT_NAMESPACE, *OF_TRANSFORMERS, *special_tokens]) - ALLOWED
