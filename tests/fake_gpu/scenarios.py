"""Run cases and trainings, and write what was recorded: ``python -m tests.fake_gpu.scenarios FILE.json few``.

``few`` runs those of ``limits.FEW_STEPS`` and ``FEW_TRAININGS``, and what has no name, ``others`` all others.

The guard library has to be loaded before torch, and torch then believes in a GPU: nothing else may run in this process.
It ends with ``CANNOT_RUN`` and one line on stderr where the library cannot be made.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .guard import NoGuard, load

CANNOT_RUN = 77
# Long rows cost nothing without data, and make what is done with activations count for more than weights.
PAIRS, LONGEST = 16, 400
FEW_LAYERS, MORE_LAYERS = 2, 4


def measure_case(case: Any) -> dict[str, Any]:
    """Run a step of a case at two depths, and return what each layer adds."""
    from .steps import rows, run_case

    data = rows(PAIRS, longest=LONGEST)
    totals = {}
    for layers in (FEW_LAYERS, MORE_LAYERS):
        with run_case(case, data, num_hidden_layers=layers) as result:
            record = result.record
            totals[layers] = record.total()
            found = {
                "layers": layers,
                "waits": record.waits,
                "waiting copies": record.waiting_copies,
                "attention": record.attention,
                "faults": result.faults,
            }
    few, more = totals[FEW_LAYERS], totals[MORE_LAYERS]
    a_layer = [(m - f) / (MORE_LAYERS - FEW_LAYERS) for f, m in zip(few, more, strict=True)]
    elements = sum(int(row["chosen_end"] + row["rejected_end"]) for row in data) * case.shape["hidden_size"]
    return found | {
        "launches a layer": a_layer[0],
        "passes a layer": a_layer[1] / (2 * elements),
        "launches beside the layers": few[0] - FEW_LAYERS * a_layer[0],
    }


def notice() -> dict[str, Any]:
    """Return how many waits, waiting copies and launches are recorded of what a layer must not do."""
    import torch

    from .device import fake_gpu
    from .recorder import recording

    careless: dict[str, Callable[[torch.Tensor], Any]] = {
        "synchronize": lambda x: torch.cuda.synchronize(),
        "number to the device": lambda x: torch.tensor(1.5, device="cuda"),
        "tensor to the device": lambda x: torch.ones(3, device="cpu").to("cuda"),
        "tensor from the device": lambda x: x.cpu(),
        "positions in a list": lambda x: x[[0, 2]],
        "number from the device": lambda x: x.sum().item(),
        "positions of what is true": lambda x: x.nonzero(),
        "copy on the device": lambda x: x.clone(),
    }
    found = {}
    with fake_gpu(data_dependent=True):
        x = torch.ones(4, 8, device="cuda")
        for name, do in careless.items():
            with recording() as record:
                do(x)
            found[name] = [len(record.waits), len(record.waiting_copies), len(record.launches)]
    return {"counts": found}


def predict() -> dict[str, Any]:
    """Predict a step of an 8B model's first layers, as ``benchmarks/gpu_roofline.py`` does of all."""
    from benchmarks import gpu_roofline

    work = gpu_roofline.WORKS["8b-qlora"]
    work = work._replace(shape=work.shape | {"num_hidden_layers": 2}, pairs=2)
    steps = gpu_roofline.steps_of(work)
    one = steps["H100"]
    return {
        "device_s": {name: gpu_roofline.total_s(step.record, gpu_roofline.CARDS[name]) for name, step in steps.items()},
        "operations": one.record.total()[2],
        "needed": one.needed,
        "report": gpu_roofline.report({"8b-qlora": steps}, (1e-5, 100), 5),
    }


def attempted(run: Callable[..., dict[str, Any]], *arguments: Any, **others: Any) -> dict[str, Any]:
    """Return what a scenario recorded, with the seconds that it took; or how it failed."""
    started = time.process_time()
    try:
        found = run(*arguments, **others)
    except Exception:  # noqa: BLE001  the tests of this scenario fail, those of the others do not
        found = {"error": traceback.format_exc()}
    return found | {"seconds": time.process_time() - started}


def main(file: str, which: str) -> None:
    """Load the library, run one of the two parts, write the results."""
    try:
        load()
    except NoGuard as reason:
        sys.stderr.write(f"{reason}\n")
        sys.exit(CANNOT_RUN)
    from .limits import FEW_STEPS, FEW_TRAININGS
    from .steps import CASES
    from .training import TRAININGS, run_training

    is_few = which == "few"
    found = {
        "cases": {name: attempted(measure_case, case) for name, case in CASES.items() if (name in FEW_STEPS) == is_few},
        "trainings": {
            name: attempted(run_training, **settings)
            for name, settings in TRAININGS.items()
            if (name in FEW_TRAININGS) == is_few
        },
    }
    if is_few:
        found |= {"recorder": {"careless": attempted(notice)}, "roofline": {"8b-qlora": attempted(predict)}}
    Path(file).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
