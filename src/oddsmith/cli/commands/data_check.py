"""``oddsmith data check``: print what is wrong with a dataset of preference pairs; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...system.words import counted
from ..parsing.resolve import Option, resolve_word
from ..parsing.schema import flag_of
from ..parsing.values import FALSE_WORDS, TRUE_WORDS, whole_number
from ..terminal.console import keep, quiet_libraries, working
from ..terminal.counting import counting
from ..terminal.data_table import print_example, print_preference, print_survey
from ..terminal.outcome import COLUMNS, JSON, TRACEBACK, Judged

if TYPE_CHECKING:
    from ...data.sources import FileRows, Rows
    from ...data.tokens.pair_tokenizer import PairTokenizer

USAGE = "oddsmith data check DATASET [--model MODEL] [--max-length N] [--fix OUT.jsonl]"
INTRO = (
    "Looks for what is wrong with a dataset of preference pairs before a model is trained on it: the verdict,"
    " then what fails or warns with the rows (counted from 0), what it means and what to do about it. Exit code 3: one"
    " fails.",
    "With --model, also what its tokenizer and chat template make of the pairs at --max-length, and what the model"
    " already prefers.",
)
SCORED_PAIRS = 1000
FAILED = 3
OPTIONS = (
    Option("model", "value", "Model to be trained: hub id, folder, GGUF file or builtin:...", "MODEL"),
    Option("max_length", "value", "Most tokens of prompt and answer, as in the training.", "N"),
    Option(
        "chat_template_on_text",
        "optional",
        "Put plain text into the chat template, as with the training's setting; false: keep it as it is.",
        "[true|false]",
    ),
    Option("chat_template", "value", "Chat template for a model without one, as with the training's setting.", "NAME"),
    Option("system_prompt", "value", "System message for conversations that have none, as in the training.", "TEXT"),
    Option("max_prompt_length", "value", "What the prompt of a pair that is too long is cut down to.", "N"),
    Option(
        "scored_pairs",
        "value",
        f"How many pairs the model scores, spread over the set; 0: only its tokenizer is used. [{SCORED_PAIRS}]",
        "N",
    ),
    Option("all", "switch", "List the checks that passed, and those that were not made, too."),
    COLUMNS,
    Option("fix", "value", "Write the set without the rows that are at fault.", "OUT.jsonl"),
    Option("eval_dataset_name", "value", "Evaluation set; the training set must not hold its prompts.", "DATASET"),
    Option("benchmark", "value", "File of a benchmark; the training set must not hold its text.", "FILE"),
    Option("dataset_config", "value", "Configuration of a hub dataset.", "TEXT"),
    Option("dataset_train_split", "value", "Split to check. [train]", "TEXT"),
    Option("dataset_test_split", "value", "Split of the evaluation set. [test; train of a single file]", "TEXT"),
    JSON,
    TRACEBACK,
)


def data_check(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith data check``; return the findings, with exit code 3 where a check fails."""
    quiet_libraries()
    name, given = resolve_word(arguments, OPTIONS, "dataset", "oddsmith data check DATASET")
    limits, on_text = _limits(given), _chat_template_on_text(given)
    target = Path(given["fix"]).expanduser() if "fix" in given else None

    from ...data.checks.benchmark import read_benchmark
    from ...data.checks.cleaning import require_new_file, write_cleaned
    from ...data.checks.example import first_example
    from ...data.checks.survey import survey
    from ...data.sources import offering, open_rows

    if target is not None:
        require_new_file(target)
    if "model" in given:
        from ...model.loading.first_look import look_at_model

        look_at_model(given["model"])
    with working("reading the pairs"):
        config = given.get("dataset_config")
        columns = given.get("columns")
        rows = open_rows(name, config=config, split=given.get("dataset_train_split", "train"), columns=columns)
        evaluation = _evaluation(given)
        benchmark = read_benchmark(given["benchmark"]) if "benchmark" in given else None
        pair_tokenizer, readable = None, None
        if "model" in given:
            from ...model.loading.outline import outlined_limits

            pair_tokenizer = _pair_tokenizer(given, limits, on_text)
            readable = outlined_limits(given["model"], pair_tokenizer.tokenizer)
    total = len(rows) if hasattr(rows, "__len__") else None
    with offering(columns), counting("checking", "rows", total) as on_rows:
        found = survey(
            rows,
            evaluation=evaluation,
            benchmark=benchmark,
            pair_tokenizer=pair_tokenizer,
            limits=readable,
            on_rows=on_rows,
        )
    left_out = found.rows_left_out()
    example = first_example(rows, left_out, pair_tokenizer)
    document: dict[str, Any] = {"command": "data check", "dataset": name, **found.to_dict()}
    document["example"] = example.to_dict() if example else None
    kept = 0 if target is None else write_cleaned(rows, left_out, target)  # first: whoever reads the table may leave
    if "json" not in given:
        print_survey(name, found, everything="all" in given)
        if example:
            print_example(example)
    if pair_tokenizer is not None and limits["scored_pairs"] and len(left_out) < found.rows:
        document["preference"] = _preference(given, rows, pair_tokenizer, found.rows, left_out, limits["scored_pairs"])
    if target is not None:
        document["fixed"] = {"path": str(target), "rows": kept, "left_out": found.left_out}
        lines = [f"\n{target}: {counted(kept, 'row')}, {len(left_out):,} left out"]
        keep("\n".join(lines + [f"  {len(numbers):,} {check}" for check, numbers in found.left_out.items()]))
    return Judged(document, FAILED if found.verdict == "fail" else 0)


def _limits(given: dict[str, str]) -> dict[str, int | None]:
    """Read the flags that are numbers; all of them need ``--model``."""
    limits: dict[str, int | None] = {"max_length": None, "max_prompt_length": None, "scored_pairs": SCORED_PAIRS}
    for name in limits:
        if name in given:
            limits[name] = whole_number(given, name, 0, minimum=0 if name == "scored_pairs" else 1)
            if "model" not in given:
                raise ConfigError(f"{flag_of(name)} counts what a model sees; name it with --model MODEL")
    return limits


def _chat_template_on_text(given: dict[str, str]) -> bool | None:
    """Read whether plain text is put into the chat template, which needs ``--model``; None where nothing is said."""
    for flag in ("chat_template", "system_prompt"):
        if flag in given and "model" not in given:
            raise ConfigError(f"{flag_of(flag)} is about what a model sees; name it with --model MODEL")
    word = given.get("chat_template_on_text")
    if word is None:
        return None
    if "model" not in given:
        raise ConfigError("--chat-template-on-text is about the chat template of a model; name it with --model MODEL")
    if word.lower() not in {"", *TRUE_WORDS, *FALSE_WORDS}:
        raise ConfigError(f"--chat-template-on-text is {word!r}; expected true or false, or no value after it")
    return word.lower() not in FALSE_WORDS


def _evaluation(given: dict[str, str]) -> Rows | FileRows | None:
    from ...data.sources import open_rows

    name = given.get("eval_dataset_name")
    if name is None:
        if "dataset_test_split" in given:
            raise ConfigError("--dataset-test-split is a split of the evaluation set; name it with --eval-dataset-name")
        return None
    split, columns = given.get("dataset_test_split", "test"), given.get("columns")
    return open_rows(name, split=split, columns=columns, where_there=True)


def _pair_tokenizer(given: dict[str, str], limits: dict[str, int | None], on_text: bool | None) -> PairTokenizer:
    from ...config import ORPOConfig
    from ...data.tokens.pair_tokenizer import PairTokenizer
    from ...model.loading.chat_template import set_chat_template
    from ...model.loading.models import load_tokenizer

    tokenizer = load_tokenizer(given["model"])
    if "chat_template" in given:
        set_chat_template(tokenizer, given["chat_template"])
    return PairTokenizer(
        tokenizer,
        max_length=limits["max_length"] or ORPOConfig.max_length,
        max_prompt_length=limits["max_prompt_length"],
        chat_template_on_text=on_text,
        system_prompt=given.get("system_prompt"),
    )


def _preference(
    given: dict[str, str],
    rows: Rows | FileRows,
    pair_tokenizer: PairTokenizer,
    total: int,
    left_out: set[int],
    most_pairs: int,
) -> dict[str, Any]:
    from ...inference.loading import load_for_inference
    from ...model.loading.chat_template import fit_model
    from ...model.preference import model_preference

    with working(f"loading {given['model']}"):
        model, _ = load_for_inference(given["model"])
        if "chat_template" in given:
            fit_model(model, pair_tokenizer.tokenizer, None, is_set=True, is_main=False)
    pairs = min(most_pairs, total - len(left_out))
    with counting("scoring", "pairs", pairs) as on_pairs:
        found = model_preference(
            model, pair_tokenizer, rows, total=total, left_out=left_out, most_pairs=most_pairs, on_pairs=on_pairs
        )
    if "json" not in given:
        print_preference(given["model"], found)
    return {"model": given["model"], **found.to_dict()}
