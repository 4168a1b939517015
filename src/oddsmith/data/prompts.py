"""Read prompts, to compare models or to make pairs, from files and datasets.

    a line of a .txt file                          a user's message
    prompt, question, instruction or messages      a user's message, or a conversation that waits for an answer;
                                                   after an instruction Alpaca's input
    a pair, in any format that training takes      its prompt; the pair is kept for the log-odds
    question_id, category, turns                   MT-Bench's question file: messages that follow each other; also
                                                   a prompt that is a list of texts

The prompt of a pair of plain texts is a text to be continued, as in training; every other text is a user's message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, RowError, UndecidedRow
from ..system.outside import read_text
from .formats import PreferencePair, format_of, to_pair
from .formats.messages import SYSTEM_ROLES, Message, to_messages
from .formats.offer import offered_columns
from .sources import load_rows
from .sources.files import require_path

# Columns with the prompt of a row without a pair; the first of them in the row counts.
PROMPT_COLUMNS = ("prompt", "messages", "conversations", "question", "instruction")
TEXT_SUFFIXES = (".txt", ".text", ".md")


@dataclass(frozen=True)
class Prompt:
    """A prompt, with the pair or row that it comes from."""

    number: int  # of its row in the file, from 0
    opening: str | list[Message]  # messages that end with the user's, or a text to be continued
    follow_ups: tuple[str, ...] = ()  # the user's messages after the first answer, the second, ...
    pair: PreferencePair | None = None
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def before(self) -> list[Message]:
        """Return the messages before the first question: a system message, earlier turns."""
        return [] if isinstance(self.opening, str) else self.opening[:-1]

    @property
    def questions(self) -> list[str]:
        """Return the user's message of each turn."""
        first = self.opening if isinstance(self.opening, str) else self.opening[-1]["content"]
        return [first, *self.follow_ups]


def read_prompts(
    name: str,
    split: str = "test",
    columns: Any = None,
    *,
    config: str | None = None,
    choose: Callable[[int], Iterable[int]] = range,
    undecided: bool = False,
) -> list[Prompt]:
    """Read the prompts of a text file, or of any file or dataset that training can read.

    Args:
        name: The file or dataset.
        split: A split of a dataset; a slice of it (``test[:20]``) works for files, too.
        columns: The setting, for columns of other names.
        config: Configuration of a hub dataset.
        choose: Returns which rows are read, for their number; by default all.
        undecided: Whether a comparison without a preference is read as a prompt alone, and not left out.

    Returns:
        The prompts.

    Raises:
        DataError: Nothing is there, or it holds no prompts.
        RowError: A row holds none.
    """
    path = Path(name).expanduser()
    rows: Any = (
        _lines(path)
        if path.suffix.lower() in TEXT_SUFFIXES
        else load_rows(name, config=config, split=split, columns=columns)
    )
    prompts = []
    for number in choose(len(rows)):
        row = rows[number]
        try:
            try:
                prompts.append(_prompt(number, row))
            except UndecidedRow:  # a comparison without a preference has no pair to show
                if undecided:
                    prompts.append(_of_column(number, row))
        except RowError as error:
            raise RowError(error.reason, error.detail, number, name).offering(error.columns) from error
    return prompts


def _lines(path: Path) -> list[dict[str, str]]:
    require_path(path)
    try:
        lines = read_text(path, encoding="utf-8-sig", typed=True).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {getattr(error, 'strerror', None) or error}") from error
    rows = [{"prompt": line} for line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: is empty; expected one prompt per line")
    return rows


def _prompt(number: int, row: Mapping[str, Any]) -> Prompt:
    turns = row.get("prompt")  # of HuggingFaceH4/mt_bench_prompts
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return _of_mt_bench(number, row, turns)
    if "turns" in row and not any(row.get(column) for column in PROMPT_COLUMNS):  # elsewhere it counts them
        return _of_mt_bench(number, row, row["turns"])
    if _is_pair(row):
        pair = to_pair(row)
        return Prompt(number, pair.prompt, pair=pair, row=row)
    return _of_column(number, row)


def _of_column(number: int, row: Mapping[str, Any]) -> Prompt:
    column = next((column for column in PROMPT_COLUMNS if row.get(column) is not None), None)
    if column is None:
        found = ", ".join(map(str, row)) or "none"
        raise RowError(
            "no prompt", f"found the columns {found}; expected a pair, turns, or one of {', '.join(PROMPT_COLUMNS)}"
        ).offering(offered_columns(row))
    asked, more = row[column], row.get("input")
    if column == "instruction" and isinstance(asked, str) and isinstance(more, str) and more.strip():
        asked = f"{asked}\n{more}"  # Alpaca's, as in its pairs
    messages = to_messages(asked, column, "user")
    while messages and messages[-1]["role"] == "assistant":  # the answer that the dataset has
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise RowError("empty prompt", f"{column} is blank; expected a question")
    if messages[-1]["role"] in SYSTEM_ROLES:
        raise RowError("empty prompt", f"{column} ends with a system message; expected a question after it")
    return Prompt(number, messages, row=row)


def _is_pair(row: Mapping[str, Any]) -> bool:
    """Return whether the row is a pair; AlpacaEval's rows are none: they have an instruction and one answer."""
    if isinstance(row.get("output"), str) and "chosen" not in row:
        return False
    try:
        return bool(format_of(row))
    except DataError:
        return False


def _of_mt_bench(number: int, row: Mapping[str, Any], turns: Any) -> Prompt:
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise RowError("malformed turns", "expected a list of questions, as in MT-Bench's question file")
    return Prompt(number, [{"role": "user", "content": turns[0]}], tuple(turns[1:]), row=row)
