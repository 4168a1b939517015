"""Markdown that streams: blocks are printed once they cannot change any more, and nothing is lost or said twice."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from oddsmith.cli.terminal.markdown import MarkdownStream, split_finished

TEXT = """## Title

A paragraph
over two lines.

1. One

2. Two
   goes on

   and on

```python
# code

x = 1
```

- a
- b

End."""
BLOCKS = [
    "## Title",
    "A paragraph\nover two lines.\n\n1. One\n\n2. Two\n   goes on\n\n   and on",
    "```python\n# code\n\nx = 1\n```\n\n- a\n- b",
    "End.",
]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_blocks_are_finished_in_order_whatever_the_pieces(size):
    finished, rest = [], ""
    for start in range(0, len(TEXT), size):
        block, rest = split_finished(rest + TEXT[start : start + size])
        finished += [block] if block else []
    assert "\n\n".join([*finished, rest]) == TEXT
    if size < 1000:
        assert [*finished, rest] == BLOCKS


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("a\n\nb", "a"),
        ("a\n\n", ""),  # a list might follow
        ("a\n\n- b", ""),
        ("a\n\n  b", ""),
        ("```\na\n\nb", ""),  # the fence is open
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```"),
    ],
)
def test_what_is_finished(text, finished):
    assert split_finished(text)[0] == finished


def test_every_line_is_shown_at_the_end():
    """On a terminal that cannot redraw, so that what is seen is what stays."""
    screen = io.StringIO()
    console = Console(file=screen, width=60, force_terminal=False)
    with MarkdownStream(console) as stream:
        for character in TEXT:
            stream.add(character)
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines() if line.strip()]
    assert lines == [
        "Title", "A paragraph over two lines.", "1 One", "2 Two goes on", "and on", "# code", "x = 1", "• a", "• b",
        "End.",
    ]  # fmt: skip
