"""Memory runs out in one process in the middle of a step: all halve their budget, and nothing else changes."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from .kinds import KINDS
from .launch import launch
from .test_table import EXACT, require_same_history, weights_in
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

BUDGET = 240  # tokens of a micro-batch: two or three of them in a step of a process
LAST_ROW = 8  # of a process, in a run in which nothing happens


def case(kind: str, **more: Any) -> dict[str, Any]:
    """Return a case of four steps in several micro-batches."""
    return {"settings": {**KINDS[kind], "max_tokens_per_microbatch": BUDGET}, **more}


def shortages(kind: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Return cases in which memory runs out once: where in the model, in which pass, in which micro-batch."""
    places = product(("embed_tokens", "layers.0", "layers.1", "model.norm"), ("forward", "backward"), (1, 6, LAST_ROW))
    return {
        f"{after.replace('.', '-')}-{place}-{row}": case(
            kind, shortage={"after": after, "place": place, "nth": row, **more}
        )
        for after, place, row in places
    }


FEW = ("layers-0-forward-1", "layers-1-backward-6", "layers-0-backward-8", "embed_tokens-backward-8")


def under(kind: str, names: tuple[str, ...] | None = None) -> list[str]:
    """Return the names of all shortages but these."""
    return [name for name in shortages(kind) if name not in (names or ())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """Return what one process finds, and its run folder."""
    folder = tmp_path_factory.mktemp("alone")
    return life(folder / "full", {"settings": {}}, processes=1), folder / "full" / "run"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("fsdp-full", FEW),
        pytest.param("fsdp-full", under("fsdp-full", FEW), marks=pytest.mark.exhaustive),
        pytest.param("ddp", under("ddp"), marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_is_that_of_one_process(tmp_path, alone, kind, names):
    found = launch(
        tmp_path / "runs",
        {"undisturbed": case(kind, shortage={"after": "layers.0"})} | {name: shortages(kind)[name] for name in names},
    )
    assert [len(rank["rows"]) for rank in found.pop("undisturbed")] == [LAST_ROW] * 2
    for name, ranks in found.items():
        assert [rank["struck"] for rank in ranks] == [0, 1], name
        assert ranks[0]["max_tokens"] == ranks[1]["max_tokens"] < BUDGET
        require_that_of_one(ranks, tmp_path / "runs" / name / "run", alone)


def require_that_of_one(ranks: list[dict[str, Any]], run: Path, alone: tuple[dict[str, Any], Path]) -> None:
    """Compare what processes logged and left with what one did."""
    for rank in ranks:
        assert "error" not in rank, rank
        require_same_history(rank["history"], alone[0]["history"])
    weights, others = weights_in(run), weights_in(alone[1])
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=EXACT)
