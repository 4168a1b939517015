"""Write the card of a set of pairs: what is in it, who answered, who judged, what was left out and why.

It is the ``README.md`` of a dataset on the hub, beside the file of pairs until it is published. Like the card of a
model it names a model only by its id on the hub or the name of its folder: no path, server or token gets into it.
Whatever others wrote becomes plain text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from huggingface_hub import DatasetCardData

from .. import __version__
from ..export.atomic import write_file
from ..system.words import counted
from ..training.card_text import as_text
from .combining import Judged
from .pairing import Paired, PairingRules

SUFFIX = ".card.md"
# The hub's classes of size, by the number of rows that each ends before.
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
COLUMNS = {
    "prompt": "the messages that were answered",
    "chosen, rejected": "the better and the worse answer, each as the assistant's message",
    "score_chosen, score_rejected": "their scores, of all judges together",
    "prompt_id": "a digest of the prompt; pairs of the same prompt have the same",
    "metadata": "of each answer: who wrote it, which of its answers it is, whether it ended, each judge's score; and"
    " how answers and pairs were made",
}
WHAT_JUDGES_DO = {
    "rule": "the share of the checks that an answer meets",
    "reward": "the logit of a reward model",
    "judge": "the share of comparisons that an answer won, each made in both orders by a language model",
    "rubric": "a whole number from 1 to 10 by a language model",
    "python": "a function of the maker's own",
}


@dataclass(frozen=True)
class SetFacts:
    """What the card of a set says beside what its pairs say.

    Args:
        file: The file of pairs.
        prompts: How many prompts were answered.
        models: Who answered.
        weights: The weight of each judge by its name.
        rules: How pairs were chosen.
        drawn: How answers were drawn, as name -> value; nothing where they were given.
        unanswered: Answers that were asked for in vain, by the reason.
    """

    file: Path
    prompts: int
    models: Sequence[str]
    weights: Mapping[str, float]
    rules: PairingRules
    drawn: Mapping[str, object]
    unanswered: Mapping[str, int]


def card_path(file: Path) -> Path:
    """Return where the card of a file of pairs is: ``pairs.card.md`` beside ``pairs.jsonl``."""
    return file.with_suffix(SUFFIX)


def write_card(facts: SetFacts, judged: Sequence[Judged], paired: Paired) -> Path:
    """Write the card of a set beside its pairs, in the place of an older one; return where it is."""
    target = card_path(facts.file)
    with write_file(target, overwrite=True) as partial:
        partial.write_text(set_card(facts, judged, paired), encoding="utf-8")
    return target


def set_card(facts: SetFacts, judged: Sequence[Judged], paired: Paired) -> str:
    """Return the card of a set, with the metadata of the hub in front."""
    pairs = paired.pairs
    data = DatasetCardData(
        task_categories=["text-generation"],
        size_categories=[next((name for end, name in SIZES if len(pairs) < end), "n>10M")],
        tags=["oddsmith", "orpo", "preference", "synthetic"],
        configs=[{"config_name": "default", "data_files": facts.file.name}],
    )
    models = ", ".join(as_text(public_name(model)) for model in facts.models)
    sections = [
        f"# {as_text(facts.file.stem)}",
        f"{counted(len(pairs), 'preference pair')} of {counted(facts.prompts, 'prompt')}. The answers were"
        f" written by {models}, scored by {_several(len(facts.weights), 'judge')}, and paired by Oddsmith"
        f" {__version__}. Nobody has read them all: an answer that was chosen may be wrong or harmful, and it is"
        " better than the other one in the eyes of these"
        " judges alone.",
        "## Judges\n\n" + _judges(facts, judged),
        "## Pairs\n\n" + _pairs(facts, paired),
        "## Left out\n\n" + _left_out(facts, paired),
        "## How answers were drawn\n\n" + (_table(("setting", "value"), facts.drawn.items()) or "They were given."),
        "## Columns\n\n" + _table(("column", "holds"), COLUMNS.items()),
        "## Use it\n\n" + _usage(facts.file.name),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def counts_of(judged: Sequence[Judged]) -> dict[str, Counter[str]]:
    """Return what came up while judging, added up for each judge: answers that it could not tell of, and its counts."""
    found: dict[str, Counter[str]] = {}
    for one in judged:
        for name, scores in one.scores.items():
            counts = found.setdefault(name, Counter())
            for score in scores:
                counts.update(score.counts)
                if score.value is None:
                    counts[f"could not tell: {score.reason}" if score.reason else "could not tell"] += 1
    return found


def public_name(name: str) -> str:
    """Return the name of a model, judge or file without folders, and without the server that it is at."""
    kind, separator, rest = name.partition(":")
    if kind not in WHAT_JUDGES_DO or not separator:
        return name if name.count("/") == 1 and not Path(name).expanduser().exists() else name.rpartition("/")[2]
    if kind in ("judge", "rubric"):
        rest = rest.partition("@http")[0]
    return f"{kind}:{rest if kind == 'python' else public_name(rest)}"


def _judges(facts: SetFacts, judged: Sequence[Judged]) -> str:
    counts = counts_of(judged)
    rows = [
        (
            as_text(public_name(name)),
            f"{weight:g}",
            WHAT_JUDGES_DO.get(name.partition(":")[0], ""),
            "; ".join(f"{as_text(what)}: {count:,}" for what, count in counts.get(name, Counter()).most_common(8)),
        )
        for name, weight in facts.weights.items()
    ]
    text = _rows(("judge", "weight", "its score", "counted"), rows)
    if len(rows) > 1:
        text += (
            "\n\nThe score of an answer is the weighted mean of these scores, each less its mean over the set and"
            " divided by its standard deviation."
        )
    return text


def _pairs(facts: SetFacts, paired: Paired) -> str:
    gaps = [pair.gap for pair in paired.pairs]
    rules = facts.rules
    limit = rules.pairs_per_prompt or ("any number" if rules.pairing == "all" else 1)
    rows: dict[str, object] = {
        "pairing": f"{rules.pairing}, of a prompt at most: {limit}",
        "margin": f"above {rules.margin:g}",
        "seed": rules.seed,
        "answers that were cut": "may be chosen" if rules.choose_unfinished else "are never chosen",
        "Cohen's d of the lengths, chosen less rejected": f"{paired.effect_after:+.2f}",
    }
    if rules.match_length:
        rows["the same before lengths were matched"] = f"{paired.effect_before:+.2f}"
    if gaps:
        chosen, rejected = (
            fmean(getattr(pair, side).score for pair in paired.pairs) for side in ("chosen", "rejected")
        )
        rows["mean score of chosen and rejected"] = f"{chosen:.3g} and {rejected:.3g}"
        rows["difference of the scores of a pair"] = f"{fmean(gaps):.3g} on average, {median(gaps):.3g} in the middle"
    return _table(("what", "value"), rows.items())


def _left_out(facts: SetFacts, paired: Paired) -> str:
    rows = [("prompts", reason, count) for reason, count in paired.dropped.most_common()]
    rows += [("answers", reason, count) for reason, count in paired.left_out.most_common()]
    rows += [("answers not given", reason, count) for reason, count in Counter(facts.unanswered).most_common()]
    if paired.given_up:
        rows.append(("pairs", "so that lengths tell little", paired.given_up))
    if not rows:
        return "Nothing."
    return _rows(("what", "why", "how many"), [(what, as_text(why), f"{count:,}") for what, why, count in rows])


def _usage(file: str) -> str:
    quoted = as_text(file)
    return (
        f"The pairs are in {quoted}, one in a line, in the conversational format that trainers on preferences read:"
        ' `oddsmith train --dataset-name FILE`, or `datasets.load_dataset("json", data_files=FILE)`.'
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _table(head: tuple[str, str], items: Iterable[tuple[str, object]]) -> str:
    return _rows(head, [(as_text(name), as_text(value)) for name, value in items])


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
