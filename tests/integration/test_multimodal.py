"""A model that reads images as well, from a folder to a chat: trained on text, with everything else kept as it was."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from oddsmith.config import ModelConfig
from oddsmith.export.merge import merge_adapter
from oddsmith.inference.chat.backends import Sampling, open_backend
from oddsmith.model.adapters import get_quantization_config
from oddsmith.model.loading.models import load_model
from tests.integration.test_card import require_answer
from tests.tiny_multimodal import save_multimodal
from tests.tiny_runs import train_run

TOWERS = ("vision_tower", "multi_modal_projector", "visual")


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder, as its files hold them."""
    found = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    return found


def assert_kept(folder: Path, base: Path) -> None:
    """Require that towers, processor and architecture in a folder are those of the base, and that the text is not."""
    before, after = stored(base), stored(folder)
    assert before.keys() == after.keys()
    towers = {name for name in before if any(tower in name for tower in TOWERS)}
    assert towers
    for name in towers:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])
    assert any(not torch.equal(after[name].float(), before[name].float()) for name in before.keys() - towers)
    settings = [json.loads((one / "config.json").read_text()) for one in (folder, base)]
    assert settings[0]["architectures"] == settings[1]["architectures"]
    assert (folder / "preprocessor_config.json").read_bytes() == (base / "preprocessor_config.json").read_bytes()
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(model).__name__ == settings[0]["architectures"][0]


@pytest.mark.parametrize("kind", ["qwen3_vl", pytest.param("mistral3", marks=pytest.mark.slow)])
def test_all_of_the_text_is_trained(kind, tmp_path):
    base = save_multimodal(tmp_path / "base", kind)
    run = train_run(base, tmp_path / "run", save_strategy="steps", save_steps=1)
    for folder in (run, run / "checkpoint-1"):
        assert_kept(folder, base)
    start = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    outside = sum(weight.numel() for name, weight in stored(base).items() if any(one in name for one in TOWERS))
    assert start["trainable_parameters"] == start["parameters"] - outside
    assert all(parameter.requires_grad for parameter in load_model(str(run)).parameters())


@pytest.mark.parametrize("kind", ["qwen3_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_an_adapter_is_trained_merged_and_answers(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = save_multimodal(tmp_path / "base", kind)
    run = train_run(base, tmp_path / "run", lora={}, dtype="auto")
    assert (run / "preprocessor_config.json").is_file()
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), run)
    ids = torch.arange(5, 30)[None]
    ours = load_model(str(run)).eval()
    assert torch.equal(plain.eval()(input_ids=ids).logits, ours(input_ids=ids).logits)
    merge_adapter(str(run), tmp_path / "run-merged")
    assert_kept(tmp_path / "run-merged", base)
    for folder in (run, tmp_path / "run-merged"):
        if kind != "gemma3":  # which transformers counts as a model of text
            require_answer(folder, folder.name, capsys)
        backend = open_backend(str(folder))
        prompt = backend.tokenize(backend.render([{"role": "user", "content": "Hi"}]))
        assert len(list(backend.generate(prompt, Sampling(max_new_tokens=3)))) > 0


@pytest.mark.parametrize("merge_into", [pytest.param("16bit", marks=pytest.mark.slow), "dequantized"])
def test_towers_are_not_quantised(merge_into, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = save_multimodal(tmp_path / "base", "qwen3_vl")
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    model = load_model(str(base), dtype="bfloat16", quantization_config=settings)
    four_bit = {path for path, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    assert {path.rpartition("layers")[0] for path in four_bit} == {"model.language_model."}
    run = train_run(base, tmp_path / "run", lora={}, dtype="bfloat16", quantization_config=settings)
    merge_adapter(str(run), tmp_path / "merged", merge_into=merge_into)
    assert_kept(tmp_path / "merged", base)


def test_towers_in_float32_stay_so_under_an_adapter_on_bfloat16(tmp_path):
    base = save_multimodal(tmp_path / "base", "qwen3_vl", torch.float32)
    run = train_run(base, tmp_path / "run", lora={}, dtype="bfloat16")
    merge_adapter(str(run), tmp_path / "run-merged")
    assert_kept(tmp_path / "run-merged", base)
