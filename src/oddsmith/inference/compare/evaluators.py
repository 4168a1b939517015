"""The files that the official evaluators take: answers only, judged elsewhere.

    alpaca_eval   a JSON list of {instruction, output, generator, dataset}
                  alpaca_eval --model_outputs tuned.json --reference_outputs base.json
    mt_bench      JSON Lines of {question_id, answer_id, model_id, choices: [{index, turns}], tstamp}
                  to be put into FastChat's fastchat/llm_judge/data/mt_bench/model_answer/

Sources: tatsu-lab/alpaca_eval, src/alpaca_eval/main.py; lm-sys/FastChat, fastchat/llm_judge/gen_model_answer.py and
common.py. MT-Bench's own script draws answers at a temperature for each category; here one setting holds for all.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from .comparison import Answered, Comparison
from .prompts import Prompt

SUFFIXES = {"alpaca_eval": ".json", "mt_bench": ".jsonl"}


def files_of(base: str, tuned: str, layout: str, folder: Path) -> dict[str, Path]:
    """Where each model's answers go.

    Args:
        base: Name of the one model.
        tuned: Name of the other.
        layout: ``"alpaca_eval"`` or ``"mt_bench"``.
        folder: The folder for both files.

    Returns:
        A file by ``"base"`` and ``"tuned"``; its name without suffix is what the evaluators will call the model.
    """
    names = {"base": short_name(base), "tuned": short_name(tuned)}
    if names["base"] == names["tuned"]:
        names = {side: f"{name}-{side}" for side, name in names.items()}
    return {side: folder / f"{name}{SUFFIXES[layout]}" for side, name in names.items()}


def check_prompts(prompts: Sequence[Prompt], layout: str) -> None:
    """Refuse prompts that an evaluator cannot take, before anything is computed.

    Args:
        prompts: What is to be asked.
        layout: ``"alpaca_eval"`` or ``"mt_bench"``.

    Raises:
        DataError: A prompt is not as the evaluator knows it.
    """
    for prompt in prompts:
        if layout == "mt_bench":
            _question_id(prompt)
        elif prompt.follow_ups or (not isinstance(prompt.opening, str) and len(prompt.opening) > 1):
            raise DataError(f"prompt {prompt.number}: is a conversation; alpaca_eval takes single instructions")


def evaluator_file(comparison: Comparison, side: str, layout: str, model_id: str) -> str:
    """The text of a model's file.

    Args:
        comparison: The answers.
        side: ``"base"`` or ``"tuned"``.
        layout: ``"alpaca_eval"`` or ``"mt_bench"``.
        model_id: What the evaluator will call the model.

    Returns:
        JSON, or JSON Lines.
    """
    answered: list[tuple[Prompt, Answered]] = [(row.prompt, getattr(row, side)) for row in comparison.rows]
    if layout == "mt_bench":
        lines = [_mt_bench_answer(prompt, one, model_id) for prompt, one in answered]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    outputs = [
        {
            "dataset": str(prompt.row.get("dataset", "oddsmith")),
            "instruction": prompt.questions[0],
            "output": one.answers[0].text,
            "generator": model_id,
        }
        for prompt, one in answered
    ]
    return json.dumps(outputs, ensure_ascii=False, indent=2) + "\n"


def short_name(name: str) -> str:
    """A model's name without the folders of this machine, fit for a file name."""
    last = Path(name).expanduser().absolute().name if not name.startswith("builtin:") else name.partition(":")[2]
    return re.sub(r"[^\w.-]", "_", last.removesuffix(".gguf")) or "model"


def _mt_bench_answer(prompt: Prompt, one: Answered, model_id: str) -> dict[str, Any]:
    question_id = _question_id(prompt)
    return {
        "question_id": question_id,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{model_id}/{question_id}").hex,
        "model_id": model_id,
        "choices": [{"index": 0, "turns": [answer.text for answer in one.answers]}],
        "tstamp": time.time(),
    }


def _question_id(prompt: Prompt) -> int:
    found = prompt.row.get("question_id")
    if not isinstance(found, int) or "turns" not in prompt.row:
        raise DataError(
            f"prompt {prompt.number}: has no question_id with turns; mt_bench takes answers to MT-Bench's question file"
        )
    return found
