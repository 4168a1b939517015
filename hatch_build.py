"""Give the package the address of its repository, and README as a page on which no link is relative, for an index.

The address is nowhere in this repository, because it may move: ``ODDSMITH_ADDRESS=https://github.com/OWNER/oddsmith``
names it while a package is built, as .github/workflows/release.yml does. Without it the package states no addresses,
and what README links to by a relative path is plain text there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

VARIABLE = "ODDSMITH_ADDRESS"
PAGES = {  # name on the index -> below the address; VERSION is the tag of the release
    "Homepage": "",
    "Documentation": "/blob/VERSION/docs/index.md",
    "Changelog": "/blob/VERSION/CHANGELOG.md",
    "Source": "/tree/VERSION",
    "Issues": "/issues",
}
_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!\w+:)([^)\s]+)\)")


class AddressHook(MetadataHookInterface):
    """Sets ``readme`` and, where the address is known, ``urls``; a wheel made of an sdist has them already."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the fields to the table ``project`` of pyproject.toml."""
        address, tag = repository(), f"v{metadata['version']}"
        if address and "urls" not in metadata:
            metadata["urls"] = {name: address + page.replace("VERSION", tag) for name, page in PAGES.items()}
        if "readme" not in metadata:
            text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
            metadata["readme"] = {"content-type": "text/markdown", "text": long_description(text, address, tag)}


def repository() -> str:
    """Return the address that the environment names, or nothing."""
    address = os.environ.get(VARIABLE, "").removesuffix("/")
    if address and not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", address):
        raise ValueError(
            f"{VARIABLE} is {address!r}; expected the repository's page, as https://github.com/OWNER/oddsmith"
        )
    return address


def long_description(text: str, address: str, tag: str) -> str:
    """Return README with relative links made absolute, at a tag; with their text alone where there is no address."""

    def absolute(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if not address:
            return words
        page = f"README.md{target}" if target.startswith("#") else target
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/{tag}/{page})"

    return _LINK.sub(absolute, text)
