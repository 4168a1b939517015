"""A real Chromium in front of the real monitor; without one these tests are skipped."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import START, environment

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HINT = "`make test-browser` says how to get it"


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless."""
    api = pytest.importorskip("playwright.sync_api", reason=f"playwright is not installed; {HINT}")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium is installed; {HINT}")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def monitor(tmp_path) -> Iterator[tuple[str, Path]]:
    """The command on an empty folder of runs: its address, and the folder."""
    runs = tmp_path / "runs"
    runs.mkdir()
    words = [*START, "monitor", str(runs), "--port", "0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
    line = process.stderr.readline()
    yield line.split(" at ")[1].split(";")[0], runs
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)


@pytest.fixture
def page(browser) -> Iterator:
    """A page that fails the test if it logs an error, throws, or asks any other machine for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, faults = context.new_page(), []
    opened.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("dialog", lambda dialog: (faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    opened.on("request", lambda request: None if is_local(request.url) else faults.append(request.url))
    yield opened
    context.close()
    assert not faults


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:"))
