"""The modules of the documentation site, docs/site, which is no package."""

import sys

from tests.docs_blocks import ROOT

sys.path.append(str(ROOT / "docs" / "site"))

from generated import api, as_markdown, commands, settings

__all__ = ["api", "as_markdown", "commands", "settings"]
