"""``python -m oddsmith`` is the command, for launchers that take a module, such as ``torchrun -m``."""

from .cli.main import main

if __name__ == "__main__":
    main()
