"""What keeps a kernel from being compiled is named, with what to do; the errors are those of PyTorch and Triton."""

import os
import stat
from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest
import torch
from torch._inductor.exc import GPUTooOldForTriton, InductorError, InvalidCxxCompiler, TritonMissing

from oddsmith.system.compilers import compiler_fault, keep_kernels_apart


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


class TestWhereKernelsAreKept:
    @pytest.fixture(autouse=True)
    def place(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ODDSMITH_CACHE", str(tmp_path))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "to be restored")
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")

    def test_in_a_folder_of_this_user(self, tmp_path):
        """PyTorch unpickles what it finds there; its own choice has a name that anyone can take in /tmp."""
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        keep_kernels_apart()
        assert cache_dir() == str(tmp_path / "kernels")
        assert stat.S_IMODE((tmp_path / "kernels").stat().st_mode) == 0o700

    def test_not_in_one_of_another_user(self, tmp_path, monkeypatch):
        (tmp_path / "kernels").mkdir()
        user = os.geteuid() + 1
        (tmp_path / f"kernels-{user}").mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: user)
        keep_kernels_apart()
        assert not os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path))
        os.rmdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])

    def test_where_the_environment_says(self, monkeypatch):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
        keep_kernels_apart()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"

    def test_where_a_setting_compiles(self, tmp_path, monkeypatch):
        from torch._inductor.runtime.cache_dir_utils import default_cache_dir

        from oddsmith import ORPOConfig

        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as an import of PyTorch's does
        ORPOConfig(output_dir=str(tmp_path / "run"), prefix_forest=False, torch_compile=True)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kernels")

    def test_before_the_first_kernel_is_compiled(self, tmp_path):
        from oddsmith.model.logprobs.attention.flex import _compiled

        _compiled.cache_clear()
        _compiled()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kernels")
