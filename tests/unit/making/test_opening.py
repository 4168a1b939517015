"""Judges by their names, and functions of one's own."""

import pytest

from oddsmith.errors import ConfigError
from oddsmith.making.judges.opening import open_judge, open_judges
from tests.unit.making.questions import question, scored, values

SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module in the working directory, of a name that no other test uses."""
    monkeypatch.chdir(tmp_path)
    made = iter(range(100))

    def write(code):
        name = f"mine_{next(made)}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def test_a_weight_stands_in_front_or_at_the_end(mine):
    names = [mine("def score(prompt, answer):\n    return 1\n") for _ in range(3)]
    one, two, three = (f"python:{name}:score" for name in names)
    found = open_judges([f"0.5*{one}", f"{two}=-2", three])
    assert [(judge.name, weight) for judge, weight in found] == [(one, 0.5), (two, -2.0), (three, 1.0)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "no judge is given; expected rule, rule:FILE.yaml, reward:MODEL, "),
        (["rules"], "the judge 'rules' is unknown; expected rule, "),
        (["reward:"], "the judge 'reward:' is unknown"),
        (["judge:m"], "judge:m: names no server; expected judge:MODEL@http://127.0.0.1:8000/v1"),
        (["judge:m@localhost:8000"], "names no server"),
        (["rule", "2*rule"], "the judge 'rule' is given twice"),
        (["rule=0"], "the judge 'rule' has the weight 0; expected a number that is not 0"),
        (["python:mine"], "names no function; expected python:MODULE:FUNCTION"),
        (["python:no_such_module_here:f"], "no module no_such_module_here; expected no_such_module_here.py"),
        (["python:json:no_such"], "has no function no_such"),
        (["rule:nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_what_is_no_judge_is_said_to_be(asked, message):
    with pytest.raises(ConfigError) as found:
        open_judges(asked)
    assert message in str(found.value)


def test_a_function_gets_text_or_messages_and_the_row(mine):
    module = mine(
        "def plain(prompt, answer):\n    return len(prompt) if isinstance(prompt, str) else -len(prompt)\n"
        "def asked(messages, answer):\n    return len(messages)\n"
        "def known(prompt, answer, row):\n    return answer == row['answer']\n"
    )
    plain, asked, known = (open_judge(f"python:{module}:{name}") for name in ("plain", "asked", "known"))
    assert values(plain, question("four"), "a") == [4]
    assert values(plain, question("four", before=[SYSTEM]), "a") == [-2]
    assert values(asked, question("four"), "a") == [1]
    assert values(known, question(row={"answer": "x"}), "x", "y") == [1, 0]


def test_what_a_function_does_to_its_arguments_stays_with_it(mine):
    module = mine(
        "def asked(messages, answer):\n"
        "    messages.append({'role': 'assistant', 'content': answer})\n    return len(messages)\n"
        "def known(prompt, answer, row):\n    prompt[0]['content'] = ''\n    return row['results'].pop()\n"
    )
    one = question("four", row={"results": [1, 2]}, before=[SYSTEM])
    assert values(open_judge(f"python:{module}:asked"), one, "a", "b") == [3, 3]
    assert values(open_judge(f"python:{module}:known"), one, "a", "b") == [2, 2]
    assert one.messages == [SYSTEM, {"role": "user", "content": "four"}]
    assert one.row == {"results": [1, 2]}


@pytest.mark.parametrize("value", ["None", "float('nan')", "float('-inf')", "__import__('numpy').float32('nan')"])
def test_a_function_may_not_know(mine, value):
    judge = open_judge(f"python:{mine(f'def score(prompt, answer):{chr(10)}    return {value}')}:score")
    (score,) = scored(judge, question(), "a")
    assert score.value is None
    assert score.reason.startswith("the function returned ")


@pytest.mark.parametrize(
    "value",
    [
        "2",
        "2.0",
        "True + 1",
        "__import__('numpy').float32(2)",
        "__import__('torch').tensor(2.)",
        "__import__('fractions').Fraction(2)",
    ],
)
def test_a_function_may_return_any_number(mine, value):
    judge = open_judge(f"python:{mine(f'def score(prompt, answer):{chr(10)}    return {value}')}:score")
    assert values(judge, question(), "a") == [2.0]


def test_a_module_in_another_encoding_is_read(mine, tmp_path):
    module = mine("")
    (tmp_path / f"{module}.py").write_bytes(
        b"# -*- coding: latin-1 -*-\n# \xe9\ndef score(prompt, answer):\n    return 1\n"
    )
    assert values(open_judge(f"python:{module}:score"), question(), "a") == [1.0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(prompt, answer):\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("import json\ndef score(prompt, answer):\n    return json.loads(answer)\n", ", line 3: JSONDecodeError: "),
        ("import sys\ndef score(prompt, answer):\n    sys.exit(3)\n", ", line 3: SystemExit: 3"),
        ("def score(prompt, answer):\n    return 'good'\n", ": returned str; expected a number, or None"),
        ("def score(answer):\n    return 1\n", ".py: TypeError: score() takes 1 positional argument but 2 were given"),
        ("x = 1\nimport no_such_thing\n", ", line 2: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def score(:\n", ", line 1: SyntaxError: invalid syntax"),
    ],
)
def test_what_goes_wrong_in_a_function_is_one_line_with_its_place(mine, code, message):
    module = mine(code)
    with pytest.raises(ConfigError) as found:
        scored(open_judge(f"python:{module}:score"), question(), "a")
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(f"python:{module}:score: ")


def test_a_function_is_another_judge_once_its_file_has_changed(mine, tmp_path):
    name = mine("def score(prompt, answer):\n    return 1\n")
    first = open_judge(f"python:{name}:score")
    again = open_judge(f"python:{name}:score")
    (tmp_path / f"{name}.py").write_text("def score(prompt, answer):\n    return 2\n")
    changed = open_judge(f"python:{name}:score")
    assert first.basis(question("a")) == again.basis(question("b")) != changed.basis(question("a"))


def test_rules_are_another_judge_where_a_row_or_the_file_asks_for_something_else(tmp_path):
    (tmp_path / "r.yaml").write_text("max_words: 3")
    rule, filed = open_judge("rule"), open_judge(f"rule:{tmp_path / 'r.yaml'}")
    bases = [rule.basis(question(row={"max_words": words})) for words in (3, 3, 4)]
    assert bases[0] == bases[1] != bases[2]
    assert filed.basis(question()) == bases[0]
    assert filed.basis(question(row={"max_words": 4})) == bases[2]
