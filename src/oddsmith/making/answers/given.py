"""Read answers that are there already, from a file or dataset.

    prompt, answer              one answer; rows with the same prompt belong together
    prompt, answers             a list of answers: texts, or objects with text, content or generated_text
    ..., model                  who answered; otherwise the name of the file

The prompt is read as in ``questions.py``. Other names of the columns: ``ONE`` and ``SEVERAL``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...data.formats.written import read_text
from ...data.prompts import read_prompts
from ...errors import RowError
from ..questions import Questions, question_of
from ..records import Answer, Question, digest_of
from .drawing import Known, Unanswered

ONE = ("response", "completion", "output", "generation", "answer")  # the last may be the right answer beside another
SEVERAL = ("answers", "responses", "completions", "outputs", "generations", "all_generated_responses")
TEXTS = ("text", "content", "generated_text", "response", "answer")


class GivenAnswers:
    """Answers of a file or dataset, and the questions in it; see ``Answerer``.

    Args:
        name: The file or dataset.
        columns: The setting, for columns of other names.
        system_prompt: System message for prompts that have none.
        models: Names of models that answer as well; their answers of this file are told from those by its name.

    Raises:
        DataError: Nothing is there, or it holds no prompts.
        RowError: A row holds no answer, or one that is no text.
    """

    def __init__(self, name: str, *, columns: Any = None, system_prompt: str | None = None, models: Sequence[str] = ()):
        self.name = Path(name).name
        self._answers: dict[str, list[Answer]] = {}
        asked: dict[str, Question] = {}
        for prompt in read_prompts(name, "train", columns, undecided=True):
            column, texts = _texts(prompt.row, prompt.number, name)
            question = question_of(prompt, system_prompt)
            if question.key not in asked:  # a judge must not take an answer for the right one
                others = {key: value for key, value in question.row.items() if key != column}
                asked[question.key] = replace(question, row=others)
            there = self._answers.setdefault(question.key, [])
            model = prompt.row.get("model")
            model = model if isinstance(model, str) and model else self.name
            model = f"{model} ({self.name})" if model in models else model
            for text in texts:
                sample = sum(one.model == model for one in there)
                there.append(Answer(question.key, model, sample, text))
        self.questions = Questions(list(asked.values()), 0, 0)

    def digest(self) -> str:
        """Return what tells these answers from others."""
        found = [asdict(answer) for answers in self._answers.values() for answer in answers]
        return digest_of(found)

    def answers(self, questions: Sequence[Question], known: Known) -> Iterator[Answer | Unanswered]:
        for question in questions:
            yield from self._answers.get(question.key, ())


def _texts(row: Mapping[str, Any], number: int, name: str) -> tuple[str, list[str]]:
    """Return the column of a row's answers, and their texts."""
    column = next((column for column in (*SEVERAL, *ONE) if row.get(column) is not None), None)
    if column is None:
        expected = "answers (a list) or answer (a text)"
        raise RowError("no answer", f"found the columns {', '.join(map(str, row))}; expected {expected}", number, name)
    given = row[column]
    if column in SEVERAL and isinstance(given, str) and given.lstrip().startswith("["):  # as CSV holds lists
        with suppress(ValueError):
            given = read_text(given)
    texts = [_text(one) for one in (given if isinstance(given, list | tuple) else [given])]
    if not texts or None in texts:
        expected = "a text, or a list of texts or of objects with text"
        raise RowError("malformed answer", f"{column} is not what it should be; expected {expected}", number, name)
    return column, [text for text in texts if text is not None]


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = next((value[key] for key in TEXTS if isinstance(value.get(key), str)), None)
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # messages that end with the answer
        return _text(value[-1])
    return value if isinstance(value, str) else None
