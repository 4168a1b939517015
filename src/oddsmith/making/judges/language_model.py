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
from ..records import Answer, Asked, Question, Said, Score, Verdict, digest_of
from .alike import squeezed
from .verdicts import TIE, Form, request, score_in, verdict_in

LONGEST_ANSWER, LONGEST_QUESTION = 32_000, 64_000  # characters
CHANGED, UNREADABLE, REFUSED = "verdicts that changed with the order", "unreadable verdicts", "refused requests"
COMPARED = "comparisons"
AT_ONCE = 256  # questions whose requests are listed together

_NAME = re.compile(r"(.+?)@(https?://.+)", re.IGNORECASE | re.DOTALL)


@dataclass
class _Case:
    """A question whose verdicts are being collected."""

    answers: Sequence[Answer]
    asked: Asked
    texts: list[str]  # those that are judged, each once
    missing: int = 0  # verdicts that are to come
    verdicts: dict[tuple[int, ...], Verdict] = field(default_factory=dict)  # by the answers, as shown
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
        self._forms = list(Form)  # of a verdict, that the server may enforce; the first is asked for
        self._is_proven = False  # that the server does not refuse it

    def basis(self, question: Question) -> str:
        """Return a digest of what the model is told, with blank answers."""
        blank = [""] if self._is_rubric else ["", ""]
        return digest_of(request(self._model, question.messages, blank, Form.TEXT))

    def score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        """Score the answers to many questions; verdicts come as they are given, scores with the last of a question.

        A server that cannot be used, or not any more, is a ``ServerError``.
        """
        for start in range(0, len(asked), AT_ONCE):
            for position, said in self._score(asked[start : start + AT_ONCE]):
                yield start + position, said

    def _score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        cases = [self._case(one) for one in asked]
        waiting: deque[tuple[int, tuple[int, ...]]] = deque()
        for position, case in enumerate(cases):
            keys = [key for key in self._keys(case) if key not in case.verdicts]
            case.missing = len(keys)
            waiting += [(position, key) for key in keys]
            if not keys:
                yield position, self._scores(case)
        while waiting:
            sent: list[tuple[int, tuple[int, ...], Form]] = []
            again: list[tuple[int, tuple[int, ...]]] = []
            for number, reply in self._server.ask_all(self._bodies(cases, waiting, sent)):
                position, key, form = sent[number]
                if form != Form.TEXT and not self._is_proven and isinstance(reply, Refusal):
                    self._forms = [one for one in self._forms if one > form]
                    again.append((position, key))
                    continue
                self._is_proven = self._is_proven or (form == self._forms[0] and isinstance(reply, Reply))
                case = cases[position]
                case.verdicts[key] = self._read(_shown(case, key), reply)
                case.missing -= 1
                if isinstance(reply, Reply) or reply.is_final:
                    yield position, case.verdicts[key]
                if not case.missing:
                    yield position, self._scores(case)
            waiting.extend(again)

    def _case(self, asked: Asked) -> _Case:
        texts: dict[str, str] = {}
        if sum(len(message["content"]) for message in asked.question.messages) <= LONGEST_QUESTION:
            for answer in asked.answers:
                if len(answer.text) <= LONGEST_ANSWER:
                    texts.setdefault(squeezed(answer.text), answer.text)
        case = _Case(asked.answers, asked, list(texts.values()))
        known = {key: asked.verdicts.get(_shown(case, key)) for key in self._keys(case)}
        case.verdicts = {key: verdict for key, verdict in known.items() if verdict is not None}
        return case

    def _keys(self, case: _Case) -> list[tuple[int, ...]]:
        """Return what is shown at once, by places in the texts."""
        return list(permutations(range(len(case.texts)), 1 if self._is_rubric else 2))

    def _bodies(
        self,
        cases: Sequence[_Case],
        waiting: deque[tuple[int, tuple[int, ...]]],
        sent: list[tuple[int, tuple[int, ...], Form]],
    ) -> Iterator[dict]:
        """Take what is waiting, one after the other, and note what was sent."""
        while waiting:
            position, key = waiting.popleft()
            form, case = self._forms[0], cases[position]
            sent.append((position, key, form))
            yield request(self._model, case.asked.question.messages, [case.texts[place] for place in key], form)

    def _read(self, shown: str, reply: Reply | Refusal) -> Verdict:
        if isinstance(reply, Refusal):
            return Verdict(shown, None, REFUSED)
        value = score_in(reply.text) if self._is_rubric else verdict_in(reply.text)
        return Verdict(shown, value, UNREADABLE if value is None else "")

    def _scores(self, case: _Case) -> dict[int, Score]:
        """Return a score for each answer, those that are alike the same; counts stand in the first."""
        case.counts.update(verdict.fault for verdict in case.verdicts.values() if verdict.fault)
        given = self._ratings(case) if self._is_rubric else _shares(case)
        by_text = {squeezed(text): score for text, score in zip(case.texts, given, strict=True)}
        too_long = Score(None, f"answer or question longer than {LONGEST_ANSWER:,} or {LONGEST_QUESTION:,} characters")
        scores = [by_text.get(squeezed(answer.text), too_long) for answer in case.answers]
        if scores and case.counts:
            scores[0] = Score(scores[0].value, scores[0].reason, dict(case.counts))
        return dict(enumerate(scores))

    def _ratings(self, case: _Case) -> list[Score]:
        ratings = [case.verdicts[place,].value for place in range(len(case.texts))]
        return [Score(None, "no readable verdict") if one is None else Score(float(one)) for one in ratings]


def _shown(case: _Case, key: tuple[int, ...]) -> str:
    """Return a digest of texts as they are shown."""
    return digest_of([case.texts[place] for place in key])


def _shares(case: _Case) -> list[Score]:
    """Return the share of its comparisons that each answer won, ties being half; None where none was readable."""
    number = len(case.texts)
    if number == 1:
        return [Score(0.5, "all answers are alike")]
    points, told = [0.0] * number, [0] * number
    for first in range(number):
        for second in range(first + 1, number):
            verdicts = case.verdicts[first, second].value, case.verdicts[second, first].value
            if None in verdicts:
                continue
            case.counts[COMPARED] += 1
            case.counts[CHANGED] += verdicts[0] == verdicts[1] != TIE
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
