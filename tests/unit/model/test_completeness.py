"""Weights that are missing, renamed or left over are an error that names them, wherever a model is loaded from."""

import json
from dataclasses import asdict
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.checkpoint.manifest import commit, read_manifest, retract
from oddsmith.errors import CheckpointError, ModelError
from oddsmith.model.loading.models import load_model
from tests.command import SETTINGS, save_model
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

NORM = "model.layers.1.input_layernorm.weight"


def change(folder, edit, file="model.safetensors"):
    """Rewrite the tensors of a folder."""
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file, {"format": "pt"})
    return str(folder)


def renamed(tensors, name):
    for key in list(tensors):
        tensors[name(key)] = tensors.pop(key)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model")


def refusal(place, **options) -> str:
    with pytest.raises(ModelError) as raised:
        load_model(place, **options)
    return str(raised.value).removeprefix(f"{place}: ")


def test_a_missing_tensor_is_named(folder):
    place = change(folder, lambda tensors: tensors.pop(NORM))
    wanted = f"1 of its tensors is missing ({NORM}) and would be random numbers; fetch or copy all of it again"
    assert refusal(place) == wanted


def test_of_many_missing_tensors_the_first_are_named(folder):
    def edit(tensors):
        for key in [key for key in tensors if "layers.1" in key]:
            del tensors[key]

    assert "(model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, " in (
        refusal(change(folder, edit))
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "policy."])
def test_names_with_a_prefix_are_recognised_as_such(folder, prefix):
    place = change(folder, partial(renamed, name=lambda key: prefix + key))
    message = refusal(place)
    assert f"such as {prefix}" in message
    assert "other names than the model's" in message


def test_tensors_that_are_left_over_are_named(folder):
    place = change(folder, lambda tensors: tensors.update({"model.layers.7.mlp.up_proj.weight": torch.ones(2, 2)}))
    assert refusal(place).startswith(
        "1 of its tensors has no place in the model (model.layers.7.mlp.up_proj.weight), so"
    )


def test_what_is_tied_or_computed_may_be_missing_or_left_over(tmp_path):
    folder = save_model(tmp_path / "model", model=tiny_model(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    place = change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load_model(place)


def test_an_untied_head_may_not_be_missing(folder):
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" in refusal(change(folder, lambda tensors: tensors.pop("lm_head.weight")))


def test_a_model_in_shards(tmp_path):
    folder = tmp_path / "model"
    save_model(folder)
    tiny_model().save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink()
    load_model(str(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    place = change(folder, lambda tensors: tensors.pop(NORM), index["weight_map"].pop(NORM))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert NORM in refusal(place)


def test_a_gguf_file(tmp_path):
    model = tiny_model(vocab_size=258, rms_norm_eps=1e-5)
    load_model(str(write_gguf(tmp_path / "whole.gguf", model, tiny_tokenizer())))
    del model.model.layers[1].input_layernorm.weight
    assert NORM in refusal(str(write_gguf(tmp_path / "cut.gguf", model, tiny_tokenizer())))


def test_a_checkpoint(folder, tmp_path):
    """With a manifest over what it holds, as if its writer had made it so."""
    rows = Dataset.from_list(ragged_pairs(4))
    args = ORPOConfig(str(tmp_path / "run"), **SETTINGS, max_steps=2, save_steps=1, report_to="none")
    ORPOTrainer(str(folder), args, train_dataset=rows).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    facts = asdict(read_manifest(checkpoint))
    change(checkpoint, lambda tensors: tensors.pop(NORM))
    retract(checkpoint)
    del facts["files"]
    commit(checkpoint, **facts)
    args.max_steps = 3
    with pytest.raises(CheckpointError, match="1 of its tensors is missing") as raised:
        ORPOTrainer(str(folder), args, train_dataset=rows).train(str(checkpoint), allow_changed=True)
    assert NORM in str(raised.value)


class TestAdapter:
    @pytest.fixture
    def adapter(self, folder, tmp_path):
        model = load_model(str(folder))
        config = LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
        )
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        load_model(str(tmp_path / "adapter"))
        return partial(change, tmp_path / "adapter", file="adapter_model.safetensors")

    @pytest.mark.parametrize(
        "part", ["layers.0.self_attn.q_proj.lora_A", "layers.1.self_attn.v_proj.lora_B", "lm_head"]
    )
    def test_a_missing_tensor_is_named(self, adapter, part):
        def edit(tensors):
            (key,) = [key for key in tensors if part in key]
            del tensors[key]

        message = refusal(adapter(edit))
        assert message.startswith("1 of its tensors is missing (")
        assert part in message

    def test_renamed_tensors(self, adapter):
        place = adapter(partial(renamed, name=lambda key: key.replace("self_attn", "attention")))
        assert "are missing" in refusal(place)

    def test_tensors_of_another_model(self, adapter):
        def edit(tensors):
            key = next(key for key in tensors if "layers.1" in key and "lora_A" in key)
            tensors[key.replace("layers.1", "layers.9")] = tensors[key].clone()

        assert "no place in the model" in refusal(adapter(edit))
