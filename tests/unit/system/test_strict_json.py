"""JSON that others wrote, and values that JSON has no word for."""

import json
import math

import pytest

from oddsmith.system.strict_json import MAX_DEPTH, read_json, read_object, strict


def test_sound_json_is_read():
    text = '{"a": [1, 2.5, null, "x"], "b": {"c": true}}'
    assert read_json(text) == json.loads(text)


def test_as_deep_as_schemas_are_and_no_deeper():
    assert read_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(json.JSONDecodeError, match=f"nested more than {MAX_DEPTH} levels deep"):
            read_json("[" * depth + "]" * depth)


def test_brackets_in_a_text_are_no_depth():
    text = json.dumps({"code": "[{" * 1_000, "rows": [{}] * 1_000})
    assert read_json(text) == json.loads(text)


def test_a_number_that_python_does_not_read():
    with pytest.raises(json.JSONDecodeError, match="a number of thousands of digits"):
        read_json('{"a": ' + "9" * 5_000 + "}")


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "NaN", "[[" * 1_000, "9" * 5_000])
def test_an_object_is_nothing_else(text):
    assert read_object('{"a": 1}') == {"a": 1}
    with pytest.raises(json.JSONDecodeError):
        read_object(text)


def test_what_strict_json_has_no_word_for():
    value = {"a\ud800": [math.nan, math.inf, 1.5, "caf\udce9", "漢"], 3: (True, None)}
    document = strict(value)
    assert document == {"a?": [None, None, 1.5, "caf?", "漢"], "3": [True, None]}
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
