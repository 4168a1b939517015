"""Kill runs with SIGKILL, start them again, and compare what they leave with an undisturbed run.

    undisturbed   start ---------------------------------------- end
    killed        start ----x   start --------x   start --x   start ---- end     must leave the same

A fork server has torch and Oddsmith imported; the processes of an attempt, one per rank, are forked from it. While one
saves, the run folder holds a checkpoint without a manifest.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from oddsmith.system.run_folder import read_events
from tests.forked import fork_server, free_port
from tests.killed_runs import PHASES, Variant, attempt

ENDS_WITHIN_S = 10.0  # a process whose peer was killed
ATTEMPT_S = 120.0
POLL_S = 0.0005
MAX_DELAY_S = 0.02  # between seeing a phase and killing in it
AIMS = ("saving", "evaluating", "training", None, "ending")  # None: any moment
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
MEASURED = re.compile(r"_per_second(_per_gpu)?$|_runtime$|^memory_gib$|^waiting_share$|^mfu$|^time$")


# ---- The run folder


def steps_saved(folder: Path) -> list[int]:
    """Return the steps of all checkpoint folders, complete or not."""
    found = (CHECKPOINT.fullmatch(entry.name) for entry in os.scandir(folder)) if folder.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def committed(folder: Path) -> int:
    """Return the step of the newest checkpoint with a manifest; 0 if there is none."""
    return max((s for s in steps_saved(folder) if (folder / f"checkpoint-{s}" / "manifest.json").exists()), default=0)


def starts(folder: Path) -> list[int]:
    """Return the steps that the attempts so far have started from."""
    return [event["step"] for event in read_events(folder) if event["event"] == "start"]


class Outputs(NamedTuple):
    """What a finished run leaves, without what measures time and memory."""

    digests: dict[str, str]  # sha256 of every file of tensors, in the run folder and its newest checkpoint
    history: list[dict[str, Any]]  # the log lines and evaluations of trainer_state.json
    events: dict[tuple[str, int], dict[str, Any]]  # the last line of each event and step in events.jsonl


def outputs_of(folder: Path) -> Outputs:
    """Read what a run has left in its folder."""
    newest = folder / f"checkpoint-{steps_saved(folder)[-1]}"
    files = sorted([*folder.glob("*.safetensors"), *newest.glob("*.safetensors")])
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    events = [event for event in read_events(folder) if event["event"] in ("log", "evaluate", "pairs")]
    return Outputs(
        {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files},
        [unmeasured(entry) for entry in state["log_history"]],
        {(event["event"], event["step"]): unmeasured(event) for event in events},
    )


def unmeasured(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry without what measures time and memory."""
    return {key: value for key, value in entry.items() if not MEASURED.search(key)}


def differences(found: Outputs, expected: Outputs) -> Iterator[str]:
    """Describe the differences of two runs; none if both are the same to the last bit."""
    for name in sorted({*found.digests, *expected.digests}):
        if found.digests.get(name) != expected.digests.get(name):
            yield f"bytes of {name}"
    if len(found.history) != len(expected.history):
        yield f"{len(found.history)} log lines instead of {len(expected.history)}"
    for entry, other in zip(found.history, expected.history, strict=False):
        for key in sorted({*entry, *other}):
            if entry.get(key) != other.get(key):
                yield f"log line of step {entry['step']}: {key} is {entry.get(key)} instead of {other.get(key)}"
    for event in sorted({*found.events, *expected.events}):
        if found.events.get(event) != expected.events.get(event):
            yield f"event {event[0]} of step {event[1]}"


# ---- Killing


class Processes:
    """The processes of one attempt, which train a variant in a run folder."""

    def __init__(self, variant: Variant, folder: Path):
        context = fork_server()
        self.folder, port = folder, free_port()
        self._phase = context.Value("i", 0, lock=False)
        self.all = [
            context.Process(target=attempt, args=(variant, folder, rank, port, self._phase))
            for rank in range(variant.processes)
        ]
        for process in self.all:
            process.start()
        self.started_at = time.monotonic()

    @property
    def phase(self) -> str:
        """What the first process is doing, of ``PHASES``."""
        phase = PHASES[self._phase.value]
        saved = steps_saved(self.folder) if phase == "training" else []
        return "saving" if saved and saved[-1] > committed(self.folder) else phase

    @property
    def running(self) -> bool:
        """Whether any process is alive."""
        return any(process.is_alive() for process in self.all)

    def wait_for(self, phase: str, after: int) -> None:
        """Wait for a phase, once the checkpoint of a step is committed."""
        while self.running and not (self.phase == phase and committed(self.folder) >= after):
            time.sleep(POLL_S)

    def kill(self, victims: list[int]) -> Kill | None:
        """Kill some ranks and wait for the others; return ``None`` if the victims had ended before."""
        for rank in victims:
            self.all[rank].kill()
        for rank in victims:
            self.all[rank].join()
        phase, killed_at = self.phase, time.monotonic()
        codes = self.join(ENDS_WITHIN_S)
        if all(codes[rank] != -9 for rank in victims):
            return None
        alone = len(victims) == len(codes)
        return Kill(phase, None if alone else time.monotonic() - killed_at, hung=None in codes)

    def join(self, timeout_s: float) -> list[int | None]:
        """Wait until all have ended and return their exit codes; one that runs longer is killed and gives ``None``."""
        deadline = time.monotonic() + timeout_s
        for process in self.all:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.all]
        for process in self.all:
            if process.is_alive():
                process.kill()
                process.join()
        return codes


class Kill(NamedTuple):
    """One kill that hit a running process."""

    phase: str  # of the first process
    survivor_s: float | None  # until the other process had ended too; None if none was left
    hung: bool  # whether it had not ended within ENDS_WITHIN_S


@dataclass
class Trial:
    """One run that was killed and resumed to its end."""

    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what differs from the undisturbed run


class Trials:
    """Kills runs of one variant at moments and ranks drawn from a seed, and compares them with an undisturbed run."""

    def __init__(self, variant: Variant, folder: Path, seed: int = 0):
        self.variant, self.folder = variant, folder
        self._random = random.Random(f"{variant.name} {seed}")
        folder.mkdir(parents=True)
        undisturbed = Processes(variant, folder / "undisturbed")
        codes = undisturbed.join(ATTEMPT_S)
        self._duration_s = time.monotonic() - undisturbed.started_at
        if any(codes):
            raise RuntimeError(f"the undisturbed run ended with {codes}:\n{last_words(undisturbed.folder)}")
        self._expected, self._steps = outputs_of(undisturbed.folder), steps_saved(undisturbed.folder)[-1]

    def run(self, name: str, kills: int, aims: tuple[str | None, ...] = AIMS) -> Trial:
        """Train a run in the folder ``name`` to its end, killing it up to ``kills`` times in these phases in turn."""
        folder, trial, number = self.folder / name, Trial(), 0
        while True:
            number += 1
            saved, before = committed(folder), len(starts(folder))
            processes = Processes(self.variant, folder)
            is_last = len(trial.kills) == kills
            hit = None if is_last else self._kill(processes, aims[len(trial.kills) % len(aims)])
            trial.wrong += [
                f"attempt {number} went on from step {step} instead of {saved}"
                for step in starts(folder)[before:]
                if step != saved
            ]
            if hit:
                trial.kills.append(hit)
                # Before they have met, a process cannot notice that another is gone; a launcher ends it, as here.
                trial.wrong += ["the other process did not end"] * (hit.hung and hit.phase != "starting")
                continue
            codes = processes.join(ATTEMPT_S)
            if any(codes):
                trial.wrong.append(f"attempt {number} ended with {codes}:\n{last_words(folder)}")
            else:
                trial.wrong += differences(outputs_of(folder), self._expected)
            return trial

    def _kill(self, processes: Processes, aim: str | None) -> Kill | None:
        draw, ranks = self._random, list(range(self.variant.processes))
        saved = committed(processes.folder)
        if aim is None:
            time.sleep(draw.uniform(0, self._duration_s * (1 - saved / self._steps)))
        else:
            processes.wait_for(aim, draw.randint(saved, max(saved, 2 * self._steps // 3)))
            time.sleep(draw.uniform(0, MAX_DELAY_S))
        return processes.kill(draw.choice([ranks, *([rank] for rank in ranks)]) if len(ranks) > 1 else ranks)


def last_words(folder: Path) -> str:
    """Return the end of the logs of the attempts in a folder."""
    logs = sorted(folder.parent.glob(f"{folder.name}-*.log"))
    return "\n".join(log.read_text(encoding="utf-8", errors="replace")[-2500:] for log in logs)
