"""Read the recipe of another trainer from a file: YAML, JSON, a shell script's flags, a Python script or notebook.

Scripts are never run: of Python the calls with plain values are read (``ast``), of a shell script the words after
``swift rlhf``, ``trl orpo``, ``llamafactory-cli train`` or ``orpo.py``.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...config.foreign import llama_factory, recognise, recognise_any, swift, translate, trl
from ...config.foreign.recipe import PROCESSES, Recipe
from ...errors import ConfigError
from ...system.outside import open_file
from ...system.strict_json import read_json
from .config_file import MAX_BYTES, PYTHON, SHELL, Setting, read_config, scalar
from .schema import Field
from .values import check

_MAX_SCRIPT_BYTES = 20 * MAX_BYTES  # notebooks hold pictures


class Foreign(NamedTuple):
    """The recipe of another trainer, as its file gives it."""

    trainer: str
    given: dict[str, Setting]


def read_foreign(path: str) -> Foreign:
    """Read a file; raise ``ConfigError`` for one that is damaged, or no recipe of a trainer that is known."""
    suffix = Path(path).suffix.lower()
    if suffix in PYTHON:
        return _of_script(path, suffix)
    if suffix in SHELL:
        return _of_shell(path)
    given = _of_json(path) if suffix == ".json" else read_config(path)
    try:
        return Foreign(recognise_any(given), given)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from None


class Translated(NamedTuple):
    """A configuration file that was a recipe of another trainer."""

    settings: dict[str, Setting]
    lines: list[str]  # what to say about it


def translated(path: str, given: dict[str, Setting], fields: Mapping[str, Field]) -> Translated | None:
    """Translate a configuration file where it is a recipe of another trainer; return ``None`` where it is ours.

    Raises ``ConfigError`` where the training would be another one than that trainer's.
    """
    try:
        trainer = recognise(given)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from None
    if trainer is None:
        return None
    recipe = translated_recipe(path, Foreign(trainer, given))
    undecided = [one for one in recipe.missing if one.decides]
    command = f"`oddsmith convert {shlex.quote(path)} > recipe.yaml`"
    if undecided:
        names = ", ".join(dict.fromkeys(one.name for one in undecided))
        raise ConfigError(
            f"{path} is a recipe of {trainer}, and {names} {'has' if len(undecided) == 1 else 'have'} no counterpart"
            f" here, so the training would be another one; {command} says what to do"
        )
    lines = [f"{path} is a recipe of {trainer} and was translated; {command} writes it as one of ours"]
    lines += [f"{one.name}: {one.text}" for one in [*recipe.changed, *recipe.missing]]
    return Translated(checked(recipe, fields), lines)


def translated_recipe(path: str, foreign: Foreign) -> Recipe:
    """Translate what a file holds; a ``ConfigError`` names the file, whatever it is about."""
    try:
        return translate(foreign.trainer, foreign.given, Path(path).parent)
    except ConfigError as error:
        if str(error).startswith(f"{path}:"):
            raise
        raise ConfigError(f"{path}: {error}") from error


def checked(recipe: Recipe, fields: Mapping[str, Field]) -> dict[str, Setting]:
    """Return the settings of a translated recipe with their places; an impossible value is a ``ConfigError``."""
    found = {}
    for name, line in recipe.lines.items():
        where = line.where or f"default of {recipe.trainer}"
        found[name] = Setting(check(fields[name], line.value, where), where)
    return found


def _read(path: str) -> str:
    try:
        with open_file(path, typed=True) as file:
            data = file.read(_MAX_SCRIPT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {(error.strerror or str(error)).lower()}; expected a recipe") from error
    if len(data) > _MAX_SCRIPT_BYTES:
        raise ConfigError(f"{path}: is larger than {_MAX_SCRIPT_BYTES:,} bytes; expected a recipe")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _of_json(path: str) -> dict[str, Setting]:
    try:
        found = read_json(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no mapping of settings; expected a recipe")
    return {str(name).replace("-", "_"): Setting(value, path) for name, value in found.items()}


# Shell scripts

_COMMANDS = {
    ("swift", "rlhf"): swift.NAME,
    ("trl", "orpo"): trl.NAME,
    ("llamafactory-cli", "train"): llama_factory.NAME,
}
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?-([^{}]*))?\}|([A-Za-z_]\w*))")


def _of_shell(path: str) -> Foreign:
    variables: dict[str, str] = {}
    found: list[tuple[str, list[str], int]] = []
    for line, text in _logical_lines(_read(path)):
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            continue  # a construct of the shell over several lines; a training command in it is not found
        while words and (given := _ASSIGNMENT.fullmatch(words[1] if words[0] == "export" and words[1:] else words[0])):
            variables[given[1]] = _expanded(given[2], variables)
            words = words[2:] if words[0] == "export" else words[1:]
        if (start := _command(words)) is not None:
            found.append((start[0], [_expanded(word, variables) for word in words[start[1] :]], line))
    if len(found) != 1:
        raise ConfigError(
            f"{path}: holds {len(found) or 'no'} training command{'s' if found else ''}; expected one of swift rlhf,"
            " trl orpo, llamafactory-cli train or orpo.py, with its flags"
        )
    trainer, words, line = found[0]
    flags = _flags(words, f"{path}:{line}")
    if PROCESSES in variables:
        flags[PROCESSES] = Setting(scalar(variables[PROCESSES]), path)
    return Foreign(trainer, flags)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its number, those that end in a backslash joined with the next."""
    start, joined = 1, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not joined:
            start = number
        joined += line.rstrip().removesuffix("\\") + " "
        if not line.rstrip().endswith("\\"):
            yield start, joined
            joined = ""
    if joined:
        yield start, joined


def _command(words: list[str]) -> tuple[str, int] | None:
    """Return the trainer that a line starts, and where its flags begin."""
    for index, word in enumerate(words):
        pair = (Path(word).name, words[index + 1] if index + 1 < len(words) else "")
        if pair in _COMMANDS:
            return _COMMANDS[pair], index + 2
        if pair[0] in ("orpo.py", "run_orpo.py"):
            return trl.NAME, index + 1
    return None


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return variables.get(match[1] or match[3], match[2] if match[2] is not None else match[0])

    return _VARIABLE.sub(value, text)


def _flags(words: list[str], where: str) -> dict[str, Setting]:
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word in ("&&", "||", ";", "|", "&", ">", ">>", "2>&1"):
            break
        if word.startswith("--") and len(word) > 2:
            flag, has_value, value = word[2:].partition("=")
            name = flag.replace("-", "_")
            if name in found:
                raise ConfigError(f"{where}: --{flag} is given twice; remove one")
            found[name] = [value] if has_value else []
        elif not name:
            raise ConfigError(f"{where}: reads {word}; convert that file, or the flags written out")
        else:
            found[name].append(word)
    if unset := next((value for values in found.values() for value in values if "$" in value), None):
        raise ConfigError(f"{where}: {unset} is a variable that the script does not set; write its value")
    return {name: Setting(_typed(values), where) for name, values in found.items()}


def _typed(values: list[str]) -> Any:
    """Return the words after a flag as YAML would read them; none stand for a switch."""
    read = [_typed_word(value) for value in values]
    return True if not read else read[0] if len(read) == 1 else read


def _typed_word(text: str) -> Any:
    if text[:1] in ("{", "["):
        try:
            return read_json(text)
        except ValueError:
            return text
    return scalar(text)


# Python scripts and notebooks

# Call -> its arguments under the names of settings; others are said to be unknown. None: without effect.
_MODEL: dict[str, str | None] = {
    "model_name": "model_name_or_path",
    "pretrained_model_name_or_path": "model_name_or_path",
    "max_seq_length": "max_length",
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "attn_implementation": "attn_implementation",
    "trust_remote_code": "trust_remote_code",
    "revision": "model_revision",
    **dict.fromkeys(
        ["token", "device_map", "use_cache", "low_cpu_mem_usage", "quantization_config", "full_finetuning"]
    ),
    **dict.fromkeys(["use_gradient_checkpointing", "fast_inference", "gpu_memory_utilization", "max_lora_rank"]),
}
_ADAPTER: dict[str, str | None] = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "init_lora_weights": "init_lora_weights",
    "use_gradient_checkpointing": "gradient_checkpointing",
    **dict.fromkeys(["bias", "task_type", "random_state", "loftq_config", "max_seq_length", "model", "inference_mode"]),
}
_QUANTIZATION: dict[str, str | None] = {
    "load_in_4bit": "load_in_4bit",
    "load_in_8bit": "load_in_8bit",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "bnb_4bit_compute_dtype": None,
}
_CALLS: dict[str, tuple[dict[str, str | None], str]] = {  # and the argument that may stand first without its name
    "FastLanguageModel.from_pretrained": (_MODEL, "model_name"),
    "FastModel.from_pretrained": (_MODEL, "model_name"),
    "AutoModelForCausalLM.from_pretrained": (_MODEL, "pretrained_model_name_or_path"),
    "FastLanguageModel.get_peft_model": (_ADAPTER, "model"),
    "FastModel.get_peft_model": (_ADAPTER, "model"),
    "LoraConfig": (_ADAPTER, "r"),
    "BitsAndBytesConfig": (_QUANTIZATION, "load_in_8bit"),
}
# What PEFT and bitsandbytes take where a script is silent. TRL's own settings, and ours, have other defaults.
_DEFAULTS_OF_PEFT = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
_DEFAULTS_OF_4_BITS = {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False}
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _of_script(path: str, suffix: str) -> Foreign:
    text = _read(path)
    if suffix == ".ipynb":
        text = _code_of_notebook(text, path)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{path}{line}: is no Python that can be read: {getattr(error, 'msg', error)}") from error
    return _Script(path, tree).read()


def _code_of_notebook(text: str, path: str) -> str:
    try:
        cells = read_json(text)["cells"]
        sources = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is no notebook: no list of cells in it") from error
    joined = ["".join(source) if isinstance(source, list) else str(source) for source in sources]
    shell = re.compile(r"^([ \t]*)[%!].*$", re.MULTILINE)
    return "\n".join("" if one.startswith("%%") else shell.sub(r"\1pass", one) for one in joined)


class _Script:
    """What a script gives to the calls that matter."""

    def __init__(self, path: str, tree: ast.Module):
        self.path, self.tree = path, tree
        self.names: dict[str, ast.expr] = {}  # of the module, with what was assigned to them last
        self.given: dict[str, Setting] = {}
        self.seen: dict[str, int] = {}  # call -> line

    def read(self) -> Foreign:
        is_unsloth = False
        for node in _run_nodes(self.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom | ast.Import):
                is_unsloth |= "unsloth" in ast.unparse(node)
            elif isinstance(node, ast.Call):
                self._read_call(node)
        if "ORPOConfig" not in self.seen:
            others = [call for call in self.seen if call.endswith("Config")]
            what = f"makes a {others[0]}" if others else "makes none"
            raise ConfigError(f"{self.path}: {what}; expected a script that makes an ORPOConfig")
        if "get_peft_model" in self.seen or "LoraConfig" in self.seen:
            self.given["use_peft"] = Setting(True, self.path)
        elif is_unsloth:
            self.given.pop("load_in_4bit", None)
        if isinstance(checked := self.given.get("gradient_checkpointing"), Setting) and isinstance(checked.value, str):
            self.given["gradient_checkpointing"] = checked._replace(value=True)  # "unsloth"
        if (start := self.given.get("init_lora_weights")) and start.value is True:
            del self.given["init_lora_weights"]  # PEFT's default
        self._add_defaults(is_unsloth)
        return Foreign(trl.UNSLOTH if is_unsloth else trl.NAME, self.given)

    def _add_defaults(self, is_unsloth: bool) -> None:
        """Add what the libraries take where the script is silent; ``config/foreign/trl.py`` has more of Unsloth's."""
        silent: dict[str, Any] = {}
        if is_unsloth and "use_peft" in self.given and "load_in_8bit" not in self.given:
            silent["load_in_4bit"] = True
        if not is_unsloth and "LoraConfig" in self.seen:
            silent |= _DEFAULTS_OF_PEFT
        if not is_unsloth and (quantised := self.given.get("load_in_4bit")) and quantised.value:
            silent |= _DEFAULTS_OF_4_BITS
        for name, value in silent.items():
            self.given.setdefault(name, Setting(value, self.path))

    def _read_call(self, call: ast.Call) -> None:
        name = ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""
        kind = name.rpartition(".")[2]
        if kind == "map" and "load_dataset" in self.seen:
            self.given[trl.ROWS_BY_CODE] = Setting(ast.unparse(call), f"{self.path}:{call.lineno}")
        elif kind == "load_dataset" and kind not in self.seen:
            self.seen[kind] = call.lineno
            self._read_dataset(call)
        elif kind.endswith("Config") and kind != "BitsAndBytesConfig" and kind != "LoraConfig":
            if kind == "ORPOConfig" and kind in self.seen:
                raise ConfigError(
                    f"{self.path}:{call.lineno}: makes an ORPOConfig again, first in line {self.seen[kind]}; expected"
                    " one"
                )
            self.seen[kind] = call.lineno
            if kind == "ORPOConfig":
                self._read_arguments(call, {}, "output_dir", first=False)
        elif (known := _CALLS.get(".".join(name.split(".")[-2:])) or _CALLS.get(kind)) and kind not in self.seen:
            self.seen[kind] = call.lineno
            self._read_arguments(call, *known, first=True)

    def _read_arguments(self, call: ast.Call, known: dict[str, str | None], leading: str, *, first: bool) -> None:
        """Take the arguments of a call; those of ``first`` calls yield to what another call has given."""
        arguments = [(leading, value) for value in call.args[:1]]
        for keyword in call.keywords:
            if keyword.arg is None:
                raise ConfigError(
                    f"{self.path}:{call.lineno}: unpacks a mapping into {ast.unparse(call.func)}; write it out"
                )
            arguments.append((keyword.arg, keyword.value))
        for name, node in arguments:
            new = known.get(name, name) if known else name
            value = self._value(node)
            if new is not None and value is not None and not (first and new in self.given):
                self.given[new] = Setting(value, f"{self.path}:{node.lineno}")

    def _read_dataset(self, call: ast.Call) -> None:
        plain = [self._value(node) for node in call.args[:2]]
        named = {keyword.arg: self._value(keyword.value) for keyword in call.keywords}
        path = plain[0] if plain else named.get("path")
        if isinstance(named.get("data_files"), str):
            path = named["data_files"]
        config = plain[1] if len(plain) > 1 else named.get("name")
        found = {"dataset_name": path, "dataset_config": config, "dataset_train_split": named.get("split")}
        for name, value in found.items():
            if value is not None:
                self.given[name] = Setting(value, f"{self.path}:{call.lineno}")

    def _value(self, node: ast.expr, depth: int = 0) -> Any:
        """Return a value that is written out, or made of such by names and arithmetic; else its source."""
        try:
            if isinstance(node, ast.Name) and node.id in self.names and depth < 8:
                return self._value(self.names[node.id], depth + 1)
            if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
                left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
                if all(isinstance(side, int | float) and abs(side) < 1e9 for side in (left, right)):
                    return _OPERATORS[type(node.op)](left, right)
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
                return node.attr
            return ast.literal_eval(node)
        except (ValueError, TypeError, ArithmeticError, SyntaxError):
            return trl.Code(ast.unparse(node))


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes in the order of the source, without what stands below ``if False``."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant) and not node.test.value:
        children: list[ast.stmt] | Iterator[ast.AST] = node.orelse
    else:
        yield node
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _run_nodes(child)
