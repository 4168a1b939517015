"""What the parts of making pairs hand to each other: questions, answers to them, scores of the answers.

All of it is plain data that a line of JSON holds, because each answer and each score is kept in a log as it comes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..data.formats.messages import Message


@dataclass(frozen=True)
class Question:
    """A prompt that is answered several times."""

    key: str  # the same in every run: a digest of its messages
    messages: list[Message]  # end with the user's
    row: Mapping[str, Any] = field(default_factory=dict, repr=False)  # its row, for judges that check against it


@dataclass(frozen=True)
class Answer:
    """One answer to a question."""

    question: str  # its key
    model: str  # who answered
    sample: int  # from 0, among the answers of this model to this question
    text: str
    tokens: int | None = None  # None where it is not known
    is_finished: bool = True  # the model ended it; otherwise it was cut


@dataclass(frozen=True)
class Score:
    """What a judge says of one answer."""

    value: float | None  # higher is better; None: the judge could not tell
    reason: str = ""  # why it could not, or what the value rests on, in a few words
    counts: Mapping[str, int] = field(default_factory=dict)  # what came up, to be added up: {"verdicts unreadable": 1}


@dataclass(frozen=True)
class Verdict:
    """What a judge says of what it was shown once, where scores are made of several."""

    shown: str  # a digest of the answers, in the order in which they were shown
    value: str | int | None  # None: it decides nothing
    fault: str = ""  # why it decides nothing, in words that can be counted


@dataclass(frozen=True)
class Asked:
    """A question, the answers to it, and what a judge has said of them on the same basis before."""

    question: Question
    answers: Sequence[Answer]
    scores: Sequence[Score | None] = ()  # one for each answer, None where there is none; empty: there are none at all
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # by what was shown

    @property
    def missing(self) -> list[int]:
        """Return the places of the answers that have no score."""
        return [place for place in range(len(self.answers)) if not self.scores or self.scores[place] is None]


Said = Mapping[int, Score] | Verdict  # scores by the place of the answer, or a verdict


def digest_of(*parts: Any) -> str:
    """Return a short digest of values that JSON can hold; others are taken as they are written out."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Judge(Protocol):
    """Scores the answers to a question. Values of one judge are on one scale over all questions."""

    name: str  # as it was asked for, without secrets: `rule`, `reward:MODEL`, ...

    def basis(self, question: Question) -> str:
        """Return a digest of what decides on the scores beside name, question and answers: rules, weights, code.

        Scores on another basis are asked for again.
        """
        ...

    def score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        """Score the answers to many questions that have no score yet.

        Args:
            asked: The questions.

        Returns:
            Whatever is done, with the position of its question, as it comes and in any order: it is kept if the
            process ends here, and is in ``asked`` the next time. In the end each answer has a score; a later one
            replaces one that came before.

        Raises:
            OddsmithError: It cannot go on at all: a server is gone, a model does not load, its function raised.
        """
        ...
