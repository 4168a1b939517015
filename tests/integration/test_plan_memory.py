"""A plan's sum of a rank's memory, against the peak of a process that trains."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.command import environment, run_forked, save_model, save_pairs
from tests.forked import fork_all

pytestmark = pytest.mark.slow

# 27 M weights: 0.11 GB, and three times as much for gradients and AdamW, beside a process of 0.4 to 0.5 GB.
SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "initializer_range": 0.02}
TOLERANCE = 0.15


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
def test_the_sum_of_a_plan_is_the_peak_of_a_step(tmp_path, benchmarks, adapter):
    save_model(tmp_path / "model", **SIZES)
    save_pairs(tmp_path / "pairs.jsonl")
    recipe = {
        "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "pairs.jsonl"), "max_steps": 2,
        "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "save_strategy": "no", "lora_dropout": 0.0,
        "use_peft": adapter,
    }  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    planned = run_forked("plan", tmp_path / "recipe.json", "--json")
    assert planned.code == 0, planned.err
    parts = next(choice for choice in json.loads(planned.out)["choices"] if choice["is_recipe"])["bytes"]
    codes = fork_all(partial(_train, str(benchmarks), tmp_path), [environment()], tmp_path / "log", timeout_s=120)
    assert codes == [0], (tmp_path / "log-0.err").read_text(encoding="utf-8")
    peak = json.loads((tmp_path / "rank-0.json").read_text(encoding="utf-8"))["bytes"]
    assert parts["sum"] == pytest.approx(peak, rel=TOLERANCE)
    if not adapter:  # it would be seen if the optimizer's states were left out
        assert parts["sum"] - parts["optimizer"] < (1 - TOLERANCE) * peak


def _train(benchmarks: str, folder: Path) -> None:
    sys.path.insert(0, benchmarks)
    import plan_memory

    plan_memory.train(str(folder / "recipe.json"), folder)
