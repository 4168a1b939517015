"""Settings of Sphinx for the documentation site (``make docs``).

The source folder is the root of the repository, so that a link between two files leads to the same place on GitHub and
on the site. Pages are those of ``include_patterns``; docs/index.md has the table of contents.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

from oddsmith import __version__

project = "Oddsmith"
author = "the authors of Oddsmith"
copyright = "the authors of Oddsmith; Apache-2.0"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "accessible",
    "generated",
    "mathml",
    "twins",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "examples/**/README.md",
]
exclude_patterns = [".*", ".venv*", "build", "src", "tests", "docs/site", "**/node_modules", "runs", "oddsmith-demo"]
toc_object_entries = False  # each name of the reference has a heading already
nitpicky = True
# Names in docstrings and signatures that other projects define.
nitpick_ignore_regex = [("py:.*", r"(?!oddsmith\.).*"), ("py:.*", r"oddsmith\..*\..*")]

myst_enable_extensions = ["deflist"]
myst_fence_as_directive = ["math"]  # as GitHub has it; with "$" prices and shell variables would be formulas
myst_heading_anchors = 4
highlight_language = "text"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"Oddsmith {__version__}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["page.js"]
html_copy_source = False
html_show_sphinx = False
templates_path = ["templates"]
html_extra_path = ["root"]
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
linkcheck_timeout = 20
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_ignore = [r"http://127\.0\.0\.1.*", r"http://localhost.*"]
