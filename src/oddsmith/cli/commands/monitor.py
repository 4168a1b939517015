"""``oddsmith monitor``: runs in the browser, while they go on and afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...system.run_folder import INCIDENTS
from ..parsing.resolve import Option, resolve
from ..parsing.values import number
from ..terminal.console import say
from ..terminal.outcome import JSON, TRACEBACK

TOKEN_VARIABLE = "ODDSMITH_MONITOR_TOKEN"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7861
USAGE = "oddsmith monitor [RUNS ...] [--port 7861] [--once]"
INTRO = (
    "Shows runs on a page in the browser: a verdict, curves, pairs, answers, settings. RUNS are run folders, folders of"
    " them, or what `oddsmith diagnose` reads; this folder by default. It only reads: a run does not notice it.",
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
    JSON,
    TRACEBACK,
)
MOST_PATHS = 100


def monitor(arguments: Sequence[str]) -> dict[str, Any] | int:
    """Run the command.

    Args:
        arguments: The words after ``oddsmith monitor``.

    Returns:
        0 once it was interrupted; with ``--once`` the runs as JSON values.

    Raises:
        ConfigError: An address that cannot be used, or one for other machines without a token.
        DataError: A path is not there.
        MissingExtraError: Its packages are not installed.
    """
    resolved = resolve(arguments, {}, OPTIONS, most_positional=MOST_PATHS)
    given = resolved.options
    paths = [Path(word) for word in resolved.positional or ["."]]
    if "once" in given:
        return _once(paths, as_json="json" in given)
    if "json" in given:
        raise ConfigError("--json belongs to --once; the page itself has no document")
    host = given.get("host", DEFAULT_HOST)
    port = int(number(given["port"], "--port", int)) if "port" in given else DEFAULT_PORT
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; expected 0 to 65535")

    from ...monitor.server import serve_monitor

    with suppress(KeyboardInterrupt):  # uvicorn ends in order, then raises what asked for it
        serve_monitor(paths, host=host, port=port, token=_token(host), on_ready=_tell)
    say("ended")
    return 0


def _once(paths: Sequence[Path], as_json: bool) -> dict[str, Any]:
    """The state of the runs as they are now, in the terminal."""
    from ...diagnose.findings import Verdict
    from ...monitor.runs import Run, Runs
    from .diagnose import sparklines

    runs: list[Run] = Runs(paths).all()
    documents = []
    for run in runs:
        summary, findings = run.summary(), run.findings()
        worst = max(
            (Verdict(one["verdict"]) for one in findings), key=lambda one: one.severity, default=Verdict.HEALTHY
        )
        documents.append({**summary, "verdict": str(worst), "findings": findings})
        if not as_json:
            _print_run(documents[-1], sparklines(run.history))
    if not runs and not as_json:
        print("no runs here")
    return {"command": "monitor", "runs": documents}


def _print_run(run: dict[str, Any], curves: Sequence[str]) -> None:
    """A run in a few lines: where it is, what its curves do, what is wrong."""
    from ..terminal.chat_answer import CONTROL

    verdict = "unreadable" if run["problem"] else run["verdict"]
    left = f", {run['seconds_left'] / 60:.0f} min left" if run["seconds_left"] is not None else ""
    lines = [f"{run['name']}: {verdict} ({run['state']}, step {run['step']} of {run['max_steps']}{left})", *curves]
    told = [_counted(kind, count) for kind, count in run["happened"].items()]
    if run["checkpoint"] is not None:
        told.append(f"last checkpoint at step {run['checkpoint']}")
    lines += [f"  {', '.join(told)}"] if told else []
    for finding in run["findings"]:
        if finding["verdict"] != "healthy":
            lines.append(f"  {finding['verdict']}: {finding['rule'].replace('_', ' ')}: {finding['evidence']}")
            lines += [f"    -> {finding['change']}"] if finding["change"] else []
    if run["problem"]:
        lines.append(f"  {run['problem']}")
    print("\n".join(CONTROL.sub("", line) for line in lines), end="\n\n", flush=True)


def _counted(kind: str, count: int) -> str:
    return f"{count} {INCIDENTS[kind].one if count == 1 else INCIDENTS[kind].several}"


def _token(host: str) -> str | None:
    """The token of the environment; an address that other machines reach needs one."""
    from ...monitor.security import MIN_TOKEN_CHARACTERS, is_loopback

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


def _tell(address: str) -> None:
    with suppress(OSError):  # where nothing more can be written, the page can still be looked at
        say(f"the monitor is at {address}; Ctrl-C ends it")
