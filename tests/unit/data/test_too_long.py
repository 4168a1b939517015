"""What is said to keep long pairs keeps them, as many as it says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oddsmith.data.checks.survey import survey
from oddsmith.data.limits import ModelLimits
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import Lengths, Tokens, cut_pair, same_targets
from oddsmith.data.too_long import _kept, advice, by_max_length, by_max_prompt_length
from oddsmith.errors import DataError
from tests.tiny import tiny_tokenizer


def document(words, answer="It is about a fox.", other="No."):
    """A summary of a long text."""
    return {"prompt": "fox! " * words, "chosen": answer, "rejected": other}


def prepared(rows, **limits):
    return prepare(rows, PairTokenizer(tiny_tokenizer(), **limits), min_pairs=0).report


LONG = [*(document(words) for words in range(30, 125, 5)), document(900)]


def test_what_is_said_is_what_happens():
    with pytest.raises(DataError) as caught:
        prepare(LONG, PairTokenizer(tiny_tokenizer(), max_length=64))
    assert str(caught.value).endswith(
        "; for the 20 too long: max_length 768 keeps 95% of them whole (12 times the tokens take about as many times"
        " the memory), max_prompt_length 32 all, prompts cut from the left"
    )
    kept = prepared(LONG, max_length=768)
    assert (kept.kept, kept.cut) == (19, {})
    kept = prepared(LONG, max_length=64, max_prompt_length=32)
    assert (kept.kept, sorted(kept.cut)) == (20, ["prompt"])


def test_a_report_says_it_of_many_rows_alone():
    said = "  20 are too long: max_length 768 keeps 95% of them whole ("
    assert any(line.startswith(said) for line in prepared([*LONG, *[document(1)] * 20], max_length=64).lines())
    assert not any("too long" in line for line in prepared([LONG[0], *[document(1)] * 200], max_length=64).lines())


def test_the_check_says_it():
    pair_tokenizer = PairTokenizer(tiny_tokenizer(), max_length=64)
    found = survey([*LONG, document(1)], pair_tokenizer=pair_tokenizer, processes=2)
    (finding,) = (finding for finding in found.findings if finding.check == "prompt longer than the limit")
    assert finding.found.startswith("max_length 768 keeps 95% of them whole (")
    limits = ModelLimits(300, positions=512)
    found = survey([*LONG, document(1)], pair_tokenizer=pair_tokenizer, limits=limits, processes=1)
    (finding,) = (finding for finding in found.findings if finding.check == "prompt longer than the limit")
    assert finding.found.startswith("max_length 512 keeps 75% of them, 70% whole (")


LENGTHS = [Lengths(1000, 1000, 1100), Lengths(1500, 1500, 1550), Lengths(2000, 2005, 2100)]


@pytest.mark.parametrize(
    ("max_length", "most_tokens", "said"),
    [
        (1024, None, "max_length 3072 keeps all of them whole (3 times the tokens take about as many times the memory),"
                     " max_prompt_length 768 all, prompts cut from the left"),
        (1024, 2000, "max_length 2000 keeps 67% of them whole (2 times the tokens take about as many times the memory),"
                     " max_prompt_length 768 all, prompts cut from the left"),
        (1024, 1024, "max_prompt_length 768 keeps all of them, prompts cut from the left"),
        (128, 128, "max_prompt_length 64 keeps all of them, 33% with whole answers, prompts cut from the left"),
        (64, 64, "max_prompt_length 48 keeps all of them, none with whole answers, prompts cut from the left"),
        (4, 4, "max_prompt_length 3 keeps 67% of them, none with whole answers, prompts cut from the left"),
    ],
)  # fmt: skip
def test_limits_in_words(max_length, most_tokens, said):
    assert advice(LENGTHS, max_length, most_tokens) == said


SIDES = st.tuples(st.integers(1, 30), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))


@given(st.lists(SIDES, min_size=1, max_size=5), st.integers(2, 40))
def test_the_counts_are_those_of_cutting(sides, max_length):
    """Pairs of a prompt, a shared beginning, and two ends; cut as in training, and counted by their lengths."""
    pairs = []
    for prompt, shared, first, second in sides:
        ids = [1] * (prompt + shared)
        pairs.append(
            tuple(Tokens(ids + [side] * n, prompt, prompt + shared + n) for side, n in ((2, first), (3, second)))
        )
    lengths = [Lengths.of(*pair) for pair in pairs]

    def counts(**limits):
        kept = [cut for cut in (cut_pair(*pair, **limits) for pair in pairs)
                if min(side.target_tokens for side in cut) > 0 and not same_targets(*cut)]  # fmt: skip
        return len(kept)

    assert _kept(lengths, max_length)[0] == counts(max_length=max_length)
    if longer := by_max_length(lengths, max_length):
        assert longer.pairs == counts(max_length=longer.limit)
    dropped = [pair for pair in pairs if max(side.end for side in pair) > max_length]
    pairs, lengths = dropped, [Lengths.of(*pair) for pair in dropped]
    if pairs and (shorter := by_max_prompt_length(lengths, max_length)):
        assert shorter.pairs == counts(max_length=max_length, max_prompt_length=shorter.limit)
