"""Rules that can be verified: each check with answers that meet it and answers that do not."""

import subprocess

import pytest

from oddsmith.errors import ConfigError, MissingExtraError
from oddsmith.making.judges import check_process
from oddsmith.making.judges.opening import open_judge
from oddsmith.making.judges.rule import Rules
from tests.unit.making.questions import question, scored, values

FRENCH = "Le chat est assis sur le tapis, et il regarde par la fenêtre pendant toute la journée."
JAPANESE = "これは日本語の文章です。とても長い文章です。"
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.fixture(scope="module")
def rule():
    return open_judge("rule")


def ifeval(name, **kwargs):
    return {"instruction_id_list": [name], "kwargs": [{**kwargs, "language": kwargs.get("language")}]}


# What a row asks for; answers that meet it; answers that do not.
CHECKS = [
    ({"answer": "42"}, ["It is 42.", "40 + 2 = 42", "43, no: #### 42"], ["41", "#### 42 or 43", "x"]),
    ({"answer": "Some steps: 3 * 4 = 12\n#### 1,234"}, ["so 1234 apples", "$1,234.00", r"\boxed{1234} of 99"],
     ["12", "1235"]),
    ({"answer": 0.5}, ["1/2", ".5", "about 0.50"], ["0.51", "1 / 3"]),
    ({"reference": "-3"}, ["it is -3"], ["it is 3"]),
    ({"answer": "Paris"}, ["paris.", "It is no town but\n**Paris**", "The answer is Paris, of course."],
     ["Paris is not it", "Rome"]),
    ({"answer": "B"}, ["(B)", "Answer: B. Because", "b"], ["C", "The answer is A, not B"]),
    ({"answer": ["yes", "yeah"]}, ["Yeah!", "Yes"], ["no"]),
    ({"answer": "42"}, ["<think>maybe 41</think> 42"], ["<think>42</think> 41", "<think> 42"]),
    ({"answer": "-5"}, ["-5", "**-5**", "\N{MINUS SIGN}5", "-5 degrees"], ["5", "(5)", "3-5"]),
    ({"answer": 5}, ["5", "+5", "(5)", "10-5"], ["-5", "\N{MINUS SIGN}5", ".5", "5.5"]),
    ({"answer": ".5"}, ["0.5", "**.5**"], ["5"]),
    ({"answer": "50%"}, ["50 %", r"It is 50\%.", "50 percent"], ["5%", "-50%"]),
    ({"answer": "42.0"}, ["The answer is 42. It took 3 steps."], ["The answer is 3. It took 42 steps, or 43."]),
    ({"answer": 1e-07}, ["1e-7", "0.0000001"], ["1e-8", "7"]),
    ({"answer": r"\frac{3}{4}"}, [r"so $\boxed{\dfrac{3}{4}}$", "0.75", "3/4"], ["4/3", r"\boxed{\frac{3}{5}}"]),
    ({"answer": r"x^{2}"}, [r"\boxed{x^{2}}", "$x^{2}$"], [r"\boxed{x^{3}}"]),
    ({"answer": "C++"}, ["c++", "The answer is **C++**."], ["C", "C#"]),
    ({"answer": "[1, 2)"}, ["[1, 2)", r"\boxed{[1, 2)}"], ["(1, 2]", "[1, 2]"]),
    ({"json_schema": PERSON},
     ['{"age": 3}', '```json\n{"age": 3}\n```', '```json\r\n{"age": 3}\r\n```', '``` json\n{"age": 3}\n```'],
     ['{"age": "3"}', 'Sure: {"age": 3}', "[" * 9000]),
    ({"json_schema": {"type": "number"}}, ["1", "-2.5"], ["NaN", "Infinity", "x"]),
    ({"json_schema": '{"enum": [1, 2]}'}, ["1"], ["3", ""]),
    ({"json_schema": "{'enum': ['a', None]}"}, ['"a"', "null"], ["3"]),
    ({"json_schema": {**PERSON, "enum": None, "properties": {"age": {"type": "integer", "enum": None}, "b": None}}},
     ['{"age": 3}'], ['{"age": "3"}']),
    ({"regex": r"^Dear \w+,"}, ["Dear Ann,\nhello"], ["dear Ann,", "Hi"]),
    ({"regex": ["a", "b"]}, ["ab"], ["\x1b[2J"]),
    ({"not_regex": "(?i)sorry"}, ["No."], ["I am Sorry"]),
    ({"min_words": 2, "max_words": 3}, ["a b", "a  b\nc"], []),
    ({"max_words": 3}, ["a b c"], ["a b c d", "word " * 15_000]),
    ({"min_characters": "3"}, ["abc"], ["ab"]),
    ({"max_characters": 3}, ["abc", "日本語"], ["abcd"]),
    ({"language": "French"}, [FRENCH, "Oui, c'est bien."], ["Yes, that is good.", JAPANESE]),
    ({"language": "ja-JP"}, [JAPANESE], [FRENCH]),
    ({"language": "en"}, ["Hello there!", "It is 42."], ["Ich weiß nicht", "Hola, ¿qué tal?", "Привет", "你好"]),
    ({"language": "de"}, ["Guten Tag", "Danke schön"], ["I do not know", "谢谢"]),
    (ifeval("keywords:existence", keywords=["dog"]), ["A dog."], ["A cat."]),
    (ifeval("length_constraints:number_sentences", relation="at least", num_sentences=2), ["It is. So!"],
     ["Dr. Smith of the U.S. Army."]),
    (ifeval("change_case:capital_word_frequency", capital_relation="less than", capital_frequency=2), ["A b"],
     ["A B. C"]),
    (ifeval("language:response_language", language="fr"), [FRENCH], ["The cat sat on the mat all day long."]),
    (ifeval("combination:repeat_prompt", prompt_to_repeat="Say it."), ["Say it. It."], ["It."]),
    (ifeval("detectable_format:json_format"), ['{"a": 1}'], ["a"]),
    ({"instruction_id_list": "['startend:end_checker']", "kwargs": "[{'end_phrase': 'bye', 'n': None}]"}, ["So, bye"],
     ["So"]),
    # As CSV and Parquet hold them: lists and objects as text, whole numbers as floats, null for what others need.
    ({"instruction_id_list": '["startend:end_checker"]', "kwargs": '[{"end_phrase": "bye"}]'}, ["So, bye"], ["So"]),
    ({"instruction_id_list": ["startend:end_checker"], "kwargs": ['{"end_phrase": "bye"}']}, ["So, bye"], ["So"]),
    ({"instruction_id_list": "startend:end_checker", "kwargs": {"end_phrase": "bye"}}, ["So, bye"], ["So"]),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}, ["So"], ["So,"]),
    (ifeval("length_constraints:nth_paragraph_first_word", num_paragraphs=2.0, nth_paragraph=2.0, first_word="b"),
     ["a\n\nb c"], ["b\n\na"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "met", "missed"), CHECKS, ids=lambda value: str(value)[:40])
def test_a_check_tells_answers_apart(rule, row, met, missed):
    found = values(rule, question("Say it.", row=row), *met, *missed)
    assert found == [1.0] * len(met) + [0.0] * len(missed)


def test_the_score_is_the_share_of_checks(rule):
    row = {"max_words": 2, "regex": "a", "json_schema": None, "kwargs": [], "answer": ""}
    first, second = scored(rule, question(row=row), "a b", "a b c")
    assert (first.value, first.reason, first.counts) == (1.0, "2 of 2", {"all checks met": 1})
    assert (second.value, second.reason, second.counts) == (0.5, "1 of 2; not max_words", {})


def test_a_text_that_is_too_short_for_a_language_is_not_said_to_be_another(rule):
    found = scored(rule, question(row={"language": "en"}), "Yes.", "OK", "42", "Hola")
    assert [score.value for score in found] == [None] * 4
    assert "too short to tell its language" in found[0].reason


def test_tokens_are_bounded_where_they_are_known(rule):
    row = {"max_tokens": 3}
    assert values(rule, question(row=row), "a b c d", tokens=3) == [1.0]
    assert values(rule, question(row=row), "a", tokens=4) == [0.0]
    (score,) = scored(rule, question(row=row), "a")
    assert score.value is None
    assert "the number of its tokens is not known" in score.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"regex": "("}, "regex: no regular expression"),
        ({"regex": 5}, "regex: no regular expression"),
        ({"json_schema": {"type": 5}}, "json_schema: no JSON schema"),
        ({"json_schema": "{"}, "json_schema: no JSON schema"),
        ({"reference": "a long text " * 40}, "reference: longer than 200 characters, so no result"),
        ({"language": "Klingon"}, "language: no language that is known"),
        ({"max_words": "few"}, "max_words: no number"),
        (ifeval("no:such"), "no:such: no instruction of IFEval"),
        (ifeval("keywords:existence"), "keywords:existence: its kwargs are not what it needs"),  # it would draw some
        (ifeval("length_constraints:number_sentences", relation="at least"), "its kwargs are not what it needs"),
        ({"instruction_id_list": [{"a": 1}], "kwargs": "x"}, "no instruction of IFEval"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_left_out_and_counted(rule, row, reason):
    first, second = scored(rule, question(row={**row, "max_characters": 1}), "a", "ab")
    assert (first.value, second.value) == (1.0, 0.0)
    assert [name for name in first.counts if reason in name]
    (score,) = scored(rule, question(row=row), "a")
    assert score.value is None
    assert reason in score.reason


def test_a_row_that_asks_for_nothing_is_no_zero(rule):
    (score,) = scored(rule, question(row={"other": 1}), "a")
    assert (score.value, score.reason) == (None, "its row asks for no check")


@pytest.mark.parametrize(
    "row",
    [
        {"regex": "(a+)+$"},
        pytest.param({"json_schema": {"pattern": "(a+)+$"}}, marks=pytest.mark.slow),
        pytest.param(ifeval("keywords:existence", keywords=["(a+)+$"]), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_hostile_pattern_does_not_hang(row):
    judge = Rules("rule", {}, answer_s=1.0)
    text = '"' + "a" * 40 + '!"'  # which takes 2^40 steps
    slow = scored(judge, question(row=row), text, text, text)
    assert {score.reason for score in slow} == {"the checks of its row take more than 1 s"}
    assert values(judge, question(row={"max_words": 1}), "a") == [1.0]


def test_a_text_of_a_megabyte_is_not_checked(rule):
    (score,) = scored(rule, question(row={"max_words": 1}), "a" * 1_000_000)
    assert (score.value, score.reason) == (None, "longer than 100,000 characters")


def test_no_schema_is_fetched(rule):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.timeout = 0.2
        server.handle_timeout = lambda: None
        refers = {"$ref": f"http://127.0.0.1:{server.server_port}/schema"}
        (score,) = scored(rule, question(row={"json_schema": refers}), "1")
        server.process_request = lambda request, address: pytest.fail("it was fetched")
        server.handle_request()
    assert score.value is None


def test_rules_of_a_file_are_for_all_rows_and_a_row_wins(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text("max_words: 1\nregex: a\n")
    judge = open_judge(f"rule:{file}")
    assert values(judge, question(), "a", "a b", "b b") == [1.0, 0.5, 0.0]
    assert values(judge, question(row={"max_words": 2}), "a b") == [1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected rules as NAME: VALUE, such as max_words: 100"),
        ("- a", "expected rules as NAME: VALUE"),
        ("max_word: 3", "the rule 'max_word' is unknown; expected one of instruction_id_list,"),
        ("a: [", "no rules can be read"),
        ("!!python/object/apply:os.system ['true']", "no rules can be read"),
    ],
)
def test_what_is_no_file_of_rules_is_said_to_be(tmp_path, content, message):
    (tmp_path / "rules.yaml").write_text(content)
    with pytest.raises(ConfigError) as found:
        open_judge(f"rule:{tmp_path / 'rules.yaml'}")
    assert message in str(found.value)


def test_the_packages_are_asked_for_where_a_row_needs_them(monkeypatch):
    monkeypatch.setattr(check_process, "find_spec", lambda name: None)
    judge = open_judge("rule")
    with pytest.raises(MissingExtraError, match=r'pip install "oddsmith\[rules\]"'):
        scored(judge, question(row={"json_schema": PERSON}), "a")


def test_the_process_ends_with_its_judge():
    judge = Rules("rule", {"max_words": 1})
    values(judge, question(), "a")
    child = judge._process._child
    assert isinstance(child, subprocess.Popen)
    assert child.poll() is None
    del judge
    assert child.poll() is not None
