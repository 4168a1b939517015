"""Prints docs/errors.md: ``python -m tests.bad_inputs > docs/errors.md``."""

from __future__ import annotations

from tests.bad_inputs import GROUPS
from tests.bad_inputs.case import CONFIG

LONGEST_COMMAND = 110


def page() -> str:
    """The text of docs/errors.md."""
    count = sum(len(cases) for cases in GROUPS.values())
    parts = [
        "# What is said when something is wrong",
        f"{count} things that can be wrong, and the answer to each. Every row is a test"
        " (`tests/integration/test_bad_inputs.py`): the message is what is printed after `error: `, in one line;"
        " the exit code is 2; nothing in the folder is changed or lost. `...` stands for what depends on the machine or"
        " on a library. Printed from `tests/bad_inputs` by `python -m tests.bad_inputs > docs/errors.md`.",
        "Exit codes: 0 done, 1 failed while running, 2 bad usage or bad input, 3 a check said no, 75 interrupted and"
        ' resumable, 130 interrupted twice. With `--json`, stdout has `{"error": ..., "kind": ..., "exit_code": ...}`.'
        " `--traceback` shows where in the code an error came from.",
        f"Where nothing else is said, `c.yaml` is sound, and so are `pairs.jsonl` and the folder `model` beside it:\n\n"
        f"```yaml\n{CONFIG}```",
    ]
    for group, cases in GROUPS.items():
        rows = [f"| {_cell(case.done)} | `{_command(case.words)}` | {_cell(case.message)} |" for case in cases]
        head = "| somebody ... | types `oddsmith ...` | and is told |\n|---|---|---|"
        parts.append(f"## {group}\n\n{head}\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _command(words: str) -> str:
    shown = words if len(words) <= LONGEST_COMMAND else f"{words[:LONGEST_COMMAND]}..."
    return shown.replace("|", "\\|")


def _cell(text: str) -> str:
    """Text as a cell of a table holds it."""
    for mark in ("\\", "`", "|", "<", "*", "["):
        text = text.replace(mark, f"\\{mark}")
    return text


if __name__ == "__main__":
    print(page(), end="")
