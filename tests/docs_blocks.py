"""The commands and code that README and docs show, and those that no test can run, each with the reason."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/README.md")
    for page in ROOT.glob(pattern)
    if page.name not in ("errors.md", "log.md")  # mistakes on purpose, each a test of its own; a history
)
# In the environment of what runs them: whoever asks for an address on another machine is refused at once.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")

# Beginning of a command or block -> why it is not checked or run.
REASONS = {
    "oddsmith COMMAND": "stands for any command",
    "oddsmith train --flags": "stands for any flags",
    "oddsmith diagnose RUN |": "lists what may stand there",
    "oddsmith train --recipe FILE": "stands for any file",
    "# README.md 0": "loads from the hub; tests/integration/test_examples.py runs the same on a tiny model",
    "# docs/chat.md 0": "needs a trained run; tests/integration/test_chat.py has the same classes",
    "# docs/chat.md 1": "needs a package of others and a server; tests/integration/test_serve.py asks one",
}


class Block(NamedTuple):
    """A fenced or indented block of a page."""

    page: str
    language: str  # "" without one
    number: int  # of the page's blocks of this language
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Return the blocks of a page: fenced ones, and those of four spaces as of the language ``indented``."""
    text = (ROOT / page).read_text(encoding="utf-8")
    counts: dict[str, int] = {}
    fenced = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```$", flags=re.MULTILINE | re.DOTALL)
    indented = re.compile(r"(?<=\n\n)(?: {4}\S.*(?:\n|$)(?: {4}.*\n|\n(?= {4}))*)")
    found = [(match[2], match[3]) for match in fenced.finditer(text)]
    rest = fenced.sub("", text)
    found += [("indented", re.sub(r"^ {4}", "", one[0], flags=re.MULTILINE)) for one in indented.finditer(rest)]
    for language, content in found:
        yield Block(page, language, counts.get(language, 0), content)
        counts[language] = counts.get(language, 0) + 1


def commands(page: str) -> list[str]:
    """Return the shell commands of a page, one a line, without comments and the explanations behind them.

    Those of ``bash`` blocks, lines after ``$`` in other blocks, and lines of indented blocks that begin with a command.
    """
    found = []
    for block in blocks(page):
        lines = re.sub(r"\s*\\\n\s*", " ", block.text).splitlines()
        if block.language in ("", "text"):
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif block.language == "indented":
            lines = [line for line in lines if line.startswith(("oddsmith ", "pip ", "make "))]
        elif block.language not in ("bash", "shell"):
            continue
        found += [without_remarks(line) for line in lines]
    return [line for line in found if line and not line.startswith(tuple(REASONS))]


def mentions(page: str) -> list[str]:
    """Return the code in the text of a page that begins with ``oddsmith``: commands, or parts of them."""
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()).replace("\\|", "|") for span in re.findall(r"(?<!`)`(oddsmith [^`]+)`(?!`)", text))
    return [span for span in spans if not span.startswith(tuple(REASONS))]


def without_remarks(line: str) -> str:
    return re.split(r"\s+#(?: |$)|(?<=\S)\s{3,}(?=\S)", line, maxsplit=1)[0].strip()


def oddsmith_calls(command: str) -> list[list[str]]:
    """Return the words after each ``oddsmith`` of a shell command."""
    calls = []
    for part in re.split(r"\s(?:\|\|?|&&|;)\s", command):
        words = shlex.split(re.sub(r"\s\d?>>?(?:&\d|\s*\S+)|\s<\s*\S+", "", part))
        if "oddsmith" in words:
            calls.append(words[words.index("oddsmith") + 1 :])
    return [words for words in calls if words]


def python_blocks(page: str) -> list[Block]:
    """Return the Python blocks of a page that can run."""
    found = (block for block in blocks(page) if block.language == "python")
    return [block for block in found if f"# {page} {block.number}" not in REASONS]
