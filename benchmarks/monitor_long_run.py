"""Measure how soon the monitor listens to a run with a million events, and how much memory it takes.

Run: ``python benchmarks/monitor_long_run.py [EVENTS]``
"""

import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen


def write_run(folder: Path, events: int) -> None:
    """Write an event log with fifteen metrics a line."""
    noise = random.Random(1).random
    settings = {"beta": 0.1, "learning_rate": 1e-5}
    with (folder / "events.jsonl").open("w") as file:
        file.write(json.dumps({"event": "start", "time": 1e9, "step": 0, "max_steps": events, "settings": settings}))
        for step in range(1, events):
            done, near = step / events, 0.1 * noise()
            loss = 1.5 + math.exp(-5 * done) + near
            figures = {
                "loss": loss,
                "nll_loss": loss - 0.05,
                "or_loss": 0.5 + near,
                "log_odds_ratio": -0.5 - near,
                "log_odds_chosen": done + near,
                "logps/chosen": near - 1.2,
                "logps/rejected": near - 1.4 - done,
                "rewards/chosen": near / 10 - 0.12,
                "rewards/rejected": near / 10 - 0.14 - done / 10,
                "rewards/margins": 0.02 + done / 10,
                "rewards/accuracies": 0.5 + 0.4 * done,
                "epoch": 3 * done,
                "grad_norm": 1 + near,
                "learning_rate": 1e-5 * (1 - done),
                "tokens_per_second": 1000 + near,
            }
            file.write("\n" + json.dumps({"event": "log", "time": 1e9 + step, "step": step, **figures}))
        file.write("\n")


def main(events: int) -> None:
    """Start the command, wait until it has read everything, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), events)
        began = time.monotonic()
        command = [sys.executable, "-P", "-m", "oddsmith.cli.main", "monitor", folder, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        address = re.search(r"http://\S+/", process.stderr.readline())[0]
        print(f"listens after {time.monotonic() - began:.1f} s")
        while json.load(urlopen(f"{address}api/runs"))[0]["state"] == "reading":
            time.sleep(0.5)
        print(f"has read {events:,} events after {time.monotonic() - began:.1f} s")
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]
        print(f"took at most {int(peak) / 1e3:.0f} MB")
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
