"""What is odd about a row is told before and while it is trained on, and nothing is told of sound rows."""

import pytest

from oddsmith.data.checks import catalogue
from oddsmith.data.checks.rows import has_html, row_hits
from oddsmith.data.checks.texts import PairTexts
from oddsmith.data.formats import to_pair
from oddsmith.data.formats.columns import is_media
from oddsmith.data.formats.scores import counterpart
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from tests.pairs import assistant, user
from tests.tiny import tiny_tokenizer

ROW = {"prompt": "Name a color.", "chosen": "Red.", "rejected": "Rad."}


def hits(**more):
    row = ROW | more
    pair = to_pair(row)
    return [(check.name, part) for check, part in row_hits(row, pair, PairTexts.of(pair))]


def test_a_prompt_of_shared_words_is_told():
    pair = to_pair({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    found = [(check.name, part) for check, part in row_hits({}, pair, PairTexts.of(pair))]
    assert found == [("prompts taken from the answers", "the words that both begin with")]
    rows = [{"chosen": "The sky is blue.", "rejected": "The sky is black."}, {**ROW}]
    lines = prepare(rows, PairTokenizer(tiny_tokenizer(), max_length=64)).report.lines()
    assert (
        "  prompts taken from the answers in 1: the words that both begin with (row 0); if that is not meant, give the"
        " prompt in a column prompt"
    ) in lines


@pytest.mark.parametrize("column", ["image", "images", "image_path", "Image", "videos", "audio", "pixel_values"])
@pytest.mark.parametrize("value", ["a.png", ["a.png"], [{"bytes": b"PNG", "path": None}], object()], ids=range(4))
def test_columns_of_images_are_told(column, value):
    assert hits(**{column: value}) == [("images, sound or video", column)]


@pytest.mark.parametrize("nothing", [None, "", [], [None], {"bytes": None, "path": None}, True, 3], ids=str)
def test_empty_columns_of_images_are_not(nothing):
    assert hits(images=nothing, image_id="x", image_caption="a cat", id="image") == []
    assert not is_media("text")


SCORES = {
    "score_chosen": "score_rejected", "chosen_score": "rejected_score", "chosen_avg_rating": "rejected_avg_rating",
    "rating_chosen": "rating_rejected", "chosen-rating": "rejected-rating", "Chosen Reward": "Rejected Reward",
    "chosenScore": "rejectedScore", "chosen_length": None, "chosen_rank": None, "chosen": None, "score": None,
}  # fmt: skip


@pytest.mark.parametrize(("name", "other"), SCORES.items(), ids=SCORES)
def test_scores_are_compared_under_every_name(name, other):
    assert counterpart(name) == other
    if other is not None:
        assert hits(**{name: 1.5, other: 2}) == [("scores against the choice", name)]
        assert hits(**{name: "2", other: 10**400}) == hits(**{name: 3, other: 3}) == hits(**{name: 4, other: "3"}) == []
        assert hits(**{name: None, other: 3}) == hits(**{name: 3}) == hits(**{name: float("nan"), other: 3}) == []


def test_scores_against_a_winner_are_told():
    row = {"prompt": "a", "response_a": "b", "response_b": "c", "winner": "a", "score_a": 1, "score_b": 2}
    pair = to_pair(row)
    assert list(row_hits(row, pair, PairTexts.of(pair))) == [(catalogue.SCORES, "score_chosen")]


@pytest.mark.parametrize(
    ("text", "is_html"),
    [
        ("<p>Red</p>", True), ("Red<br>Blue", True), ("Red<BR />", True), ("a &lt; b", True), ("R&amp;B", True),
        ('<a href="x">y</a>', True), ("<b>Red</b>", True), ("&#39;", True), ("a < b > c", False), ("Q&A; a&b;", False),
        ("use `<br>` here", False), ("```\n<p>a</p>\n```", False), ("```html\n<p>", False), ("vector<i>", True),
        ("<think>so</think>", False), ("a<b", False), ("<pears> and <bread>", False), ("", False),
    ],
)  # fmt: skip
def test_html_is_told_outside_of_code(text, is_html):
    assert has_html(text) == is_html
    assert hits(chosen=text or "x") == ([("HTML in answers", "chosen")] if is_html else [])
    assert hits(prompt="Write an HTML page.", rejected=text or "x") == []


def test_carriage_returns_are_told_wherever_they_are():
    name = catalogue.CARRIAGE_RETURNS.name
    assert hits(prompt="a\r\nb", chosen="c\r", rejected="d\n") == [(name, "prompt"), (name, "chosen")]


ODD = [
    {"prompt": [user("Hi")], "chosen": [assistant(f"Yes {n}")], "rejected": "<p>No</p>\r\n", "image": "a.png"}
    | {"score_chosen": n, "score_rejected": 1, "context": f"It is {n}."}
    for n in range(4)
]


def test_training_tells_in_one_line_each_and_how_often():
    report = prepare(ODD, PairTokenizer(tiny_tokenizer(), max_length=512)).report
    assert report.warnings() == [
        f"columns that are not read in 4: context (rows 0, 1, 2, 3); {catalogue.UNREAD_COLUMN.fix}",
        f"images, sound or video in 4: image (rows 0, 1, 2, 3); {catalogue.MEDIA.fix}",
        f"scores against the choice in 1: score_chosen (row 0); {catalogue.SCORES.fix}",
        f"HTML in answers in 4: rejected (rows 0, 1, 2, 3); {catalogue.HTML.fix}",
        f"carriage returns in 4: rejected (rows 0, 1, 2, 3); {catalogue.CARRIAGE_RETURNS.fix}",
    ]
    assert all(f"  {line}" in report.lines() for line in report.warnings())
    assert report.to_dict()["odd"]["scores against the choice"] == {"score_chosen": [0]}


def test_a_little_html_is_not_worth_a_line():
    rows = [ROW | {"chosen": f"Red {n}"} for n in range(200)]
    assert prepare([*rows, ROW | {"chosen": "<b>Red</b>"}], PairTokenizer(tiny_tokenizer(), max_length=512)).report.odd
    assert not prepare([*rows, ROW], PairTokenizer(tiny_tokenizer(), max_length=512)).report.warnings()
