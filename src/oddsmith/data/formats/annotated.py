"""Turn records of annotation tools into rows with ``chosen`` and ``rejected``.

    Argilla 2   {fields: {...}, responses: {question: [{value, status}]}, suggestions: {question: {value}}}
                or flat: fields, "question.responses", "question.responses.status", "question.suggestion"
    Argilla 1   fields, question: [{user_id, value, status}], "question-suggestion"
                or {fields: {...}, responses: [{values: {question: {value}}, status}], suggestions: [...]}
    Label Studio  {data: {...}, annotations: [{result: [{type, value}], was_cancelled}]}
                or JSON-MIN: the data, and a control: {"selected": "left"} or its like

All are brought into one form, fields and judgements. A judgement is a ranking, a rating by answer, or a verdict. Those
of several people are averaged (ranks and ratings) or counted (verdicts). Only submitted responses count; suggestions,
which models make, where nobody has responded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import RowError, UndecidedRow
from ...system.words import enumerated
from .columns import CHOSEN, side_of, words_of
from .families import Columns, answers_of, families, prompt_of
from .judged import Restated, Row, preferring
from .values import number_of, parsed
from .verdicts import SIGNED, WINNERS, extremes, winner

RESPONSES, SUGGESTION = ".responses", ".suggestion"  # Argilla 2, flat
_FACTS_OF_TASKS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


class Record(NamedTuple):
    """A record in the form that all are brought into."""

    fields: Mapping[str, Any]
    judgements: dict[str, list[Any]]  # by question; one value for each person
    read: tuple[str, ...]  # columns of the row


# Argilla


def is_argilla(row: Row) -> bool:
    """Return whether a row is a record of Argilla, nested or flat."""
    if isinstance(row.get("fields"), Mapping):
        return "responses" in row or "suggestions" in row
    if any(str(name).endswith((RESPONSES, SUGGESTION)) for name in row):
        return True
    return "external_id" in row and any(f"{name}-suggestion" in row for name in row)


def from_argilla(row: Row) -> Restated:
    """Restate a record of Argilla."""
    return _judged(_nested_record(row) if isinstance(row.get("fields"), Mapping) else _flat_record(row))


def _nested_record(row: Row) -> Record:
    given, suggested = row.get("responses"), row.get("suggestions")
    judgements: dict[str, list[Any]] = {}
    if isinstance(given, Mapping):
        for question, responses in given.items():
            judgements[question] = _submitted(responses)
    else:
        for response in given if isinstance(given, list | tuple) else ():
            values = response.get("values") if _is_submitted(response) else None
            for question, value in (values or {}).items() if isinstance(values, Mapping) else ():
                judgements.setdefault(question, []).append(_value(value))
    if not any(judgements.values()):
        if isinstance(suggested, Mapping):
            judgements = {question: [_value(value)] for question, value in suggested.items()}
        elif isinstance(suggested, list | tuple):
            found = [item for item in suggested if isinstance(item, Mapping)]
            judgements = {str(item.get("question_name")): [_value(item)] for item in found}
    return Record(row["fields"], judgements, ("fields", "responses", "suggestions"))


def _flat_record(row: Row) -> Record:
    names = [str(name) for name in row]
    questions = {name.removesuffix(RESPONSES) for name in names if name.endswith(RESPONSES)}
    questions |= {name.removesuffix(SUGGESTION) for name in names if name.endswith(SUGGESTION)}
    old = {name.removesuffix("-suggestion") for name in names if name.endswith("-suggestion")} & set(names)
    of_questions = [
        name
        for name in names
        if name in old
        or any(name.startswith((f"{q}.response", f"{q}.suggestion", f"{q}-suggestion")) for q in questions | old)
    ]
    judgements: dict[str, list[Any]] = {}
    for question in sorted(questions):
        values, statuses = row.get(f"{question}{RESPONSES}"), row.get(f"{question}{RESPONSES}.status")
        values = list(values) if isinstance(values, list | tuple) else []
        statuses = list(statuses) if isinstance(statuses, list | tuple) else []
        statuses += ["submitted"] * (len(values) - len(statuses))
        judgements[question] = [
            value for value, status in zip(values, statuses, strict=False) if status in (None, "submitted")
        ]
    for question in sorted(old):
        judgements[question] = _submitted(row.get(question))
    if not any(judgements.values()):
        suggested = {question: row.get(f"{question}{SUGGESTION}") for question in questions}
        suggested |= {question: row.get(f"{question}-suggestion") for question in old}
        judgements = {question: [value] for question, value in suggested.items() if value is not None}
    others = ("id", "_server_id", "status", "external_id", "metadata", "inserted_at", "updated_at")
    fields = {name: row[name] for name in names if name not in of_questions and name not in others}
    return Record(fields, judgements, (*fields, *of_questions))


def _is_submitted(response: Any) -> bool:
    return isinstance(response, Mapping) and response.get("status") in (None, "submitted")


def _submitted(responses: Any) -> list[Any]:
    items = responses if isinstance(responses, list | tuple) else ()
    return [_value(item) for item in items if _is_submitted(item)]


def _value(given: Any) -> Any:
    return given.get("value") if isinstance(given, Mapping) and "value" in given else given


# Label Studio


def is_label_studio(row: Row) -> bool:
    """Return whether a row is a task of Label Studio, whole or in JSON-MIN."""
    return (isinstance(row.get("data"), Mapping) and ("annotations" in row or "predictions" in row)) or (
        any(key in row for key in ("annotation_id", "annotator", "lead_time")) and bool(_controls(row))
    )


def from_label_studio(row: Row) -> Restated:
    """Restate a task of Label Studio with the results of a Pairwise, Choices, Rating or Ranker."""
    if not isinstance(row.get("data"), Mapping):
        controls = _controls(row)
        fields = {name: value for name, value in row.items() if name not in controls and name not in _FACTS_OF_TASKS}
        return _judged(Record(fields, controls, tuple(map(str, row))))
    judgements: dict[str, list[Any]] = {}
    for annotation in _objects(row.get("annotations")):
        if annotation.get("was_cancelled"):
            continue
        for result in _objects(annotation.get("result")):
            value = _result(result.get("value"))
            if value is not None:
                name = str(result.get("from_name") or result.get("to_name"))
                judgements.setdefault(name, []).append(value)
    return _judged(Record(row["data"], judgements, ("data", "annotations", "predictions")))


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    yield from (item for item in (value if isinstance(value, list | tuple) else ()) if isinstance(item, Mapping))


def _controls(row: Row) -> dict[str, list[Any]]:
    """Return the results in a row of JSON-MIN by the names of their controls."""
    found = {}
    for name, value in row.items():
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                value = parsed(value, str(name))
            except RowError:
                continue
        items = value if isinstance(value, list | tuple) and len(value) == 1 else [value]
        results = [_result(item) for item in items]
        if isinstance(items[0], Mapping) and results[0] is not None:
            found[str(name)] = results
    return found


def _result(value: Any) -> Any:
    """Return what a result says: text, a number, or a ranking; None for results of other kinds."""
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("selected"), str):
        return value["selected"]
    if isinstance(value.get("choices"), list | tuple) and len(value["choices"]) == 1:
        return value["choices"][0]
    if value.get("ranker") is not None:
        return _order(value["ranker"])
    return value.get("rating", value.get("number"))


def _order(ranker: Any) -> list[Any]:
    """Return the ids of a ranker in the order of their ranks, each with its rank."""
    if isinstance(ranker, list | tuple):
        return list(ranker)
    buckets = {name: list(ids) for name, ids in ranker.items() if ids} if isinstance(ranker, Mapping) else {}
    if len(buckets) <= 1:
        return next(iter(buckets.values()), [])
    sides = {name: side_of(str(name)) for name in buckets}
    if set(sides.values()) != {"chosen", "rejected"}:
        raise RowError(
            "unknown winner",
            f"the ranker has the buckets {', '.join(map(str, buckets))}; expected one, or such as best and worst",
        )
    return [
        {"value": item, "rank": 1 if sides[name] == CHOSEN else 2} for name, items in buckets.items() for item in items
    ]


# Fields and judgements


def _judged(record: Record) -> Restated:
    """Restate a record by the first kind of judgement that it has: a ranking, ratings of answers, a verdict."""
    given = {
        question: [value for value in values if value is not None] for question, values in record.judgements.items()
    }
    given = {question: values for question, values in given.items() if values}
    if not given:
        raise UndecidedRow("no judgement", "nobody has judged this record")
    listed = _listed_items(record.fields)
    answers = _answers(record.fields) if listed is None else None
    for values in given.values():
        ranks = _mean_ranks([value for value in values if isinstance(value, list | tuple)])
        if ranks:
            return _by_rank(record, answers, listed, ranks)
    if answers is None:
        raise RowError(
            "missing column",
            f"the fields {', '.join(map(str, record.fields))} hold no two answers, such as answer1, answer2",
        )
    rated = {
        answers_member: sum(numbers) / len(numbers)
        for question, values in given.items()
        if (numbers := [number for value in values if (number := number_of(value)) is not None])
        if (answers_member := _member_of(question, answers)) is not None
    }
    if len(rated) >= 2:
        best, worst = extremes(rated)
        return _pair(record, answers, best, worst, (rated[best], rated[worst]))
    best = _preferred(given, answers)
    return _pair(record, answers, best, next(member for member in answers if member != best), ())


def _answers(fields: Mapping[str, Any]) -> Columns | None:
    """Return the answers among the fields: a family of that name, or else the only family of texts."""
    found = families(fields)
    answers = answers_of(fields, found)
    if answers is None:
        texts = [
            columns for columns in found.values() if all(isinstance(fields[name], str) for name in columns.values())
        ]
        answers = texts[0] if len(texts) == 1 else None
    return answers


def _member_of(question: str, answers: Columns) -> str | None:
    """Return the answer that a question is about, by the last word of its name: ``rating-1``."""
    if question in answers.values():
        return next(member for member, name in answers.items() if name == question)
    members = [member for member in answers if question.lower().endswith(member)]
    stem = question[: -len(members[0])] if len(members) == 1 else ""
    return members[0] if stem and (not stem[-1].isalnum() or members[0].isdigit()) else None


def _mean_ranks(rankings: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Return the mean rank of each ranked value over several rankings; empty where there are none."""
    ranks: dict[str, list[float]] = {}
    for ranking in rankings:
        for place, item in enumerate(ranking, 1):
            value, rank = (item.get("value"), item.get("rank")) if isinstance(item, Mapping) else (item, None)
            number = number_of(rank)
            ranks.setdefault(str(value), []).append(place if number is None else number)
    return {value: sum(found) / len(found) for value, found in ranks.items()}


def _by_rank(
    record: Record, answers: Columns | None, listed: dict[str, Any] | None, ranks: dict[str, float]
) -> Restated:
    if listed is not None:
        known = {value: listed[value] for value in ranks if value in listed}
    else:
        names = {name: name for name in record.fields} | {
            member: name for member, name in (answers or {}).items() if member not in record.fields
        }
        known = {value: record.fields[names[value]] for value in ranks if value in names}
    if len(known) < len(ranks):
        unknown = next(value for value in ranks if value not in known)
        raise RowError("unknown winner", f"the ranking names {unknown!r}, which is none of the answers")
    present = {value: ranks[value] for value, text in known.items() if text is not None}
    best, worst = extremes(present, are_ranks=True)
    fields = [name for name, value in record.fields.items() if any(value is text for text in known.values())]
    prompt = prompt_of(record.fields, (*fields, *_lists(record.fields)))
    return preferring(prompt, (known[best], known[worst]), record.read)


def _lists(fields: Mapping[str, Any]) -> list[str]:
    return [
        str(name)
        for name, value in fields.items()
        if isinstance(value, list | tuple)
        and len(value) >= 2
        and all(isinstance(item, Mapping) and "id" in item for item in value)
    ]


def _listed_items(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the texts of the items that a ranker orders by their ids."""
    names = _lists(fields)
    if not names:
        return None
    keys = ("body", "text", "html", "title")
    return {
        str(item["id"]): next((item[key] for key in keys if isinstance(item.get(key), str)), None)
        for item in fields[names[0]]
    }


def _preferred(given: Mapping[str, Sequence[Any]], answers: Columns) -> str:
    """Return the answer that the verdicts name: those of questions named like a verdict, else of any that name one.

    Numbers are verdicts under such a name only: others rate the row, or its question.
    """
    names = {question: "_".join(words_of(question)) for question in given}
    asked = [question for question in given if names[question] in WINNERS] or [
        question for question, values in given.items() if any(isinstance(value, str) for value in values)
    ]
    found: dict[str, str] = {}
    problems: list[RowError] = []
    for question in asked:
        try:
            found[question] = _majority(given[question], question, answers)
        except RowError as error:
            problems.append(error)
    if len(set(found.values())) > 1:
        raise RowError("unknown winner", f"{enumerated(found)} prefer different answers; keep one of them")
    if not found:
        undecided = (error for error in problems if isinstance(error, UndecidedRow))
        nothing = UndecidedRow("no judgement", "none of the judgements prefers an answer")
        raise next(undecided, problems[0] if problems else nothing)
    return next(iter(found.values()))


def _majority(values: Sequence[Any], question: str, answers: Columns) -> str:
    """Return the member that most verdicts name; ties do not vote, and a draw is an ``UndecidedRow``."""
    is_signed = "_".join(words_of(question)) in SIGNED
    names = {member: (column,) for member, column in answers.items()}
    votes: Counter[str] = Counter()
    tied: UndecidedRow | None = None
    for value in values:
        try:
            votes[winner(value, question, names, is_signed=is_signed)] += 1
        except UndecidedRow as error:
            tied = error
    if not votes:
        raise tied or UndecidedRow("no judgement", f"{question} is empty")
    (best, count), *others = votes.most_common()
    if others and others[0][1] == count:
        raise UndecidedRow("judges disagree", f"{question} names each of {len(votes)} answers {count} times")
    return best


def _pair(record: Record, answers: Columns, best: str, worst: str, scores: Sequence[float]) -> Restated:
    prompt = prompt_of(record.fields, tuple(answers.values()))
    sides = [record.fields[answers[member]] for member in (best, worst)]
    return preferring(prompt, sides, record.read, scores)
