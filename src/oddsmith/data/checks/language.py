"""Check that question and chosen answer are in the same language.

py3langid recognises 97 languages and needs no download. On short texts it is often certain and wrong, so texts with
fewer than ``MIN_LETTERS`` letters are skipped, and its probability must be near 1. Languages that are written almost
alike (Norwegian and Danish, Malay and Indonesian, Mandarin and Cantonese, ...) count as one.

Source: Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL 2012.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from . import catalogue
from .catalogue import Hit
from .texts import PairTexts

MIN_LETTERS = 60
READ_CHARACTERS = 300  # reading more changes few answers, and costs time
MIN_PROBABILITY = 0.99
RANKED = 4  # the most probable languages, of which those that count as one are added up
# These words make up a third of English text and occur in no other language. Most preference data are English, and
# counting them takes a hundredth of the time of py3langid, which is used where they are rarer.
ENGLISH = re.compile(
    r"\b(?:the|of|and|to|that|it|for|with|are|this|you|your|not|have|from|they|their|which|has|what)\b", re.IGNORECASE
)
ENGLISH_SHARE = 0.2
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
ALIKE = {
    **dict.fromkeys(("nb", "nn", "da"), "no"),
    **dict.fromkeys(("hr", "sr"), "bs"),
    **dict.fromkeys(("wuu", "yue"), "zh"),
    **dict.fromkeys(("be", "uk"), "ru"),
    **dict.fromkeys(("ca", "an"), "es"),
    "gl": "pt",
    "ms": "id",
    "hsb": "cs",
}


def language_hits(texts: PairTexts) -> Iterator[Hit]:
    """Yield the check with both languages, such as ``"de to en"``, where question and chosen answer differ in it."""
    answered = language_of(texts.chosen)
    asked = language_of(texts.question) if answered else None
    if asked and asked != answered:
        yield catalogue.LANGUAGE, f"{asked} to {answered}"


def language_of(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, code and URLs aside; None where it is uncertain."""
    if "`" in text or "://" in text:
        text = CODE.sub(" ", text)
    text = text[:READ_CHARACTERS]
    if sum(map(str.isalpha, text)) < MIN_LETTERS and not _is_dense(text):
        return None
    is_latin = len(text.encode()) < 1.1 * len(text)  # no English sentence within a text of another script
    if is_latin and len(ENGLISH.findall(text)) >= ENGLISH_SHARE * len(text.split()) > 0:
        return "en"
    ranked = [
        (ALIKE.get(language, language), probability) for language, probability in language_identifier().rank(text)
    ]
    likeliest = ranked[0][0]
    probability = sum(probability for language, probability in ranked[:RANKED] if language == likeliest)
    return likeliest if probability >= MIN_PROBABILITY else None


def _is_dense(text: str) -> bool:
    """Return whether a text is in a script such as Chinese, which needs a third of the letters, and long enough."""
    letters = [letter for letter in text if letter.isalpha()]
    return 3 * len(letters) >= MIN_LETTERS and min(letters, default="") >= "\u3000"


@cache
def language_identifier() -> Any:
    """Load the model that recognises languages, once; processes that are forked afterwards share it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # takes half a second

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
