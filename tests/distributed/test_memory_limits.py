"""The system refuses memory in the middle of a step: all processes halve their budget, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest

from .kinds import KINDS
from .launch import launch
from .test_short_memory import require_that_of_one
from .worker import life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

BUDGET = 240  # tokens of a micro-batch: two or three of them in a step of a process
# Layers that keep much and weigh little.
MODEL = {"intermediate_size": 4096, "initializer_range": 0.1}
TRAININGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": True},
}
BOTH = ("0", "1")
MB = 2**20


def case(kind: str, training: str, **limit: Any) -> dict[str, Any]:
    """Return a case of four steps in several micro-batches, with a limit."""
    own = TRAININGS[training]
    settings = {**KINDS[kind], **own.get("settings", {}), "max_tokens_per_microbatch": BUDGET}
    return {**own, "model": MODEL, "settings": settings} | ({"limit": limit} if limit else {})


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple[dict[str, Any], Path]]:
    """Return what one process finds in each training, without a limit, and its run folder."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        name: (life(folder / name, {"settings": {}, **own, "model": MODEL}, processes=1), folder / name / "run")
        for name, own in TRAININGS.items()
    }


@pytest.mark.parametrize(
    ("kind", "training", "ranks"),
    [
        ("ddp", "full", ("1",)),
        ("ddp", "full", BOTH),
        ("ddp", "lora", ("1",)),
        pytest.param("fsdp-full", "full", ("1",), marks=pytest.mark.exhaustive),
        pytest.param("fsdp-full", "full", BOTH, marks=pytest.mark.exhaustive),
        pytest.param("fsdp-sharded", "lora", ("1",), marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_within_a_limit_is_that_of_one_process_without(tmp_path, alone, kind, training, ranks):
    """How much is too little depends on the C library: with least not even one pair fits, with most everything does."""
    cases = {str(spare): case(kind, training, spare=spare * MB, ranks=ranks) for spare in (15, 18, 21, 24)}
    halved = 0
    for name, results in launch(tmp_path / "runs", cases).items():
        errors = [rank["error"] for rank in results if "error" in rank]
        if errors:
            assert len(errors) == len(results), name
            assert all("out of memory" in error for error in errors), errors
        else:
            require_that_of_one(results, tmp_path / "runs" / name / "run", alone[training])
            halved += results[0]["max_tokens"] == results[1]["max_tokens"] < BUDGET
    assert halved
