"""Refuse weights that are not those of the model: transformers and PEFT make random numbers of whatever is missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import peft.peft_model
from torch import nn

from ...errors import ModelError, UsageError

# Buffers that older versions of transformers stored, and that a model computes by itself.
COMPUTED = re.compile(
    r"(?:rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|\.attn\.bias|\.attention\.bias|\.masked_bias"
    r"|position_ids|\.num_batches_tracked)$"
)
# What PEFT computes from the tensors that it stores, or stores once for many layers.
DERIVED = re.compile(r"(?:^|\.)(?:prompt_encoder|vblora_vector_bank|vera_A|vera_B|tinylora_v|unilora_theta_d)(?:\.|$)")
# What PEFT stores once more under a name that it does not read: rows of tied layers, and what prompts are made of.
REPEATED = re.compile(r"(?:^|\.)(?:modules_to_save|token_adapter|prompt_embeddings)(?:\.|$)")
SHOWN = 3


def require_complete(name: str, missing: Collection[str], unexpected: Collection[str], error: type[UsageError]) -> None:
    """Raise an error where tensors of a model or adapter are missing, or belong to another one.

    Args:
        name: Of the model, adapter or checkpoint.
        missing: Tensors that were not found, without those that are tied to others.
        unexpected: Tensors that were found and have no place in the model.
        error: What to raise.
    """
    missing = sorted(key for key in missing if not COMPUTED.search(key))
    unexpected = sorted(key for key in unexpected if not COMPUTED.search(key))
    if not missing and not unexpected:
        return
    if renamed := _other_names(missing, unexpected):
        found, expected = renamed
        raise error(
            f"{name}: its tensors have other names than the model's, such as {found} where {expected} is expected: they"
            " would stay random numbers; save the model again with save_pretrained, unwrapped"
        )
    if missing:
        raise error(
            f"{name}: {len(missing)} of its tensors {'is' if len(missing) == 1 else 'are'} missing"
            f" ({_some(missing)}) and would be random numbers; fetch or copy all of it again"
        )
    raise error(
        f"{name}: {len(unexpected)} of its tensors {'has' if len(unexpected) == 1 else 'have'} no place in the model"
        f" ({_some(unexpected)}), so it is not the one that its configuration describes; check config.json"
    )


def require_all_weights(name: str, found: Mapping[str, Any]) -> None:
    """Raise ``ModelError`` for weights that are missing, left over or misshapen by transformers' ``loading_info``."""
    if odd := found.get("mismatched_keys"):  # of GGUF files transformers makes random numbers of these
        names = _some(sorted(str(one[0] if isinstance(one, tuple) else one) for one in odd))
        raise ModelError(f"{name}: its weights do not have the shapes that its configuration states ({names})")
    require_complete(name, found["missing_keys"], found["unexpected_keys"], ModelError)


def untied(model: nn.Module, missing: Collection[str]) -> list[str]:
    """Return the missing tensors of a model whose parameter was not found under another name either."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name for some in names.values() if not set(some) <= set(missing) for name in some}
    return [key for key in missing if key not in tied]


@contextmanager
def complete_adapters(name: str, error: type[UsageError] = ModelError) -> Iterator[None]:
    """Raise an error where an adapter that is loaded inside lacks tensors, or has some that do not belong to it.

    PEFT warns of some of what is missing, and drops what is left over.
    """
    own = peft.peft_model.set_peft_model_state_dict

    def set_state(model: nn.Module, state: dict[str, Any], adapter_name: str = "default", **options: Any) -> Any:
        try:
            result = own(model, state, adapter_name=adapter_name, **options)
        except KeyError as gone:  # of a module that is trained in full
            raise error(f"{name}: 1 of its tensors is missing ({gone.args[0]}); copy all of it again") from gone
        inside = re.compile(rf"\.{re.escape(adapter_name)}(?:\.|$)")
        parameters = dict(model.named_parameters())  # under one name each
        missing = [k for k in result.missing_keys if inside.search(k) and k in parameters and not DERIVED.search(k)]
        left_over = [key for key in result.unexpected_keys if not REPEATED.search(key) and not DERIVED.search(key)]
        require_complete(name, missing, left_over, error)
        return result

    peft.peft_model.set_peft_model_state_dict = set_state
    try:
        yield
    finally:
        peft.peft_model.set_peft_model_state_dict = own


def _other_names(missing: list[str], unexpected: list[str]) -> tuple[str, str] | None:
    """Return a stored name and the one that it should be, where every missing tensor is there behind a prefix."""
    by_end = {end: name for name in unexpected for end in _ends(name)} | {name: name for name in unexpected}
    pairs = [next(((by_end[end], key) for end in [key, *_ends(key)] if end in by_end), None) for key in missing]
    return pairs[0] if pairs and None not in pairs else None


def _ends(name: str) -> list[str]:
    """Return what is left of a name without its first parts."""
    parts = name.split(".")
    return [".".join(parts[count:]) for count in range(1, len(parts) - 1)]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
