"""One of several processes that run the command: ``python -m tests.distributed.command WORDS``."""

import sys

from oddsmith.cli.main import main

from . import gpu_road

if __name__ == "__main__":
    gpu_road.take()
    main(sys.argv[1:])
