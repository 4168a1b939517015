"""Bases whose weights are stored quantised: what advise, plan and train take of them, and what they refuse alike."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from oddsmith.model.loading.stored_quantisation import stored_sizes
from tests.command import run_here, save_model, save_rows
from tests.tiny import ragged_pairs

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128}


def stored_as(folder: Path, quantization: dict) -> Path:
    """State in a model's configuration that its weights are quantised."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def in_fp8(folder: Path) -> Path:
    """Store the linear layers of a model in fp8, with a scale for each block of 128 times 128."""
    stored = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            stored[name] = weight
            continue
        scale = torch.zeros(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
        codes = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
        for row in range(scale.shape[0]):
            for column in range(scale.shape[1]):
                block = slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128)
                scale[row, column] = weight[block].abs().max() / 448
                codes[block] = (weight[block] / scale[row, column]).to(torch.float8_e4m3fn)
        stored[name], stored[f"{name}_scale_inv"] = codes, scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return stored_as(folder, FP8)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Pairs, and models of each kind."""
    folder = tmp_path_factory.mktemp("stored")
    save_rows(folder / "pairs.jsonl", ragged_pairs(40))
    in_fp8(save_model(folder / "fp8", **WIDE))
    for name, quantization in (("gptq", GPTQ), ("no", AUTO_ROUND)):
        (stored_as(save_model(folder / name, **WIDE), quantization) / "model.safetensors").unlink()
    return folder


@pytest.fixture
def command(workshop, tmp_path, capsys, monkeypatch):
    """Run a command on a model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, model: str, *words: object):
        given = [workshop / model, workshop / "pairs.jsonl"]
        folder = f"run-{sum(1 for _ in tmp_path.iterdir())}"
        if name != "advise":
            given = ["--model-name-or-path", given[0], "--dataset-name", given[1], "--output-dir", folder]
        return run_here(capsys, name, *given, *words)

    return run


def test_an_fp8_base_takes_an_adapter_and_the_memory_of_its_files(command, workshop):
    done = command("advise", "fp8", "--gpu", "h100", "--json")
    assert done.code == 0, done.err
    advice = json.loads(done.out)
    assert (advice["stored_quantisation"], list(advice["ways"]), advice["training"]) == ("fp8", ["lora"], "lora")
    sizes = stored_sizes(workshop / "fp8")
    linear = load_file(workshop / "fp8" / "model.safetensors")
    quantised = {name for name in linear if "proj" in name}
    assert sizes.quantised_bytes == sum(linear[name].nbytes for name in quantised)
    assert sizes.plain_numbers == sum(linear[name].numel() for name in linear.keys() - quantised)
    plain = command("advise", "fp8", "--gpu", "a100", "--json", "--output", "unpacked.yaml")  # no units for fp8
    unpacked = json.loads(plain.out)
    assert (unpacked["stored_quantisation"], list(unpacked["ways"])) == (None, ["full", "lora", "4bit"])
    saved = unpacked["ways"]["lora"]["bytes"]["weights"] - advice["ways"]["lora"]["bytes"]["weights"]
    weights = sum(linear[name].numel() for name in quantised if not name.endswith("scale_inv"))
    assert saved == pytest.approx(2 * weights - sizes.quantised_bytes, abs=8)


def test_an_fp8_base_is_unpacked_on_a_cpu_and_trained_like_any_other(command):
    for words in (("--no-use-peft",), ("--use-peft",)):
        done = command(
            "train", "fp8", "--use-cpu", "--no-bf16", "--max-steps", 1, "--save-strategy", "no", "--json", *words
        )
        assert done.code == 0, done.err
        assert json.loads(done.out)["steps"] == 1


def test_of_weights_that_are_not_there_the_settings_tell(command):
    done = command("advise", "gptq", "--gpu", "24GB", "--json")
    assert done.code == 0, done.err
    advice = json.loads(done.out)
    assert (advice["stored_quantisation"], list(advice["ways"])) == ("gptq", ["lora"])
    why = next(one["why"] for one in advice["settings"] if one["setting"] == "use_peft")
    assert why == "LoRA: its weights are stored quantised (gptq), so an adapter is all that can be trained"


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("no", (), "(auto-round), and nothing can be trained on these; take its weights in 16 bits"),
        ("gptq", ("--no-use-peft",), "(gptq), which can be trained with an adapter alone; add use_peft"),
        ("gptq", ("--use-peft", "--load-in-4bit"), "(gptq); leave load_in_4bit and load_in_8bit out"),
    ],
)
def test_what_cannot_be_trained_is_not_advised(command, model, words, said):
    done = command("advise", model, "--gpu", "24GB", *words)
    assert done.code == 2
    assert f"its weights are stored quantised {said}" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["advise", "plan", "train"])
def test_what_does_not_load_here_is_refused_by_all_alike(command, name):
    """GPTQ's packages are not installed here."""
    pytest.importorskip("bitsandbytes")
    done = command(name, "gptq", "--use-peft", "--use-cpu")
    assert done.code == 2
    assert "gptq: cannot be loaded: Loading a GPTQ quantized model requires optimum" in done.err


@pytest.mark.slow
def test_a_base_of_bitsandbytes_is_planned_as_it_lies_there(command, workshop, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    plain = save_model(workshop / "bnb", **WIDE)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantization)
    model.save_pretrained(plain)
    cpu = ("--use-cpu", "--no-bf16")
    done = command("advise", "bnb", *cpu, "--json")
    assert done.code == 0, done.err
    advice = json.loads(done.out)
    assert (advice["stored_quantisation"], list(advice["ways"])) == ("bitsandbytes", ["lora"])
    trained = command("train", "bnb", *cpu, "--use-peft", "--max-steps", 1, "--save-strategy", "no", "--json")
    assert trained.code == 0, trained.err
    for name in ("train", "plan", "advise"):
        refused = command(name, "bnb", *cpu, "--no-use-peft", *(["--output", "no.yaml"] if name == "advise" else []))
        assert refused.code == 2
        assert "(bitsandbytes), which can be trained with an adapter alone; add use_peft" in refused.err
