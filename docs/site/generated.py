"""Put what is made from the code into pages: ``<!-- made at build time: settings -->`` and its like.

``settings`` and ``commands`` are Markdown, in the site as in the Markdown beside it. ``api`` is autodoc's on the site,
and the plain docstrings in the Markdown.
"""

from __future__ import annotations

import inspect
import json
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oddsmith
from oddsmith import errors
from oddsmith.cli.main import COMMANDS
from oddsmith.cli.parsing.schema import Field, load_fields
from oddsmith.config.catalogue import SETTINGS, Effect, Facts

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARK = re.compile(r"^<!-- made at build time: (\w+) -->$", re.MULTILINE)
ON_RESUME = {
    Effect.DECIDES: "must stay",
    Effect.LENGTH: "may grow",
    Effect.BY_RESULT: "by its result",
    Effect.FREE: "may change",
}


def settings() -> str:
    """Return a table of settings for each group of the help."""
    fields = [field for field in load_fields().values() if field.listed]
    parts = []
    for group in dict.fromkeys(field.group for field in fields):
        rows = [_setting(field) for field in fields if field.group == group]
        head = ["| setting | what it does | takes | default | on resuming |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {group}", "", *head, *rows]))
    return "\n\n".join(parts)


def _setting(field: Field) -> str:
    takes = ", ".join(f"`{choice}`" for choice in field.choices) if 0 < len(field.choices) < 9 else ""
    takes = takes or " or ".join(_TYPES[kind] for kind in _TYPES if kind in field.types)
    default = "" if field.default in (None, "", []) else f"`{_plain(field.default)}`"
    facts: Facts | None = SETTINGS.get(field.name)
    name = f'<span id="{field.name}"></span>`{field.name}`'
    cells = (name, _text(field.help), takes, default, ON_RESUME[facts.effect] if facts else "")
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


_TYPES = {
    "bool": "yes or no", "int": "whole number", "float": "number", "str": "text", "list": "list of texts",
    "dict": "mapping", "list[dict]": "list of mappings",
}  # fmt: skip


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def commands() -> str:
    """Return each command's usage, description and flags."""
    parts = []
    for name, command in COMMANDS.items():
        module = import_module(f"oddsmith.cli.commands.{command.module}")
        lines = [f"## oddsmith {name}", "", command.summary, "", "```text", module.USAGE, "```", ""]
        lines += [line for text in module.INTRO for line in (_text(text), "")]
        lines += ["| flag | what it does |", "|---|---|"]
        lines += [f"| `{_cell(f'{o.flag} {o.metavar}'.strip())}` | {_cell(_text(o.help))} |" for o in module.OPTIONS]
        taken = getattr(module, "SETTINGS_IN_HELP", ())
        if taken is None:
            lines += ["", "All [settings](settings.md) are flags, too."]
        elif taken:
            names = ", ".join(f"`{name}`" for name in load_fields() if name in taken)
            lines += ["", f"[Settings](settings.md) that are flags, too: {names}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _text(text: str) -> str:
    """Mark flags and settings as code, an example as a block; keep what Markdown would take for HTML or a link."""
    if text.startswith("Example: "):
        return f"```bash\n{text.removeprefix('Example: ')}\n```"
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [
        re.sub(r"(?<![\w`.-])(--[a-z][\w-]*|[a-z]\w*_\w+)", r"`\1`", re.sub(r"([<*])", r"\\\1", piece))
        for piece in pieces[::2]
    ]
    return "".join(pieces)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def api(sphinx: bool) -> str:
    """Return the reference of the public names, the errors last: for autodoc, or as plain Markdown."""
    names = [name for name in oddsmith.__all__ if name != "__version__"]
    is_error = {name: name in vars(errors) for name in names}
    reference = _autodoc if sphinx else _docstring
    parts = [f"## {name}\n\n{reference(name)}" for name in names if not is_error[name]]
    parts += ["## Errors", f"```text\n{inspect.getdoc(errors)}\n```"]
    parts += [f"### {name}\n\n{reference(name)}" for name in names if is_error[name]]
    return "\n\n".join(parts)


def _autodoc(name: str) -> str:
    value = getattr(oddsmith, name)
    kind = "exception" if name in vars(errors) else "class" if inspect.isclass(value) else "function"
    return f"```{{eval-rst}}\n.. auto{kind}:: oddsmith.{name}\n```"


def _docstring(name: str) -> str:
    value = getattr(oddsmith, name)
    if hasattr(value, "__dataclass_fields__"):
        signature = "(**settings)"
    elif name in vars(errors) and "__init__" not in vars(value):
        signature = "(message)"
    else:
        signature = str(inspect.signature(value))
    return f"```python\noddsmith.{name}{signature}\n```\n\n```text\n{inspect.getdoc(value)}\n```"


def as_markdown(text: str, sphinx: bool = False) -> str:
    """Return a page with what is made from the code in the place of its marks."""
    makers = {"settings": settings, "commands": commands, "api": lambda: api(sphinx)}
    return MARK.sub(lambda mark: makers[mark[1]](), text)


def _read(app: Sphinx, page: str, content: list[str]) -> None:
    content[0] = as_markdown(content[0], sphinx=True)
    if page == "docs/index" and not (Path(app.srcdir) / "docs" / "evidence.md").exists():
        content[0] = content[0].replace("\nevidence\n", "\n")  # its place in the table of contents


def _outdated(*_: Any) -> list[str]:
    """Have these pages read at every build: what they are made from is no file that Sphinx knows."""
    return [f"docs/reference/{page}" for page in ("settings", "commands", "api")]


def _signature(app: Sphinx, what: str, name: str, obj: object, *_: Any) -> tuple[str, None] | None:
    """Leave the two hundred settings out of the signatures of their classes; the page of the settings has them."""
    return ("(**settings)", None) if hasattr(obj, "__dataclass_fields__") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Fill the marks as pages are read."""
    app.connect("env-get-outdated", _outdated)
    app.connect("source-read", _read)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
