"""What should not stand in a text: the control tokens of chat templates, e-mail addresses, access keys."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import catalogue
from .answers import Hit
from .texts import PairTexts

# Control tokens of the well-known families: ChatML, Llama 2 and 3, Mistral, Gemma, Phi, DeepSeek, Zephyr, BERT.
SPECIAL = re.compile(
    r"<\|[A-Za-z][\w .-]{1,40}\|>"
    r"|<｜[^<>｜]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk)>"
    r"|\[(?:CLS|SEP|PAD|MASK)\]|</?s>(?!\w)"
)
SPECIAL_BEGINNINGS = ("<|", "<｜", "_of_turn>", "INST]", "SYS>>", "s>", "[", "<unk>", "<pad>")

EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?!(?:[\w-]+\.)*example\b)(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
# Keys that can be told by their form. Source: the prefixes that the providers document.
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
KEY_BEGINNINGS = (
    "AKIA",
    "ASIA",
    "AIza",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "hf_",
    "sk-",
    "k_live_",
    "xox",
    "-----BEGIN",
)


def content_hits(texts: PairTexts) -> Iterator[Hit]:
    """Control tokens and personal data in the texts of a pair.

    Args:
        texts: The texts.

    Yields:
        Hit: A check with what was found (``"e-mail"``, ``"key"``) or in which part of the pair.
    """
    for part in ("prompt", "chosen", "rejected"):
        text = getattr(texts, part)
        if has_control_text(text):
            yield catalogue.SPECIAL_TEXT, part
        for kind in personal_data(text):
            yield catalogue.PERSONAL_DATA, kind


def has_control_text(text: str) -> bool:
    """Whether a control token of a well-known chat template stands in the text."""
    return any(mark in text for mark in SPECIAL_BEGINNINGS) and SPECIAL.search(text) is not None


def personal_data(text: str) -> list[str]:
    """Which of ``"e-mail"`` and ``"key"`` stand in the text. Addresses at example.com and the like do not count."""
    found = []
    if "@" in text and EMAIL.search(text):
        found.append("e-mail")
    if any(mark in text for mark in KEY_BEGINNINGS) and KEY.search(text):
        found.append("key")
    return found
