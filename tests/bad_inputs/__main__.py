"""Print docs/errors.md: ``python -m tests.bad_inputs > docs/errors.md``."""

from tests.bad_inputs import GROUPS
from tests.bad_inputs.case import CONFIG

LONGEST_COMMAND = 110


def page() -> str:
    """Return the text of docs/errors.md."""
    count = sum(len(cases) for cases in GROUPS.values())
    parts = [
        "# Error messages",
        f"{count} mistakes, and the error message for each. Every row is a test"
        " (`tests/integration/test_bad_inputs.py`): the message is printed after `error: ` in one line, the exit code"
        " is 2, and nothing in the folder is changed or lost. `...` stands for what depends on the machine or on a"
        " library. This page is generated from `tests/bad_inputs` by `python -m tests.bad_inputs > docs/errors.md`.",
        "Exit codes: 0 done, 1 failed while running, 2 bad usage or bad input, 3 a check failed, 4 a check could not"
        " tell, 75 interrupted and resumable, 130 interrupted twice, 141 the reader of stdout left."
        ' With `--json`, stdout has `{"error": ..., "kind": ..., "exit_code": ...}`.'
        " `--traceback` shows where in the code an error came from. Where columns have other names, the next line is"
        " the command with `--columns`, as it is offered in the last column, to be pasted.",
        "Unless the row says otherwise, `c.yaml` is valid, and so are `pairs.jsonl` and the folder `model` beside it:"
        f"\n\n```yaml\n{CONFIG}```",
    ]
    for group, cases in GROUPS.items():
        rows = [
            f"| {_cell(case.done)} | `{_command(case.words)}` | {_cell(case.message)}{_offer(case.flags)} |"
            for case in cases
        ]
        head = "| A user ... | types `oddsmith ...` | and reads |\n|---|---|---|"
        parts.append(f"## {group}\n\n{head}\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _command(words: str) -> str:
    shown = words if len(words) <= LONGEST_COMMAND else f"{words[:LONGEST_COMMAND]}..."
    return shown.replace("|", "\\|")


def _offer(flags: str) -> str:
    return f" (offered: `{flags}`)" if flags else ""


def _cell(text: str) -> str:
    """Escape text for a cell of a table."""
    for mark in ("\\", "`", "|", "<", "*", "["):
        text = text.replace(mark, f"\\{mark}")
    return text


if __name__ == "__main__":
    print(page(), end="")
