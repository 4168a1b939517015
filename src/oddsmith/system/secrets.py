"""Keep tokens, passwords and keys out of messages and files.

``without_secrets`` removes settings with secret names before settings are written. ``masked`` replaces secrets of a
recognisable form by ``***`` in texts that quote something: errors, tracebacks, names of datasets.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote

MASK = "***"
SECRET_NAME = re.compile(
    r"(^|[_-])(token|secret|password|passwd|api_?key|access_key|authorization|credentials?)$", re.IGNORECASE
)
# A URL, also where one slash is left of it because it was treated as a path; bounded, so that the search stays linear.
SCHEME = re.compile(r"\b(?:[a-z][a-z0-9+.-]{1,30}://|(?:https?|ftp|s3|gs|hf)://?)", re.IGNORECASE)
END_OF_URL = re.compile(r"[\s'\"<>]")
HOST_AND_PORT = re.compile(
    r"(?:[\w-]{1,63}(?:\.[\w-]{1,63}){1,9}|localhost|\[[0-9a-f:.]{2,45}\]):\d{1,5}/", re.IGNORECASE
)
TOKEN_SHAPES = re.compile(
    r"\b(?:hf_|api_org_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abpr]-)[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=\bBearer )[\w.~+/=-]{8,}"
)
IN_JSON = re.compile(
    r"""(["'](?:[\w-]{0,40}[_-])?(?:token|secret|password|passwd|api_?key|access_?key|authorization|credentials?)"""
    r"""\\?["']\s{0,9}:\s{0,9}\\?["'])[^"'\\]+""",
    re.IGNORECASE,
)
PARAMETER = re.compile(r"(?<![\w%.~-])([\w%.~-]{1,60})=([^&;#\s'\"<>,)}\]]+)")
# The last word of the name of a parameter with a secret; after "?" or "&" a shorter name will do.
SECRET_PARAMETER = re.compile(
    r"(?:(?:access|auth|hub|id|refresh|security|session|bearer|private|push)[_-]?token|hf[_-]token|api[_-]?key(?:[_-]?id)?"
    r"|(?:access|secret|private|account)[_-]?key(?:[_-]?id)?|password|passwd|passphrase|secret|signature|credentials?"
    r"|authorization)$",
    re.IGNORECASE,
)
SECRET_IN_QUERY = re.compile(r"(?:^|[_.-])(?:token|key|keyid|sig|auth|pw|pwd|pass|jwt|code|otp)$", re.IGNORECASE)
MIN_CHARACTERS = 8  # of a secret in the environment; masking shorter ones would hide common words


def masked(text: str) -> str:
    """Return a text with ``***`` for the secrets in it; the time it takes grows in proportion to its length.

    These are user and password of a URL, its parameters with such a name (``?token=``, ``&X-Amz-Signature=``), tokens
    of a known form, JSON fields named token, password or key, and the values of environment variables with such a name.
    """
    for name, value in os.environ.items():
        if len(value) >= MIN_CHARACTERS and SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    text = PARAMETER.sub(_without_value, _without_users(text))
    return IN_JSON.sub(rf"\g<1>{MASK}", TOKEN_SHAPES.sub(MASK, text))


def _without_users(text: str) -> str:
    """Mask what stands before the host in the URLs of a text: ``user:password``, with any ``/`` and ``@`` in them."""
    schemes = list(SCHEME.finditer(text))
    starts, followings = [match.end() for match in schemes], [match.start() for match in schemes[1:]]
    parts, done = [], 0
    for start, following in zip(starts, [*followings, len(text)], strict=False):  # none are left without a URL
        end = END_OF_URL.search(text, start, following)
        url = text[start : following if end is None else end.start()]
        slash, colon = url.find("/") % (len(url) + 1), url.find(":") % (len(url) + 1)
        # A path may hold an @ as well. A password may hold a slash, which a colon before the slash gives away.
        has_password = colon < slash and not HOST_AND_PORT.match(url)
        at = url.rfind("@") if has_password else url.rfind("@", 0, slash)
        if at > 0:
            parts += [text[done:start], MASK]
            done = start + at
    return "".join([*parts, text[done:]])


def _without_value(match: re.Match[str]) -> str:
    """Mask the value of ``name=value`` if the name says that it is a secret."""
    name = unquote(match[1])
    before = match.string[match.start() - 1 : match.start()]
    is_secret = SECRET_PARAMETER.search(name) or (before in ("?", "&", ";", "#") and SECRET_IN_QUERY.search(name))
    return f"{match[1]}={MASK}" if is_secret else match[0]


def without_secrets(name: str, value: Any) -> tuple[Any, bool]:
    """Return a setting's value with ``None`` for each secret in it and ``***`` in texts, and whether it had any.

    The value may be nested.
    """
    if value is not None and SECRET_NAME.search(name):
        return None, True
    if isinstance(value, dict):
        parts = {key: without_secrets(str(key), item) for key, item in value.items()}
        return {key: item for key, (item, _) in parts.items()}, any(hidden for _, hidden in parts.values())
    if isinstance(value, list):
        items = [without_secrets("", item) for item in value]
        return [item for item, _ in items], any(hidden for _, hidden in items)
    if isinstance(value, str):
        return masked(value), masked(value) != value
    return value, False
