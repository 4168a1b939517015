"""What a model should not forget: the likelihood of a general text, and short answers to simple questions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from .lab import read_rows

HERE = Path(__file__).parent
PARAGRAPHS = HERE / "general_text.txt"  # written for this: a paragraph a line, of several kinds
FACTS = HERE / "facts.jsonl"  # {"question": str, "accepted": [str]}, written for this
ANSWER_TOKENS = 40


def text_perplexity(model: Any, tokenizer: Any) -> float:
    """Return exp of the mean NLL over all tokens of the paragraphs but the first of each; they are read one by one."""
    nll, count = 0.0, 0
    for paragraph in PARAGRAPHS.read_text(encoding="utf-8").split("\n"):
        if not paragraph.strip():
            continue
        ids = torch.tensor([tokenizer(paragraph, add_special_tokens=False)["input_ids"]], device=model.device)
        with torch.no_grad():
            logps_TV = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        nll -= logps_TV.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    return math.exp(nll / count)


def facts_kept(model: Any, tokenizer: Any) -> list[int]:
    """Return for each question whether the greedy answer contains an accepted one, as 0 and 1."""
    from oddsmith.data.builtin.facts import has_fact
    from oddsmith.model.generation import answer

    rows = read_rows(FACTS)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
        )
        for row in rows
    ]
    texts = answer(model, tokenizer, prompts, max_new_tokens=ANSWER_TOKENS)
    return [int(has_fact(text, row["accepted"])) for text, row in zip(texts, rows, strict=True)]
