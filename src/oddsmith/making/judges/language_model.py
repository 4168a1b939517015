"""Score answers by the verdicts of a language model behind a server of OpenAI's interface, at temperature 0.

    judge:MODEL@SERVER    every two answers to a question are compared, in both orders: n (n - 1) requests
                          score = (wins + ties / 2) / comparisons, from 0 to 1
                          a win needs the same verdict in both orders; all else that is readable is a tie
    rubric:MODEL@SERVER   each answer gets a whole number from 1 to 10: n requests

Verdicts that change with the order are counted, as are those that cannot be read, which decide nothing. Answers that
are alike are asked about once. A text that is too long is not cut: the answer, or all answers to the question, have no
score.

Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685 (both orders, ties).
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from ...errors import ConfigError
from ..openai_client import ChatServer, Refusal, Reply
from ..records import Answer, Question, Score, digest_of
from .alike import squeezed
from .verdicts import TIE, request, score_in, verdict_in

LONGEST_ANSWER, LONGEST_QUESTION = 32_000, 64_000  # characters
CHANGED, UNREADABLE, REFUSED = "verdicts that changed with the order", "unreadable verdicts", "refused requests"
COMPARED = "comparisons"
AT_ONCE = 256  # questions whose requests are listed together

_NAME = re.compile(r"(.+?)@(https?://.+)", re.IGNORECASE | re.DOTALL)


@dataclass
class _Asked:
    """A question whose verdicts are being collected."""

    question: Question
    answers: Sequence[Answer]
    texts: list[str]  # those that are judged, each once
    missing: int = 0  # verdicts that are to come
    verdicts: dict[tuple[int, ...], str | int | None] = field(default_factory=dict)  # by the answers, as shown
    counts: Counter[str] = field(default_factory=Counter)


class LanguageModelJudge:
    """A judge that asks a language model.

    Args:
        name: Its name.
        server: Where the model is.
        model: The server's name of it.
        is_rubric: Whether answers are rated one by one, not compared.
    """

    def __init__(self, name: str, server: ChatServer, model: str, *, is_rubric: bool):
        self.name, self._server, self._model, self._is_rubric = name, server, model, is_rubric
        self._is_structured = True  # until the server refuses to enforce the form of a verdict
        self._is_proven = False  # that it does not refuse

    def basis(self, question: Question) -> str:
        """Return a digest of what the model is told, with blank answers."""
        blank = [""] if self._is_rubric else ["", ""]
        return digest_of(request(self._model, question.messages, blank, is_structured=False))

    def score(self, questions: Sequence[tuple[Question, Sequence[Answer]]]) -> Iterator[tuple[int, Sequence[Score]]]:
        """Score the answers to many questions; each comes when its last verdict is there.

        A server that cannot be used, or not any more, is a ``ServerError``.
        """
        for start in range(0, len(questions), AT_ONCE):
            for position, scores in self._score(questions[start : start + AT_ONCE]):
                yield start + position, scores

    def _score(self, questions: Sequence[tuple[Question, Sequence[Answer]]]) -> Iterator[tuple[int, Sequence[Score]]]:
        asked = [self._asked(question, answers) for question, answers in questions]
        waiting: deque[tuple[int, tuple[int, ...]]] = deque()
        for position, one in enumerate(asked):
            shown = range(len(one.texts))
            keys = list(permutations(shown, 1 if self._is_rubric else 2))
            one.missing = len(keys)
            waiting += [(position, key) for key in keys]
            if not keys:
                yield position, self._scores(one)
        while waiting:
            sent: list[tuple[int, tuple[int, ...], bool]] = []
            again: list[tuple[int, tuple[int, ...]]] = []
            for number, reply in self._server.ask_all(self._bodies(asked, waiting, sent)):
                position, key, was_structured = sent[number]
                if was_structured and not self._is_proven and isinstance(reply, Refusal):
                    self._is_structured = False
                    again.append((position, key))
                    continue
                self._is_proven = self._is_proven or (was_structured and isinstance(reply, Reply))
                one = asked[position]
                one.verdicts[key] = self._read(one, reply)
                one.missing -= 1
                if not one.missing:
                    yield position, self._scores(one)
            waiting.extend(again)

    def _asked(self, question: Question, answers: Sequence[Answer]) -> _Asked:
        texts: dict[str, str] = {}
        if sum(len(message["content"]) for message in question.messages) <= LONGEST_QUESTION:
            for answer in answers:
                if len(answer.text) <= LONGEST_ANSWER:
                    texts.setdefault(squeezed(answer.text), answer.text)
        return _Asked(question, answers, list(texts.values()))

    def _bodies(
        self,
        asked: Sequence[_Asked],
        waiting: deque[tuple[int, tuple[int, ...]]],
        sent: list[tuple[int, tuple[int, ...], bool]],
    ) -> Iterator[dict]:
        """Take what is waiting, one after the other, and note what was sent."""
        while waiting:
            position, key = waiting.popleft()
            sent.append((position, key, self._is_structured))
            one = asked[position]
            texts = [one.texts[place] for place in key]
            yield request(self._model, one.question.messages, texts, is_structured=self._is_structured)

    def _read(self, one: _Asked, reply: Reply | Refusal) -> str | int | None:
        if isinstance(reply, Refusal):
            one.counts[REFUSED] += 1
            return None
        verdict = score_in(reply.text) if self._is_rubric else verdict_in(reply.text)
        if verdict is None:
            one.counts[UNREADABLE] += 1
        return verdict

    def _scores(self, one: _Asked) -> list[Score]:
        """Return a score for each answer, those that are alike the same; counts stand in the first."""
        given = self._ratings(one) if self._is_rubric else _shares(one)
        by_text = {squeezed(text): score for text, score in zip(one.texts, given, strict=True)}
        too_long = Score(None, f"answer or question longer than {LONGEST_ANSWER:,} or {LONGEST_QUESTION:,} characters")
        scores = [by_text.get(squeezed(answer.text), too_long) for answer in one.answers]
        if scores and one.counts:
            scores[0] = Score(scores[0].value, scores[0].reason, dict(one.counts))
        return scores

    def _ratings(self, one: _Asked) -> list[Score]:
        scores = []
        for place in range(len(one.texts)):
            rating = one.verdicts[place,]
            scores.append(Score(None, "no readable verdict") if rating is None else Score(float(rating)))
        return scores


def _shares(one: _Asked) -> list[Score]:
    """Return the share of its comparisons that each answer won, ties being half; None where none was readable."""
    number = len(one.texts)
    if number == 1:
        return [Score(0.5, "all answers are alike")]
    points, told = [0.0] * number, [0] * number
    for first in range(number):
        for second in range(first + 1, number):
            verdicts = one.verdicts[first, second], one.verdicts[second, first]
            if None in verdicts:
                continue
            one.counts[COMPARED] += 1
            one.counts[CHANGED] += verdicts[0] == verdicts[1] != TIE
            won = 1.0 if verdicts == ("A", "B") else 0.0 if verdicts == ("B", "A") else 0.5
            for place, share in ((first, won), (second, 1 - won)):
                points[place] += share
                told[place] += 1
    return [
        Score(points[place] / told[place], f"{points[place]:g} of {told[place]}")
        if told[place]
        else Score(None, "no readable verdict")
        for place in range(number)
    ]


def open_judge(kind: str, rest: str, *, name: str, concurrency: int) -> LanguageModelJudge:
    """Open ``judge:MODEL@SERVER`` or ``rubric:MODEL@SERVER``.

    A name without model or server is a ``ConfigError``; where nobody answers, that is a ``ServerError``.
    """
    match = _NAME.fullmatch(rest)
    if match is None:
        raise ConfigError(f"{name}: names no server; expected {kind}:MODEL@http://127.0.0.1:8000/v1")
    server = ChatServer(match[2], concurrency=concurrency)
    server.models()  # raises where nobody answers; names in its list are often not the only ones that it takes
    return LanguageModelJudge(name, server, match[1], is_rubric=kind == "rubric")
