"""Measure how long a step takes in bf16 and in float32, on this CPU and as on one without AVX-512.

    python benchmarks/precision.py --data pairs.jsonl [--only avx2/lora/float32 ...]
    python benchmarks/precision.py --products           (single layers, in CPU time; see INSTRUCTION_SETS)

Each case is a process: an instruction set that torch and oneDNN may use, what is trained, and the precision.
``bf16-emulated`` is what ``bf16: true`` did before Oddsmith computed in float32 on such CPUs; it is given
``--limit`` seconds in all. The first step (with what is set up in it) is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

MODEL = "builtin:smollm2-135m-instruct"
INSTRUCTION_SETS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
TRAINED = {"all-weights": {}, "lora": {"use_peft": True}, "lora-4bit": {"use_peft": True, "load_in_4bit": True}}
PRECISIONS = ("bf16", "bf16-emulated", "float32")


def measure(trained: str, precision: str, data: str, pairs: int, steps: int) -> None:
    """Train a few steps in this process and print a line of JSON at the end of each."""
    import datasets
    from transformers import TrainerCallback

    from oddsmith import ModelConfig, ORPOConfig, ORPOTrainer, get_peft_config, get_quantization_config
    from oddsmith.model.loading.models import load_model
    from oddsmith.model.loading.setup import default_dtype
    from oddsmith.system import precision as precision_module

    if precision == "bf16-emulated":
        precision_module._cpu_bf16_unit = lambda: "emulated"
    chosen = ModelConfig(model_name_or_path=MODEL, lora_dropout=0.0, **TRAINED[trained])

    class Stopwatch(TrainerCallback):
        """Print the time of each step but the first."""

        before: tuple[float, float] | None = None

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = time.perf_counter(), time.process_time()
            if self.before is not None:
                wall_s, cpu_s = (after - before for after, before in zip(now, self.before, strict=True))
                print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s}), flush=True)
            self.before = now

    with tempfile.TemporaryDirectory() as folder:
        args = ORPOConfig(
            folder, bf16=precision != "float32", use_cpu=True, max_steps=1 + steps, per_device_train_batch_size=pairs,
            train_sampling_strategy="sequential", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        model = load_model(
            MODEL,
            dtype=default_dtype(args, adapter=chosen.use_peft),
            quantization_config=get_quantization_config(chosen),
        )
        rows = datasets.load_dataset("json", data_files=data, split=f"train[:{pairs * (1 + steps)}]")
        ORPOTrainer(
            model, args, train_dataset=rows, processing_class=None, peft_config=get_peft_config(chosen),
            callbacks=[Stopwatch()],
        ).train()  # fmt: skip


def products() -> None:
    """Print the CPU milliseconds that one layer (512 tokens, 576 -> 1536) takes forward and backward, on one thread."""
    import bitsandbytes
    import torch

    torch.set_num_threads(1)
    weight = torch.randn(1536, 576)
    for dtype in (torch.bfloat16, torch.float32):
        plain = torch.nn.Linear(576, 1536, bias=False, dtype=dtype).requires_grad_(False)
        packed = bitsandbytes.nn.Linear4bit(576, 1536, bias=False, compute_dtype=dtype, quant_type="nf4")
        packed.load_state_dict({"weight": weight})
        for name, layer in (("16 or 32 bits", plain), ("4 bits", packed.to("cpu"))):
            inputs = torch.randn(512, 576, dtype=dtype, requires_grad=True)
            times_ms = []
            for _ in range(6):
                started_s = time.process_time()
                layer(inputs).sum().backward()
                times_ms.append(1e3 * (time.process_time() - started_s))
            print(f"| {name} | {str(dtype).removeprefix('torch.')} | {min(times_ms):.1f} |", flush=True)


def run_case(case: str, options: argparse.Namespace) -> str:
    """Run one case in a process; return seconds and CPU seconds a step."""
    instructions, trained, precision = case.split("/")
    words = [sys.executable, __file__, "--measure", trained, precision]
    words += ["--data", options.data, "--pairs", str(options.pairs), "--steps", str(options.steps)]
    environment = {**os.environ, **INSTRUCTION_SETS[instructions]}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, error = process.communicate(timeout=options.limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            error = ""
    steps = [json.loads(line) for line in out.splitlines() if line.startswith('{"wall_s"')]
    if error and not steps:
        raise SystemExit(error)
    if not steps:
        return f"no second step within {options.limit} s | "
    return " | ".join(f"{sum(step[unit] for step in steps) / len(steps):.1f}" for unit in ("wall_s", "cpu_s"))


def main() -> None:
    """Run the cases, one after the other, and print a table."""
    cases = [f"{i}/{t}/{p}" for i in INSTRUCTION_SETS for t in TRAINED for p in PRECISIONS
             if (i, p) != ("native", "bf16-emulated")]  # fmt: skip
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="preference pairs, JSONL")
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--steps", type=int, default=1, help="timed steps")
    parser.add_argument("--limit", type=int, default=420, help="seconds a case may take")
    parser.add_argument("--only", nargs="+", default=cases, metavar="CASE", help="such as avx2/lora/bf16")
    parser.add_argument("--products", action="store_true", help="measure single layers instead")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.data, options.pairs, options.steps)
        return
    if options.products:
        products()
        return
    print("| instructions / trained / precision | s a step | CPU s a step |\n|---|---|---|")
    for case in options.only:
        print(f"| {case} | {run_case(case, options)} |", flush=True)


if __name__ == "__main__":
    main()
