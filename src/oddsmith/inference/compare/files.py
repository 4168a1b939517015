"""Write a comparison into files: one HTML page, or the answers alone for the official evaluators.

    page          one HTML file that can be sent to others: it fetches nothing, runs nothing, and all text is escaped
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
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ... import __version__
from ...data.prompts import Prompt
from ...errors import DataError

if TYPE_CHECKING:
    from .comparison import Comparison, PromptResult

SUFFIXES = {"alpaca_eval": ".json", "mt_bench": ".jsonl"}


def comparison_page(comparison: Comparison) -> str:
    """Return the HTML page. Models appear under their short names, because paths of this machine are private."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        names={"base": short_name(comparison.base), "tuned": short_name(comparison.tuned)},
        rows=comparison.rows,
        summaries=comparison.summaries,
        sampling=comparison.sampling,
        has_pairs=any(row.prompt.pair for row in comparison.rows),
        version=__version__,
    )


def evaluator_paths(base: str, tuned: str, layout: str, folder: Path) -> dict[str, Path]:
    """Return the file for each model's answers, by ``"base"`` and ``"tuned"``.

    A file's name without suffix is what the evaluator will call the model. ``layout`` is ``"alpaca_eval"`` or
    ``"mt_bench"``, here and below.
    """
    names = {"base": short_name(base), "tuned": short_name(tuned)}
    if names["base"] == names["tuned"]:
        names = {side: f"{name}-{side}" for side, name in names.items()}
    return {side: folder / f"{name}{SUFFIXES[layout]}" for side, name in names.items()}


def check_prompts(prompts: Sequence[Prompt], layout: str) -> None:
    """Refuse prompts that an evaluator cannot take, before anything is computed: raise ``DataError``."""
    for prompt in prompts:
        if layout == "mt_bench":
            _question_id(prompt)
        elif prompt.follow_ups or (not isinstance(prompt.opening, str) and len(prompt.opening) > 1):
            raise DataError(f"prompt {prompt.number}: is a conversation; alpaca_eval takes single instructions")


def evaluator_file(comparison: Comparison, side: str, layout: str, model_id: str) -> str:
    """Return the text of the file with the answers of one side, in which the model is called ``model_id``."""
    results: list[tuple[Prompt, PromptResult]] = [(row.prompt, getattr(row, side)) for row in comparison.rows]
    if layout == "mt_bench":
        lines = [_mt_bench_answer(prompt, result, model_id) for prompt, result in results]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    outputs = [
        {
            "dataset": str(prompt.row.get("dataset", "oddsmith")),
            "instruction": prompt.questions[0],
            "output": result.answers[0].text,
            "generator": model_id,
        }
        for prompt, result in results
    ]
    return json.dumps(outputs, ensure_ascii=False, indent=2) + "\n"


def short_name(name: str) -> str:
    """Return a model's name without the folders of this machine, fit for a file name."""
    last = Path(name).expanduser().absolute().name if not name.startswith("builtin:") else name.partition(":")[2]
    return re.sub(r"[^\w.-]", "_", last.removesuffix(".gguf")) or "model"


def _mt_bench_answer(prompt: Prompt, result: PromptResult, model_id: str) -> dict[str, Any]:
    question_id = _question_id(prompt)
    return {
        "question_id": question_id,
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{model_id}/{question_id}").hex,
        "model_id": model_id,
        "choices": [{"index": 0, "turns": [answer.text for answer in result.answers]}],
        "tstamp": time.time(),
    }


def _question_id(prompt: Prompt) -> int:
    question_id = prompt.row.get("question_id")
    if not isinstance(question_id, int) or "turns" not in prompt.row:
        raise DataError(
            f"prompt {prompt.number}: has no question_id with turns; mt_bench takes answers to MT-Bench's question file"
        )
    return question_id
