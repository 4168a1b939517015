"""Where kernels of a GPU cannot run, their references do, and one line says why."""

import pytest
import torch

from oddsmith.model.logprobs import kernels
from oddsmith.model.logprobs.kernels import gated, norm

NO_COMPILER = "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."


@pytest.fixture
def failing(monkeypatch):
    """Kernels on the CPU that raise an error, and the names of those that were called."""
    called = []
    library = torch.library.Library("oddsmith", "IMPL")
    monkeypatch.setattr(kernels, "kernels_take", lambda tensor: True)
    monkeypatch.setattr(kernels, "_faults", {})

    def fail(error):
        def kernel_of(name):
            def kernel(*args):
                called.append(name)
                raise error

            return kernel

        for name in ("norm", "gated"):
            library.impl(name, kernel_of(name), "CPU")
        return called

    yield fail
    library._destroy()


def test_without_a_compiler_references_run(failing, caplog):
    called = failing(RuntimeError(NO_COMPILER))
    x, weight = torch.randn(3, 8), torch.ones(8)
    for _ in range(2):
        found = norm.norm(x, weight, 1e-5, norm.Scale.AFTER_CAST)
        expected = norm.reference_norm(x, weight, 1e-5, norm.Scale.AFTER_CAST)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        found = gated.gated(x, x, gated.Activation.SILU)
        assert torch.equal(found, gated.reference_gated(x, x, gated.Activation.SILU))
    assert called == ["norm", "gated"]
    (line,) = caplog.messages
    assert "without a kernel: this machine has no C compiler" in line


def test_other_errors_are_raised(failing):
    failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        norm.norm(torch.ones(3, 8), torch.ones(8), 1e-5, norm.Scale.AFTER_CAST)


def test_a_gpu_without_triton(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setattr(kernels, "_faults", {})
    assert not kernels.has_triton.__wrapped__()
    (line,) = caplog.messages
    assert "Triton, which compiles kernels, is missing; install it (pip install triton" in line
