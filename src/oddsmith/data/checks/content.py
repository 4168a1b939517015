"""Checks of the texts of one pair: refusals, echoes, repetition, control tokens, personal data, order of the roles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, pairwise

from ..formats import PreferencePair
from ..formats.messages import SYSTEM_ROLES, Message, is_blank
from ..formats.transcripts import SHORTEST_REPEATED_PROMPT_CHARACTERS
from . import catalogue
from .catalogue import Hit
from .texts import PairTexts, plain, words_or_characters

REFUSALS = {"chosen": catalogue.REFUSALS_CHOSEN, "rejected": catalogue.REFUSALS_REJECTED}

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
# Every refusal contains one of these; searching for them first takes a tenth of the time.
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
RUN_CHARACTERS = 30  # in scripts without spaces; ten words of English are about sixty

# Control tokens of the well-known families: ChatML, Llama 2 and 3, Mistral, Gemma, Phi, DeepSeek, Zephyr, BERT.
CONTROL_TOKEN = re.compile(
    r"<\|[A-Za-z][\w .-]{1,40}\|>"
    r"|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk)>"
    r"|\[(?:CLS|SEP|PAD|MASK)\]|</?s>(?!\w)"
)
CONTROL_TOKEN_MARKS = ("<|", "<｜", "_of_turn>", "INST]", "SYS>>", "s>", "[", "<unk>", "<pad>")

EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?!(?:[\w-]+\.)*example\b)(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
# Access keys that have a recognisable form. Source: the prefixes that the providers document.
KEY = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # Amazon
    r"|\bAIza[\w-]{35}"  # Google
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_\w{22,}"  # GitHub
    r"|\bglpat-[\w-]{20,}"  # GitLab
    r"|\bhf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|\bsk-(?:proj-|ant-)?[\w-]{20,}|\b[sr]k_live_[A-Za-z0-9]{20,}"  # OpenAI, Anthropic, Stripe
    r"|\bxox[abprs]-[\w-]{10,}"  # Slack
    r"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
)
KEY_MARKS = (
    *("AKIA", "ASIA", "AIza", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "hf_", "sk-"),
    *("k_live_", "xox", "-----BEGIN"),
)


def content_hits(pair: PreferencePair, texts: PairTexts) -> Iterator[Hit]:
    """Yield the checks of this module that a pair does not pass.

    The part of a hit is a side of the pair, a kind of personal data, or what is wrong with the roles.
    """
    yield from _answer_hits(pair, texts)
    if isinstance(pair.prompt, list):
        sides = [side for side in (pair.chosen, pair.rejected) if isinstance(side, list)]
        faults = filter(None, (role_fault([*pair.prompt, *side]) for side in sides))
        yield from ((catalogue.ROLES, fault) for fault in islice(faults, 1))
    for part in ("prompt", "chosen", "rejected"):
        text = getattr(texts, part)
        if has_control_text(text):
            yield catalogue.SPECIAL_TEXT, part
        for kind in personal_data(text):
            yield catalogue.PERSONAL_DATA, kind


def _answer_hits(pair: PreferencePair, texts: PairTexts) -> Iterator[Hit]:
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
    for side, answer in (("chosen", texts.chosen), ("rejected", texts.rejected)):
        if is_refusal(answer):
            yield REFUSALS[side], ""
        if echoes(texts.question, answer):
            yield catalogue.ECHO, side
        if repeats_itself(answer):
            yield catalogue.REPETITION, side


def is_refusal(answer: str) -> bool:
    """Return whether an answer begins by declining."""
    beginning = answer[:REFUSAL_CHARACTERS].casefold().replace("’", "'")
    return any(mark in beginning for mark in REFUSAL_MARKS) and REFUSAL.search(beginning) is not None


def echoes(question: str, answer: str) -> bool:
    """Return whether an answer begins with its question, if that is too long for a coincidence."""
    asked = plain(question)
    if len(asked) < SHORTEST_REPEATED_PROMPT_CHARACTERS:
        return False
    return plain(answer[: 2 * len(question) + 100]).lstrip("\"'“>*# ").startswith(asked)


def repeats_itself(answer: str) -> bool:
    """Return whether more than a tenth of the runs of ten words in an answer occurred in it before."""
    words = words_or_characters(answer)
    run = RUN_WORDS if isinstance(words, list) else RUN_CHARACTERS
    runs = len(words) - run + 1
    if runs < run:  # too short for a share to be meaningful
        return False
    # A repeated run begins with three repeated words. These are faster to count, and most answers have few of them.
    triples = set(zip(words, words[1:], words[2:], strict=False))
    if len(words) - 2 - len(triples) <= REPEATED_SHARE * runs:
        return False
    different = {tuple(words[start : start + run]) for start in range(runs)}
    return 1 - len(different) / runs > REPEATED_SHARE


def has_control_text(text: str) -> bool:
    """Return whether a text contains a control token of a well-known chat template."""
    return any(mark in text for mark in CONTROL_TOKEN_MARKS) and CONTROL_TOKEN.search(text) is not None


def personal_data(text: str) -> list[str]:
    """Return which of ``"e-mail"`` and ``"key"`` a text contains. Addresses at example.com and the like are ignored."""
    found = []
    if "@" in text and EMAIL.search(text):
        found.append("e-mail")
    if any(mark in text for mark in KEY_MARKS) and KEY.search(text):
        found.append("key")
    return found


def role_fault(messages: list[Message]) -> str | None:
    """Return what is wrong with the order of the roles in a conversation, as a short phrase; None where it is right.

    System messages come first, then user and assistant alternate. Tools may come in between, and an assistant may go on
    after a tool.
    """
    roles = [message["role"] for message in messages]
    while roles and roles[0] in SYSTEM_ROLES:
        roles.pop(0)
    if roles and roles[0] != "user":
        return f"begins with the {roles[0]}"
    for before, role in pairwise(roles):
        if role in SYSTEM_ROLES:
            return "system message in the middle"
        if role == before and role in ("user", "assistant"):
            return f"two turns of the {role} in a row"
    return None
