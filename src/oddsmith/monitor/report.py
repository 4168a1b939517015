"""Make the monitor's page: as the server sends it, and as a report with the data of runs in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import metrics
from ..errors import MissingExtraError
from ..system.files import replacing
from ..system.run_folder import INCIDENTS
from .events import text
from .run import Run

PAGE = Path(__file__).parent / "page"
# In the order of their imports; joined in a report, so no two may give a name to different things.
MODULES = (
    *("dom.js", "axes.js", "view.js", "curves.js", "saving.js", "traces.js", "charts.js", "table.js"),
    *("panels.js", "app.js"),
)
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)


def plotly_script() -> Path:
    """Find ``plotly.min.js`` in the installed wheel, without importing it; ``MissingExtraError`` without Plotly."""
    found = importlib.util.find_spec("plotly")
    script = Path(found.origin).parent / "package_data" / "plotly.min.js" if found and found.origin else None
    if script is None or not script.is_file():
        raise MissingExtraError("the monitor", "monitor")
    return script


def catalogue() -> dict[str, Any]:
    """Return what the page draws: the charts with the metrics in each, and the words of incidents."""
    charts = [
        {
            **asdict(chart),
            "lines": [
                {"metric": metric.name, "name": metric.line, "times_beta": metric.times_beta}
                for metric in metrics.drawn_in(chart)
            ],
        }
        for chart in metrics.CHARTS
    ]
    return {"charts": charts, "incidents": {kind: words._asdict() for kind, words in INCIDENTS.items()}}


def page_html() -> str:
    """Return the page that the server sends, with the catalogue in it."""
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    return page.replace('id="catalogue">', f'id="catalogue">{_json_in_html(catalogue())}')


def write_report(folder: Path, file: Path) -> None:
    """Write the page with the data of one run into an HTML file, and replace an existing file.

    ``folder`` is the run folder, or a file that ``oddsmith diagnose`` reads.
    """
    run = Run(folder)
    run.refresh()  # all of it
    page = report_html([run])
    with replacing(file) as partial:
        partial.write_text(page, encoding="utf-8")


def report_html(runs: Sequence[Run]) -> str:
    """Return the page with runs in it, which have been refreshed. It needs no server and no network.

    Its content security policy allows its own scripts, by their hashes, and no request.
    """
    documents = [
        {
            "summary": {**run.summary(), **dict.fromkeys(("name", "title"), text(run.path.resolve().name))},
            "series": run.series(None, None, -math.inf, math.inf),
            "details": {**run.details(), "reproduce": "", "has_console": False},  # they hold paths of this machine
        }
        for run in runs
    ]
    scripts = [
        (PAGE / "theme.js").read_text(encoding="utf-8"),
        plotly_script().read_text(encoding="utf-8"),
        "'use strict';\n" + "\n".join(_without_modules(PAGE / name) for name in MODULES),
    ]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    icon = base64.b64encode((PAGE / "icon.svg").read_bytes()).decode()
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline';"
        " img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    page = page_html()
    body = page[page.index("<body>") : page.index("</body>")]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Oddsmith report</title>\n'
        f'<link rel="icon" href="data:image/svg+xml;base64,{icon}">\n'
        f"<style>{(PAGE / 'style.css').read_text(encoding='utf-8')}</style>\n<script>{scripts[0]}</script>\n</head>\n"
        f'{body}<script type="application/json" id="report-data">{_json_in_html({"runs": documents})}</script>\n'
        f"<script>{scripts[1]}</script>\n<script>{scripts[2]}</script>\n</body>\n</html>\n"
    )


def _json_in_html(document: Any) -> str:
    """Return JSON without ``<``, so that nothing in it can end the HTML element around it."""
    return json.dumps(document, allow_nan=False).replace("<", "\\u003c")


def _without_modules(path: Path) -> str:
    """Return a JavaScript module without its imports and exports, to be joined with others into one script."""
    return _IMPORT.sub("", path.read_text(encoding="utf-8")).replace("\nexport ", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
