"""Settings: YAML files, words of a command line, and both together as a run uses them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from hypothesis import strategies as st

from oddsmith.cli.commands import compare, data_check, demo, diagnose, evaluate, export, monitor, serve
from oddsmith.cli.commands.train import command as train
from oddsmith.cli.commands.train.run_folder import settings_text
from oddsmith.cli.parsing.config_file import read_config
from oddsmith.cli.parsing.resolve import Resolved, build, resolve
from oddsmith.cli.parsing.schema import fields_for_run
from oddsmith.errors import ConfigError, MissingExtraError
from tests.fuzz.answers import answered
from tests.fuzz.material import NUMBERS, TEXTS, VALUES, damaged
from tests.fuzz.target import Target, folder

FIELDS = fields_for_run()
CONFIGS = [
    b"model_name_or_path: builtin:smollm2-135m-instruct\ndataset_name: pairs.jsonl\nlearning-rate: 8e-6\nbeta: 0.1\n",
    b"# run\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\nlora_r: 16\ndtype: bfloat16\nbf16: no\n",
    b"datasets:\n  - {path: a.jsonl, weight: 2}\n  - path: b.jsonl\n    weight: 1\nmax_steps: 100\nseed: 42\n",
    b'model_init_kwargs: {attn_implementation: "sdpa"}\noutput_dir: runs/a\nreport_to: none\nlogging_steps: 0.1\n',
    b"optim: adamw_torch\nlr_scheduler_type: cosine\neval_strategy: steps\neval_steps: 50\nsave_total_limit: 2\n",
    b"max_length: 1024\nmax_prompt_length: 512\nnll_on: response\nbad_rows: drop\nmax_tokens_per_microbatch: auto\n",
]
_FLAGS = [*(field.flag for field in FIELDS.values()), *(f"--no-{name}" for name in FIELDS)]
_FLAGS += [option.flag for option in train.OPTIONS]


def as_typed(word: str) -> str:
    """Return a word as a process gets it: without NUL, and invalid UTF-8 as halves of surrogate pairs."""
    return word.replace("\0", "").encode(errors="surrogatepass").decode(errors="surrogateescape")


WORDS = st.one_of(
    st.sampled_from(_FLAGS),
    st.sampled_from(_FLAGS).map(lambda flag: flag.replace("-", "_").replace("__", "--", 1)),
    st.builds("{}={}".format, st.sampled_from(_FLAGS), TEXTS | NUMBERS.map(str)),
    NUMBERS.map(str),
    st.sampled_from(
        ["true", "none", "1e999", "nan", "9" * 5_000, "[" * 2_000, '{"a": 1}', "a,b", "-1", "--", "--x", "-v"]
    ),
    TEXTS,
    VALUES.map(str),
).map(as_typed)


def read_file(given: bytes) -> None:
    """Read a file of settings, and resolve or refuse each of them."""
    with folder() as place:
        path = place / "run.yaml"
        path.write_bytes(given)
        with answered(ConfigError):
            read_config(path)
        with answered(ConfigError):
            resolve([str(path)], FIELDS, train.OPTIONS)


COMMANDS = (compare, data_check, demo, diagnose, evaluate, export, monitor, serve)


def read_words(given: list[str]) -> None:
    """Sort words of a command line into settings and flags, or refuse them."""
    for command in COMMANDS:
        with answered(ConfigError):
            resolve(given, {}, command.OPTIONS, max_positional=2)
    with answered(ConfigError):
        resolved = resolve(given, FIELDS, train.OPTIONS)
        train._wanted_checkpoint(resolved)
        train._processes(resolved, launched=1)


# Settings that read a file of that name or use the network when they are tried.
OUTSIDE = {
    "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "ddp_backend", "push_to_hub", "resume_from_checkpoint",
}  # fmt: skip
SETTABLE = sorted(set(FIELDS) - OUTSIDE)


@st.composite
def settings_given(draw: st.DrawFn) -> list[str]:
    """Draw flags with values that their settings are likely to accept."""
    words = []
    for name in draw(st.lists(st.sampled_from(SETTABLE), max_size=4, unique=True)):
        field = FIELDS[name]
        likely = [st.sampled_from(field.choices)] if field.choices else []
        likely += [NUMBERS.map(str)] if {"int", "float"} & set(field.types) else [TEXTS]
        likely += [st.sampled_from(["true", "false"])] if "bool" in field.types else []
        words.append(as_typed(f"{field.flag}={draw(st.one_of(*likely))}"))
    return words


def build_settings(given: list[str]) -> None:
    """Check settings against each other; those that pass are written down and read again unchanged."""
    with answered(ConfigError, MissingExtraError), folder() as place, _environment_restored():
        resolved = resolve([*given, f"--output-dir={place}/run", "--use-cpu"], FIELDS, train.OPTIONS)
        settings = build(resolved)
        (place / "run.yaml").write_text(settings_text(resolved, settings), encoding="utf-8")
        again = resolve([str(place / "run.yaml")], FIELDS, train.OPTIONS)
        assert _values(again) == _values(resolved)
        assert not again.get("trust_remote_code")


def _values(resolved: Resolved) -> dict[str, Any]:
    """Return all settings that are written down: not tokens, nor the permission to run code."""
    return {name: resolved.get(name) for name in FIELDS if not name.endswith("token") and name != "trust_remote_code"}


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Restore what transformers leaves in the environment, and accelerate in the process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        AcceleratorState._reset_state()
        PartialState._reset_state()


TARGETS = {
    "files of settings": Target(damaged(CONFIGS), read_file),
    "words of a command line": Target(st.lists(WORDS, max_size=6), read_words),
    "settings together": Target(settings_given(), build_settings),
}
