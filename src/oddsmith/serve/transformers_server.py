"""``transformers serve`` as a program: ``python -m oddsmith.serve.transformers_server MODEL --port ...``.

Started here and not by its command, which would look for updates on the hub first.
"""

from __future__ import annotations

import sys

from transformers.cli.transformers import app

from ..template.environment import guard_chat_templates
from .parent import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    guard_chat_templates()
    app(["serve", *sys.argv[1:]])
