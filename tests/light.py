"""Run the command in processes in which torch cannot be imported: ``python -m tests.light`` reads cases as JSON.

    stdin   [{"folder": where, "words": [...], "without": [packages that are not installed]}, ...]
    stdout  [{"code": 2, "out": "...", "err": "error: ...", "heavy": "torch" or null}, ...]

``heavy`` is the first of ``HEAVY`` that a command has tried to import, which ended it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

HEAVY = ("torch", "transformers", "peft", "accelerate")


class TooHeavy(BaseException):
    """A command has tried to import one of ``HEAVY``; no ``Exception``, so that nothing handles it."""


class _Guard(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in HEAVY:
            raise TooHeavy(name)


def run_light(cases: Iterable[tuple[Path, Sequence[str], Sequence[str]]]) -> list[dict[str, Any]]:
    """Run the command in each folder with the words, without the packages; return what each answered."""
    asked = [
        {"folder": str(folder), "words": list(words), "without": list(without)} for folder, words, without in cases
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.light"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout)


def _answer(case: dict[str, Any]) -> dict[str, Any]:
    """Run one case, in a process of its own."""
    from oddsmith.cli.main import main

    os.chdir(case["folder"])
    for package in case["without"]:
        sys.modules[package] = None  # type: ignore[assignment]
    out, err = io.StringIO(), io.StringIO()
    code, heavy = 0, None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(case["words"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        except TooHeavy as found:
            heavy = str(found)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}


def _forked(case: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with open(write, "w", encoding="utf-8") as pipe:
            json.dump(_answer(case), pipe)
        os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def _serve() -> None:
    sys.meta_path.insert(0, _Guard())
    import oddsmith.cli.commands.train.command
    import oddsmith.cli.parsing.first_look
    import oddsmith.data.sources  # noqa: F401 - once, for all cases

    json.dump(list(map(_forked, json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    _serve()
