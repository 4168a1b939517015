"""A comparison as one HTML file that can be sent to someone: nothing is fetched, nothing runs, all text is escaped."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ... import __version__
from .comparison import Comparison
from .evaluators import short_name


def comparison_page(comparison: Comparison) -> str:
    """The page.

    Args:
        comparison: What it shows. Models appear under the last part of their names: a path is nobody's business.

    Returns:
        HTML.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = {"base": short_name(comparison.base), "tuned": short_name(comparison.tuned)}
    return environment.get_template("page.html").render(
        names=names,
        rows=comparison.rows,
        summaries=comparison.summaries,
        sampling=comparison.sampling,
        has_pairs=any(row.prompt.pair for row in comparison.rows),
        version=__version__,
    )
