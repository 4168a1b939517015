"""Questions and answers of few words."""

from oddsmith.making.records import Answer, Asked, Question, Verdict


def question(text="Hi", key="k", row=None, before=()):
    return Question(key, [*before, {"role": "user", "content": text}], row or {})


def answers(*texts, key="k", **more):
    return [Answer(key, "m", sample, text, **more) for sample, text in enumerate(texts)]


def scored(judge, asked, *texts, **more):
    """Return the scores of a judge for answers to one question."""
    return scores_of(judge, [Asked(asked, answers(*texts, **more))])[0]


def scores_of(judge, asked):
    """Return the scores of a judge for the answers to each question."""
    found = [{} for _ in asked]
    for position, said in judge.score(asked):
        if not isinstance(said, Verdict):
            found[position].update(said)
    return [[scores[place] for place in range(len(one.answers))] for one, scores in zip(asked, found, strict=True)]


def values(judge, asked, *texts, **more):
    return [score.value for score in scored(judge, asked, *texts, **more)]
