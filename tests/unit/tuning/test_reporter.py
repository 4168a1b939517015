"""A run is made shorter in the same shape."""

import pytest

from oddsmith import ORPOConfig
from oddsmith.tuning.reporter import shorten


@pytest.mark.parametrize(
    ("of_run", "wanted", "warmup", "steps", "scaled"),
    [
        (500, 50, 40, 50, 4),
        (500, 50, 3, 50, 1),
        (500, 50, 0, 50, 0),
        (500, 50, 0.1, 50, 0.1),  # a share stays one
        (30, 50, 5, 30, 5),  # a run that is shorter than a probe is tried whole
        (4, 50, 0, 10, 0),  # but for the fewest steps that can be judged
    ],
)
def test_a_probe_has_the_shape_of_the_run(of_run, wanted, warmup, steps, scaled, tmp_path):
    args = ORPOConfig(output_dir=str(tmp_path), warmup_steps=warmup, report_to="none")
    assert shorten(args, of_run, wanted) == args.max_steps == steps
    assert args.warmup_steps == scaled
    assert -(-steps // args.eval_steps) == 4
