"""What a checkpoint has to hold before its manifest is written."""

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint

from oddsmith.checkpoint.contents import require_saved
from oddsmith.errors import SaveError

PLAIN = ["process-0.json", "process-1.json", "optimizer.json", "scheduler.json"]
SHARE = "global_step2/zero_pp_rank_{}_mp_rank_00_optim_states.pt"
DEEPSPEED = [*PLAIN[:2], SHARE.format(0), SHARE.format(1), "global_step2/mp_rank_00_model_states.pt"]


def written(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("global_step2", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("sharded_by", "names"),
    [
        (None, PLAIN),
        ("FSDP", [*PLAIN[:2], "scheduler.pt", "optimizer.bin"]),
        ("DeepSpeed", ["latest", *DEEPSPEED]),
    ],
)
def test_every_file_is_missed(tmp_path, sharded_by, names):
    facts = {"sharded_by": sharded_by, "processes": 2, "writing_here": range(2)}
    require_saved(written(tmp_path / "whole", names), **facts)
    for number, name in enumerate(names[1:] if names[0] == "latest" else names):
        folder = written(tmp_path / str(number), names)
        (folder / name).unlink()
        with pytest.raises(SaveError, match="was not written here"):
            require_saved(folder, **facts)


def test_shares_of_other_nodes_are_not_missed(tmp_path):
    names = {"latest", *DEEPSPEED} - {SHARE.format(1)}
    require_saved(written(tmp_path, names), sharded_by="DeepSpeed", processes=2, writing_here=[0])


def test_every_file_of_an_index_is_missed(tmp_path):
    folder = written(tmp_path, ["process-0.json", "scheduler.pt"])
    for name in ("optimizer_0", "pytorch_model_fsdp_0"):
        distributed_checkpoint.save({"x": torch.ones(2)}, checkpoint_id=folder / name, no_dist=True)
    facts = {"sharded_by": "FSDP", "processes": 1, "writing_here": [0]}
    require_saved(folder, **facts)
    next((folder / "optimizer_0").glob("*.distcp")).unlink()
    with pytest.raises(SaveError, match=r"optimizer_0/.*distcp was not written here"):
        require_saved(folder, **facts)
