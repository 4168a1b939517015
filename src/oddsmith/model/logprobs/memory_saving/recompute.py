"""Tensors that are made again in the backward pass instead of being kept for it.

A normalised input, or act(gate) * up, is cheap to make and as large as any activation; what it is made of is kept
anyway. So whoever makes such a tensor leaves the recipe on it, and whoever would keep it keeps the ingredients:

    rms_norm            y, and on y its recipe (x, weight, 1 / rms)
    q, k and v_proj     find the recipe on their input y: each keeps (x, weight, 1 / rms), which are one and the same
    backward            the first of the three makes y again, the last one drops it

A recipe is lost on the way (a view, a dropout, another layer in between) without harm: the tensor itself is kept then.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

_NAME = "_oddsmith_recipe"


class Recomputed:
    """A tensor made again when its first reader asks for it, and held until the last one has.

    Args:
        make: Makes it from its ingredients: the same bits as the first time.
    """

    def __init__(self, make: Callable[..., Tensor]):
        self._make = make
        self._readers = 0
        self._value: Tensor | None = None

    def expect_reader(self) -> None:
        """Say, in the forward pass, that the backward pass will ask once more."""
        self._readers += 1

    def read(self, *ingredients: Tensor) -> Tensor:
        """The tensor, in the backward pass; not to be written to.

        A second backward pass over the same graph finds no reader announced and makes it anew each time.
        """
        value = self._make(*ingredients) if self._value is None else self._value
        self._readers -= 1
        self._value = value if self._readers > 0 else None
        return value


def mark_recomputable(y: Tensor, recomputed: Recomputed, *ingredients: Tensor) -> None:
    """Note on a tensor how to make it again.

    Args:
        y: The tensor, just made.
        recomputed: Makes it.
        *ingredients: Tensors that the graph keeps anyway, in the order in which ``recomputed`` takes them.
    """
    versions = [tensor._version for tensor in (y, *ingredients)]
    setattr(y, _NAME, (recomputed, [tensor.detach() for tensor in ingredients], versions))


def what_to_save(x: Tensor) -> tuple[Recomputed | None, list[Tensor]]:
    """What a layer saves to have its input again in the backward pass.

    Args:
        x: The input.

    Returns:
        What makes it (a reader is announced), and the ingredients; ``None`` and x itself, if nothing does or if x or an
        ingredient has been written to since.
    """
    recomputed, ingredients, versions = getattr(x, _NAME, (None, [], []))
    if recomputed is None or versions != [tensor._version for tensor in (x, *ingredients)]:
        return None, [x.detach()]
    recomputed.expect_reader()
    return recomputed, ingredients
