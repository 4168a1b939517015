"""Choose preference pairs among the scored answers to each question.

    best-worst   the best answer against the worst, then the second best against the second worst, ...
    best-random  the best answer against others, drawn by the seed and the question
    all          every better answer against every worse one, the greatest differences first

A pair's scores differ by more than the margin. Answers that are alike count as one, blank ones and those that a judge
could not score as none, and an answer that was cut is never chosen unless that is asked for.

Matching lengths: each question may then give any pair that ``all`` allows (``best-random``: with its best answer), and
gives those of the greatest

    gap / mean gap - price * (characters of the chosen answer - of the rejected one) / mean of its absolute value

with one price for all questions, sought by bisection so that chosen and rejected answers have the same mean length.
What is then left of a difference (Cohen's d beyond ``BALANCED``) is taken away by leaving out the pairs that differ
most in length that way: up to half of all pairs, and none where that is not enough.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..data.checks.lengths import LengthSums
from ..errors import ConfigError
from .combining import Judged, combined
from .judges.alike import squeezed
from .records import Answer, Question, Score

PAIRINGS = ("best-worst", "best-random", "all")
BALANCED = 0.1  # Cohen's d that is as good as none
HIGHEST_PRICE = 64.0
BISECTIONS = 20


@dataclass(frozen=True)
class PairingRules:
    """How pairs are chosen.

    Args:
        pairing: ``best-worst``, ``best-random`` or ``all``.
        margin: By how much the scores of a pair must differ at least; the difference is greater than that.
        pairs_per_prompt: At most so many pairs of a question; None: one, or with ``all`` any number.
        match_length: Choose pairs in which chosen and rejected answers are equally long on average.
        choose_unfinished: Whether an answer that was cut may be chosen.
        seed: Of what is drawn.
    """

    pairing: str = "best-worst"
    margin: float = 0.0
    pairs_per_prompt: int | None = None
    match_length: bool = False
    choose_unfinished: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ConfigError(f"pairing is {self.pairing!r}; expected one of {', '.join(PAIRINGS)}")
        if not 0 <= self.margin < float("inf"):
            raise ConfigError(f"margin is {self.margin}; expected a number from 0")
        if self.pairs_per_prompt is not None and self.pairs_per_prompt < 1:
            raise ConfigError(f"pairs_per_prompt is {self.pairs_per_prompt}; expected 1 or more")


@dataclass(frozen=True)
class Scored:
    """An answer with its score: combined, and of each judge."""

    answer: Answer
    score: float
    scores: Mapping[str, Score] = field(repr=False)


@dataclass(frozen=True)
class Pair:
    """Two answers to a question, the first of them better."""

    question: Question
    chosen: Scored
    rejected: Scored

    @property
    def gap(self) -> float:
        """Return by how much the score of the chosen answer is greater."""
        return self.chosen.score - self.rejected.score

    @property
    def longer(self) -> int:
        """Return how many characters more the chosen answer has."""
        return len(self.chosen.answer.text) - len(self.rejected.answer.text)

    def row(self, **more: Any) -> dict[str, Any]:
        """Return the pair as a row of a dataset, with where it comes from; ``more`` is added to that."""
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        made = {
            side: {
                "model": scored.answer.model,
                "sample": scored.answer.sample,
                "is_finished": scored.answer.is_finished,
                "scores": {name: score.value for name, score in scored.scores.items()},
            }
            for side, scored in sides.items()
        }
        answers = {side: [{"role": "assistant", "content": one.answer.text}] for side, one in sides.items()}
        scores = {f"score_{side}": one.score for side, one in sides.items()}
        return {
            "prompt": self.question.messages,
            **answers,
            **scores,
            "prompt_id": self.question.key,
            "metadata": {**made, **more},
        }


@dataclass(frozen=True)
class Paired:
    """The pairs of a set, and what became of the rest."""

    pairs: list[Pair]
    dropped: Counter[str]  # questions without a pair, by the reason
    left_out: Counter[str]  # answers that no pair may have, or not as the chosen one, by the reason
    effect_before: float  # Cohen's d of the lengths in characters, before they were matched
    effect_after: float
    given_up: int = 0  # pairs left out for their lengths


def pair_up(judged: Sequence[Judged], weights: Mapping[str, float], rules: PairingRules | None = None) -> Paired:
    """Choose pairs among the answers to many questions.

    Args:
        judged: Questions with their answers and scores.
        weights: The weight of each judge by its name.
        rules: How to choose.

    Returns:
        The pairs in the order of the questions, and counts of the rest.
    """
    rules = rules or PairingRules()
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    candidates: list[list[Pair]] = []
    for one, scores in zip(judged, combined(judged, weights), strict=True):
        found = _candidates(one, scores, rules, left_out)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            candidates.append(found)
    plain = [pair for found in candidates for pair in _chosen(found, rules)]
    if not rules.match_length:
        effect = _effect(plain)
        return Paired(plain, dropped, left_out, effect, effect)
    pairs = _matched(candidates, rules)
    kept = _balanced(pairs)
    lost = {pair.question.key for pair in pairs} - {pair.question.key for pair in kept}
    if lost:
        dropped["length could not be matched"] = len(lost)
    return Paired(kept, dropped, left_out, _effect(plain), _effect(kept), len(pairs) - len(kept))


def settings_of(rules: PairingRules, weights: Mapping[str, float]) -> dict[str, Any]:
    """Return how pairs were chosen, for the metadata of a row and the card of a set."""
    return {"judges": dict(weights), **asdict(rules)}


def _candidates(
    one: Judged, scores: Sequence[float | None], rules: PairingRules, left_out: Counter[str]
) -> list[Pair] | str:
    """Return all pairs of a question that the rules allow, the greatest gap first; why there is none, as text."""
    if not one.answers:
        return "no answers"
    usable = _usable(one, scores, left_out)
    if len({squeezed(answer.text) for answer in one.answers}) < 2:
        return "one answer only" if len(one.answers) == 1 else "answers all alike"
    if len(usable) < 2:
        return "fewer than two answers could be scored"
    usable.sort(key=lambda scored: -scored.score)  # a stable order: the first of equals stays first
    better = [scored for scored in usable if scored.answer.is_finished or rules.choose_unfinished]
    left_out += Counter({"cut, so not chosen": len(usable) - len(better)})
    if usable[0].score == usable[-1].score:
        return "tie"
    if usable[0].score - usable[-1].score <= rules.margin:
        return "margin too small"
    if rules.pairing == "best-random":
        better = better[:1]
    pairs = [
        Pair(one.question, chosen, rejected)
        for chosen in better
        for rejected in usable
        if chosen.score - rejected.score > rules.margin
    ]
    return sorted(pairs, key=lambda pair: -pair.gap) or "every better answer was cut"


def _usable(one: Judged, scores: Sequence[float | None], left_out: Counter[str]) -> list[Scored]:
    """Return the answers that have a score, are not blank, and are not alike."""
    usable: dict[str, Scored] = {}
    order = sorted(range(len(scores)), key=lambda place: not one.answers[place].is_finished)
    for place in order:
        answer, score = one.answers[place], scores[place]
        text = squeezed(answer.text)
        if not text:
            left_out["blank"] += 1
        elif score is None:
            unsure = [name for name, given in one.scores.items() if given[place].value is None]
            left_out[f"{unsure[0]} could not tell"] += 1
        elif text in usable:
            left_out["like another answer"] += 1
        else:
            usable[text] = Scored(answer, score, {name: given[place] for name, given in one.scores.items()})
    return list(usable.values())


def _chosen(candidates: Sequence[Pair], rules: PairingRules) -> list[Pair]:
    """Return the pairs of one question, without regard to lengths."""
    most = _most(rules)
    if rules.pairing == "all":
        return list(candidates[:most])
    if rules.pairing == "best-random":
        draw = random.Random(f"{rules.seed} {candidates[0].question.key}")
        return draw.sample(candidates, min(most or 1, len(candidates)))
    pairs: list[Pair] = []
    for pair in candidates:
        taken = [side for other in pairs for side in (other.chosen.answer, other.rejected.answer)]
        if len(pairs) < (most or 1) and pair.chosen.answer not in taken and pair.rejected.answer not in taken:
            pairs.append(pair)
    return pairs


def _most(rules: PairingRules) -> int | None:
    return rules.pairs_per_prompt or (None if rules.pairing == "all" else 1)


def _matched(candidates: Sequence[Sequence[Pair]], rules: PairingRules) -> list[Pair]:
    """Return pairs of which chosen and rejected answers are of about the same mean length."""
    everything = [pair for found in candidates for pair in found]
    if not everything:
        return []
    gap = sum(pair.gap for pair in everything) / len(everything)
    longer = sum(abs(pair.longer) for pair in everything) / len(everything) or 1.0
    most = _most(rules)
    if most is None:
        return everything

    def at(price: float) -> list[Pair]:
        def value(pair: Pair) -> float:
            return pair.gap / gap - price * pair.longer / longer

        return [pair for found in candidates for pair in sorted(found, key=value, reverse=True)[:most]]

    def excess(pairs: Sequence[Pair]) -> int:
        return sum(pair.longer for pair in pairs)

    best = at(0.0)
    low, high = (0.0, HIGHEST_PRICE) if excess(best) > 0 else (-HIGHEST_PRICE, 0.0)
    for _ in range(BISECTIONS):  # the excess falls as the price rises
        middle = (low + high) / 2
        pairs = at(middle)
        best = min(best, pairs, key=lambda pairs: abs(excess(pairs)))
        low, high = (middle, high) if excess(pairs) > 0 else (low, middle)
    return best


def _balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """Leave out pairs that differ most in length the way that most do, until lengths tell little."""
    sign = 1 if _effect(pairs) > 0 else -1
    order = sorted(range(len(pairs)), key=lambda place: -sign * pairs[place].longer)
    is_balanced = partial(_is_balanced, pairs, order, sign)
    given_up = bisect_left(range(len(pairs) // 2), True, key=is_balanced)
    kept = [pairs[place] for place in sorted(order[given_up:])]
    # Of few pairs, one given up may make the others differ more, the other way round.
    is_better = is_balanced(given_up) and abs(_effect(kept)) < abs(_effect(pairs))
    return kept if is_better else list(pairs)


def _is_balanced(pairs: Sequence[Pair], order: Sequence[int], sign: int, given_up: int) -> bool:
    return sign * _effect([pairs[place] for place in order[given_up:]]) <= BALANCED


def _effect(pairs: Sequence[Pair]) -> float:
    """Return Cohen's d of the lengths of chosen and rejected answers, in characters."""
    sums = LengthSums()
    for pair in pairs:
        sums.count(len(pair.chosen.answer.text), len(pair.rejected.answer.text))
    return sums.effect or 0.0  # none where all are equally long
