"""Parameters of which each process holds a share: DTensors of FSDP, and those of ZeRO-3, which look empty.

A DTensor has the shape of the whole, DeepSpeed puts it beside an empty tensor (``ds_shape``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter over all processes."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole_numel(parameter: Any) -> int:
    """Return how many numbers a parameter has over all processes."""
    return math.prod(whole_shape(parameter))


def own_share(parameter: Any) -> Tensor:
    """Return what this process holds of a parameter: all of it where nothing shards it."""
    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        share = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return share.detach()


@contextmanager
def gathered(parameters: Iterable[Any], *, is_changed: bool = False) -> Iterator[None]:
    """Put ZeRO-3's parameters together while inside; all processes have to enter, and change them alike if at all."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0 if is_changed else None):
        yield
