"""Oddsmith's first minutes on an NVIDIA GPU: is it right, is it fast, what does it need? In under 12 minutes.

    bash benchmarks/on_gpu/first_minutes.sh [--sections NAME ...] [--works NAME ...] [--minutes N] [--toy]

No network, no files: models have random weights of known shapes, pairs are random words with the lengths of
UltraFeedback (works.py). One Markdown file is written, anew after every section, so that a run that is cut short leaves
what it has. A section that fails or runs out of time says so there, and the next one begins; what a section leaves of
its time the later ones have.

    environment   the card, the versions, the rates of matrix products and copies
    paths         packed rows against padded batches in float32 and bf16, values and gradients (paths.py)
    works         steps of real size, profiled, with their memory; Oddsmith and TRL in alternation (worker.py)
    tests         tests/gpu
    restart       a run that is killed and resumed beside two undisturbed ones (restart.py)
    processes     two processes against one; on one card if there is but one (processes.py)

Where TRL is not installed, plain PyTorch computes what it does (plain.py). Where a step of TRL does not fit, it gets
micro-batches of half the pairs. The exit code is 1 if a section failed or found something wrong, 2 without the packages
that Oddsmith needs. Without a GPU everything runs on the CPU at toy size, which shows that the script works.

This module needs only the standard library: it has to say what is missing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from .report import LABELS, WARM_UP_STEPS, differences, is_ours, results_file, summarise

FOLDER = Path(__file__).resolve().parents[1]
ROOT = FOLDER.parent
# Most seconds of each section; together eleven and a half minutes.
SECTIONS = {"environment": 40, "paths": 90, "works": 290, "tests": 150, "restart": 70, "processes": 50}
WORKS = ("8b-lora", "0.5b-full", "8b-qlora", "0.5b-lora-8-pairs")
HALVINGS = 5  # of the pairs of a micro-batch, at most
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
OUTCOME = re.compile(r"^(tests/\S+?)(?: \S.*)? (PASSED|FAILED|ERROR|SKIPPED|XFAIL)(?:\s|$)")
REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+?)(?: - (.*))?$")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sections", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="only these")
    parser.add_argument("--works", choices=WORKS, nargs="+", default=list(WORKS), help="only these")
    parser.add_argument("--trainers", choices=LABELS, nargs="+", default=["ours", "trl-best"], help="run these")
    parser.add_argument("--steps", type=int, default=4, help=f"timed steps, after {WARM_UP_STEPS} to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each trainer")
    parser.add_argument("--pairs", type=int, help="pairs of a step, instead of the work's")
    parser.add_argument("--minutes", type=float, help="time for all sections, instead of 11.5; longer steps need more")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="where to run; a GPU if there is one")
    parser.add_argument("--toy", action="store_true", help="tiny models and short pairs; always on a CPU")
    parser.add_argument("--plain", action="store_true", help="against plain PyTorch even where TRL is installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the whole measurement as JSON, too")
    parser.add_argument("--output", type=Path, help="the results file; benchmarks/results/gpu_CARD_DATE.md by default")
    parsed = parser.parse_args(words)
    if parsed.steps < 1 or parsed.repeats < 1:
        parser.error("--steps and --repeats start at 1")
    return parsed


# ---- Processes


class Ended(NamedTuple):
    """How a process ended; ``code`` is ``None`` where its time was up."""

    code: int | None
    output: str


def launch(command: list[str], seconds: float, variables: dict[str, str] | None = None) -> Ended:
    """Run a command in a session of its own, and end all of its processes when its time is up."""
    return wait_for([start(command, variables)], seconds)[0]


def start(command: list[str], variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command that can import ``on_gpu`` and Oddsmith; its output goes to a file, which cannot fill up."""
    paths = filter(None, (str(FOLDER), str(ROOT / "src"), os.environ.get("PYTHONPATH")))
    environment = ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | (variables or {})
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  read when the process ended
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, text=True, cwd=ROOT, start_new_session=True
    )
    process.log = log  # type: ignore[attr-defined]
    return process


def wait_for(processes: list[subprocess.Popen[str]], seconds: float) -> list[Ended]:
    """Wait for processes of one task; the end of the time ends those that still run."""
    ends_s = time.monotonic() + seconds
    codes: list[int | None] = []
    for process in processes:
        try:
            codes.append(process.wait(max(0.1, ends_s - time.monotonic())))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            codes.append(None)
    found = []
    for process, code in zip(processes, codes, strict=True):
        process.log.seek(0)  # type: ignore[attr-defined]
        found.append(Ended(code, process.log.read()))  # type: ignore[attr-defined]
        process.log.close()  # type: ignore[attr-defined]
    return found


def why(ended: Ended, seconds: float) -> str:
    """Return in one line why a process failed."""
    if ended.code is None:
        return f"not done after {seconds:.0f} s"
    say(ended.output[-3000:])
    if ended.code in (-9, 137) or any(words in ended.output for words in OUT_OF_MEMORY):
        return "out of memory"
    return (ended.output.strip().splitlines() or [f"exit code {ended.code}"])[-1][:200]


class Asker:
    """Runs the modules of ``on_gpu``, each as a process of its own that reads a request and writes an answer.

    Args:
        folder: For requests, answers and run folders.
        common: What every request has: ``device``, ``toy``, ``seed``.
        ends_s: When the section has to be done, on the monotonic clock.
    """

    def __init__(self, folder: Path, common: dict[str, Any], ends_s: float) -> None:
        self.folder, self.common, self.ends_s = folder, common, ends_s

    @property
    def seconds_left(self) -> float:
        """Return the time that the section has left; 1 s at least, so that what is late says so itself."""
        return max(1.0, self.ends_s - time.monotonic())

    def command(self, module: str, request: dict[str, Any], answer: Path) -> list[str]:
        """Write the request of a module, and return the command that answers it."""
        answer.unlink(missing_ok=True)
        request_file = answer.with_suffix(".request.json")
        request_file.write_text(json.dumps(self.common | request), encoding="utf-8")
        return [sys.executable, "-W", "ignore", "-m", f"on_gpu.{module}", str(request_file), str(answer)]

    def __call__(self, module: str, **request: Any) -> dict[str, Any]:
        """Return the answer of a module, ``{"failed": reason}`` if it has none.

        On the CPU, where nothing useful is measured, it runs in this process: that saves the start of Python.
        """
        if self.common["device"] != "cpu":
            return self.apart(module, **request)
        answer = self.folder / f"{module}.json"
        importlib.import_module(f"on_gpu.{module}").main(*self.command(module, request, answer)[-2:])
        return json.loads(answer.read_text(encoding="utf-8"))

    def apart(self, module: str, **request: Any) -> dict[str, Any]:
        """Return the answer of a module in a process of its own, on the CPU, too."""
        answer = self.folder / f"{module}.json"
        command, seconds = self.command(module, request, answer), self.seconds_left
        ended = launch(command, seconds)
        if ended.code == 0 and answer.is_file():
            return json.loads(answer.read_text(encoding="utf-8"))
        return {"failed": why(ended, seconds)}


# ---- Sections: each returns what report.py draws, with ``failed`` (a sentence) or ``wrong`` (several) where it has to


def environment(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Look at the machine."""
    return ask("environment")


def paths(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Compare packed rows with padded batches for each work."""
    found: dict[str, Any] = {"works": {}, "wrong": []}
    for name in args.works:
        if reason := obstacle(name):
            found["works"][name] = {"failed": reason}
            continue
        answer = ask("paths", work=name, steps=1)
        found["works"][name] = answer
        if "failed" in answer:
            found["wrong"].append(f"{name}: {answer['failed']}")
        elif not all(check["agrees"] for check in answer["checks"]):
            found["wrong"].append(f"{name}: packed rows and padded batches disagree")
    return found


def works(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Run the trainers of each work in alternation; a work gets its share of the time that is left."""
    found: dict[str, Any] = {"works": [], "wrong": []}
    for number, name in enumerate(args.works):
        work: dict[str, Any] = {"name": name, "runs": [], "trainers": {}, "differences": []}
        found["works"].append(work)
        if reason := obstacle(name):
            work["failed"] = reason
            continue
        ends_s = time.monotonic() + ask.seconds_left / (len(args.works) - number)
        for run in runs(ask, args, name, ends_s):
            if "work" in run:
                work |= run.pop("work")
            work["runs"].append(run)
        found["works"][number] = work
        if all("failed" in run for run in work["runs"]):
            found["wrong"] += [f"{name}: {run['failed']}" for run in work["runs"][:1]] or [f"{name}: no time left"]
            continue
        work["trainers"], work["differences"] = summarise(work), differences(work)
        found["wrong"] += [f"{name}: {difference}" for difference in work["differences"]]
    return found


def obstacle(work: str) -> str | None:
    """Return why a work cannot be run here."""
    if "qlora" in work and missing(["bitsandbytes"]):
        return "skipped: bitsandbytes is not installed"
    return None


def runs(ask: Asker, args: argparse.Namespace, name: str, ends_s: float) -> Iterator[dict[str, Any]]:
    """Run the trainers of a work in alternation, each with the longest micro-batches that fit.

    Args:
        ask: Runs a worker.
        args: The command line.
        name: The work.
        ends_s: No run but the first starts that may end later (monotonic clock), judged by the longest so far.

    Yields:
        Answers of worker.py, with ``trainer`` and ``micro_batch``.
    """
    halvings = dict.fromkeys(args.trainers, 0)
    waiting, longest_s, profiled = args.trainers * args.repeats, 0.0, False
    while waiting:
        started_s = time.monotonic()
        if longest_s and started_s + longest_s > ends_s:
            say(f"no time left for {', '.join(waiting)}")
            return
        trainer = waiting.pop(0)
        request = {
            "work": name,
            "trainer": trainer,
            "halvings": halvings[trainer],
            "steps": WARM_UP_STEPS + args.steps + 1,
            "pairs": args.pairs,
            "plain": args.plain,
            "profiled": trainer == "ours" and not profiled,
        }
        run = ask("worker", **request) | {"trainer": trainer}
        profiled = profiled or (request["profiled"] and "failed" not in run)
        longest_s = max(longest_s, time.monotonic() - started_s)
        say(f"{name}, {LABELS[trainer]}: {in_short(run)}")
        fits_less = run.get("micro_batch", 2) > 1 and halvings[trainer] < HALVINGS and not is_ours(trainer)
        if run.get("failed") == "out of memory" and fits_less:
            halvings[trainer] += 1
            waiting.insert(0, trainer)
        else:
            yield run


def in_short(run: dict[str, Any]) -> str:
    """Summarise a run in one line."""
    return run.get("failed") or f"{' '.join(f'{step_s:.3g}' for step_s in run['step_s'])} s, {run['layout']}"


def tests(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Run tests/gpu, counting outcomes line by line, so that a run that is cut short counts, too."""
    if missing(["pytest", "hypothesis"]):
        return {"failed": "skipped: pytest or hypothesis is not installed"}
    seconds = ask.seconds_left
    chosen = "gpu and not slow" if ask.common["device"] == "cuda" else "not gpu and not slow"
    ended = launch([sys.executable, "-m", "pytest", "tests/gpu", "-m", chosen, *PYTEST], seconds)
    found = outcomes_in(ended.output)
    if ended.code is None:
        found["wrong"].append(f"tests/gpu was not done after {seconds:.0f} s")
    elif ended.code not in (0, 1):
        found["wrong"].append(f"pytest ended with {ended.code}: {why(ended, seconds)}")
    return found


PYTEST = ["-v", "--tb=line", "-rfE", "-p", "no:cacheprovider", "--durations=0", "--color=no"]


def outcomes_in(output: str) -> dict[str, Any]:
    """Return ``counts`` by outcome and, in ``wrong``, what failed, from what pytest printed."""
    outcomes = dict(match.groups() for match in map(OUTCOME.match, output.splitlines()) if match)
    reasons = dict(match.groups() for match in map(REASON.match, output.splitlines()) if match)
    counts: dict[str, int] = {}
    for outcome in outcomes.values():
        counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
    bad = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    return {"counts": counts, "wrong": [f"`{name}`: {(reasons.get(name) or 'failed')[:160]}" for name in bad]}


def restart(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Kill a run, resume it, and compare it with two that were not killed.

    All of them compute in processes of their own, which begin alike: what this one has computed before decides nothing.
    """
    request = {"work": "0.5b-lora-8-pairs", "folder": str(ask.folder)}
    undisturbed = ask.apart("restart", **request, role="undisturbed")
    if "failed" in undisturbed:
        return undisturbed
    answer, seconds = ask.folder / "killed.json", ask.seconds_left
    killed = launch(ask.command("restart", request | {"role": "killed"}, answer), seconds)
    if killed.code != -signal.SIGKILL:
        return {"failed": f"the run that should kill itself did not: {why(killed, seconds)}"}
    resumed = ask.apart("restart", **request, role="resumed")
    if "failed" in resumed:
        return resumed
    first, second = undisturbed["runs"]
    found = {"layout": first["layout"], "repeated": apart_in(second, first), "wrong": []}
    found["resumed"] = apart_in(resumed["runs"][0], first)
    layout = resumed["runs"][0]["layout"]
    if layout != first["layout"]:
        found["wrong"].append(f"the resumed run computes on {layout}, undisturbed ones on {first['layout']}")
    if found["resumed"]["files"] and not found["repeated"]["files"]:
        apart = f"undisturbed runs have the same bytes, the resumed one has others; {losses_apart(resumed, first)}"
        found["wrong"].append(apart)
    return found


def losses_apart(resumed: dict[str, Any], first: dict[str, Any]) -> str:
    """Say in which steps the losses of a resumed run differ; before the checkpoint they are those of the killed one."""
    (run,) = resumed["runs"]
    steps = [step for step in first["loss"] if run["loss"].get(step) != first["loss"][step]]
    return f"losses differ in step {', '.join(steps)}" if steps else "no loss differs"


def apart_in(run: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the ``files`` in which two runs differ, and the largest relative difference of a ``loss``."""
    names = sorted({*run["files"], *other["files"]})
    loss = max(abs(run["loss"][step] / other["loss"][step] - 1) for step in other["loss"])
    return {"files": [name for name in names if run["files"].get(name) != other["files"].get(name)], "loss": loss}


def processes(ask: Asker, args: argparse.Namespace) -> dict[str, Any]:
    """Train in two processes and in one, in float32; losses may differ by the order of sums."""
    request = {"work": "0.5b-lora-8-pairs"}
    alone = ask("processes", **request)
    if "failed" in alone:
        return alone
    answer, seconds = ask.folder / "two.json", ask.seconds_left
    command = ask.command("processes", request, answer)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    local = ("0", "1") if alone["cards"] > 1 else ("0", "0")
    ranks = [
        start(command, common | {"RANK": rank, "LOCAL_RANK": card}) for rank, card in zip("01", local, strict=True)
    ]
    ended = wait_for(ranks, seconds)
    if not answer.is_file() or any(one.code != 0 for one in ended):
        return {"failed": next(why(one, seconds) for one in ended if one.code != 0)}
    both = json.loads(answer.read_text(encoding="utf-8"))
    found = {"alone": alone, "both": both, "wrong": []}
    for name, allowed in (("loss", 1e-5), ("grad_norm", 1e-3)):
        apart = max(abs(a / b - 1) for a, b in zip(both[name], alone[name], strict=True))
        found[name] = apart
        if not apart <= allowed:
            found["wrong"].append(f"{name} differs by {apart:.2g}; allowed: {allowed:g}")
    return found


RUN: dict[str, Callable[[Asker, argparse.Namespace], dict[str, Any]]] = {name: globals()[name] for name in SECTIONS}


# ---- The whole


def missing(names: list[str] | None = None) -> list[str]:
    """Return which packages are missing or too old, of Oddsmith's own dependencies by default.

    The numbers of a version are compared one by one; nothing but the standard library is needed.
    """
    needed = names or tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    found = []
    for requirement in needed:
        name, _, least = requirement.partition(">=")
        try:
            present = version(name)
        except PackageNotFoundError:
            found.append(f"{requirement} is not installed")
            continue
        numbers, lowest = (tuple(int(n) for n in re.findall(r"\d+", text)[:3]) for text in (present, least))
        if numbers < lowest:
            found.append(f"{requirement} is needed, {present} is installed")
    return found


def device_of(args: argparse.Namespace) -> str:
    """Return the device: the one asked for, or a GPU where PyTorch sees one, found in a process of its own.

    A process that has opened a GPU holds memory of it.
    """
    if args.device:
        return args.device
    asked = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    return "cuda" if launch([sys.executable, "-c", asked], 120).code == 0 else "cpu"


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the sections one after another, and write the results after each; return the document of report.py."""
    device = device_of(args)
    document: dict[str, Any] = {
        "command": " ".join(["benchmarks/on_gpu/first_minutes.sh", *(Path(word).name for word in sys.argv[1:])]),
        "date": date.today().isoformat(),
        "commit": commit(),
        "device": device,
        "toy": args.toy or device == "cpu",
        "sections": {},
    }
    common = {"device": device, "toy": document["toy"], "seed": args.seed}
    scale = 1.0 if args.minutes is None else 60 * args.minutes / sum(SECTIONS[name] for name in args.sections)
    began_s, allotted_s = time.monotonic(), 0.0
    for name in [name for name in SECTIONS if name in args.sections]:
        allotted_s += SECTIONS[name] * scale
        say(f"== {name}, until {began_s + allotted_s - time.monotonic():.0f} s from now")
        started_s = time.monotonic()
        try:
            found = RUN[name](Asker(folder, common, began_s + allotted_s), args)
        except Exception as error:  # noqa: BLE001  the other sections have to run
            found = {"failed": f"{type(error).__name__}: {error}"[:300]}
        document["sections"][name] = found | {"seconds": time.monotonic() - started_s}
        say(f"   {found.get('failed') or '; '.join(found.get('wrong', [])) or 'fine'}")
        output_of(args, document).write_text(results_file(document), encoding="utf-8")
    return document


def commit() -> str:
    """Return the commit that is measured, and whether files differ from it; "unknown" in a copy without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks", "tests")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
    except OSError:
        return "unknown"


def output_of(args: argparse.Namespace, document: dict[str, Any]) -> Path:
    """Return the results file: by default named after card and day; a toy's goes to the folder for throwaway files."""
    if args.output:
        return args.output
    card = document["sections"].get("environment", {}).get("card", {}).get("name") or document["device"]
    name = f"gpu_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}_{document['date']}.md"
    return (Path(tempfile.gettempdir()) if document["toy"] else FOLDER / "results") / name


def say(text: str) -> None:
    """Print progress, out of the way of the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Look for what is missing, measure, print, write."""
    args = arguments()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if lacks := missing():
        say("Oddsmith cannot run here:\n  " + "\n  ".join(lacks))
        say("Install them (first_minutes.sh --pip), or carry them as wheels (--wheels FOLDER; benchmarks/README.md).")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        document = measure(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(results_file(document))
    say(f"written: {output_of(args, document)}")
    return 1 if any(found.get("failed") or found.get("wrong") for found in document["sections"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
