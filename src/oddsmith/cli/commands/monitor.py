"""``oddsmith monitor``: show runs in the browser, while they are trained and afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...system.files import in_words
from ...system.run_folder import INCIDENTS
from ..parsing.resolve import Option, resolve
from ..parsing.values import whole_number
from ..terminal.console import say, show
from ..terminal.counting import clock
from ..terminal.outcome import JSON, TRACEBACK

TOKEN_VARIABLE = "ODDSMITH_MONITOR_TOKEN"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7861
USAGE = "oddsmith monitor [RUNS ...] [--port 7861] [--once | --report FILE]"
INTRO = (
    "Shows runs on a page in the browser: a verdict, curves, pairs, answers, settings. RUNS are run folders, folders of"
    " them, or what `oddsmith diagnose` reads; this folder by default. It writes nothing into"
    " a run, which does not notice it.",
)
OPTIONS = (
    Option(
        "host",
        "value",
        f"Address to listen on. Other machines need the token in {TOKEN_VARIABLE}. [127.0.0.1]",
        "ADDRESS",
    ),
    Option("port", "value", "Port to listen on; 0 takes a free one. [7861]", "N"),
    Option("once", "switch", "Print the state of the runs in the terminal, and end."),
    Option("report", "value", "Write the page of one run into a file that needs no server, and end.", "FILE.html"),
    JSON,
    TRACEBACK,
)
MAX_PATHS = 100


def monitor(arguments: Sequence[str]) -> dict[str, Any] | int:
    """Run ``oddsmith monitor``; return 0, or the result of ``--once`` or ``--report`` as JSON values."""
    resolved = resolve(arguments, {}, OPTIONS, max_positional=MAX_PATHS)
    given = resolved.options
    paths = [Path(word) for word in resolved.positional or ["."]]
    if "report" in given:
        return _report(paths, Path(given["report"]).expanduser())
    if "once" in given:
        return _once(paths, as_json="json" in given)
    if "json" in given:
        raise ConfigError("--json belongs to --once; the page itself has no document")
    host = given.get("host", DEFAULT_HOST)
    port = whole_number(given, "port", DEFAULT_PORT)
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; expected 0 to 65535")

    from ...monitor.server import serve_monitor

    with suppress(KeyboardInterrupt):  # uvicorn shuts down on Ctrl-C, then raises this
        serve_monitor(paths, host=host, port=port, token=_token(host), on_ready=_say_address)
    say("ended")
    return 0


def _report(paths: Sequence[Path], file: Path) -> dict[str, Any]:
    """Write the page of the one run that the paths name into a file, and replace an existing file."""
    from ...monitor.report import write_report
    from ...monitor.runs import Runs

    runs = Runs(paths).all()
    if len(runs) != 1:
        found = ", ".join(str(run.path) for run in runs[:5]) or "none"
        raise ConfigError(f"--report is for one run; found {found}; expected oddsmith monitor RUN --report FILE.html")
    if file.is_dir() or not file.parent.is_dir():
        what = "is a folder" if file.is_dir() else f"cannot be written: there is no folder {file.parent}"
        raise ConfigError(f"{file}: {what}; expected the name of a file, such as report.html")
    try:
        write_report(runs[0].path, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({in_words(error.errno or 0)}); choose another place") from error
    say(f"report: {file}")
    return {"command": "monitor", "run": str(runs[0].path), "report": str(file)}


def _once(paths: Sequence[Path], as_json: bool) -> dict[str, Any]:
    """Print the state of the runs in the terminal."""
    from ...diagnose.findings import Verdict, overall
    from ...monitor.runs import Run, Runs
    from .diagnose import sparklines

    runs: list[Run] = Runs(paths).all()
    documents = []
    for run in runs:
        summary, findings = run.summary(), run.findings()
        verdict = overall(Verdict(one["verdict"]) for one in findings)
        documents.append({**summary, "verdict": str(verdict), "findings": findings})
        if not as_json:
            _print_run(documents[-1], sparklines(run.history))
    if not runs and not as_json:
        show("no runs here")
    return {"command": "monitor", "runs": documents}


def _print_run(run: dict[str, Any], curves: Sequence[str]) -> None:
    """Print a run in a few lines: its progress, its curves, and the findings."""
    verdict = "unreadable" if run["problem"] else run["verdict"]
    left = f", {clock(run['seconds_left'])} left" if run["seconds_left"] is not None else ""
    place = f"{run['unit'].removesuffix('s')} {run['step']} of {run['max_steps']}"
    lines = [f"{run['name']}: {verdict} ({run['state']}, {place}{left})", *curves]
    facts = [
        f"{count} {INCIDENTS[kind].one if count == 1 else INCIDENTS[kind].several}"
        for kind, count in run["happened"].items()
    ]
    if run["checkpoint"] is not None:
        facts.append(f"last checkpoint at step {run['checkpoint']}")
    if (waiting := run["waiting"]) is not None:
        processes, mean, slowest = waiting["processes"], waiting["mean"], waiting["slowest"]
        facts.append(f"{processes} processes wait {mean:.0%} of the time, most for rank {slowest}")
    lines += [f"  {', '.join(facts)}"] if facts else []
    for finding in run["findings"]:
        if finding["verdict"] != "healthy":
            lines.append(f"  {finding['verdict']}: {finding['rule'].replace('_', ' ')}: {finding['evidence']}")
            lines += [f"    -> {finding['change']}"] if finding["change"] else []
    if run["problem"]:
        lines.append(f"  {run['problem']}")
    show("\n".join(lines), end="\n\n")


def _token(host: str) -> str | None:
    """Read the token from the environment; require one for an address that other machines can reach."""
    from ...monitor.security import MIN_TOKEN_CHARACTERS
    from ...system.web_access import is_loopback

    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines; set {TOKEN_VARIABLE} to a secret of"
            f" {MIN_TOKEN_CHARACTERS} characters or more, which the page is then opened with (/?token=...)"
        )
    if token is not None and (len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isalnum()):
        raise ConfigError(
            f"{TOKEN_VARIABLE} is no usable token; expected {MIN_TOKEN_CHARACTERS} letters and digits or more"
        )
    return token


def _say_address(address: str) -> None:
    with suppress(OSError):  # stderr may be closed; the page works all the same
        say(f"the monitor is at {address}; Ctrl-C ends it")
