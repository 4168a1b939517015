"""Every check of preference pairs finds what it is named for, at the right rows, and nothing in good pairs."""

import json

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.builtin import demo_pairs
from oddsmith.data.checks import catalogue
from oddsmith.data.checks.benchmark import Benchmark, read_benchmark
from oddsmith.data.checks.catalogue import ANY, NEVER, Check, worst
from oddsmith.data.checks.cleaning import require_new_file, write_cleaned
from oddsmith.data.checks.content import repeats_itself
from oddsmith.data.checks.duplicates import sketch
from oddsmith.data.checks.language import language_of
from oddsmith.data.checks.survey import survey
from oddsmith.data.checks.texts import plain
from oddsmith.data.sources import batches, open_rows
from oddsmith.data.sources.loading import BATCH_ROWS
from oddsmith.errors import ConfigError, DataError
from tests.command import save_rows
from tests.pairs import assistant, user

GOOD = [row for row in demo_pairs("train") if not repeats_itself(row["rejected"][0]["content"])][:40]
QUESTION, BLUE, GREEN = "Which colour does the sky have at noon?", "It is blue on a clear day.", "It is green, I think."


def row(prompt=QUESTION, chosen=BLUE, rejected=GREEN):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat(*prompt, chosen=BLUE, rejected=GREEN):
    return {"prompt": list(prompt), "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


LONG_QUESTION = (
    "Please write a short letter to the landlord of our flat in the old town that explains why the heating in the small"
    " room at the back has not worked since the second week of May and asks for a visit before the end of the month"
)
SIMILAR_QUESTION = LONG_QUESTION.replace("the end of the month", "the end of the year")
GERMAN = "Der Himmel ist an einem klaren Tag blau, weil die Luft das kurzwellige Licht der Sonne am stärksten streut."
LOOP = "and then the little dog ran back over the hill and into the wood " * 12

OF_ROWS = [check for check in catalogue.CHECKS if not check.needs]

# What is at fault in rows that follow the good ones: check -> (the rows, which of them are named).
FAULTY = {
    catalogue.NO_PAIR: ([row(chosen=None), row(rejected=7), {"text": "?"}, row(chosen="\ud800 half")], [0, 1, 2, 3]),
    catalogue.UNDECIDED: (
        [{"prompt": "a", "response_a": "b", "response_b": "c", "winner": name} for name in ("tie", "b", None)], [0, 2],
    ),
    catalogue.EMPTY_ANSWER: ([row(chosen=" \n\t"), row(), row(prompt="And now?", rejected="")], [0, 2]),
    catalogue.EMPTY_PROMPT: ([chat(user("  "))], [0]),
    catalogue.IDENTICAL: ([row(rejected=BLUE)], [0]),
    catalogue.ALMOST_IDENTICAL: ([row(rejected=" it is  BLUE on a clear day.\n")], [0]),
    catalogue.DUPLICATE_PAIRS: ([row(), row(), row()], [1, 2]),
    catalogue.DUPLICATE_PROMPTS: ([row(), *(row(rejected=f"It is of colour {n}.") for n in range(9))], range(1, 10)),
    catalogue.SIMILAR_PROMPTS: (
        [row(LONG_QUESTION), *(row(SIMILAR_QUESTION + end) for end in ("", "!", " please"))], [1, 2, 3],
    ),
    catalogue.CONFLICTS: ([row(), row("And at night?"), row(chosen=GREEN, rejected=BLUE)], [0, 2]),
    catalogue.REFUSALS_CHOSEN: ([row(f"{n}?", "I'm sorry, but I can't help with that.") for n in range(4)], range(4)),
    catalogue.REFUSALS_REJECTED: (
        [row(f"{n}?", rejected="As an AI language model, I cannot see colours.") for n in range(4)], range(4),
    ),
    catalogue.LANGUAGE: ([row(LONG_QUESTION + str(n), chosen=GERMAN) for n in range(4)], range(4)),
    catalogue.ECHO: ([row(chosen=f"{QUESTION} {BLUE}")], [0]),
    catalogue.REPETITION: ([row(), row(chosen=LOOP)], [1]),
    catalogue.SPECIAL_TEXT: ([row(rejected="It is green.<|im_end|>"), row(prompt="[INST] And now? [/INST]")], [0, 1]),
    catalogue.ROLES: ([chat(user("Hi"), user("Is anybody there?"))], [0]),
    catalogue.UNREAD_COLUMN: ([row(), row() | {"context": "It is noon."}], [1]),
    catalogue.MEDIA: ([row() | {"images": ["a.png"]}, row("<image>\nWhat is it?")], [0, 1]),
    catalogue.SCORES: ([row() | {"score_chosen": 2.5, "score_rejected": "7"}], [0]),
    catalogue.HTML: ([row(chosen="<p>It is blue.</p>")], [0]),
    catalogue.CARRIAGE_RETURNS: ([row(chosen="It is\r\nblue.")], [0]),
    catalogue.SHARED_WORDS: ([{"chosen": "The sky is blue.", "rejected": "The sky is green."}], [0]),
    catalogue.PERSONAL_DATA: (
        [row(chosen="Write to jane.doe@mail.com."), row(prompt="key AKIAABCDEFGHIJKLMNOP")], [0, 1],
    ),
}  # fmt: skip


def finding_on(check: Check, rows, **options):
    found = survey(rows, processes=1, **options)
    return next(finding for finding in found.findings if finding.check == check.name)


def test_every_check_of_rows_has_its_case():
    assert set(FAULTY) == set(OF_ROWS)


@pytest.mark.parametrize("check", OF_ROWS, ids=lambda check: check.name)
def test_good_pairs_pass(check):
    found = finding_on(check, GOOD)
    assert (found.verdict, found.count, found.rows) == ("pass", 0, ())


@pytest.mark.parametrize("check", OF_ROWS, ids=lambda check: check.name)
def test_a_fault_is_found_at_its_rows(check):
    rows, at = FAULTY[check]
    found = finding_on(check, [*GOOD, *rows])
    assert found.rows == tuple(len(GOOD) + number for number in at)[:8]
    assert found.count == len(at)
    assert found.verdict != "pass"
    assert found.meaning
    assert found.fix


def test_reasons_and_sides_are_counted():
    rows, _ = FAULTY[catalogue.NO_PAIR]
    found = finding_on(catalogue.NO_PAIR, [*GOOD, *rows, row(chosen=None)]).found
    assert found == "null value 2, response is not text 1, missing column 1, invalid Unicode 1"
    empty = finding_on(catalogue.EMPTY_ANSWER, [row(), row(chosen=""), row("?", rejected="")])
    assert empty.found == "chosen 1, rejected 1"


def test_a_cleaned_set_leaves_out_whatever_can_fail():
    of_a_setting = {catalogue.MIXED_FORMS}
    assert {check for check in catalogue.CHECKS if check.fail_share < NEVER and not check.drops} == of_a_setting


def test_shares_decide_the_verdict():
    check = Check("name", ANY, 0.05, "", "")
    assert [check.verdict(count, 1000) for count in (0, 1, 49, 50)] == ["pass", "warn", "warn", "fail"]
    assert Check("name", 0.5, NEVER, "", "").verdict(1000, 1000) == "warn"
    assert (worst([]), worst(["pass", "fail", "warn"]), worst(["warn", "pass"])) == ("pass", "fail", "warn")


def test_languages():
    assert language_of(GERMAN) == "de"
    assert language_of(LONG_QUESTION) == "en"
    assert language_of("天空在晴朗的日子里是蓝色的，因为空气散射阳光中波长较短的部分比其他部分更强。") == "zh"
    assert language_of("Ja, klar.") is None
    assert language_of("```python\n" + "value = other_value + third_value\n" * 9 + "```") is None


def test_minhash_estimates_the_share_of_common_triples():
    words = [f"w{number}" for number in range(202)]
    first, second = " ".join(words), " ".join([*words[:182], *(f"v{number}" for number in range(20))])
    assert sketch(first).jaccard(sketch(second)) == pytest.approx(180 / 220, abs=0.1)  # three standard errors
    assert sketch(plain("And  NOW?")).jaccard(sketch("and now?")) == 1


def test_a_thousand_prompts_from_one_mould_are_one_group():
    rows = [row(f"{LONG_QUESTION} {number}", chosen=f"{number}") for number in range(1000)]
    assert finding_on(catalogue.SIMILAR_PROMPTS, rows).count == 999


def test_prompts_of_the_evaluation_set():
    evaluation = [row(QUESTION.upper(), "a", "b"), row(LONG_QUESTION, "a", "b"), {"no": "pair"}]
    rows = [*GOOD, row(), row("And now?"), row(SIMILAR_QUESTION)]
    found = finding_on(catalogue.EVALUATION_OVERLAP, rows, evaluation=evaluation)
    assert found.rows == (len(GOOD), len(GOOD) + 2)
    assert found.verdict == "fail"
    assert finding_on(catalogue.EVALUATION_OVERLAP, GOOD, evaluation=evaluation).verdict == "pass"


def test_text_of_a_benchmark(tmp_path):
    entry = {"id": "7", "turns": [LONG_QUESTION, "And a shorter one, please?"], "kind": "short text here"}
    benchmark = read_benchmark(str(save_rows(tmp_path / "benchmark.jsonl", [entry])))
    inside = row(chosen="It said: " + LONG_QUESTION.upper()[40:160])
    rows = [*GOOD, inside, row("So: and a shorter one please!"), row("a short text here"), row(rejected=LONG_QUESTION)]
    found = finding_on(catalogue.BENCHMARK_OVERLAP, rows, benchmark=benchmark)
    assert found.rows == (len(GOOD), len(GOOD) + 1)
    assert finding_on(catalogue.BENCHMARK_OVERLAP, GOOD, benchmark=benchmark).verdict == "pass"
    assert len(Benchmark(["too few words"])) == 0


def test_a_benchmark_without_text_is_refused(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"id": 1, "name": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no text of at least 5 words"):
        read_benchmark(str(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        read_benchmark(str(tmp_path / "c.jsonl"))


def faulty_rows():
    """Rows with every fault, over several batches."""
    faulty = [fault for rows, _ in FAULTY.values() for fault in rows]
    return [*GOOD, *faulty, *({**good, "id": 1} for good in GOOD * 15), *faulty[::-1]]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_number_of_processes_changes_nothing(processes):
    rows = faulty_rows()
    assert len(rows) > 2 * BATCH_ROWS
    assert survey(rows, processes=processes).to_dict() == survey(rows, processes=1).to_dict()


def test_the_kind_of_source_changes_nothing(tmp_path):
    rows = [row(prompt, f"{number} {BLUE}") for number, prompt in enumerate([QUESTION, LONG_QUESTION] * 300)]
    file = save_rows(tmp_path / "pairs.jsonl", rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    expected = survey(rows, processes=2).to_dict()
    assert survey(open_rows(str(file)), processes=2).to_dict() == expected
    assert survey(open_rows(str(tmp_path / "pairs.parquet")), processes=2).to_dict() == expected
    assert survey(datasets.Dataset.from_list(rows).to_iterable_dataset(), processes=2).to_dict() == expected


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_batches_are_shared_out_whole(shares):
    rows = [{"n": number} for number in range(3 * BATCH_ROWS + 7)]
    for source in (rows, datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        parts = [batch for share in range(shares) for batch in batches(source, share, shares)]
        parts.sort(key=lambda part: part[0])
        assert [start for start, _ in parts] == [0, BATCH_ROWS, 2 * BATCH_ROWS, 3 * BATCH_ROWS]
        assert [each for _, batch in parts for each in batch] == rows


def test_progress_counts_every_row():
    counts = []
    survey(faulty_rows(), processes=2, on_rows=counts.append)
    assert sum(counts) == len(faulty_rows())


def test_no_rows_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="the dataset is empty"):
        survey(open_rows(str(tmp_path / "empty.jsonl")), processes=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a", "chosen_response": "b", "rejected_response": "c"}] * 600, r"none of the 600 rows is a"
         r" pair; row 0: missing column: found the columns instruction, chosen_response, .* did you mean prompt="),
        ([{"text": "a"}], "the only row is no pair; row 0: missing column: found the columns text; expected prompt,"),
        ([row(chosen=None), row(rejected=3)], "none of the 2 rows is a pair; row 0: null value: chosen is null"),
        ([row(chosen="\ud800")], "the only row is no pair; row 0: invalid Unicode"),
    ],
    ids=["unknown columns", "one row", "nulls", "Unicode"],
)  # fmt: skip
def test_nothing_passes_where_no_row_is_a_pair(rows, message):
    with pytest.raises(DataError, match=message):
        survey(rows, processes=2)
    with pytest.raises(DataError, match=f"evaluation set: {message}"):
        survey(GOOD, evaluation=rows, processes=1)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner),
    max_leaves=6,
)


@given(
    st.lists(st.fixed_dictionaries({"prompt": values, "chosen": values, "rejected": values}), min_size=1, max_size=4)
)
def test_no_row_is_too_strange(rows):
    found = survey([row(), *rows], processes=1)
    assert found.rows == 1 + len(rows)
    json.dumps(found.to_dict())


def test_a_cleaned_set_passes_and_keeps_its_rows_as_they_are(tmp_path):
    rows = faulty_rows()
    found = survey(rows, processes=1, evaluation=[GOOD[3]])
    assert found.verdict == "fail"
    left_out = found.rows_left_out()
    assert sum(map(len, found.left_out.values())) == len(left_out)  # every row under one reason
    written = write_cleaned(rows, left_out, tmp_path / "clean.jsonl")
    clean = list(open_rows(str(tmp_path / "clean.jsonl")))
    assert clean == [each for number, each in enumerate(rows) if number not in left_out]
    assert written == len(clean)
    again = survey(clean, processes=1, evaluation=[GOOD[3]])
    assert again.verdict != "fail"
    assert not again.left_out
    assert [path.name for path in tmp_path.iterdir()] == ["clean.jsonl"]


def test_nothing_is_written_where_no_row_is_left_or_the_disk_is_full(tmp_path, small_files):
    with pytest.raises(DataError, match="no row is left"):
        write_cleaned(GOOD, range(len(GOOD)), tmp_path / "clean.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        write_cleaned(GOOD * 20, (), tmp_path / "clean.jsonl")
    assert not list(tmp_path.iterdir())


def test_where_a_cleaned_set_may_go(tmp_path):
    (tmp_path / "there.jsonl").touch()
    refused = {"a.csv": r"ends in \.jsonl", "there.jsonl": "is there already", "no/a.jsonl": "no folder"}
    for name, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            require_new_file(tmp_path / name)
    require_new_file(tmp_path / "new.jsonl")
