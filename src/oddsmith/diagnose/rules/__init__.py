"""Register all rules when this package is imported."""

from . import language, optimisation, preference
from .rule import RULES, judge

__all__ = ["RULES", "judge", "language", "optimisation", "preference"]
