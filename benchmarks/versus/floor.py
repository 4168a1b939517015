"""The floor of a step: the operations that its tokens need, over the rate at which this machine multiplies matrices.

    python -m versus.floor REQUEST.json ANSWER.json      (run by versus_trl.py, with benchmarks/ as the folder)

    operations = 4 or 6 x body parameters x different beginnings + 4 or 6 x head parameters x predicting positions
               + 12 x layers x heads x head size x tokens that attention looks at

A frozen matrix is multiplied twice (forward, gradient of its input), a trained one three times; 2 operations each time.
Attention multiplies six times: scores and values forward, four gradients backward. Left out, so that the floor stays
one: the adapter's own matrices, everything that is no matrix product, and what is computed again.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.model.loading.place import locate

WARM_UPS, REPEATS = 2, 5


def matrix_shapes(config: Any) -> tuple[Counter, tuple[int, int]]:
    """The linear layers of a model.

    Args:
        config: The model's configuration.

    Returns:
        How often each shape (outputs, inputs) stands in the body, and the shape of the head.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    body = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return Counter(tuple(module.weight.shape) for module in body), tuple(head.weight.shape)


def operations(step: dict[str, int], config: Any, *, adapter: bool) -> float:
    """Operations that one step needs at least, by the formula above.

    Args:
        step: The step's ``StepCounts``.
        config: The model's configuration.
        adapter: Whether the model itself is frozen.

    Returns:
        Additions and multiplications.
    """
    body, head = matrix_shapes(config)
    times = 4 if adapter else 6
    body_parameters = sum(outputs * inputs * count for (outputs, inputs), count in body.items())
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * head_size * step["visible_tokens"]
    return (
        times * body_parameters * step["forest_tokens"] + times * head[0] * head[1] * step["target_positions"]
    ) + attention


def matrix_rate(config: Any, dtype: torch.dtype, body_rows: int, head_rows: int) -> float:
    """Operations a second in the products of a forward pass, each at its best of several.

    Args:
        config: The model's configuration.
        dtype: Type of both factors.
        body_rows: Rows that the body's matrices are multiplied with.
        head_rows: Rows that the head is multiplied with.

    Returns:
        2 x rows x inputs x outputs over seconds, over all layers.
    """
    body, head = matrix_shapes(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    done = spent_s = 0.0
    for (outputs, inputs), count, rows in (*((shape, n, body_rows) for shape, n in body.items()), (head, 1, head_rows)):
        x = torch.randn(rows, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        done += count * 2.0 * rows * inputs * outputs
        spent_s += count * min(_time_s(x, weight) for _ in range(WARM_UPS + REPEATS))
    return done / spent_s


def _time_s(x: torch.Tensor, weight: torch.Tensor) -> float:
    started_s = time.perf_counter()
    with torch.no_grad():
        linear(x, weight)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


def main(request_file: str, answer_file: str) -> None:
    """Read the request, measure, write the floor of every step."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(locate(request["model"]))
    steps = request["step_counts"]
    body_rows, head_rows = (
        sum(step[name] for step in steps) // len(steps) for name in ("forest_tokens", "target_positions")
    )
    rate = matrix_rate(config, torch.bfloat16 if request["bf16"] else torch.float32, body_rows, head_rows)
    per_step = [operations(step, config, adapter=request["adapter"]) for step in steps]
    answer = {"operations": per_step, "operations_per_second": rate, "floor_s": [count / rate for count in per_step]}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
