"""Questions and answers of few words."""

from oddsmith.making.records import Answer, Question


def question(text="Hi", key="k", row=None, before=()):
    return Question(key, [*before, {"role": "user", "content": text}], row or {})


def answers(*texts, key="k", **more):
    return [Answer(key, "m", sample, text, **more) for sample, text in enumerate(texts)]


def scored(judge, asked, *texts, **more):
    """Return the scores of a judge for answers to one question."""
    return dict(judge.score([(asked, answers(*texts, **more))]))[0]


def values(judge, asked, *texts, **more):
    return [score.value for score in scored(judge, asked, *texts, **more)]
