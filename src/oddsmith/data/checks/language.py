"""In which language a text is, where it is long enough to tell.

py3langid knows 97 languages and needs no download. It is certain of itself on short texts too, and then often wrong; so
texts of fewer letters than ``LEAST_LETTERS`` are not asked about, and its probability must be near 1. Languages that
are written almost alike (Norwegian and Danish, Malay and Indonesian, Mandarin and Cantonese, ...) count as one.

Source: Lui and Baldwin, "langid.py: An Off-the-shelf Language Identification Tool", ACL 2012.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from . import catalogue
from .answers import Hit
from .texts import PairTexts

LEAST_LETTERS = 60
READ_CHARACTERS = 300  # more changes few answers, and costs time
CERTAIN = 0.99
LIKELY = 4  # languages that are looked at
# Words that make up a third of English and are none elsewhere. Most preference data are English, and counting these
# takes a hundredth of the time; where there are fewer, py3langid is asked.
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
    """Whether question and chosen answer are in two languages.

    Args:
        texts: The texts.

    Yields:
        Hit: The check with both languages, such as ``"de to en"``.
    """
    answered = language_of(texts.chosen)
    asked = language_of(texts.question) if answered else None
    if asked and asked != answered:
        yield catalogue.LANGUAGE, f"{asked} to {answered}"


def language_of(text: str) -> str | None:
    """The language of a text as an ISO 639-1 code, code and addresses aside; None where it cannot be told."""
    if "`" in text or "://" in text:
        text = CODE.sub(" ", text)
    text = text[:READ_CHARACTERS]
    if sum(map(str.isalpha, text)) < LEAST_LETTERS and not _is_dense(text):
        return None
    if _is_plain_english(text):
        return "en"
    ranked = [(ALIKE.get(language, language), probability) for language, probability in _identifier().rank(text)]
    likeliest = ranked[0][0]
    probability = sum(probability for language, probability in ranked[:LIKELY] if language == likeliest)
    return likeliest if probability >= CERTAIN else None


def _is_plain_english(text: str) -> bool:
    is_latin = len(text.encode()) < 1.1 * len(text)  # no sentence of English in a text of another script
    return is_latin and len(ENGLISH.findall(text)) >= ENGLISH_SHARE * len(text.split()) > 0


def _is_dense(text: str) -> bool:
    """Whether a short text says much: scripts such as Chinese need a third of the letters."""
    letters = [letter for letter in text if letter.isalpha()]
    return 3 * len(letters) >= LEAST_LETTERS and min(letters, default="") >= "\u3000"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second, so only where it is asked

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def load_languages() -> None:
    """Load what tells languages, once: processes that are forked afterwards share it."""
    _identifier()
