"""Check whether an answer keeps the house style of the demo's answers.

An answer keeps the style if it has at most two sentences and at most 40 words, ends as a sentence does, and is plain
prose that begins with the answer itself: no list, no preamble ("Sure!", "Great question", "Here are some tips"), no
markdown. The check is pure text, so it can judge the shipped pairs, a base model's replies and a tuned model's alike.

    style_faults("Pi is about 3.14. You need it for circles.")      -> []
    style_faults("Sure! Here are two tips:\\n1. Sleep.\\n2. Drink.")  -> ["4 sentences (at most 2)", "list", "preamble"]
"""

from __future__ import annotations

import re

MAX_SENTENCES = 2
MAX_WORDS = 40

# Abbreviations that never end a sentence ...
_NEVER_LAST = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "mt", "vs", "e.g", "i.e", "approx"})
# ... and those that may end one: the case of the next word decides.
_MAYBE_LAST = frozenset({"etc", "a.m", "p.m", "jr", "sr", "u.s", "u.k", "inc", "ltd", "co", "no"})

# Typographic quotes and dashes count as the plain ones.
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2026": "..."})

_STOP = re.compile(r"""(?<![.!?])(?P<mark>[.!?]+)(?P<closing>["')\]]*)(?=\s|$)""")
_FINISHED = re.compile(_STOP.pattern + r"\Z")
_OPENING = "\"'("
_WORD = re.compile(r"\w")

_LIST_ITEM = re.compile(r"^[^\S\n]*(?:[-*+•‣]\s+|\(?(?:\d{1,2}|[a-z])[.)]\s+)\S", re.MULTILINE)
# "... are: 1. Sleep 2. Drink": a first and a second item on one line, the first one at the start or after punctuation.
_INLINE_LIST = re.compile(r"(?:^|[.:;!?,]\s*)\(?1[.)]\s+\S.*?\s\(?2[.)]\s+\S", re.MULTILINE)

_PREAMBLE = re.compile(
    r"""
      (?:sure|certainly|absolutely|definitely|of\ course|okay|ok|alright|all\ right)\b(?:\ thing)?\s*(?:[!,.:]|-\s)
    | (?:(?:what\ an?|that(?:'s|\ is)\ an?)\s*)?
      (?:great|good|excellent|interesting|wonderful|fantastic|lovely)\ question\b
    | (?:thank\ you|thanks)\ for\ (?:asking|your\ question|reaching\ out|sharing)
    | here(?:'s|\ is|\ are)\b
    | (?:i'd|i\ would|i'll|i\ will|i'm|i\ am)\ (?:be\ )?(?:more\ than\ )?(?:happy|glad|delighted|pleased)\ to\b
    | i\ can\ (?:certainly\ |definitely\ )?help\b
    | as\ an?\ (?:ai|artificial\ intelligence|(?:large\ )?language\ model|assistant)\b
    | let(?:'s|\ me|\ us)\ (?:dive|start|begin|break|explain|help|see|take)\b
    | (?:to\ answer\ your|you(?:'re|\ are)\ asking|you\ asked|the\ answer\ to\ your)\b
    | (?:short\ |quick\ )?answer:
    """,
    re.VERBOSE | re.IGNORECASE,
)

_MARKDOWN = re.compile(
    r"""
      ^[^\S\n]*\#{1,6}\s+\S            # a heading
    | ^[^\S\n]*>\s+\S                  # a quotation
    | ^[^\S\n]*\|.*\|[^\S\n]*$              # a row of a table
    | ^[^\S\n]*(?:-{3,}|\*{3,}|_{3,})[^\S\n]*$  # a rule
    | `[^`\n]+` | ```             # code
    | \*\*\S | (?<!\w)__\S        # bold
    | (?<![\w*])\*[^\s*][^*\n]*\*(?!\w)  # emphasis, but not a product such as 2*3*4
    | \[[^\]\n]{1,300}\]\([^)\n]+\)     # a link
    """,
    re.VERBOSE | re.MULTILINE,
)


def sentences_in(text: str) -> list[str]:
    """Split a text into its sentences, stripped.

    A sentence ends at ``.``, ``!``, ``?`` or an ellipsis (closing quotes and brackets included) before a space, and at
    the end of every line, with or without a mark. Decimals (``3.5``), times (``5 p.m. on Monday``), titles
    (``Dr. Brown``), initials (``J. K. Rowling``), list numbers (``1. Sleep``) and speech inside a sentence
    (``"Why?" she asked.``) do not end a sentence. A line without a letter or digit is no sentence.
    """
    pieces = []
    for line in text.translate(_PLAIN).splitlines():
        start = 0
        for stop in _STOP.finditer(line):
            if _ends_sentence(line[start : stop.start()], stop, line[stop.end() :].lstrip()):
                pieces.append(line[start : stop.end()])
                start = stop.end()
        pieces.append(line[start:])
    return [piece.strip() for piece in pieces if _WORD.search(piece)]


def word_count(text: str) -> int:
    """Count the words: runs without a space that hold a letter or digit (``ten-minute`` and ``3.5`` are one each)."""
    return sum(1 for run in text.split() if _WORD.search(run))


def style_faults(answer: str) -> list[str]:
    """Return one short phrase for each fault of an answer against the house style; none if the style is kept.

    An empty answer has the single fault ``"empty"``; the others are ``"3 sentences (at most 2)"``, ``"57 words (at
    most 40)"``, ``"list"``, ``"preamble"``, ``"markdown"`` and ``"unfinished"`` (its last mark ends no sentence, as
    when a token limit cut it).
    """
    text = answer.strip().translate(_PLAIN)
    if not _WORD.search(text):
        return ["empty"]
    sentences, words = len(sentences_in(text)), word_count(text)
    checks = {
        f"{sentences} sentences (at most {MAX_SENTENCES})": sentences > MAX_SENTENCES,
        f"{words} words (at most {MAX_WORDS})": words > MAX_WORDS,
        "list": bool(_LIST_ITEM.search(text) or _INLINE_LIST.search(text)),
        "preamble": bool(_PREAMBLE.match(text)),
        "markdown": bool(_MARKDOWN.search(text)),
        "unfinished": not _FINISHED.search(text),
    }
    return [fault for fault, found in checks.items() if found]


def keeps_style(answer: str) -> bool:
    """Return whether an answer keeps the house style, i.e. ``style_faults`` finds nothing."""
    return not style_faults(answer)


def _ends_sentence(before: str, stop: re.Match[str], after: str) -> bool:
    """Return whether the mark ``stop`` ends the sentence ``before``, when ``after`` follows it on the line."""
    if not after:
        return True
    lower_follows = after.lstrip(_OPENING)[:1].islower()
    if stop["mark"] != ".":  # "Why?" she asked. / Well... maybe.
        return not (lower_follows and (stop["closing"] or stop["mark"] == "..."))
    words = before.split()
    last = words[-1].lstrip(_OPENING) if words else ""
    if last.lower() in _NEVER_LAST or (len(words) == 1 and re.fullmatch(r"\d{1,2}", last)):
        return False
    if last.lower() in _MAYBE_LAST:
        return not lower_follows and not (last.lower() == "no" and after[0].isdigit())
    return not _is_initial(words, last, after)


def _is_initial(words: list[str], last: str, after: str) -> bool:
    """Return whether ``last`` is an initial of a name: a capital among capitalised words, unlike ``vitamin C. It``."""
    if not re.fullmatch(r"[A-Z]", last) or not after[0].isupper():
        return False
    return len(words) == 1 or words[-2][0].isupper() or re.match(r"[A-Z]\.", after) is not None
