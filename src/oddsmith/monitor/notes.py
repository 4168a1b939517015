"""Keep the names and notes that a person gives to runs, in a file beside the run folders and never in them.

    RUNS/
      _monitor_notes.json      {"notes": {"run-1": {"name": "the one to keep", "note": "longer answers"}}}
      run-1/

The key is the name of the run folder, so the folder of runs can be moved. The notes of a file in a run folder are those
of the run folder.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, NotAFileError
from ..system.files import replacing
from ..system.outside import open_file
from ..system.strict_json import read_object
from .events import text
from .files import stamps

NOTES_FILE = "_monitor_notes.json"
MAX_NAME, MAX_NOTE = 200, 10_000  # characters
MAX_NOTES = 2000  # of a folder; beyond, the oldest is dropped
MAX_NOTES_BYTES = 32_000_000

_writing = threading.Lock()


class Note(NamedTuple):
    """What a person wrote of a run; both may be empty."""

    name: str = ""
    note: str = ""


class Notes:
    """The notes of one folder of runs, read again when their file changes."""

    def __init__(self, folder: Path):
        self._file = folder / NOTES_FILE
        self._stamps: object = None
        self._notes: dict[str, Note] = {}

    def refresh(self) -> bool:
        """Read the file if it has changed; return whether it had. One that cannot be read is tried again."""
        found = stamps([self._file])
        if found == self._stamps:
            return False
        try:
            self._notes = self._read()
        except ValueError:
            self._notes = {}
        except OSError:
            return False
        self._stamps = found
        return True

    def of(self, run: Path) -> Note:
        """Return the note of a run, as of the last refresh."""
        return self._notes.get(_key(run), Note())

    def write(self, run: Path, note: Note) -> None:
        """Keep the note of a run, or drop it where both are empty.

        ``OSError`` where the file cannot be read or written, ``DataError`` where it would be too long, or is damaged:
        what is in it is not thrown away.
        """
        with _writing:
            try:
                notes = self._read()
            except ValueError:
                raise DataError(f"{NOTES_FILE} is damaged; mend or remove it") from None
            notes.pop(_key(run), None)
            if any(note):
                notes[_key(run)] = note
            kept = dict(list(notes.items())[-MAX_NOTES:])
            content = json.dumps({"notes": {key: one._asdict() for key, one in kept.items()}}, indent=1)
            if len(content) >= MAX_NOTES_BYTES:
                raise DataError(f"{NOTES_FILE} would be longer than {MAX_NOTES_BYTES:,} bytes; shorten other notes")
            with replacing(self._file) as partial:
                partial.write_text(content + "\n", encoding="utf-8")

    def _read(self) -> dict[str, Note]:
        """Return the notes in the file, none without one; ``ValueError`` if it is no file of notes."""
        try:
            with open_file(self._file, follow=False) as file:
                content = file.read(MAX_NOTES_BYTES)
        except (FileNotFoundError, NotAFileError):  # a link or a pipe holds no notes of ours
            content = b""
        found: Any = read_object(content.decode("utf-8")).get("notes") if content.strip() else {}
        notes = found.items() if isinstance(found, dict) else ()
        return {key: clean_note(one) for key, one in list(notes)[-MAX_NOTES:] if isinstance(one, dict)}


def clean_note(given: dict[str, Any]) -> Note:
    """Return a note of bounded length; what is no text becomes empty."""
    return Note(text(given.get("name"), MAX_NAME).strip(), text(given.get("note"), MAX_NOTE).strip())


def _key(run: Path) -> str:
    return text(run.name)
