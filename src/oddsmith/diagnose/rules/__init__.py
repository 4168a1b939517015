"""All rules; importing this package registers them."""

from . import language, optimisation, preference
from .rule import RULES, judge

__all__ = ["RULES", "judge", "language", "optimisation", "preference"]
