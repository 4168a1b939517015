"""Mend what axe finds in the HTML of Sphinx: headings without a level, and empty header cells of tables."""

import re

from sphinx.application import Sphinx


def _mend(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    tree = "furo_navigation_tree"
    context[tree] = context.get(tree, "").replace('role="heading"', 'role="heading" aria-level="2"')
    empty = r'<th class="(head[^"]*)"><p></p></th>'
    body = re.sub(rf"<thead>\s*<tr[^>]*>(?:\s*{empty})+\s*</tr>\s*</thead>", "", context.get("body") or "")
    context["body"] = re.sub(empty, r'<td class="\1"></td>', body)


def setup(app: Sphinx) -> dict[str, bool]:
    """Mend each page after the theme has made its context."""
    app.connect("html-page-context", _mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
