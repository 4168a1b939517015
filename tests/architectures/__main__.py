"""Print docs/models.md: ``python -m tests.architectures > docs/models.md``; about five minutes."""

import contextlib
import sys
import tempfile
from pathlib import Path

import transformers

from tests.architectures import ARCHITECTURES, HEAD, row_of

INTRO = """# Models

Any checkpoint that writes text is loaded, also one that reads images, and what works with it is found out at the start
of a run, not looked up. This table says what was found for a tiny model of each architecture, with random weights:

- **batches**: *packed, prompt shared*: [one row, a prompt in it once](speed.md), on a GPU perhaps *packed* where there
  is a recurrence; *packed*: the same, but its [recurrences](speed.md#hybrids) compute each sequence whole; *padded*:
  batches padded to their longest sequence, which is slower and gives the same result.
- **LoRA** on all linear layers, **all weights**: two steps and an evaluation. Layers whose weights a model reads
  without calling them (such as `out_proj` and `dt_proj` of Mamba's mixers) and routers of experts get no adapter.
- **merge**: the adapter was merged, and the merged model loaded again and compared.
- **GGUF**: *yes*: `oddsmith export --to gguf`; *script*: llama.cpp's own converter names the class (`--converter`).
  Of a model that reads images the text part is converted.

The table is made by `python -m tests.architectures > docs/models.md`, and `tests/integration/test_architectures.py`
compares it with what the product does. A class that is not in it is treated in the same way.

Found with transformers {version}.
"""


def main() -> None:
    """Print the page."""
    rows = []
    for name in ARCHITECTURES:
        print(name, file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            rows.append(str(row_of(name, Path(folder))))
    print(INTRO.format(version=transformers.__version__), HEAD, "|---" * (HEAD.count("|") - 1) + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
