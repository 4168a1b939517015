"""Run ``examples/cluster/ray/train.py`` on a small Ray of its own: ``python -m tests.distributed.ray_driver WORDS``.

Its processes end with this one. No dashboard, 80 MB of shared memory.
"""

import runpy
import sys
from pathlib import Path

import ray

SCRIPT = Path(__file__).parents[2] / "examples" / "cluster" / "ray" / "train.py"

if __name__ == "__main__":
    ray.init(num_cpus=3, include_dashboard=False, object_store_memory=80 * 2**20)
    sys.argv = [str(SCRIPT), *sys.argv[1:]]
    runpy.run_path(str(SCRIPT), run_name="__main__")
