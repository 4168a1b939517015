"""Run ``transformers serve``: ``python -m oddsmith.inference.serve.transformers_server MODEL --port ...``.

Its own command would look for updates on the hub first.
"""

from __future__ import annotations

import sys

from transformers.cli.transformers import app

from ...data.templates.environment import guard_chat_templates
from ...system.signals import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    guard_chat_templates()
    app(["serve", *sys.argv[1:]])
