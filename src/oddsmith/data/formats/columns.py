"""Judge columns by their names: which hold the prompt or a part of it, which hold facts about the row.

The columns that formats read are listed in pairs.py. Here are those that they do not read: a prompt under an unknown
name must not be dropped in silence, while scores, ids and names of models may. What else they may be: offer.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .messages import Message

CHOSEN, REJECTED = "chosen", "rejected"
ANSWERS = (CHOSEN, REJECTED)

# Names of a prompt, of a part of it, or of what is said before it, in the order in which they are taken for it.
PROMPT_NAMES = (
    *("prompt", "instruction", "question", "query", "messages", "conversations", "conversation", "input", "inputs"),
    *("instructions", "questions", "queries", "message", "dialogue", "dialog", "dialogs", "dialogues", "chat"),
    *("history", "context", "contexts", "user", "human", "user_input", "user_prompt", "user_message", "user_query"),
    *("system_prompt", "system_message", "system_instruction", "request", "problem", "task", "passage", "document"),
    *("documents", "article", "post", "turns", "utterance", "premise", "background", "source_text", "input_text"),
    *("prompt_text", "question_text", "title", "body", "text"),
)
# The last words of names of facts about a row: where it is from, what it is about, how it was judged.
_FACTS = (
    "id ids idx index uid uuid guid key hash md5 sha row number num no count counts length len tokens words chars",
    "source sources origin dataset datasets subset split fold batch shard collection file filename path url urls uri",
    "link links license licence date dates time timestamp created updated version versions status state config seed",
    "temperature meta metadata info stats flag flags name names",
    "category categories subcategory type types kind domain domains topic topics subject subjects area field genre",
    "style tag tags label labels class classes keyword keywords level difficulty grade lang langs language languages",
    "locale country model models generator generators engine author authors annotator annotators worker rater raters",
    "evaluator judge judges annotation annotations score scores rating ratings rank ranks ranking reward rewards",
    "margin margins gap diff difference delta logp logps logprob logprobs ppl perplexity probability confidence",
    "agreement quality helpfulness harmlessness honesty safety toxicity correctness coherence complexity verbosity",
    "preference preferences winner votes weight weights rationale rationales explanation explanations critique",
    "critiques feedback feedbacks reason reasons justification evaluation evaluations principle principles criterion",
    "criteria rubric rubrics comment comments note notes remark remarks",
)
FACTS = frozenset(" ".join(_FACTS).split())
# Words that name the better answer, the worse one, or turn one into the other; last words that name any answer.
ACCEPTED = frozenset(
    ("chosen", "accepted", "accept", "preferred", "good", "better", "best", "positive", "winning", "win")
)
REFUSED = frozenset(("rejected", "reject", "dispreferred", "bad", "worse", "worst", "negative", "losing", "lose"))
NEGATIONS = frozenset(("non", "not", "dis", "un"))
ANSWER_WORDS = frozenset(
    ("answer", "answers", "response", "responses", "reply", "completion", "completions", "output", "outputs")
)
MEDIA_WORDS = frozenset(
    ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixel", "video", "videos", "audio")
)
# Last words of names of what is said about an image.
ABOUT_MEDIA = frozenset(
    ("id", "ids", "caption", "captions", "description", "text", "size", "width", "height", "count", "num", "type")
)
# Name of a category rather than a text: one word, or a few joined by anything but blanks.
LABEL_CHARACTERS = 40


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a column's name in lower case: ``("chosen", "avg", "rating")``."""
    return tuple(re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def is_fact(name: str) -> bool:
    """Return whether a name is one of facts about the row, such as ``prompt_id`` or ``chosen_model``."""
    words = words_of(name)
    return bool(words) and words[-1] in FACTS and name.lower() not in PROMPT_NAMES


def is_prompt(name: str) -> bool:
    """Return whether a name is one of a prompt or of a part of it."""
    return "_".join(words_of(name)) in PROMPT_NAMES


@lru_cache(maxsize=4096)
def is_media(name: str) -> bool:
    """Return whether a column is named after images, sound or video, rather than after what is said about them."""
    words = words_of(name)
    return not MEDIA_WORDS.isdisjoint(words) and words[-1] not in ABOUT_MEDIA


def side_of(name: str) -> str | None:
    """Return the answer that a column is named after, ``"chosen"`` or ``"rejected"``; None for another column."""
    words = words_of(name)
    if is_fact(name):
        return None
    is_negated = not NEGATIONS.isdisjoint(words)
    if not REFUSED.isdisjoint(words) or (is_negated and not ACCEPTED.isdisjoint(words)):
        return REJECTED
    return None if ACCEPTED.isdisjoint(words) else CHOSEN


def unread_texts(row: Mapping[str, Any], read: Collection[str]) -> dict[str, list[str]]:
    """Return the texts, without blank ones, of the columns that are not ``read`` and may hold a prompt."""
    found = {}
    for name, value in row.items():
        if value is None or name in read or isinstance(value, bool | int | float) or is_no_prompt(str(name)):
            continue
        texts = [text for text in _texts(value) if text.strip()]
        if texts and not (len(texts) == 1 and is_label(str(name), texts[0])):
            found[str(name)] = texts
    return found


def is_repeated(texts: Sequence[str], prompt: str) -> bool:
    """Return whether a column repeats what is in a prompt: its first text is there, in whole words."""
    first, whole = squeezed(texts[0]), squeezed(prompt)
    return first in whole and re.search(rf"(?<!\w){re.escape(first)}(?!\w)", whole) is not None


def squeezed(text: str) -> str:
    """Return a text with single spaces."""
    return " ".join(text.split())


def text_of(content: str | Sequence[Message]) -> str:
    """Return a text, or the contents of messages, one after the other."""
    return content if isinstance(content, str) else "\n".join(message["content"] for message in content)


@lru_cache(maxsize=4096)
def is_no_prompt(name: str) -> bool:
    """Return whether a name is one of facts about the row, of images and the like, or of an answer."""
    return is_fact(name) or is_media(name) or side_of(name) is not None or is_answer(name)


def is_answer(name: str) -> bool:
    """Return whether a name ends with a word for any answer."""
    words = words_of(name)
    return bool(words) and words[-1] in ANSWER_WORDS


def is_label(name: str, text: str) -> bool:
    """Return whether a text is the name of a category, unless its column is one of prompts."""
    return not is_prompt(name) and len(text) <= LABEL_CHARACTERS and len(text.split()) == 1


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a value of lists and objects, without the roles of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
