"""What the steps of a run are like, over pairs whose lengths are known."""

import numpy as np
import pytest
from datasets import Dataset

from oddsmith.batching.plan import StepShape, lengths_of
from oddsmith.planning.efficiency import Efficiency, efficiency_of


def pairs(prompts: list[list[int]], answer_tokens: list[int]) -> Dataset:
    rows = []
    for number, (prompt, answer) in enumerate(zip(prompts, answer_tokens, strict=True)):
        row = {"row": number}
        for side, first in (("chosen", 1000), ("rejected", 2000)):
            ids = prompt + [first + number * 50 + i for i in range(answer)]
            row |= {f"{side}_input_ids": ids, f"{side}_end": len(ids), f"{side}_prompt_tokens": len(prompt)}
        rows.append(row)
    return Dataset.from_list(rows)


def efficiency(rows: Dataset, shape: StepShape, *, packed: bool = True, **changed) -> Efficiency:
    columns = {name: rows[name] for name in rows.column_names if not name.endswith("input_ids")}
    lengths = lengths_of(columns, "sequence", shared_prompt_from=0 if packed else None)
    options = {"strategy": "random", "seed": 0, "drop_last": False, "grouped_by": lengths.tokens} | changed
    return efficiency_of(rows, lengths, shape, packed=packed, **options)


def test_a_prompt_that_pairs_share_is_computed_once():
    prompt = list(range(3, 13))
    rows = pairs([prompt] * 4, [5] * 4)
    found = efficiency(rows, StepShape(4, 1, 1, max_tokens=1000))
    assert found.sequence_tokens == 4 * 2 * 15
    assert found.computed_tokens == pytest.approx(10 + 4 * 2 * 5)
    assert (found.steps, found.micro_batches, found.largest_tokens, found.longest_pair) == (1, 1, 50, 20)


def test_padding_is_counted():
    rows = pairs([[3, 4], [5, 6]], [2, 8])
    found = efficiency(rows, StepShape(2, 1, 1), packed=False)
    assert found.sequence_tokens == 2 * 4 + 2 * 10
    assert found.computed_tokens == pytest.approx(4 * 10)
    assert found.computed_share == pytest.approx(40 / 28)


def test_the_slowest_process_is_the_one_with_the_longest_pair():
    prompts = [[3 + n] for n in range(4)]
    rows = pairs(prompts, [1, 1, 1, 40])
    found = efficiency(rows, StepShape(1, 1, 4, max_tokens=1000))
    tokens = np.array([3, 3, 3, 81])
    assert found.slowest_share == pytest.approx(tokens.max() / tokens.mean())
    assert found.largest == (3,)


def test_a_budget_makes_several_micro_batches():
    rows = pairs([[3 + n] * 5 for n in range(8)], [5] * 8)  # 15 tokens each
    found = efficiency(rows, StepShape(8, 1, 1, max_tokens=30))
    assert (found.micro_batches, found.largest_tokens) == (4, 30)
