"""The card of a set of pairs: true figures, and nothing of others that is more than text."""

import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from oddsmith.making.card import SetFacts, card_path, counts_of, public_name, set_card, write_card
from oddsmith.making.combining import Judged
from oddsmith.making.pairing import PairingRules, pair_up
from oddsmith.making.records import Answer, Score
from tests.unit.making.questions import question

JUDGES = {"rule": 1.0, "judge:m@http://10.0.0.7:8000/v1": 0.5}


def a_set(reason="unreadable"):
    sets = []
    for key in range(12):
        made = [Answer(str(key), "org/model", place, "x" * (place + 1) * (key + 1)) for place in range(3)]
        rule = [Score(0.0), Score(0.5 + key), Score(None, reason)]
        model = [Score(0.5, counts={"comparisons": 2}), Score(1.0), Score(0.0)]
        sets.append(Judged(question(key=str(key)), made, dict(zip(JUDGES, (rule, model), strict=True))))
    return sets


def made_card(file=Path("my/pairs.jsonl"), sets=None, **more):
    sets = a_set() if sets is None else sets
    rules = PairingRules(match_length=True)
    facts = {"prompts": len(sets), "models": ["org/model"], "drawn": {"temperature": 0.8}, "unanswered": {"slow": 3}}
    facts = SetFacts(file, weights=JUDGES, rules=rules, **{**facts, **more})
    return set_card(facts, sets, pair_up(sets, JUDGES, rules))


def test_the_figures_are_those_of_the_set():
    card = made_card()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["configs"] == [{"config_name": "default", "data_files": "pairs.jsonl"}]
    assert metadata["size_categories"] == ["n<1K"]
    assert "# pairs\n\n12 preference pairs of 12 prompts." in card
    assert "written by org/model, scored by 2 judges" in card
    assert "| rule | 1 | the share of the checks that an answer meets | could not tell: unreadable: 12 |" in card
    assert re.search(r"\| judge&#58;m \| 0\.5 \| .* \| comparisons: 24 \|", card)
    assert "| answers | rule could not tell | 12 |" in card
    assert "| answers not given | slow | 3 |" in card
    assert "| temperature | 0.8 |" in card
    assert "## How answers were drawn\n\nThey were given.\n" in made_card(drawn={})


def test_no_place_gets_into_a_card(tmp_path):
    card = made_card(tmp_path / "pairs.jsonl", models=[str(tmp_path / "run-1")])
    assert str(tmp_path) not in card
    assert "10.0.0.7" not in card
    assert "run-1" in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/model", "org/model"),
        ("/home/me/models/mine", "mine"),
        ("rule", "rule"),
        ("rule:/home/me/rules.yaml", "rule:rules.yaml"),
        ("reward:/home/me/rm#mean", "reward:rm#mean"),
        ("reward:org/rm", "reward:org/rm"),
        ("rubric:org/m@https://user:key@host/v1", "rubric:org/m"),
        ("python:mine.judges:score", "python:mine.judges:score"),
    ],
)
def test_names_are_shown_without_where_they_are(name, shown):
    assert public_name(name) == shown


HOSTILE = "a | b\n# c <script>alert(1)</script> [x](http://e.vil) `code` \x1b[2J\u202e $x$ ![i](j)"


def test_what_others_wrote_is_text():
    card = made_card(models=[HOSTILE], drawn={HOSTILE: HOSTILE}, unanswered={HOSTILE: 1}, sets=a_set(HOSTILE))
    body = card.partition("\n---\n\n")[2]
    assert "\x1b" not in card
    assert "\u202e" not in card
    page = MarkdownIt("gfm-like", {"linkify": False}).render(body)
    assert "<script" not in page
    assert not re.search(r"<(a|img|h1)\b[^>]*>(?!pairs)", page)
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {3, 4, 5}


def test_it_is_written_beside_the_pairs_in_the_place_of_an_older_one(tmp_path):
    sets, rules = a_set(), PairingRules()
    facts = SetFacts(tmp_path / "pairs.jsonl", 12, ["m"], JUDGES, rules, {}, {})
    for _ in range(2):
        path = write_card(facts, sets, pair_up(sets, JUDGES, rules))
        assert path == card_path(facts.file) == tmp_path / "pairs.card.md"
    assert path.read_text().startswith("---\n")


def test_what_judges_count_is_added_up():
    counts = counts_of(a_set())
    assert counts == {
        "rule": {"could not tell: unreadable": 12},
        "judge:m@http://10.0.0.7:8000/v1": {"comparisons": 24},
    }
