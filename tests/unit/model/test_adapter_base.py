"""An adapter is loaded only on the base that it was trained on; without a record every base is accepted."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.errors import ModelError
from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.adapter_base import (
    RECORD_FILE,
    BaseRecord,
    fingerprint,
    read_base_record,
    record_base,
    require_same_base,
)
from oddsmith.model.loading.models import load_model
from tests.command import save_model
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
IDS = torch.arange(1, 20)[None]


@pytest.fixture
def base(tmp_path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path, base) -> Path:
    """An adapter that was saved with its record."""
    model = add_adapter(load_model(str(base)), LORA)
    model.save_pretrained(tmp_path / "adapter")
    record_base(model).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_record_says_files_type_and_quantisation(adapter, base):
    record = read_base_record(str(adapter))
    assert record == record_base(load_model(str(base)))
    assert record.files["model.safetensors"]["bytes"] == (base / "model.safetensors").stat().st_size
    assert len(record.files["model.safetensors"]["sha256"]) == 64
    assert (record.commit, record.quantization, record.dtype) == (None, None, "float32")
    assert str(base) not in (adapter / RECORD_FILE).read_text(encoding="utf-8")


def test_the_same_base_elsewhere_is_the_same(adapter, base, tmp_path):
    base.rename(tmp_path / "moved")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(tmp_path / "moved")
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    load_model(str(adapter))


def test_another_base_under_the_same_name_is_refused(adapter, base):
    tiny_model(seed=1).save_pretrained(base)
    with pytest.raises(ModelError) as error:
        load_model(str(adapter))
    assert str(error.value) == (
        f"{adapter}: its base {base} differs in model.safetensors from the one that it was trained on;"
        f" restore that base, or remove {RECORD_FILE} beside the adapter to use this one anyway"
    )
    (adapter / RECORD_FILE).unlink()
    load_model(str(adapter))


def test_a_missing_base_is_named(adapter, base):
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=f"{adapter}: is an adapter whose base model cannot be found: {base}: nothing"):
        load_model(str(adapter))


def test_a_damaged_record(adapter):
    (adapter / RECORD_FILE).write_text('{"files": ', encoding="utf-8")
    with pytest.raises(ModelError, match="base_model.json: is damaged .*; copy it again, or remove it"):
        load_model(str(adapter))


@pytest.mark.parametrize("place", [0, 8, 5_000, 300_000, 999_999])
def test_blocks_lie_all_over_a_file(tmp_path, place):
    content = bytearray(1_000_000)
    (tmp_path / "model.safetensors").write_bytes(content)
    before = fingerprint(str(_model_folder(tmp_path)))[0]
    stretch = slice(place, min(len(content), place + 12_000))
    content[stretch] = b"x" * (stretch.stop - stretch.start)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert fingerprint(str(tmp_path))[0] != before


def test_a_large_file_takes_no_longer(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((2**63).to_bytes(8, "little"))  # a header that claims to be longer than any file
        file.truncate(20 * 2**30)
    started = time.perf_counter()
    (found,) = fingerprint(str(_model_folder(tmp_path)))[0].values()
    assert found["bytes"] == 20 * 2**30
    assert time.perf_counter() - started < 2


def test_files_are_recognised_by_their_content_not_by_their_names(base):
    files, _ = fingerprint(str(base))
    require_same_base("a", BaseRecord({"weights.safetensors": files["model.safetensors"]}), str(base))
    with pytest.raises(ModelError, match="differs"):
        require_same_base("a", BaseRecord({**files, "more.safetensors": {"bytes": 1, "sha256": ""}}), str(base))


def test_a_gguf_file_has_one_too(tmp_path):
    files, commit = fingerprint(str(write_gguf(tmp_path / "tiny.gguf", tiny_model(), tiny_tokenizer())))
    assert (list(files), commit) == (["tiny.gguf"], None)


def test_a_hub_model_in_the_cache_is_known_with_its_commit(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--me--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    shutil.copytree(base, repository / "snapshots" / commit)
    assert fingerprint("me/model") == (fingerprint(str(base))[0], commit)
    assert fingerprint("me/other") == ({}, None)
    other = BaseRecord({"model.safetensors": {"bytes": 1, "sha256": "0"}}, commit="f" * 40)
    with pytest.raises(ModelError, match=rf"trained on commit {'f' * 40}, this is {commit}"):
        require_same_base("a", other, "me/model")


def test_a_model_made_on_the_spot_has_none(tmp_path):
    assert record_base(tiny_model()).files == {}
    require_same_base("a", BaseRecord(), str(tmp_path))


def test_a_run_records_its_base_in_every_folder_with_an_adapter(base, tmp_path):
    args = ORPOConfig(output_dir=str(tmp_path / "run"), max_steps=1, save_steps=1, bf16=False, use_cpu=True)
    trainer = ORPOTrainer(str(base), args=args, train_dataset=ragged_pairs(4), peft_config=LORA)
    trainer.train()
    trainer.save_model()
    expected = record_base(load_model(str(base)))
    for folder in ("run", "run/checkpoint-1"):
        assert read_base_record(str(tmp_path / folder)) == expected
    start = json.loads((tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert start["base"]["files"] == expected.files


def test_an_adapter_with_a_larger_vocabulary_gets_a_larger_base(base, tmp_path):
    model = load_model(str(base))
    model.resize_token_embeddings(300, mean_resizing=False)
    model = add_adapter(model, LORA).eval()
    with torch.no_grad():
        model.base_model.model.model.embed_tokens.weight[264:] = 0.5
        expected = model(IDS + 250).logits
    model.save_pretrained(tmp_path / "adapter")
    again = load_model(str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(again(IDS + 250).logits, expected)


def _model_folder(folder: Path) -> Path:
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder
