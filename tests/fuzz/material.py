"""Input for the targets: sound files with faults in them, and values of every kind."""

import json
from collections.abc import Sequence

from hypothesis import strategies as st

# Input that readers have failed on: here, in other projects, and in the issue lists of the formats.
SNIPPETS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\x1b[2J\x1b]0;title\x07", b"\r", b"\n",
    b"\n\n", "\u2028\u0085\u202e".encode(), b"\t", b'"', b"'", b"`", b"{", b"}", b"]", b",", b":", b"#", b"null",
    b"true", b"NaN", b"-Infinity", b"1e999", b"-0", b"0x10", b"1_000", b"9" * 400, b"9" * 5_000, b"-1", b"[" * 300,
    b"[" * 100_000, b'{"a":' * 3_000, b"[" * 400 + b"]" * 400, b"&a [*a]", b"*a",
    b"!!python/object/apply:os.system [id]", b"<<: {}", b"---\n", b"%YAML 1.1\n", b"? [a]\n: b", b"x" * 50_000,
    b"\\n" * 500,
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=6),  # halves of surrogate pairs among them
    st.sampled_from(["", " ", "\n", "a", "\x00", "\x1b[31m", "\ud800", "\u2028", "x" * 3_000, "{{ 7 * 7 }}", "{%"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 10**12, 10**30, 10**400, -(10**400), 1e308, -1e308, 5e-324]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)


@st.composite
def nested(draw: st.DrawFn, most: int) -> list:
    """Draw a list in a list in a list ..."""
    value: list = []
    for _ in range(draw(st.sampled_from([5, most // 2, most]))):
        value = [value]
    return value


@st.composite
def damaged(draw: st.DrawFn, samples: Sequence[bytes], most_faults: int = 4) -> bytes:
    """Draw one of the samples, which are sound files, with up to so many faults in it."""
    content = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, most_faults))):
        content = draw(st.sampled_from(_FAULTS))(draw, content, samples)
    return content


def _place(draw: st.DrawFn, content: bytes) -> int:
    return draw(st.integers(0, len(content)))


def _insert(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    at = _place(draw, content)
    return content[:at] + draw(st.sampled_from(SNIPPETS) | st.binary(max_size=4)) + content[at:]


def _overwrite(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    at = _place(draw, content)
    return content[:at] + draw(st.binary(min_size=1, max_size=2)) + content[at + 1 :]


def _replace_word(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    """Replace what stands between two separators."""
    at = _place(draw, content)
    first = max(content.rfind(mark, 0, at) for mark in (b":", b",", b"\t", b" ", b"\n")) + 1
    ends = [end for mark in (b",", b"}", b"]", b"\n", b"\t") if (end := content.find(mark, at)) >= 0]
    new = draw(st.sampled_from(SNIPPETS) | VALUES.map(lambda value: json.dumps(value).encode()))
    return content[:first] + new + content[min(ends, default=len(content)) :]


def _cut(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    return content[: _place(draw, content)]


def _remove(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    first, last = sorted((_place(draw, content), _place(draw, content)))
    return content[:first] + content[last:]


def _repeat(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    first, last = sorted((_place(draw, content), _place(draw, content)))
    return content[:last] + content[first:last] * draw(st.sampled_from([1, 2, 30])) + content[last:]


def _splice(draw: st.DrawFn, content: bytes, samples: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(samples))
    return content[: _place(draw, content)] + other[_place(draw, other) :]


_FAULTS = (_insert, _overwrite, _replace_word, _replace_word, _cut, _remove, _repeat, _splice)
