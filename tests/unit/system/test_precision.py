"""In which format a run computes follows from the hardware, and what is loaded follows from the run."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

from oddsmith import ORPOConfig
from oddsmith.config import training as config
from oddsmith.model.loading.setup import default_dtype, ready_model, run_dtype
from oddsmith.system.precision import Precision, best_precision, emulated_bf16_on_gpu
from tests.tiny import tiny_model

GPUS = {
    "Tesla P100-PCIE-16GB": ((6, 0), "fp32", "has no bf16 arithmetic"),
    "Tesla V100-SXM2-16GB": ((7, 0), "fp16", "multiplies fp16, and has no bf16 arithmetic"),
    "Tesla T4": ((7, 5), "fp16", "multiplies fp16, and has no bf16 arithmetic"),
    "NVIDIA GeForce RTX 2080 Ti": ((7, 5), "fp16", "multiplies fp16, and has no bf16 arithmetic"),
    "NVIDIA A100-SXM4-80GB": ((8, 0), "bf16", "multiplies bf16"),
    "NVIDIA GeForce RTX 3090": ((8, 6), "bf16", "multiplies bf16"),
    "NVIDIA H100": ((9, 0), "bf16", "multiplies bf16"),
}


def gpu(monkeypatch, name: str) -> None:
    capability = GPUS[name][0]
    answers = {
        "is_available": True,
        "get_device_name": name,
        "get_device_capability": capability,
    }
    for query, answer in answers.items():
        monkeypatch.setattr(torch.cuda, query, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))
    monkeypatch.setattr(torch.version, "cuda", "12.8")


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_computes_in_the_format_it_has_units_for(name, monkeypatch):
    gpu(monkeypatch, name)
    _, expected, reason = GPUS[name]
    assert best_precision() == Precision(expected, f"{name} {reason}")
    assert best_precision(use_cpu=True).name != "fp16"


def test_a_gpu_of_another_maker_without_bf16_computes_in_float32(monkeypatch):
    gpu(monkeypatch, "Tesla T4")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert best_precision().name == "fp32"


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_that_has_to_emulate_bf16_is_named(name, monkeypatch):
    gpu(monkeypatch, name)
    line = emulated_bf16_on_gpu()
    best = GPUS[name][1]
    if best == "bf16":
        assert line is None
    else:
        assert line is not None
        assert f"{name} has no units for it" in line
        assert f"{best.replace('fp32', 'float32')} is used" in line
    assert emulated_bf16_on_gpu(use_cpu=True) is None


def test_a_run_in_bf16_on_such_a_gpu_says_so_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(config, "emulated_bf16_on_gpu", lambda use_cpu: "emulated")
    assert settings(tmp_path, monkeypatch, "fp16", bf16=True).bf16
    assert caplog.messages.count("emulated") == 1
    caplog.clear()
    settings(tmp_path, monkeypatch, "fp16")
    assert "emulated" not in caplog.messages


def settings(folder, monkeypatch, name, **given) -> ORPOConfig:
    monkeypatch.setattr(config, "best_precision", lambda use_cpu: Precision(name, f"this GPU has {name}"))
    monkeypatch.setattr(config, "emulates_bf16", lambda use_cpu: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # for ours: transformers finds a CPU
    use_cpu = given.get("bf16", name == "bf16")  # transformers refuses bf16 on a GPU that is not there
    return ORPOConfig(output_dir=str(folder), use_cpu=use_cpu and not given.get("fp16"), **given)


@pytest.mark.parametrize(
    ("hardware", "given", "dtype", "reason"),
    [
        ("bf16", {}, torch.bfloat16, "this GPU has bf16"),
        ("fp16", {}, torch.float16, "this GPU has fp16"),
        ("fp32", {}, torch.float32, "this GPU has fp32"),
        ("bf16", {"fp16": True}, torch.float16, "set by hand"),
        ("fp16", {"bf16": False}, torch.float32, "set by hand"),
        ("fp16", {"bf16": True}, torch.bfloat16, "set by hand"),
        ("bf16", {"bf16": False}, torch.float32, "set by hand"),
        ("fp32", {"fp16": True}, torch.float16, "set by hand"),
    ],
)
def test_a_run_follows_the_hardware_unless_it_is_set(hardware, given, dtype, reason, tmp_path, monkeypatch):
    args = settings(tmp_path, monkeypatch, hardware, **given)
    assert run_dtype(args) is dtype
    assert args.precision_reason == reason
    assert default_dtype(args, adapter=True) is dtype
    assert default_dtype(args, adapter=False) is torch.float32


@pytest.mark.parametrize("in_full", [[], ["lm_head"], ["embed_tokens", "lm_head"]], ids=["LoRA", "head", "both"])
def test_what_is_trained_over_a_base_in_fp16_is_float32(in_full):
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", modules_to_save=in_full or None)
    args = SimpleNamespace(fp16=True, use_cpu=False, process_index=0, chat_template=None)
    model = ready_model(tiny_model(dtype=torch.float16), args, adapter)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float16}


def test_a_whole_model_in_fp16_is_trained_in_float32_and_a_line_says_so(caplog):
    args = SimpleNamespace(fp16=True, use_cpu=False, process_index=0, chat_template=None)
    model = ready_model(tiny_model(dtype=torch.float16), args)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    (record,) = caplog.records
    assert "were float16, in which steps get lost; they are float32 now" in record.getMessage()
