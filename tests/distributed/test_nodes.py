"""Two nodes with disks of their own, ``save_on_each_node``: checkpoints whole on each, and resumed from."""

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oddsmith.checkpoint.manifest import verify
from oddsmith.checkpoint.store import checkpoints

from .kinds import KINDS
from .launch import launch
from .test_table import EXACT, require_installed

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

EACH = {"save_on_each_node": True}
KINDS_ON_NODES = ["ddp", "fsdp-full", "zero-1", "zero-3"]
LORA = ["fsdp-full", "zero-1"]


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """Return what both processes find under a kind, and the folder of the cases."""
    folder = tmp_path_factory.mktemp("nodes")

    @cache
    def under(kind: str):
        require_installed(kind)
        case = {"settings": {**KINDS[kind], **EACH}, "lora": kind in LORA}
        resumed = {**case, "resumes": "full"}
        cases = {"full": case, "resumed": resumed, "swapped": {**resumed, "swaps": True}}
        beside = {**case, "settings": {**case["settings"], "async_save": True}, "slow_disk": True}
        cases |= {"beside": beside, "beside-resumed": {**beside, "resumes": "beside"}}
        cases["beside-spoilt"] = {**beside, "spoils": "checkpoint-2/trainer_state.json"}
        if kind == "ddp":
            both, lacks = ["checkpoint-2", "checkpoint-4"], "checkpoint-4/model.safetensors"
            cases["lacking"] = {**resumed, "begins": both, "lacks": lacks}
        return launch(folder / kind, cases, nodes=(0, 1)), folder / kind

    return under


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "ddp" else [pytest.mark.exhaustive]) for kind in KINDS_ON_NODES]
)
def test_each_node_goes_on_from_its_own_checkpoint(lived, kind):
    found, folder = lived(kind)
    going_on = [case for case in found if case != "swapped" or not kind.startswith("zero")]
    going_on.remove("beside-spoilt")
    for case in going_on:
        assert all("error" not in rank for rank in found[case]), found[case]
    for case, step in product(("full", "beside"), (2, 4)):
        folders = [folder / case / node / "run" / f"checkpoint-{step}" for node in ("node-0", "node-1")]
        for place in folders:
            assert verify(place).step == step
        first, second = map(files_of, folders)
        shares = {name for name in first ^ second if "zero_pp_rank_" in name}
        assert first ^ second == shares
        assert {f"process-{rank}.json" for rank in (0, 1)} <= first
    expected, *others = (weights_of(folder / case / node / "run") for case in going_on for node in ("node-0", "node-1"))
    for weights in others:
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "ddp" else [pytest.mark.exhaustive]) for kind in KINDS_ON_NODES]
)
def test_a_checkpoint_that_one_node_cannot_finish_beside_the_training_stays_on_none(lived, kind):
    """On the second node a folder is in the place of a file when one more step has been made: it gets no manifest."""
    found, folder = lived(kind)
    for rank in found["beside-spoilt"]:
        assert "checkpoint-2: not saved" in rank["error"], rank
    for node in ("node-0", "node-1"):
        assert checkpoints(folder / "beside-spoilt" / node / "run") == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["zero-1", "ddp"])
def test_ranks_may_be_dealt_out_to_the_nodes_in_turn(tmp_path, kind):
    """As ``srun --distribution=cyclic`` does: ranks 0 and 2 on the first node, 1 and 3 on the second."""
    require_installed(kind)
    case = {"settings": {**KINDS[kind], **EACH}}
    cases = {"full": case, "resumed": {**case, "resumes": "full"}}
    found = launch(tmp_path / kind, cases, processes=4, nodes=(0, 1, 0, 1))
    assert [rank for ranks in found.values() for rank in ranks if "error" in rank] == []
    for node, own in enumerate(({0, 2}, {1, 3})):
        files = files_of(tmp_path / kind / "full" / f"node-{node}" / "run" / "checkpoint-4")
        assert {f"process-{rank}.json" for rank in range(4)} <= files
        shares = {int(name.partition("zero_pp_rank_")[2][0]) for name in files if "optim_states" in name}
        assert shares == (own if kind == "zero-1" else set())
    first, second = (weights_of(tmp_path / kind / name / "node-0" / "run") for name in cases)
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=EXACT)


@pytest.mark.exhaustive
def test_shares_of_other_nodes_are_missed_before_anything_is_loaded(lived):
    for rank in lived("zero-1")[0]["swapped"]:
        assert "optim_states.pt lies on another node; start the nodes in the order" in rank["error"]


def test_a_checkpoint_that_lacks_a_file_on_one_node_is_skipped_on_all(lived):
    found, folder = lived("ddp")
    for rank in found["lacking"]:
        assert "error" not in rank, rank
        assert [line["step"] for line in rank["history"]][-2:] == [4, 4]
    for node in ("node-0", "node-1"):
        run = folder / "lacking" / node / "run"
        assert (run / "_quarantine" / "checkpoint-4").is_dir()
        assert (run / "checkpoint-4" / "model.safetensors").is_file()
    log = (folder / "log-0.err").read_text(encoding="utf-8")
    assert "model.safetensors is missing (on the node of process 1)" in log


def files_of(folder: Path) -> set[str]:
    """Return the names of the files in a checkpoint."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a run has left at its root."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)
