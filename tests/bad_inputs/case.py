"""One mistake of a user: the files in the folder, the command, the error message."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Content of a file, or a function that is called with its path.
Content = str | bytes | Callable[[Path], object]

# Valid unless a row of the table says otherwise.
CONFIG = "model_name_or_path: model\ndataset_name: pairs.jsonl\noutput_dir: out\nuse_cpu: true\nbf16: false\n"
GOOD = {"prompt": "Why?", "chosen": " Because.", "rejected": " No."}


class BadInput(NamedTuple):
    """A row of the table."""

    done: str  # what the user did
    words: str  # what was typed after ``oddsmith``
    message: str  # the error without "error: "; ``...`` stands for what depends on machine or libraries
    files: Mapping[str, Content] = {}  # what the folder holds besides, or instead, by name
    code: int = 2  # the exit code
    without: tuple[str, ...] = ()  # packages that are not installed
    flags: str = ""  # what is to be added to the command, which the next line repeats

    def lay_out(self, place: Path, model: Path) -> None:
        """Fill the empty folder that the command runs in: c.yaml, pairs.jsonl, model, and what this row changes."""
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
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def twice(**changed: Any) -> dict[str, Content]:
    """Return a file of two pairs with some columns changed."""
    return {"pairs.jsonl": lines(*[{**GOOD, **changed}] * 2)}


def folder(path: Path) -> None:
    """Make an empty folder."""
    path.mkdir()


def gone(path: Path) -> None:
    """Remove the file."""
    path.unlink()
