"""Makes the demo's pairs of the model's own answers: short and right ones are chosen, its usual ones rejected.

    python scripts/make_demo_pairs.py            # writes the shipped files again, from what is in scripts/demo_pairs/
    python scripts/make_demo_pairs.py --check    # changes nothing; fails if a shipped file would be another
    python scripts/make_demo_pairs.py --ask      # asks the model again first (about 25 minutes on one core)

What goes in, all in ``scripts/demo_pairs/``:

    questions.txt    question | accepted / accepted, in two parts: training and held-out; written for this project
    answers.jsonl    the log: what SmolLM2-135M-Instruct answered, "greedy", four times at random ("plain"), and four
                     times at random after three examples of a short question and answer ("short")
    refused.txt      question | answer or * | why: read by a person and found wrong, though the rules pass it

What comes out, in ``src/oddsmith/data/builtin/``: ``pairs_train.jsonl``, ``pairs_heldout.jsonl`` and ``facts.json``.

A question is kept if the model knows its answer: if the greedy answer has the fact (``facts.py``), and half of the
plain ones; others are asked no further. The chosen answer is the shortest of the "short" ones that keep the style
(``style.py``), have the fact and are not refused: what stands beside a fact is often wrong. The rejected answer is
the greedy one, or, where that keeps the style, the first plain one that breaks it, so it is the model's answer to the
question alone, as the training sees it.

The files are the same each time. Only ``--ask`` depends on the processor and on which questions are asked together:
their rounding may give an answer another turn. The questions are ours, the answers those of a model under Apache 2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oddsmith.data.builtin import FACTS, FILES
from oddsmith.data.builtin.facts import has_fact
from oddsmith.data.builtin.style import keeps_style, style_faults, word_count
from oddsmith.errors import DataError
from oddsmith.model.generation import replies
from oddsmith.model.loading.models import load_model, load_tokenizer

SOURCES = Path(__file__).resolve().parent / "demo_pairs"
BUILTIN = Path(__file__).resolve().parents[1] / "src" / "oddsmith" / "data" / "builtin"
MODEL = "builtin:smollm2-135m-instruct"
PARTS = {"training": "train", "held-out": "heldout"}  # heading in questions.txt -> split

EXAMPLES = (
    ("What is a candle used for?", "A candle is used to give light."),
    ("How many arms does an octopus have?", "An octopus has eight arms."),
    ("Why do people wear coats?", "People wear coats to keep warm in cold weather."),
)
PLAIN, SHORT = 4, 4  # answers drawn at random to a question
GREEDY_TOKENS, PLAIN_TOKENS, SHORT_TOKENS = 96, 64, 40  # where an answer is cut
DRAWING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95}
BATCH_SIZE = 64

Message = dict[str, str]
ANY_ANSWER = "*"


class Question(NamedTuple):
    """A question, its split, and the answers that are accepted."""

    split: str
    text: str
    accepted: list[str]


class Answers(NamedTuple):
    """What the model said to a question."""

    greedy: str
    plain: list[str]
    short: list[str]


def main(argv: list[str] | None = None) -> int:
    """Reads the sources, asks the model if wanted, writes or compares the files, prints what came out."""
    options = _parser().parse_args(argv)
    questions = read_questions(SOURCES / "questions.txt")
    log = SOURCES / "answers.jsonl"
    if options.ask:
        model, tokenizer = load_model(MODEL, dtype=torch.bfloat16), load_tokenizer(MODEL)
        parts = [[one for one in questions if one.split == split] for split in PARTS.values()]
        write_log(log, {question: said for part in parts for question, said in ask(model, tokenizer, part).items()})
    pairs = pairs_of(questions, read_log(log), read_refused(SOURCES / "refused.txt"))
    changed = []
    for name, text in files_of(questions, pairs).items():
        path = BUILTIN / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            changed.append(name)
            if not options.check:
                path.write_text(text, encoding="utf-8")
    for split, rows in pairs.items():
        asked = sum(question.split == split for question in questions)
        print("\n".join([f"{FILES[split]}: {len(rows)} pairs of {asked} questions", *summary(rows)]))
    print(f"{'would be other' if options.check else 'new'}: {', '.join(changed) or 'no file'}")
    return 1 if options.check and changed else 0


# ---- Asking


def ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> dict[str, Answers]:
    """Ask the model each question as the training does, and, if it knows the answer, after the examples.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template.
        questions: All different.

    Returns:
        The answers to each question, with empty lists where a question is not kept; each of them has random numbers of
        its own.
    """

    def drawn(
        kind: str, asked: list[Question], before: list[Message], samples: int, tokens: int, **drawing: Any
    ) -> dict[str, list[str]]:
        prompts = [[*before, _message("user", question.text)] for question in asked]
        ids = [tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=False) for one in prompts]
        found = replies(
            model,
            tokenizer,
            [one for one in ids for _ in range(samples)],
            max_new_tokens=tokens,
            batch_size=BATCH_SIZE,
            seeds=[_seed(question.text, kind, sample) for question in asked for sample in range(samples)],
            on_batch=lambda done: print(f"{kind}: {done} answers", file=sys.stderr, flush=True),
            **drawing,
        )
        texts = [reply.text for reply in found]
        return {one.text: texts[place * samples : (place + 1) * samples] for place, one in enumerate(asked)}

    examples = [
        _message(role, text) for pair in EXAMPLES for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    greedy = drawn("greedy", list(questions), [], 1, GREEDY_TOKENS)
    right = [one for one in questions if has_fact(greedy[one.text][0], one.accepted)]
    plain = drawn("plain", right, [], PLAIN, PLAIN_TOKENS, **DRAWING)
    said = {text: Answers(first, plain.get(text, []), []) for text, (first,) in greedy.items()}
    known = [one for one in right if is_known(said[one.text], one.accepted)]
    short = drawn("short", known, examples, SHORT, SHORT_TOKENS, **DRAWING)
    return {text: answers._replace(short=short.get(text, [])) for text, answers in said.items()}


def _seed(question: str, kind: str, sample: int) -> int:
    digest = hashlib.sha256(f"{question} {kind} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


# ---- Choosing


def pairs_of(
    questions: Sequence[Question], log: Mapping[str, Answers], refused: Mapping[str, set[str]]
) -> dict[str, list[dict[str, list[Message]]]]:
    """Make the pairs of both splits, in the order of the questions.

    Raises:
        DataError: A question is not in the log, or a refused answer is not the model's.
    """
    for question, answers in refused.items():
        unknown = answers - {ANY_ANSWER} - set(log[question].short if question in log else ())
        if unknown or question not in log:
            raise DataError(f"refused.txt: {question!r}: the log has no such answer: {sorted(unknown)}")
    pairs: dict[str, list[dict[str, list[Message]]]] = {split: [] for split in PARTS.values()}
    for question in questions:
        if question.text not in log:
            raise DataError(f"answers.jsonl has no answer to {question.text!r}; --ask asks the model")
        answers = log[question.text]
        no = refused.get(question.text, set())
        if ANY_ANSWER in no or not is_known(answers, question.accepted):
            continue
        chosen, rejected = chosen_of(answers, question.accepted, no), rejected_of(answers)
        if chosen is not None and rejected is not None:
            sides = {"prompt": question.text, "chosen": chosen, "rejected": rejected}
            roles = ("user", "assistant", "assistant")
            pairs[question.split].append(
                {side: [_message(*said)] for side, *said in zip(sides, roles, sides.values(), strict=True)}
            )
    return pairs


def is_known(answers: Answers, accepted: Sequence[str]) -> bool:
    """Return whether the model knows a fact: its greedy answer has it, and half of its plain ones or more."""
    plain = [has_fact(one, accepted) for one in answers.plain]
    return has_fact(answers.greedy, accepted) and 2 * sum(plain) >= len(plain)


def chosen_of(answers: Answers, accepted: Sequence[str], refused: set[str]) -> str | None:
    """Return the chosen answer: the first of the shortest good ones, which has the least beside its fact."""
    good = [one for one in answers.short if keeps_style(one) and has_fact(one, accepted) and one not in refused]
    return min(good, key=word_count, default=None)


def rejected_of(answers: Answers) -> str | None:
    """Return the rejected answer: the greedy one, else the first plain one; being cut does not count as a fault."""
    return next((one for one in (answers.greedy, *answers.plain) if set(style_faults(one)) - {"unfinished"}), None)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Plain sentences about the two sides: how many keep the house style, and their mean length in words."""
    lines = []
    for side in ("chosen", "rejected"):
        answers = [row[side][0]["content"] for row in rows]
        kept, words = sum(map(keeps_style, answers)), sum(map(word_count, answers)) / len(answers)
        share = f"{kept} of {len(rows)} keep the style ({kept / len(rows):.1%})"
        lines.append(f"  {side}: {share}, {words:.1f} words on average")
    return lines


# ---- Files


def read_questions(path: Path) -> list[Question]:
    """Read ``questions.txt``."""
    found, split = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            split = PARTS[line.removeprefix("# ")]
        elif line:
            text, _, accepted = line.partition(" | ")
            found.append(Question(split, text, accepted.split(" / ")))
    return found


def read_log(path: Path) -> dict[str, Answers]:
    """Read the log of answers."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return {row.pop("question"): Answers(**row) for row in rows}


def write_log(path: Path, log: Mapping[str, Answers]) -> None:
    """Write the log of answers."""
    rows = ({"question": question, **said._asdict()} for question, said in log.items())
    path.write_text(_lines(rows), encoding="utf-8")


def read_refused(path: Path) -> dict[str, set[str]]:
    """Read ``refused.txt``: the answers refused to each question."""
    refused: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        question, answer, _ = line.split(" | ")
        refused.setdefault(question, set()).add(answer)
    return refused


def files_of(questions: Sequence[Question], pairs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Return the text of each shipped file, by its name."""
    kept = {row["prompt"][0]["content"] for rows in pairs.values() for row in rows}
    facts = {question.text: question.accepted for question in questions if question.text in kept}
    lines = ",\n".join(f"{json.dumps(text)}: {json.dumps(accepted)}" for text, accepted in facts.items())
    return {FILES[split]: _lines(rows) for split, rows in pairs.items()} | {FACTS: f"{{\n{lines}\n}}\n"}


def _lines(rows: Any) -> str:
    """Return rows as JSON lines, letters beyond ASCII as they are."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make the demo's pairs of the model's own answers.")
    parser.add_argument("--ask", action="store_true", help="ask the model again, and write answers.jsonl")
    parser.add_argument("--check", action="store_true", help="compare with the shipped files instead of writing them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
