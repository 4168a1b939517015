"""Where compiled kernels are kept; and in one line why one could not be compiled, and what to do. Needs no torch.

PyTorch compiles some kernels when they are first needed: Inductor writes them for Triton, which calls a C compiler for
the code that starts them, and ``ptxas`` for their machine code.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from subprocess import CalledProcessError

from ..errors import first_line
from .files import own_cache

_PLACE = "TORCHINDUCTOR_CACHE_DIR"
_USUAL_PLACE = os.path.join(tempfile.gettempdir(), "torchinductor_")  # and the user's name

# Errors of TorchDynamo, Inductor and Triton about a kernel, by the names of their classes.
_KINDS = frozenset({
    *("BackendCompilerFailed", "LoweringException", "CppCompileError", "InvalidCxxCompiler", "TritonMissing"),
    *("GPUTooOldForTriton", "CompilationError", "OutOfResources", "PTXASError", "AutotunerError"),
})  # fmt: skip
_ADVICE = (
    (
        r"Failed to find C compiler|No working C\+\+ compiler|InvalidCxxCompiler",
        "this machine has no C compiler, which compiling a kernel needs; install one (apt-get install gcc g++), or"
        " name it in the environment variable CC",
    ),
    (
        r"Python\.h|'\S*(?:gcc|clang|cc)', '\S*\.c'",
        "the C compiler could not compile what starts a kernel, which needs the headers of Python; install them"
        " (apt-get install python3-dev)",
    ),
    (
        r"TritonMissing|Cannot find a working triton|No module named '?triton",
        "Triton, which compiles kernels, is missing; install it (pip install triton, on Windows triton-windows)",
    ),
    (r"GPUTooOldForTriton|too old to be supported by the triton", "this GPU is too old for Triton"),
    (
        r"OutOfResources|out of resource|No valid triton configs",
        "a kernel needs more shared memory or registers than this GPU has",
    ),
    (
        r"ptxas",
        "ptxas, which compiles for NVIDIA's GPUs, is missing or failed; install Triton anew (pip install"
        " --force-reinstall triton), or name a ptxas in the environment variable TRITON_PTXAS_PATH",
    ),
)


def keep_kernels_apart() -> None:
    """Let PyTorch keep what it compiles in a folder that only this user can write, unless the environment names one.

    Else it unpickles, and so runs, what it finds in ``/tmp/torchinductor_USER``, where any user of the machine may have
    put it. To be called before the first kernel is compiled.
    """
    if not os.environ.get(_PLACE, _USUAL_PLACE).startswith(_USUAL_PLACE):  # which importing PyTorch may have set
        return
    folder = None
    with suppress(OSError):
        folder = own_cache("kernels")
    os.environ[_PLACE] = str(folder) if folder else tempfile.mkdtemp(prefix="oddsmith-kernels-")


def compiler_fault(error: BaseException) -> str | None:
    """Return what kept a kernel from being compiled, and what to do; ``None`` for an error of any other kind."""
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    # RuntimeError: Failed to find C compiler. Please specify via CC environment variable.
    if not (names & _KINDS or any(isinstance(one, RuntimeError | ImportError | CalledProcessError) for one in chain)):
        return None
    text = " ".join([*sorted(names), *map(str, chain)])
    for pattern, advice in _ADVICE:
        if re.search(pattern, text):
            return advice
    if not names & _KINDS:
        return None
    return f"a kernel could not be compiled ({(first_line(error) or type(error).__name__)[:100]})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error
