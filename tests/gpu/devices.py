"""Parameters for tests that run on a GPU, and in a smaller part on the CPU, so that their code runs everywhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from oddsmith.batching.forest import ForestLayout
from oddsmith.model.logprobs.attention import cuda, flex

NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"))
HALF = (torch.bfloat16, torch.float16)


def on_devices(cases: Sequence[Any], on_cpu: int | Sequence[Any] = 1, quick: int | None = None) -> list[Any]:
    """Return parameters (device, case): every case on a GPU, some on the CPU as well, of these all but the first slow.

    ``on_cpu`` is the number of cases, counted from the first, or the cases themselves. ``quick`` is the number of those
    that run within a few minutes on a GPU; the others are marked slow.
    """
    chosen = cases[:on_cpu] if isinstance(on_cpu, int) else on_cpu
    parameters = [
        pytest.param("cpu", case, id=f"cpu-{_name(case)}", marks=[pytest.mark.slow] if number else [])
        for number, case in enumerate(chosen)
    ]
    for number, case in enumerate(cases):
        marks = NEEDS_GPU if quick is None or number < quick else (*NEEDS_GPU, pytest.mark.slow)
        parameters.append(pytest.param("cuda", case, marks=marks, id=f"cuda-{_name(case)}"))
    return parameters


def _name(case: Any) -> str:
    parts = case if isinstance(case, tuple) else (case,)
    return "-".join(str(part).removeprefix("torch.") for part in parts)


def skip_without(device: str, dtype: torch.dtype) -> None:
    """Skip a test of a type that the GPU does not multiply."""
    if device == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not multiply bf16")


@contextmanager
def kernels_in_plain_torch() -> Iterator[None]:
    """Stand in for the kernels of a GPU on the CPU: the code around them is what runs.

    FlexAttention computes with a whole mask there, and in the backward pass too once it ignores the device. The
    flash kernel is a loop over the paths.
    """
    with (
        mock.patch.object(torch_flex, "_validate_device"),
        mock.patch.object(flex, "_compiled", return_value=torch_flex.flex_attention),
        mock.patch.object(cuda, "flash_kernels", return_value={"loops": varlen_in_loops}),
    ):
        cuda.chosen_attention.cache_clear()
        yield
    cuda.chosen_attention.cache_clear()


def varlen_in_loops(
    query_THC: torch.Tensor,
    key_KGC: torch.Tensor,
    value_KGC: torch.Tensor,
    forest: ForestLayout,
    scaling: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """Compute what a variable-length flash kernel computes, a path at a time: causal at the bottom right."""
    groups = query_THC.shape[1] // key_KGC.shape[1]
    ends_T, ends_K = forest.query_ends_P.tolist(), forest.key_ends_P.tolist()
    out = []
    for path in range(len(ends_T) - 1):
        query_HLC = query_THC[ends_T[path] : ends_T[path + 1]].transpose(0, 1)
        key_HKC, value_HKC = (
            tensor[ends_K[path] : ends_K[path + 1]].repeat_interleave(groups, 1).transpose(0, 1)
            for tensor in (key_KGC, value_KGC)
        )
        L, K = query_HLC.shape[1], key_HKC.shape[1]
        behind_LK = torch.arange(K - L, K)[:, None] - torch.arange(K)[None, :]  # how far a key lies behind a query
        seen_LK = (behind_LK >= 0) & ((window[0] < 0) | (behind_LK <= window[0]))
        scores = (query_HLC @ key_HKC.transpose(1, 2)).float() * scaling
        weights = scores.masked_fill(~seen_LK, float("-inf")).softmax(-1).to(value_HKC.dtype)
        out.append((weights @ value_HKC).transpose(0, 1))
    return torch.cat(out)
