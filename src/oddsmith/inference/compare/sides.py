"""The two models of a comparison, one after the other in memory; an adapter and its base are loaded together, once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...export.finished import find_finished
from ...model.loading.models import load_tokenizer
from ...model.loading.place import locate
from ..chat.loading import load_to_answer

Side = Literal["base", "tuned"]


class LoadedSide(NamedTuple):
    """One of the two, ready to answer."""

    side: Side
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def both_sides(base: str, tuned: str, on_stage: Callable[[str, Any], None]) -> Iterator[LoadedSide]:
    """Load both models, the tuned one first where it brings the base with it.

    A base without a chat template, as models that were only pretrained are, is asked with the tuned model's.

    Args:
        base: Name of the model to compare with.
        tuned: Name of the model to look at.
        on_stage: Called with ``("load", name)``.

    Yields:
        LoadedSide: The base, then the tuned model. The first is unloaded before the second is asked for.

    Raises:
        ModelError: Nothing is there, or it does not generate text.
        MissingExtraError: An adapter was trained on a base in 4 bits, and bitsandbytes is not installed.
    """
    locate(base)  # a mistake in either name is found before anything is loaded
    if is_adapter_on(base, tuned):
        on_stage("load", tuned)
        adapted, tokenizer = load_to_answer(tuned)
        with adapted.disable_adapter():
            yield LoadedSide("base", adapted, tokenizer)
        yield LoadedSide("tuned", adapted, tokenizer)
        return
    find_finished(tuned)
    on_stage("load", base)
    model, tokenizer = load_to_answer(base)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = load_tokenizer(tuned).chat_template
    yield LoadedSide("base", model, tokenizer)
    del model
    gc.collect()
    on_stage("load", tuned)
    yield LoadedSide("tuned", *load_to_answer(tuned))


def is_adapter_on(base: str, tuned: str) -> bool:
    """Whether a model is an adapter on the very base it is compared with."""
    finished = find_finished(tuned)
    if finished.kind != "adapter" or finished.base is None:
        return False
    return _same_place(locate(finished.base), locate(base))


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))
