"""What happens in the life of a run, under every kind of sharding: answers, a NaN, a best model, other models, export.

Two processes are compared with one, as in ``test_table.py``.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from oddsmith.model.generation import answer
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import run_here
from tests.tiny import tiny_model

from .kinds import KINDS
from .launch import launch
from .models import LAYERS
from .test_table import EXACT, require_installed, require_same_history, weights_in
from .worker import NAN_ROW, life

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
EVENTFUL = {"generate_during_eval": True, **BEST}
FEW = {"fsdp-sharded": ["eventful-lora", "4-bit"], "zero-3": ["eventful"]}  # for continuous integration


def case(kind: str | None, **more: Any) -> dict[str, Any]:
    """Return a case under a kind, or in one process."""
    architecture = more.get("architecture", "llama")
    settings = dict(KINDS[kind]) if kind else {}
    if "fsdp_config" in settings:
        settings["fsdp_config"] = {
            **settings["fsdp_config"], "transformer_layer_cls_to_wrap": [LAYERS[architecture]]
        }  # fmt: skip
    return {**more, "settings": {**settings, **more.get("settings", {})}}


def cases(kind: str | None) -> dict[str, dict[str, Any]]:
    """Return what is lived under each kind."""
    nan = not (kind or "").startswith("zero")  # which stops those, see below
    # The loss of a router is one of the tokens of a micro-batch: these have to be the same, and are not evaluating.
    alone = {} if kind else {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    found = {
        "eventful": case(kind, nan=nan, settings=EVENTFUL),
        "eventful-lora": case(kind, nan=nan, lora=True, settings=EVENTFUL),
        "experts": case(kind, architecture="mixtral", settings={"eval_strategy": "no", **alone}),
        "encoder": case(kind, architecture="t5"),
        "4-bit": case(kind, architecture="llama-4-bit", lora=True),
    }
    if kind and kind.startswith("fsdp"):
        del found["encoder"]  # torch refuses embeddings that an encoder and a decoder share
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Return what one process finds in a case, and its run folder."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def of(name: str) -> tuple[dict[str, Any], Path]:
        one = cases(None)[name.removesuffix("-without-nan")]
        if name.endswith("-without-nan"):
            one["nan"] = False
        return life(folder / name, one, processes=1), folder / name / "run"

    return of


def test_a_nan_in_one_process_stops_all_where_no_step_can_be_skipped(tmp_path):
    """DeepSpeed makes its step within the backward pass."""
    require_installed("zero-2")
    for rank in launch(tmp_path / "runs", {"nan": case("zero-2", nan=True)})["nan"]:
        assert (
            f"NonFiniteError: step 2: log-probabilities are NaN or infinite for dataset row {NAN_ROW}" in rank["error"]
        )


def lives() -> list[Any]:
    """Return the kinds and their cases, those that continuous integration has no time for marked."""
    few = [pytest.param(kind, names) for kind, names in FEW.items()]
    others = {kind: [name for name in cases(kind) if name not in FEW.get(kind, ())] for kind in KINDS}
    return few + [pytest.param(kind, names, marks=pytest.mark.exhaustive) for kind, names in others.items()]


@pytest.mark.parametrize(("kind", "names"), lives())
def test_a_life_is_that_of_one_process(tmp_path, alone, capsys, kind, names):
    require_installed(kind)
    is_skipped = not kind.startswith("zero")
    found = launch(tmp_path / "runs", {name: cases(kind)[name] for name in names})
    for name, ranks in found.items():
        expected, alone_in = alone(name if is_skipped or not name.startswith("eventful") else f"{name}-without-nan")
        for rank in ranks:
            assert "error" not in rank, (name, rank)
            require_same_history(rank["history"], expected["history"])
            assert happened(rank["events"]) == happened(expected["events"]), name
        run = tmp_path / "runs" / name / "run"
        weights, others = weights_in(run), weights_in(alone_in)
        assert weights.keys() == others.keys()
        for key, weight in weights.items():
            torch.testing.assert_close(weight, others[key], rtol=0, atol=EXACT)
        if name.startswith("eventful"):
            skipped = [event["rows"] for event in ranks[0]["events"] if event["event"] == "skipped"]
            assert skipped == ([[NAN_ROW]] if is_skipped else [])
            assert any(event["event"] == "samples" for event in ranks[0]["events"])
        if name == "eventful":
            require_exported(run, tmp_path / "merged", capsys)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "fsdp-sharded" else pytest.mark.exhaustive) for kind in KINDS]
)
def test_bf16_differs_by_its_rounding(tmp_path, kind):
    """Which rows are packed together changes what is rounded; DeepSpeed also keeps what is saved in bf16."""
    require_installed(kind)
    settings = {"bf16": True, "save_strategy": "no"}
    found = launch(tmp_path / "runs", {"all": case(kind, settings=settings)})["all"]
    alone = life(tmp_path / "alone", case(None, settings=settings), processes=1)
    assert not [rank["error"] for rank in found if "error" in rank]
    before = {name: value.float() for name, value in tiny_model().state_dict().items()}
    weights, others = weights_in(tmp_path / "runs" / "all" / "run"), weights_in(tmp_path / "alone" / "run")
    for name, weight in weights.items():
        moved = (others[name] - before[name]).abs().max().item()
        rounded = 0.0 if weight.dtype == torch.float32 else torch.finfo(weight.dtype).eps * weight.abs().max().item()
        assert moved > 0
        torch.testing.assert_close(weight.float(), others[name], rtol=0, atol=0.1 * moved + rounded)
    for rank in found:
        assert rank["path"] == "prefix forest"
        losses, expected = ([entry["loss"] for entry in one["history"] if "loss" in entry] for one in (rank, alone))
        assert losses == pytest.approx(expected, rel=5e-3)


def happened(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events without their times."""
    return [{name: value for name, value in event.items() if name != "time"} for event in events]


def require_exported(run: Path, folder: Path, capsys: Any) -> None:
    """Export a run, and let the exported model and the run's answer the same."""
    outcome = run_here(capsys, "export", run, "--to", "merged", "--output", folder)
    assert outcome.code == 0, outcome.err
    answers = [
        answer(load_model(str(place)), load_tokenizer(str(place)), [[256, 5, 7]], max_new_tokens=5)
        for place in (run, folder)
    ]
    assert answers[0] == answers[1]
