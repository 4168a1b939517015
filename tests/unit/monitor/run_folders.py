"""Run folders for the tests of the monitor."""

import json
import time
from pathlib import Path

from oddsmith.monitor.run import Run


def line(event: str, step: int, **fields) -> bytes:
    return json.dumps({"event": event, "time": time.time(), "step": step, **fields}).encode() + b"\n"


def make_run(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_bytes(b"".join(lines))
    return folder


def append(folder: Path, *lines: bytes) -> None:
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b"".join(lines))


def read(folder: Path) -> Run:
    run = Run(folder)
    run.refresh()
    return run
