"""What keeps a kernel from being compiled is named, with what to do; the errors are those of PyTorch and Triton."""

from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.exc import GPUTooOldForTriton, InductorError, InvalidCxxCompiler, TritonMissing

from oddsmith.system.compilers import compiler_fault


def inductor(error: Exception) -> Exception:
    return InductorError(error, None)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


# Triton's, which PyTorch for CPUs does not bring.


class OutOfResources(Exception):
    def __str__(self) -> str:
        return "out of resource: shared memory, Required: 147968, Hardware limit: 101376. Reducing block sizes may help"


class PTXASError(Exception):
    pass


class CompilationError(Exception):
    pass


NO_C_COMPILER = RuntimeError(
    "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs"
)
TOO_LARGE = RuntimeError("No valid triton configs. OutOfMemoryError: out of resource: flex Required: 147968 Hardware")
K80 = SimpleNamespace(name="Tesla K80", major=3, minor=7)
NO_HEADERS = CalledProcessError(1, ["/usr/bin/gcc", "/tmp/x/main.c", "-O3", "-shared"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NO_C_COMPILER, "apt-get install gcc g++"),
        (inductor(NO_C_COMPILER), "apt-get install gcc g++"),
        (InvalidCxxCompiler(), "apt-get install gcc g++"),
        (NO_HEADERS, "python3-dev"),
        (inductor(NO_HEADERS), "python3-dev"),
        (TritonMissing(None), "pip install triton"),
        (ModuleNotFoundError("No module named 'triton'"), "pip install triton"),
        (
            GPUTooOldForTriton(SimpleNamespace(name="Tesla K80", major=3, minor=7), None),
            "this GPU is too old for Triton",
        ),
        (inductor(TOO_LARGE), "more shared memory or registers than this GPU has"),
        (OutOfResources(), "more shared memory or registers than this GPU has"),
        (raised_from(RuntimeError("backward failed"), OutOfResources()), "more shared memory or registers"),
        (PTXASError("`ptxas` failed with error code 255"), "TRITON_PTXAS_PATH"),
        (RuntimeError("Cannot find ptxas"), "TRITON_PTXAS_PATH"),
        (CompilationError("at 12:8: unsupported operand"), "a kernel could not be compiled (at 12:8: unsupported ope"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_missing_is_named(error, expected):
    found = compiler_fault(error)
    assert expected in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape '[2, 3]' is invalid for input of size 5"), ValueError("ptxas"), KeyError("triton"),
     torch.OutOfMemoryError("CUDA out of memory"), ImportError("no flash_attn"), CalledProcessError(1, ["git", "log"])],
    ids=repr,
)  # fmt: skip
def test_any_other_error_is_none_of_a_compiler(error):
    assert compiler_fault(error) is None
