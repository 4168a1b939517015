"""Ask for answers and scores until all are there; each goes into the log as it comes, and none is asked for twice."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..system.secrets import masked
from .answers.drawing import Answerer
from .combining import Judged
from .log import Log
from .records import Answer, Asked, Judge, Question, Score, Verdict

UNJUDGED = Score(None, "not asked")


class Source(NamedTuple):
    """Where answers come from, loaded when one is missing: a model takes seconds to load."""

    name: str
    load: Callable[[], Answerer]
    samples: int | None  # of each question; None where they are given, and as many as there are
    is_here: bool = False  # a model that this machine has, and may train


class Progress(NamedTuple):
    """How far a source or a judge is."""

    doing: str  # "answering" or "judging"
    who: str
    done: int
    total: int | None


OnProgress = Callable[[Progress], None]


def ask(questions: Sequence[Question], sources: Sequence[Source], log: Log, on_progress: OnProgress) -> None:
    """Ask each source for the answers that the log has not; errors are those of the sources and of the log."""
    for source in sources:
        total = None if source.samples is None else source.samples * len(questions)
        known = log.known(source.name) if source.samples is not None else set()
        if total is not None and len(known) >= total:
            continue
        on_progress(Progress("loading", source.name, 0, None))
        for done, given in enumerate(source.load().answers(questions, known), len(known) + 1):
            log.add(given)
            on_progress(Progress("answering", source.name, done, total))
        gc.collect()  # a model holds itself in cycles, and the next one wants its memory


def judge_all(
    questions: Sequence[Question], models: Sequence[str], judges: Sequence[Judge], log: Log, on_progress: OnProgress
) -> None:
    """Ask each judge for the scores that the log has not on its basis; raise what the judges and the log raise."""
    everything = [(question, answers) for question, answers in answered(questions, models, log) if answers]
    for judge in judges:
        asked = [_asked(judge, question, answers, log) for question, answers in everything]
        asked = [one for one in asked if one.missing]
        missing = [set(one.missing) for one in asked]
        done = len(everything) - len(asked)
        for position, said in judge.score(asked) if asked else ():
            one, basis = asked[position], judge.basis(asked[position].question)
            if isinstance(said, Verdict):
                log.add_verdict(judge.name, basis, one.question.key, said)
                continue
            log.add_scores(judge.name, basis, [one.answers[place] for place in said], list(said.values()))
            was_missing = bool(missing[position])
            missing[position] -= said.keys()
            if was_missing and not missing[position]:
                done += 1
                on_progress(Progress("judging", judge.name, done, len(everything)))
        gc.collect()


def _asked(judge: Judge, question: Question, answers: Sequence[Answer], log: Log) -> Asked:
    basis = judge.basis(question)
    scores, bases = log.scores.get(judge.name, {}), log.bases.get(judge.name, {})
    keys = map(_key, answers)
    known = [scores[key] if bases.get(key) == basis else None for key in keys]
    return Asked(question, answers, known, log.verdicts.get((judge.name, basis, question.key), {}))


def answered(questions: Sequence[Question], models: Sequence[str], log: Log) -> list[tuple[Question, list[Answer]]]:
    """Return each question with its answers, in an order that does not depend on when they came."""
    rank = {model: place for place, model in enumerate(models)}
    found: dict[str, list[Answer]] = {}
    for answer in log.answers.values():
        found.setdefault(answer.question, []).append(answer)
    for answers in found.values():
        answers.sort(key=lambda answer: (rank.get(answer.model, len(rank)), answer.model, answer.sample))
    return [(question, found.get(question.key, [])) for question in questions]


def judged(questions: Sequence[Question], models: Sequence[str], judges: Sequence[str], log: Log) -> list[Judged]:
    """Return each question with its answers and what each judge says of them, as the log has them."""
    return [
        Judged(
            question,
            answers,
            {name: [log.scores.get(name, {}).get(_key(answer), UNJUDGED) for answer in answers] for name in judges},
        )
        for question, answers in answered(questions, models, log)
    ]


@dataclass(frozen=True)
class Counts:
    """How much a log holds of what was asked for."""

    answers: int
    cut: int  # of the answers, those that the model did not end
    tokens: int  # of the answers whose tokens are known
    unanswered: Mapping[str, int]  # by the reason

    @classmethod
    def of(cls, log: Log) -> Counts:
        """Count what is in a log."""
        answers = log.answers.values()
        return cls(
            len(answers),
            sum(not answer.is_finished for answer in answers),
            sum(answer.tokens or 0 for answer in answers),
            dict(Counter(one.reason for one in log.unanswered.values())),
        )


def stated(value: object) -> str:
    """Return a setting as the log states it, without secrets."""
    return masked(str(value))


def _key(answer: Answer) -> tuple[str, str, int]:
    return answer.question, answer.model, answer.sample
