"""Write beside each page its Markdown (``data.html``, ``data.md``), and ``llms.txt``, which lists them all.

A page's source is Markdown already; what ``generated`` puts into it is there, too. Links between the twins are those of
the sources: relative paths of ``.md`` files.
"""

import re
from pathlib import Path

from generated import as_markdown
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

SUMMARY = (
    "Oddsmith trains language models on preference pairs (prompt, chosen, rejected) with ORPO, odds ratio preference"
    " optimization: one stage, no reference model."
)


def _sections(env: BuildEnvironment) -> list[tuple[str, list[str]]]:
    """Return the captions of the table of contents with all pages below each."""
    return [
        (tree["caption"], [page for _, name in tree["entries"] for page in (name, *_below(env, name))])
        for tree in env.get_doctree(env.config.root_doc).findall(addnodes.toctree)
    ]


def _below(env: BuildEnvironment, name: str) -> list[str]:
    trees = env.get_doctree(name).findall(addnodes.toctree)
    return [page for tree in trees for _, child in tree["entries"] for page in (child, *_below(env, child))]


def _write(app: Sphinx, failure: Exception | None) -> None:
    if failure is not None or app.builder.name != "html":
        return
    source, site = Path(app.srcdir), Path(app.outdir)
    for name in app.env.found_docs:
        twin = site / f"{name}.md"
        twin.parent.mkdir(parents=True, exist_ok=True)
        text = as_markdown((source / f"{name}.md").read_text(encoding="utf-8"))
        twin.write_text(text, encoding="utf-8")
    lines = [f"# Oddsmith {app.config.release}", "", f"> {SUMMARY}"]
    for caption, names in _sections(app.env):
        lines += ["", f"## {caption}", ""]
        for name in names:
            lines.append(f"- [{app.env.titles[name].astext()}]({name}.md){_first_sentence(site / f'{name}.md')}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _first_sentence(page: Path) -> str:
    """Return the first sentence of a page's first paragraph, or nothing where it begins with something else."""
    for block in re.split(r"\n{2,}", page.read_text(encoding="utf-8")):
        if re.match(r"[#|<!(\-\s]|```|    ", block) or not block.strip():
            continue
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(block.split()))
        sentence = re.split(r"(?<=\.)\s", text)[0].rstrip(":")
        return f": {sentence}"
    return ""


def _name_twin(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Give the template the name of a page's Markdown; the search and the index have none."""
    context["twin"] = f"{page.rpartition('/')[2]}.md" if doctree else ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Write at the end of a build."""
    app.connect("build-finished", _write)
    app.connect("html-page-context", _name_twin)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
