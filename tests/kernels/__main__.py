"""Print what every kernel needs of every card: ``python -m tests.kernels``."""

import tempfile
from pathlib import Path

from .cards import CARDS, compiling_for
from .cases import LAUNCHES


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, launch in LAUNCHES.items():
            print(name)
            for card in CARDS:
                with compiling_for(card, Path(folder)) as kernels:
                    launch()
                for kernel in kernels:
                    fits = "" if kernel.shared_bytes <= card.shared_bytes else f"  OVER {card.shared_bytes:,} B"
                    print(f"    {card!s:8}{kernel}{fits}")


if __name__ == "__main__":
    main()
