"""One thing a user gets wrong: what lies in the folder, what is typed, what is answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# What a file is made of: its content, or what is called with its path.
Content = str | bytes | Callable[[Path], object]

# What is in order unless a row of the table says otherwise.
CONFIG = "model_name_or_path: model\ndataset_name: pairs.jsonl\noutput_dir: out\nuse_cpu: true\nbf16: false\n"
GOOD = {"prompt": "Why?", "chosen": " Because.", "rejected": " No."}


class BadInput(NamedTuple):
    """A row of the table.

    Args:
        done: What the user did.
        words: What was typed after ``oddsmith``.
        message: What is answered, without "error: "; ``...`` stands for what depends on machine or libraries.
        files: What lies in the folder besides, or instead, by name.
        code: The exit code.
        without: Packages that are not installed.
    """

    done: str
    words: str
    message: str
    files: Mapping[str, Content] = {}
    code: int = 2
    without: tuple[str, ...] = ()

    def lay_out(self, place: Path, model: Path) -> None:
        """Make the folder that the command is typed in: c.yaml, pairs.jsonl and model, and what this row changes.

        Args:
            place: The folder, which is empty.
            model: A sound model folder whose weights are never to be read.
        """
        sound: dict[str, Content] = {
            "c.yaml": CONFIG,
            "pairs.jsonl": lines(*[GOOD] * 4),
            "model": lambda path: shutil.copytree(model, path),
        }
        for name, content in {**sound, **self.files}.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)


def lines(*rows: Any) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def twice(**changed: Any) -> dict[str, Content]:
    """A file of pairs that are sound but for some columns."""
    return {"pairs.jsonl": lines(*[{**GOOD, **changed}] * 2)}


def folder(path: Path) -> None:
    """An empty folder."""
    path.mkdir()


def gone(path: Path) -> None:
    """Nothing, where something would be."""
    path.unlink()
