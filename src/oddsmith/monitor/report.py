"""``report.html``: the monitor's page with the data of a run in it, as one file that needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from ..system.files import replacing
from .run import Run
from .server import PAGE, plotly_script

# Modules in the order of their imports; in one file they are one script.
MODULES = ("dom.js", "charts.js", "panels.js", "app.js")
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)


def write_report(folder: Path, file: Path) -> None:
    """Write the page with the data of one run into a file; a file that is there is replaced.

    Args:
        folder: The run folder, or a file that ``oddsmith diagnose`` reads.
        file: The HTML file to write.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    run = Run(folder)
    run.refresh()
    page = report_page([run])
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")


def report_page(runs: Sequence[Run]) -> str:
    """The page with runs in it.

    Args:
        runs: Runs that have been refreshed.

    Returns:
        HTML; its policy allows its own scripts alone, by their hashes, and no request at all.
    """
    documents = [
        {
            "summary": {**run.summary(), "name": run.path.resolve().name},
            "series": run.series(None, None, -math.inf, math.inf),
            "details": {**run.details(), "reproduce": ""},  # its path belongs to the machine it was made on
        }
        for run in runs
    ]
    scripts = [
        (PAGE / "theme.js").read_text(encoding="utf-8"),
        plotly_script().read_text(encoding="utf-8"),
        "'use strict';\n" + "\n".join(_without_modules(PAGE / name) for name in MODULES),
    ]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    # "<" does not occur in the data, so nothing in it can end the element that holds it.
    data = json.dumps({"runs": documents}, allow_nan=False).replace("<", "\\u003c")
    icon = base64.b64encode((PAGE / "icon.svg").read_bytes()).decode()
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("</body>")]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Oddsmith report</title>\n'
        f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">\n'
        f"<style>{(PAGE / 'style.css').read_text(encoding='utf-8')}</style>\n<script>{scripts[0]}</script>\n</head>\n"
        f'{body}<script type="application/json" id="report-data">{data}</script>\n'
        f"<script>{scripts[1]}</script>\n<script>{scripts[2]}</script>\n</body>\n</html>\n"
    )


def _without_modules(path: Path) -> str:
    """A module's text without what makes it one."""
    return _IMPORT.sub("", path.read_text(encoding="utf-8")).replace("\nexport ", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
