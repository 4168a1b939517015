"""A model card shows what is in a run's event log as text, whoever wrote that, and is made in any case."""

import pytest

from oddsmith.system.run_folder import append_event, events_that_count, read_events
from oddsmith.training.card import CardFacts, card_names, model_card
from oddsmith.training.card_record import CardRecord
from oddsmith.training.card_text import as_text
from tests.cards import HOSTILE, SOUND, require_plain

ODD = [
    None,
    True,
    0,
    -1,
    5,
    10**400,
    1e300,
    -1e300,
    1e-320,
    float("nan"),
    float("inf"),
    "x",
    "NaN",
    [],
    [[]],
    {},
    {"a": []},
]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths to all values inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


def get(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


def changed(value: object, path: tuple, new: object) -> object:
    """A copy with another value at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


def renamed(value: object, path: tuple, new: object) -> object:
    """A copy with another key at a path."""
    if len(path) > 1:
        return changed(value, path[:1], renamed(value[path[0]], path[1:], new))
    return {new if key == path[0] else key: item for key, item in value.items()}


PLACES = [path for path in places(SOUND) if len(path) > 1 and path[-1] not in ("event", "step")]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:30])
def test_no_text_of_an_event_log_becomes_markup(text):
    events = SOUND
    for path in reversed(PLACES):  # inner ones first
        if isinstance(get(SOUND, path), str):
            events = changed(events, path, text)
        if path[-1] in ("train", "same", "chosen", "rank"):
            events = renamed(events, path, text)
    events = renamed(events, (3, "eval_rewards/accuracies"), f"eval_{text}_rewards/accuracies")
    require_plain(events, name=text or "x", base=text)


@pytest.mark.slow  # the same, place by place
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:30])
def test_no_text_at_any_place_of_an_event_log_becomes_markup(text):
    for path in PLACES:
        require_plain(changed(SOUND, path, text))
        if isinstance(path[-1], str):
            require_plain(renamed(SOUND, path, text))


def test_no_type_of_value_keeps_a_card_from_being_made():
    for value in ODD:
        for path in PLACES:
            events = changed(SOUND, path, value)
            assert "## Citation" in str(model_card(CardFacts("a-run", "adapter"), events))
        require_plain(events)
    require_plain([])
    require_plain(SOUND * 3)


def test_a_sound_event_log_is_shown_whole():
    text = require_plain(SOUND)
    assert CardRecord.of(SOUND).left_out == ()
    for part in (
        "| train | 7 | 6 | 1 | 1 | 5 tokens |", "- train: 1 dropped, same", "- train: cut to fit 9 tokens: 1 chosen",
        "| parameters | 10, 3 of them trained |", "| on | q_proj, v_proj |", "| base | 4 bits while training |",
        "| precision | bf16 |", "| `learning_rate` | 1e-05 |", "| `optim` | adamw_torch |", "| accuracy | 50.0% |",
        "| stopped early | no better for 3 evaluations |", '{"role": "system", "content": "Be brief."}',
    ):  # fmt: skip
        assert part in text
    assert "&#" not in text


def test_ordinary_values_stay_as_they_are():
    for value in ("all-linear", "adamw_torch", "1e-05", 0.1, -1, "train (1%), kept", "it's 3.5", "größer", "a: b"):
        assert as_text(value) == str(value)
    assert as_text(list("ab") * 40).endswith(", ...")
    assert as_text("<b>[x](y)") == "&#60;b&#62;&#91;x&#93;(y)"


def test_a_part_in_another_form_is_named_in_one_line_and_the_rest_is_shown(tmp_path, caplog):
    for event in changed(SOUND, (0, "data", "train", "rows"), "seven"):
        append_event(tmp_path, event["event"], **{name: value for name, value in event.items() if name != "event"})
    record = CardRecord.of_run(tmp_path)
    assert (record.data, record.left_out) == ("", ("data",))
    assert "| `beta` | 0.1 |" in record.training
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/events.jsonl: is not as Oddsmith writes it")
    assert line.endswith(": data")


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"5", b"null", b'"x"', b"{}", b'{"step": 1}', b'{"event": 5, "step": 1}',
        b'{"event": "log", "step": -1}',
        b'{"event": "log", "step": true}', b'{"event": "log", "step": 1e3}', b'{"event": "log", "step": 1' + b"0" * 400,
        b'{"event": "log", "step": 1' + b"0" * 5_000 + b"}", b"[" * 100_000, b"\xff\xfe\x00", b'{"a":' * 5_000, b"\x00",
    ],
    ids=lambda content: repr(content)[:30],
)  # fmt: skip
def test_a_line_that_is_no_event_is_left_out(tmp_path, content):
    sound = b'{"event": "log", "step": 1, "text": "\xe2\x80\xa8"}'
    (tmp_path / "events.jsonl").write_bytes(b"\n".join([sound, content, sound, content]))
    assert [event["step"] for event in read_events(tmp_path)] == [1, 1]


def test_a_line_of_a_hundred_megabytes_is_left_out(tmp_path):
    with (tmp_path / "events.jsonl").open("wb") as file:
        file.truncate(100_000_000)
        file.seek(0, 2)
        file.write(b'\n{"event": "log", "step": 1}\n')
    assert len(read_events(tmp_path)) == 1


def test_what_a_later_start_undid_does_not_count_and_many_starts_take_no_time():
    steps = [("start", 0), ("log", 1), ("log", 5), ("start", 3), ("log", 4), ("start", 4), ("log", 5)]
    events = [{"event": kind, "step": step} for kind, step in steps]
    counted = [(event["event"], event["step"]) for event in events_that_count(events)]
    assert counted == [steps[0], steps[1], steps[3], steps[4], steps[5], steps[6]]
    assert len(events_that_count([{"event": "start", "step": step} for step in range(300_000)])) == 300_000


@pytest.mark.parametrize(
    "card",
    [
        "---\nbase_model: [\n---\nx", "---\n- a\n---\n", "---\n5\n---\n", "---\nbase_model: &a [*a]\n---\n",
        "---\n\x00\n---\n", "---\n" + "[" * 5_000 + "\n---\n", "---\n!!python/object/apply:os.abort []\n---\n",
        "---\na: 2020-13-45\n---\n", "---\nbase_model: !!binary 5\n---\n", b"---\nbase_model: \xff\n---\n",
        "no metadata", "---\nbase_model: org/base\n", "",
    ],
    ids=lambda card: repr(card)[:20],
)  # fmt: skip
def test_a_card_that_was_edited_by_hand_names_nothing(tmp_path, card, caplog):
    (tmp_path / "README.md").write_bytes(card.encode() if isinstance(card, str) else card)
    assert card_names(tmp_path) == (None, [])
    assert len(caplog.messages) <= 1


def test_a_card_names_only_texts(tmp_path):
    (tmp_path / "README.md").write_text("---\nbase_model: [org/a, org/b]\ndatasets: [org/pairs, 5, [x], null]\n---\n")
    assert card_names(tmp_path) == (None, ["org/pairs"])
    (tmp_path / "README.md").write_text("---\nbase_model: org/a\ndatasets: org/pairs\n---\n")
    assert card_names(tmp_path) == ("org/a", ["org/pairs"])
