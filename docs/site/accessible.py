"""Mend the HTML of Sphinx: headings without a level, empty header cells of tables, long names that cannot break."""

import re

from sphinx.application import Sphinx

TREE = "furo_navigation_tree"
EMPTY = r'<th class="(head[^"]*)"><p></p></th>'


def _mend(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    context[TREE] = context.get(TREE, "").replace('role="heading"', 'role="heading" aria-level="2"')
    body = re.sub(rf"<thead>\s*<tr[^>]*>(?:\s*{EMPTY})+\s*</tr>\s*</thead>", "", context.get("body") or "")
    body = re.sub(EMPTY, r'<td class="\1"></td>', body)
    context["body"] = re.sub(r'(?<=<span class="pre">)[^<]*', _breakable, body)


def _breakable(name: re.Match[str]) -> str:
    """Let a browser break a name behind its underscores and slashes."""
    return re.sub(r"(?<=\w)([_/])", r"\1<wbr>", name[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Mend each page after the theme has made its context."""
    app.connect("html-page-context", _mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
