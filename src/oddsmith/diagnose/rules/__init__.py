"""Every rule there is; importing this package registers them."""

from . import language, numbers, optimisation, preference
from .registry import RULES, judge

__all__ = ["RULES", "judge", "language", "numbers", "optimisation", "preference"]
