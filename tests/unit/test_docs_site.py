"""The documentation site, without Sphinx: pages in the table of contents, settings and commands on their pages."""

import re
from importlib import import_module

import oddsmith
from oddsmith import errors
from oddsmith.cli.main import COMMANDS
from oddsmith.cli.parsing.schema import load_fields
from tests.docs_blocks import ROOT
from tests.docs_site import api, as_markdown, commands, settings

DOCS = ROOT / "docs"


def test_the_page_of_the_settings_has_every_setting():
    listed = re.findall(r'^\| <span id="(\w+)"></span>`(\w+)`', settings(), flags=re.MULTILINE)
    assert [name for name, _ in listed] == [name for _, name in listed]
    fields = load_fields()
    assert {name for name, _ in listed} == {name for name, field in fields.items() if field.listed}


def test_the_page_of_the_commands_has_every_command_and_flag():
    sections = dict(re.findall(r"^## oddsmith ([\w ]+)\n(.*?)(?=^## |\Z)", commands(), flags=re.MULTILINE | re.DOTALL))
    assert list(sections) == list(COMMANDS)
    for name, command in COMMANDS.items():
        options = import_module(f"oddsmith.cli.commands.{command.module}").OPTIONS
        flags = re.findall(r"^\| `(--[\w-]+)", sections[name], flags=re.MULTILINE)
        assert flags == [option.flag for option in options]


def test_the_page_of_the_api_has_every_public_name():
    names = sorted({*oddsmith.__all__, "Errors"} - {"__version__"})
    assert sorted(re.findall(r"^##+ (\w+)$", api(sphinx=False), flags=re.MULTILINE)) == names
    shown = re.findall(r"^\.\. auto(\w+):: oddsmith\.(\w+)$", api(sphinx=True), flags=re.MULTILINE)
    assert sorted(["Errors", *(name for _, name in shown)]) == names
    assert {name for kind, name in shown if kind == "exception"} == {name for name in names if name in vars(errors)}


def test_what_is_generated_stands_in_the_place_of_its_mark():
    for page, first in (("settings", "## ORPO"), ("commands", "## oddsmith train"), ("api", "## ModelConfig")):
        source = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
        assert first not in source
        assert first in as_markdown(source)


def test_each_page_is_in_the_table_of_contents_once():
    """Sphinx refuses a page that is in none, which only ``make docs`` would show."""
    pages = {page for page in DOCS.rglob("*.md") if page.name != "index.md"}
    trees = [DOCS / "index.md", DOCS / "measurements.md", DOCS / "contribute.md"]
    listed = []
    for page in trees:
        text = page.read_text(encoding="utf-8")
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            names = [re.sub(r".* <(.*)>", r"\1", line) for line in tree.splitlines() if line and line[0] != ":"]
            listed += [(page.parent / f"{name}.md").resolve() for name in names if "*" not in name]
    assert len(listed) == len(set(listed))
    assert {page.name for page in listed if not page.is_file()} <= {"evidence.md"}
    assert pages <= set(listed)
