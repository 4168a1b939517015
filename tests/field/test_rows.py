"""Rows as recipes of other trainers read them become the same pair: LLaMA-Factory's and Axolotl's."""

import pytest

from oddsmith.data.formats import to_pair
from tests.pairs import assistant, user

SHAREGPT = {"conversations": [{"from": "human", "value": "Q"}]}
MESSAGES = {"messages": [user("Q")], "chosen": assistant("A"), "rejected": assistant("B")}
WHOLE = {"chosen": [user("Q"), assistant("A")], "rejected": [user("Q"), assistant("B")]}
TEXTS = {"chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    "row",
    [
        {**SHAREGPT, "chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}},
        {"instruction": "Q", "input": "", "system": "", "history": [], **TEXTS},
        MESSAGES,
        {"system": "", "question": "Q", **TEXTS},
        {"prompt": "Q", **WHOLE},
    ],
    ids=[
        "LLaMA-Factory, sharegpt with ranking",
        "LLaMA-Factory, alpaca with ranking",
        "LLaMA-Factory, openai; Axolotl, chat_template.default",
        "Axolotl, intel",
        "Axolotl, ultra and argilla",
    ],
)
def test_rows_of_other_trainers(row):
    pair = to_pair(row)
    assert pair.prompt[-1] == user("Q")
    assert (pair.chosen, pair.rejected) == ([assistant("A")], [assistant("B")])
