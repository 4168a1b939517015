"""What is wrong with an answer: it is empty, the same as the other, declines, repeats the question or itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..formats import PreferencePair
from ..formats.transcripts import SHORTEST_REPEATED_PROMPT_CHARACTERS
from ..tokens.rendering import is_blank
from . import catalogue
from .finding import Check
from .texts import PairTexts, plain

REFUSALS = {"chosen": catalogue.REFUSALS_CHOSEN, "rejected": catalogue.REFUSALS_REJECTED}

Hit = tuple[Check, str]  # a check that a row does not pass, and the part of the row that is at fault

# How refusals begin, in the languages of most preference data. Only the beginning is read: further on the same words
# are advice ("if you cannot reach them").
REFUSAL_CHARACTERS = 160
CANNOT = r"(?:can(?:no|'?)t|won't|(?:am|are|'m|'re) (?:unable|not able)|unable to)"
SORRY = r"(?:sorry|apologi[sz]e|unfortunately|regret)"
AN_AI = r"as an? (?:ai|artificial intelligence|(?:large )?language model)"
HELP = (
    r"(?:help|assist|provide|answer|do that|fulfil|comply|support|discuss|generate|create|write|engage|participate|give"
    r"|offer|share|tell)"
)
# One of these stands in every refusal; to look for them takes a tenth of the time.
REFUSAL_MARKS = (
    *("can't", "cannot", "cant", "won't", "unable", "not able", "will not", "decline", "refuse", "do not", "don't"),
    *("not programmed", "对不起", "抱歉", "遗憾", "作为", "puedo", "peux", "kann", "posso"),
)
REFUSAL = re.compile(
    "|".join(
        (
            rf"\b{SORRY}\b[^.!?]{{0,40}}\b{CANNOT}",
            rf"^\W*(?:i|we)(?: {CANNOT}|'m unable to| will not| must (?:decline|refuse))\b"
            rf"\W+(?!wait)(?:\w+\W+){{0,2}}?{HELP}",
            r"^\W*i (?:do not|don't) (?:feel comfortable|think i (?:can|should))\b",
            rf"\b{AN_AI}\b[^.!?]{{0,60}}\b(?:{CANNOT}|do not|don't|not programmed)",
            "(?:对不起|抱歉|很遗憾)[^。！？]{0,12}(?:无法|不能|没办法)",
            "作为(?:一个|一名)?(?:人工智能|语言模型|ai)[^。！？]{0,24}(?:无法|不能|没有)",
            r"\b(?:lo siento|désolée?|tut mir leid|desculpe)\b[^.!?]{0,40}\b(?:no puedo|ne peux|kann|não posso)\b",
        )
    )
)

# Source: Rae et al., "Scaling Language Models" (Gopher), arXiv 2112.11446, table A1: at most 10% in repeated 10-grams.
RUN_WORDS = 10
REPEATED_SHARE = 0.10
# In scripts without blanks between words a run is of characters; ten words of English are about sixty.
RUN_CHARACTERS = 30
LONGEST_WORD_CHARACTERS = 20


def answer_hits(pair: PreferencePair, texts: PairTexts) -> Iterator[Hit]:
    """The faults of a pair's answers.

    Args:
        pair: The pair.
        texts: Its texts.

    Yields:
        Hit: A check with the side at fault.
    """
    blank = [side for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)) if is_blank(answer)]
    for side in blank:
        yield catalogue.EMPTY_ANSWER, side
    if not texts.question.strip():
        yield catalogue.EMPTY_PROMPT, ""
    if blank:
        return
    if pair.chosen == pair.rejected:
        yield catalogue.IDENTICAL, ""
    elif texts.chosen != texts.rejected and plain(texts.chosen) == plain(texts.rejected):
        yield catalogue.ALMOST_IDENTICAL, ""
    for side, answer in texts.answers():
        if is_refusal(answer):
            yield REFUSALS[side], ""
        if echoes(texts.question, answer):
            yield catalogue.ECHO, side
        if repeats_itself(answer):
            yield catalogue.REPETITION, side


def is_refusal(answer: str) -> bool:
    """Whether an answer begins by declining."""
    beginning = answer[:REFUSAL_CHARACTERS].casefold().replace("’", "'")
    return any(mark in beginning for mark in REFUSAL_MARKS) and REFUSAL.search(beginning) is not None


def echoes(question: str, answer: str) -> bool:
    """Whether an answer begins with the question it answers, if that is long enough for it not to be chance."""
    asked = plain(question)
    if len(asked) < SHORTEST_REPEATED_PROMPT_CHARACTERS:
        return False
    return plain(answer[: 2 * len(question) + 100]).lstrip("\"'“>*# ").startswith(asked)


def repeats_itself(answer: str) -> bool:
    """Whether more than a tenth of the runs of ten words in an answer stood in it before."""
    words: list[str] | str = answer.split()
    run = RUN_WORDS
    if len(answer) > LONGEST_WORD_CHARACTERS * max(1, len(words)):
        words, run = answer, RUN_CHARACTERS
    runs = len(words) - run + 1
    if runs < run:  # too short for a share to say something
        return False
    # A run that stood before begins with three words that did: most answers are cleared by these, in less time.
    triples = set(zip(words, words[1:], words[2:], strict=False))
    if len(words) - 2 - len(triples) <= REPEATED_SHARE * runs:
        return False
    different = {tuple(words[start : start + run]) for start in range(runs)}
    return 1 - len(different) / runs > REPEATED_SHARE
