"""The rules of the design, held by reading the source: who may import whom, how long things may get, which errors live.

What runs is tested elsewhere; nothing here imports the package.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "oddsmith"

# What each room may import, from the ground up; docs/architecture.md draws it. ``errors`` masks secrets in messages,
# and ``system.secrets`` imports nothing, so that one edge between the two lowest rooms points both ways.
ROOMS: dict[str, set[str]] = {
    "__main__": {"cli"},
    "errors": {"system"},
    "loss": set(),
    "metrics": set(),
    "usual": set(),
    "system": {"errors"},
    "config": {"errors", "system"},
    "data": {"errors", "system", "config"},
    "batching": {"errors", "system"},
    "model": {"errors", "loss", "system", "config", "data", "batching"},
    "checkpoint": {"errors", "system"},
    "planning": {"errors", "usual", "system", "config", "data", "batching", "model", "checkpoint"},
    "diagnose": {"errors", "metrics", "usual", "system"},
    "monitor": {"errors", "metrics", "system", "diagnose"},
    "tuning": {"errors", "loss", "system", "diagnose"},
    "training": {
        "errors",
        "loss",
        "metrics",
        "usual",
        "system",
        "config",
        "data",
        "batching",
        "model",
        "checkpoint",
        "diagnose",
    },
    "export": {"errors", "system", "data", "model", "training"},
    "inference": {"errors", "system", "data", "model", "export"},
    "making": {"errors", "system", "config", "data", "batching", "model", "training", "export", "inference"},
    "cli": {
        *(
            "errors",
            "metrics",
            "usual",
            "system",
            "config",
            "data",
            "model",
            "checkpoint",
            "diagnose",
            "monitor",
            "training",
        ),
        *("planning", "tuning", "export", "inference", "making"),
    },
}
# What these print they write out for a terminal first, or it is ours, or an answer on its way into a file.
PRINTS_ITSELF = {
    "oddsmith.cli.terminal.console": ["print"],
    "oddsmith.cli.terminal.outcome": ["sys.stderr.write"],
    "oddsmith.cli.commands.chat": ["print", "sys.stderr.write"],
}

LOOSE_MODULES_AT_MOST = 4  # in src/oddsmith itself, __init__.py and __main__.py not counted

MODULE_LINES, MODULE_LINES_AT_MOST = 450, 600
FUNCTION_LINES_AT_MOST = 80  # without the docstring

# Modules that open files to read them without ``system.outside``, and why nobody else can have put a pipe there.
OPENS_ITSELF = {
    "oddsmith.system.outside": "it is how the others do",
    "oddsmith.system.machine": "/proc, and the control group",
    "oddsmith.data.inspection": "/proc, and files that it has required to be some",
    "oddsmith.data.sources.files": "unpacks what open_file returned",
    "oddsmith.data.token_cache": "our sources, and a folder that nobody else can write to",
    "oddsmith.data.builtin": "files of the package",
    "oddsmith.export.gguf.vocabulary": "files of the package",
    "oddsmith.cli.parsing.recipes": "files of the package",
    "oddsmith.cli.parsing.schema": "files of the package",
    "oddsmith.monitor.report": "files of the package",
    "oddsmith.cli.commands.train.launch": "logs that it writes itself",
}

# Modules that parse JSON without ``system.strict_json``, and why no stranger has written it.
PARSES_ITSELF = {
    "oddsmith.system.strict_json": "it is how the others do",
    "oddsmith.data.inspection": "what another process of ours says",
    "oddsmith.data.prepare": "what it has written itself, or the token cache has proven to be our own",
    "oddsmith.data.tokens.words": "what the tokenizers library says of itself",
    "oddsmith.export.gguf.vocabulary": "files of the package, and what the tokenizers library says of itself",
    "oddsmith.data.builtin": "files of the package",
    "oddsmith.cli.parsing.schema": "files of the package",
    "oddsmith.training.identity": "what it has written itself",
}

# Trackers that transformers' ``report_to`` may name, and kernels: asked for only where they are installed already.
OPTIONAL = {"wandb", "trackio", "comet_ml", "flash_attn", "triton", "deepspeed"}

# Classes that stand for a group and an exit code; nothing raises them themselves.
ERROR_GROUPS = {"OddsmithError", "UsageError"}


def module_name(path: Path) -> str:
    """``src/oddsmith/data/formats.py`` -> ``oddsmith.data.formats``."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for name, path in PATHS.items()}


def imported(name: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The absolute names that a module imports anywhere in it, with their lines."""
    package = name if PATHS[name].stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0]
                base = f"{above}.{base}" if base else above
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in PATHS else base), node.lineno


def own_imports(name: str) -> list[tuple[str, int]]:
    """The modules of ours that a module imports; the package's own front door offers names and is no dependency."""
    return [(other, line) for other, line in imported(name, TREES[name]) if other in PATHS and other != "oddsmith"]


def reads(tree: ast.AST) -> Iterator[int]:
    """The lines in which a file is opened or mapped to be read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        is_method, name = "." in function, function.rpartition(".")[2]
        modes = {part.value for part in node.args if isinstance(part, ast.Constant)}
        opens = name == "open" and function != "os.open" and not modes & {"w", "wb", "a", "x"}
        if opens or name == "memory_map" or (is_method and name in ("read_text", "read_bytes")):
            yield node.lineno


def layer(name: str) -> str:
    return name.split(".")[1]


MODULES = [name for name in PATHS if name != "oddsmith"]


def test_every_module_is_in_a_room():
    homeless = sorted({layer(name) for name in MODULES} - set(ROOMS))
    assert not homeless, f"not in ROOMS: {homeless}; put each into a room, or say what a new one may import"


def test_few_modules_lie_outside_the_rooms():
    loose = [path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= LOOSE_MODULES_AT_MOST, loose


def test_rooms_depend_on_each_other_one_way():
    edges = {room: may_import - {"system"} if room == "errors" else may_import for room, may_import in ROOMS.items()}
    assert list(TopologicalSorter(edges).static_order())


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_what_it_may(name):
    room = layer(name)
    forbidden = [
        f"{PATHS[name].relative_to(ROOT)}:{line} imports {other}; ROOMS lists what {room} may import"
        for other, line in own_imports(name)
        if layer(other) != room and layer(other) not in ROOMS[room]
    ]
    assert not forbidden


@pytest.mark.parametrize("name", MODULES)
def test_files_from_outside_are_opened_in_one_way(name):
    """A pipe in the place of a file would be waited for without end."""
    found = list(reads(TREES[name]))
    if name in OPENS_ITSELF:
        assert found, f"{name} opens no file any more; take it out of OPENS_ITSELF"
    else:
        assert not found, (
            f"{PATHS[name].relative_to(ROOT)}, lines {found}: use open_file or read_text of system.outside"
        )


@pytest.mark.parametrize("name", MODULES)
def test_json_from_outside_is_read_in_one_way(name):
    """Deep nesting and numbers of thousands of digits raise something else than what is no JSON."""
    calls = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    found = calls & {"json.load", "json.loads"}
    assert bool(found) == (name in PARSES_ITSELF), f"{name}: use read_json or read_object of system.strict_json"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("oddsmith.cli.")])
def test_the_command_line_prints_in_one_way(name):
    """What is printed may quote the file of somebody else, and steer a terminal."""
    calls = [ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    found = sorted(call for call in calls if call in ("print", "Console", "sys.stdout.write", "sys.stderr.write"))
    assert found == PRINTS_ITSELF.get(name, []), "use what terminal/console.py has"


def test_errors_import_only_the_masking_of_secrets():
    assert {other for other, _ in own_imports("oddsmith.errors")} == {"oddsmith.system.secrets"}
    assert not own_imports("oddsmith.system.secrets")


@pytest.mark.parametrize("name", PATHS)
def test_what_is_imported_from_ours_exists(name):
    """mypy does not say so where ``ignore_missing_imports`` is on."""
    missing = []
    for other, line in imported(name, TREES[name]):
        if other.split(".")[0] == "oddsmith" and other not in PATHS:
            missing.append(f"{PATHS[name].relative_to(ROOT)}:{line} imports {other}")
    assert not missing


def test_there_are_no_import_cycles():
    graph = {name: {other for other, _ in own_imports(name)} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in PATHS if layer(f"{name}.") in ("diagnose", "monitor")])
def test_what_looks_at_runs_needs_neither_torch_nor_the_trainer(name):
    assert not {top for top, _ in third_party(name)} & {"torch", "transformers"}


def test_the_loss_needs_nothing_but_torch():
    outside = {other.split(".")[0] for other, _ in imported("oddsmith.loss", TREES["oddsmith.loss"])}
    assert outside - sys.stdlib_module_names == {"torch"}


def third_party(name: str) -> set[tuple[str, int]]:
    tops = {(other.split(".")[0], line) for other, line in imported(name, TREES[name])}
    return {(top, line) for top, line in tops if top not in sys.stdlib_module_names and top != "oddsmith"}


def test_trl_is_an_oracle_for_tests_and_never_imported():
    assert not [name for name in PATHS for top, _ in third_party(name) if top == "trl"]


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("test", "dev")}
    requirements = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}
    distributions = packages_distributions()
    undeclared = [
        f"{PATHS[name].relative_to(ROOT)}:{line} imports {top}"
        for name in PATHS
        for top, line in sorted(third_party(name))
        if top not in OPTIONAL and not declared & {normal(found) for found in distributions.get(top, [top])}
    ]
    assert not undeclared


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_command_answers_without_torch():
    """Help must not wait for it, so neither a command nor the settings it shows may load it.

    What libraries warn of when they are imported is silenced by a command before it imports them.
    """
    code = (
        "import sys, importlib, oddsmith.cli.main as cli\n"
        "for command in cli.COMMANDS.values():\n"
        "    importlib.import_module(f'oddsmith.cli.commands.{command.module}')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"importing a command: {result.stderr.strip()}"


@pytest.mark.parametrize("name", PATHS)
def test_modules_stay_short(name):
    lines = len(PATHS[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MODULE_LINES_AT_MOST, f"{name} has {lines} lines: look for the concept that is missing"
    if lines > MODULE_LINES:
        warnings.warn(f"{name} has {lines} lines; the house style asks for {MODULE_LINES}", stacklevel=1)


@pytest.mark.parametrize("name", PATHS)
def test_functions_stay_short(name):
    long = {
        f"{PATHS[name].relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > FUNCTION_LINES_AT_MOST
    }
    assert not long


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    docstring = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    return function.end_lineno - function.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)


def test_a_module_is_named_by_what_it_is_about():
    nameless = {"utils", "util", "helpers", "common", "misc", "base"}
    assert not [name for name in PATHS if name.rsplit(".")[-1] in nameless]


ERRORS = [node.name for node in TREES["oddsmith.errors"].body if isinstance(node, ast.ClassDef)]


@cache
def raised_names() -> set[str]:
    """Error classes in a ``raise``, or made by a function whose result is raised."""
    raised, makers = set(), set()
    for name, tree in TREES.items():
        if name == "oddsmith.errors":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                target = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                (raised if target in ERRORS else makers).add(target)
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in makers:
                for made in ast.walk(node):
                    if isinstance(made, ast.Return) and isinstance(made.value, ast.Call):
                        raised.add(getattr(made.value.func, "id", ""))
    return raised & set(ERRORS)


@pytest.mark.parametrize("error", [name for name in ERRORS if name not in ERROR_GROUPS])
def test_every_error_is_raised_somewhere(error):
    assert error in raised_names()


@pytest.mark.parametrize("error", [name for name in ERRORS if name not in ERROR_GROUPS])
def test_every_error_is_expected_by_a_test(error):
    """By its name: a test that expects only the class above it would pass for any other mistake."""
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(re.search(rf"\b{error}\b", path.read_text(encoding="utf-8")) for path in tests)


def test_the_tree_of_errors_is_drawn_as_it_is():
    docstring = ast.get_docstring(TREES["oddsmith.errors"], clean=False)
    assert re.findall(r"^ {4}[│├└─ ]*(\w+)", docstring, flags=re.MULTILINE) == ERRORS
