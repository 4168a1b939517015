"""Instructions that a program can check: pairs of a model's own answers, judged by rules; IFEval before and after.

    python -m benchmarks.evidence.instructions --ifeval ifeval_input_data.jsonl --work FOLDER

1. prompts    made of templates (asked.py), disjoint from IFEval's
2. pairs      `oddsmith data make` with `--judge rule`: the model answers, the better answer is kept against the worse
3. train      `oddsmith train` on them, three seeds
4. IFEval     all 541 prompts (arXiv 2311.07911), greedy answers, before and after

Settings are chosen on other prompts of the templates, about topics of their own (``--choose``); IFEval's are looked at
once for each model in the table. Each result keeps what every prompt met, how long the answer was, and how much of it
was repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import measure
from .asked import TOPICS, rows
from .lab import RESULTS, apart, bootstrap, flags_of, kept, model_in_bf16, oddsmith, read_rows, write_rows

QUESTION = "instructions"
SEEDS = (1, 2, 3)
VALIDATION_TOPICS = 16  # the last ones: no training prompt is about them
PROMPTS, SAMPLES, ANSWER_TOKENS, VALIDATION = 320, 6, 160, 120
IFEVAL_TOKENS = 512  # answers are cut there
REPEATED_WORDS = 4  # length of the runs of words that are counted
SETTINGS: dict[str, Any] = {**measure.SETTINGS, "num_train_epochs": 2, "report_to": "none", "disable_tqdm": True}
CANDIDATES: dict[str, dict[str, Any]] = {
    "rate-2e-4-beta-0.5": {"learning_rate": 2e-4, "beta": 0.5},
    "rate-5e-4-beta-1": {"learning_rate": 5e-4, "beta": 1.0},
    "rate-1e-3-beta-0.5": {"learning_rate": 1e-3, "beta": 0.5},
}


def answered(model: str, file: Path, tokens: int) -> dict[str, Any]:
    """Answer the prompts of a file greedily and check the answers, in a process of its own."""
    return apart("instructions", {"model": model, "file": str(file), "tokens": tokens})


def _answered(model: str, file: str, tokens: int) -> dict[str, Any]:
    from oddsmith.making.answers.drawing import Drawing
    from oddsmith.making.answers.local import open_model
    from oddsmith.making.questions import key_of
    from oddsmith.making.records import Question

    asked = read_rows(Path(file))
    messages = [[{"role": "user", "content": row["prompt"]}] for row in asked]
    questions = [Question(key_of(one), one) for one in messages]
    drawing = Drawing(samples=1, temperature=0, max_new_tokens=tokens)
    answers = {}
    for answer in open_model(model, drawing, 32).answers(questions, set()):
        answers[answer.question] = answer
        print(f"\r{len(answers)} of {len(questions)}", end="", file=sys.stderr)
    found = [answers[question.key] for question in questions]
    checked = [checks(row, answer.text) for row, answer in zip(asked, found, strict=True)]
    return {
        "strict": [strict for strict, _ in checked],
        "loose": [loose for _, loose in checked],
        "tokens": [answer.tokens for answer in found],
        "finished": [int(answer.is_finished) for answer in found],
        "repeated": [repeated(answer.text) for answer in found],
        "first_answers": [answer.text[:400] for answer in found[:12]],
    }


def checks(row: dict[str, Any], text: str) -> tuple[list[int], list[int]]:
    """Return for each instruction of a row whether a text follows it, strictly and loosely.

    Loosely: it, or it without its first line, its last line, both, or asterisks, follows it (IFEval, section 2.3).
    """
    from if_verifiable.common import get_loose_transformations

    from oddsmith.making.judges.ifeval import follows

    strict, loose = [], []
    for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        is_followed = follows(name, kwargs, row["prompt"])
        strict.append(int(is_followed(text, 0)))
        loose.append(int(any(is_followed(one, 0) for one in get_loose_transformations(text))))
    return strict, loose


def repeated(text: str) -> float:
    """Return the share of runs of ``REPEATED_WORDS`` words that stood in the text before."""
    words = text.lower().split()
    runs = [tuple(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def figures(result: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return figures of each prompt; instruction-level ones weigh a prompt by its instructions over their mean."""
    instructions_P = np.array([len(one) for one in result["strict"]])
    weights_P = instructions_P / instructions_P.mean()
    found = {}
    for way in ("strict", "loose"):
        met_P = np.array([np.mean(one) for one in result[way]])
        found[f"prompt {way}"] = (met_P == 1).astype(float)
        found[f"instruction {way}"] = met_P * weights_P
    found["tokens"] = np.array(result["tokens"], dtype=float)
    found["cut"] = 1 - np.array(result["finished"], dtype=float)
    found["repeated"] = np.array(result["repeated"], dtype=float)
    return found


def pairs_of(name: str, model: str, work: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """Make pairs of a model's own answers to the training prompts, once; return their file, which is kept with the
    results, and what `data make` said."""
    pairs = RESULTS / QUESTION / f"{name}.jsonl"

    def make() -> dict[str, Any]:
        prompts = write_rows(work / "prompts.jsonl", list(rows(PROMPTS, 1, TOPICS[:-VALIDATION_TOPICS])))
        made = work / pairs.name
        how = ("--samples", SAMPLES, "--max-new-tokens", ANSWER_TOKENS, "--seed", seed, "--batch-size", 48)
        said = oddsmith("data", "make", prompts, "--model", model, "--judge", "rule", "--output", made, *how)
        pairs.parent.mkdir(parents=True, exist_ok=True)
        kept_columns = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
        write_rows(pairs, [{name: row[name] for name in kept_columns} for row in read_rows(made)])
        return {name: value for name, value in said.items() if name not in ("command", "output", "log", "card")}

    return pairs, kept(QUESTION, f"{name}-pairs", make)


def trained(model: str, pairs: Path, output: Path, settings: dict[str, Any], seed: int) -> Path:
    """Train on pairs; return the run folder, which is used again where it is there."""
    if not (output / "run.yaml").exists():
        files = {"model_name_or_path": model, "dataset_name": str(pairs), "output_dir": str(output)}
        oddsmith("train", *flags_of({**settings, **files, "seed": seed}))
    return output


def report(results: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield the table: a line for each model, and the changes from the first."""
    names = ("prompt strict", "instruction strict", "prompt loose", "instruction loose")
    yield f"| | {' | '.join(names)} | tokens | cut | repeated |"
    yield "|---|" + "---|" * (len(names) + 3)
    first: dict[str, np.ndarray] = {}
    for label, found in results.items():
        together = {key: np.stack([figures(one)[key] for one in found]) for key in figures(found[0])}
        shares = [bootstrap(together[key]).text(1, 100) for key in names]
        rest = (
            f"{together['tokens'].mean():.0f} | {100 * together['cut'].mean():.1f}% | "
            f"{100 * together['repeated'].mean():.1f}%"
        )
        yield f"| {label} | {' | '.join(shares)} | {rest} |"
        if not first:
            first = together
            continue
        changes = [bootstrap(together[key] - first[key]).text(1, 100, sign=True) for key in names]
        yield f"| &nbsp; change | {' | '.join(changes)} | | | |"


def chosen_on(work: Path, pairs: Path, candidates: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train candidates for the settings and ask each the validation prompts; yield the results by name."""
    file = write_rows(work / "validation.jsonl", list(rows(VALIDATION, 2, TOPICS[-VALIDATION_TOPICS:])))
    base = model_in_bf16(work)
    yield "before", kept(QUESTION, "validation-before", lambda: answered(base, file, ANSWER_TOKENS))
    for name in candidates:

        def make(name: str = name) -> dict[str, Any]:
            run = trained(base, pairs, work / f"candidate-{name}", SETTINGS | CANDIDATES[name], 0)
            return {"settings": CANDIDATES[name], **answered(str(run), file, ANSWER_TOKENS)}

        yield name, kept(QUESTION, f"validation-{name}", make)


def measured(work: Path, pairs: Path, ifeval: Path, candidate: str) -> dict[str, list[dict[str, Any]]]:
    """Train with three seeds and ask each model, and the one before, IFEval's prompts; return the results."""
    base = model_in_bf16(work)
    found = {"before": [kept(QUESTION, "ifeval-before", lambda: answered(base, ifeval, IFEVAL_TOKENS))]}
    for seed in SEEDS:

        def make(seed: int = seed) -> dict[str, Any]:
            run = trained(base, pairs, work / f"{candidate}-seed-{seed}", SETTINGS | CANDIDATES[candidate], seed)
            return {"settings": CANDIDATES[candidate], **answered(str(run), ifeval, IFEVAL_TOKENS)}

        found.setdefault("after", []).append(kept(QUESTION, f"ifeval-{candidate}-seed-{seed}", make))
    return found


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apart")
    parser.add_argument("--ifeval", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--choose", nargs="*", choices=CANDIDATES, help="ask these the validation prompts, and no more")
    parser.add_argument(
        "--candidate", choices=CANDIDATES, default=next(iter(CANDIDATES)), help="settings of the result"
    )
    given = parser.parse_args()
    if given.apart:
        print(json.dumps(_answered(**json.loads(given.apart))))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    pairs, said = pairs_of("round-1", model_in_bf16(given.work), given.work, 1)
    print(json.dumps(said["made"]), file=sys.stderr)
    if given.choose is not None:
        results = {name: [one] for name, one in chosen_on(given.work, pairs, given.choose)}
    else:
        results = measured(given.work, pairs, given.ifeval, given.candidate)
    print("\n".join(report(results)))


if __name__ == "__main__":
    main()
