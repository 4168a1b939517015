"""Which models are converted to GGUF; what llama.cpp would get wrong is refused, with the way out."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from oddsmith.errors import ExportError, ModelError
from oddsmith.export.gguf import convert, vocabulary
from oddsmith.export.gguf.convert import plan_conversion, safe_title, write_gguf
from oddsmith.export.gguf.families import FAMILIES as KNOWN
from oddsmith.export.gguf.families import family_of
from oddsmith.export.gguf.llama_cpp import GgufModel
from oddsmith.export.gguf.parts import interleave_heads, text_name
from oddsmith.export.gguf.settings import text_settings
from oddsmith.export.gguf.vocabulary import SPACE
from tests.llama_cpp_oracle import read_fields, read_tensors
from tests.tiny import CHATML
from tests.tiny_families import FAMILIES, LLAMA3_ROPE, YARN_ROPE, byte_tokenizer, class_of, save_family


@pytest.fixture
def folder(tmp_path):
    return save_family(tmp_path / "llama", "llama")


def plan(folder):
    return plan_conversion(folder, title="tiny", source="tiny")


def settings_of(family):
    config = FAMILIES[family][0]
    return {**text_settings(config), "architectures": [class_of(config).__name__]}


def test_every_family_has_a_tiny_model_here():
    assert {class_of(config).__name__ for config, _ in FAMILIES.values()} == set(KNOWN)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is none of the families.*Llama, Mistral"),
        ("llama", {"architectures": None}, "no architecture is none of the families"),
        ("llama", {"hidden_act": "gelu"}, "computes with silu, this model with gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2}}, "rope type is 'dyn"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "weights are quantised"),
        ("qwen2", {"rope_parameters": LLAMA3_ROPE}, "rope type is 'llama3'; default, linear, yarn can be"),
        ("phi3", {"rope_parameters": YARN_ROPE}, "rope type is 'yarn'"),
        ("phi3-long", {"hidden_size": 128}, "expects 16 factors"),
        ("gemma2", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar is 16 there, 20 here"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "every second layer"),
        ("gemma2", {"attn_logit_softcapping": None}, "always caps attention scores and logits"),
        ("gemma2", {"rope_parameters": {"rope_theta": 5e4}}, "rope_theta is always 10000"),
        ("gemma2", {"hidden_activation": "silu"}, "gelu_pytorch_tanh"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "every sixth layer"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "does not cap"),
        ("gemma3", {"use_bidirectional_attention": True}, "backwards only"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "every fourth layer"),
        ("mistral3-images", {"model_type": "mistral4"}, "text part is Mistral or Ministral 3, here it is mistral4"),
        ("ministral3", {"rope_parameters": YARN_ROPE}, "needs a rope of type yarn with mscale_all_dim"),
        ("granite", {"hidden_act": "gelu"}, "computes with silu"),
        ("olmo3", {"layer_types": ["full_attention"] * 4}, "every fourth layer sees everything"),
        ("qwen2-experts", {"norm_topk_prob": True}, "are not scaled to add up to 1"),
        ("qwen3-experts", {"norm_topk_prob": False}, "always add up to 1"),
        ("qwen3-experts", {"mlp_only_layers": [0]}, "every layer has experts"),
        ("qwen3.5", {"layer_types": ["full_attention"] * 2}, "every second layer has full attention"),
        ("qwen3.5", {"linear_value_head_dim": 16}, "equally wide"),
        ("gpt-oss", {"layer_types": ["full_attention"] * 2}, "every second layer"),
        ("cohere", {"use_qk_norm": True}, "no norms"),
        ("cohere2", {"layer_types": ["sliding_attention"] * 4}, "every fourth layer"),
        ("stablelm", {"qk_layernorm": True}, "no norms"),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(family, changes, message):
    settings = settings_of(family)
    family_of(settings, "tiny")
    with pytest.raises(ModelError, match=message) as refusal:
        family_of({**settings, **changes}, "tiny")
    if "quantised" not in message:
        assert "--converter" in str(refusal.value)


def test_rows_of_a_head_become_pairs():
    rows = torch.tensor([0, 1, 10, 11, 100, 101, 110, 111])[:, None]
    assert interleave_heads(rows, 2)[:, 0].tolist() == [0, 10, 1, 11, 100, 110, 101, 111]


def test_a_tensor_that_llama_cpp_has_no_name_for(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.self_attn.gate.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no name for its tensor model\.layers\.0\.self_attn\.gate"):
        plan(folder)


def test_weights_that_are_no_floats_or_damaged_or_missing(folder):
    weights = load_file(folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    save_file({**weights, "lm_head.weight": torch.ones(384, 64, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="lm_head.weight is I8"):
        plan(folder)
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        plan(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no \.safetensors"):
        plan(folder)


def test_shards_and_a_head_that_is_tied_but_stored(folder, tmp_path):
    write_gguf(plan(folder), tmp_path / "whole.gguf", "bf16")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((list(weights)[:10], list(weights)[10:])):
        save_file({name: weights[name] for name in part}, folder / f"model-{number}.safetensors")
    write_gguf(plan(folder), tmp_path / "shards.gguf", "bf16")
    whole, shards = read_tensors(tmp_path / "whole.gguf"), read_tensors(tmp_path / "shards.gguf")
    assert whole.keys() == shards.keys()
    assert all((whole[name][1] == shards[name][1]).all() for name in whole)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    assert "output.weight" not in [tensor.name for tensor in plan(folder).tensors]


def test_numbers_that_float16_cannot_hold(tmp_path):
    folder = save_family(tmp_path / "large", "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 70_000
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExportError, match="up_proj.weight: holds 70,144, and float16 ends at 65,504; export bf16"):
        write_gguf(plan(folder), tmp_path / "f16.gguf", "f16")
    write_gguf(plan(folder), tmp_path / "bf16.gguf", "bf16")


def test_there_is_one_tensor_in_memory_at_a_time(folder, tmp_path, monkeypatch):
    seen = []
    encode = convert._encode

    def watch(tensor, values, kind):
        assert all(reference() is None for reference in seen[:-1])
        seen.append(weakref.ref(values))
        return encode(tensor, values, kind)

    monkeypatch.setattr(convert, "_encode", watch)
    write_gguf(plan(folder), tmp_path / "a.gguf", "f16")
    assert len(seen) > 20


class TestTokenizers:
    def test_of_which_llama_cpp_does_not_know_the_pattern(self, folder):
        tokenizer = byte_tokenizer()
        tokenizer.backend_tokenizer.pre_tokenizer = byte_tokenizer("gpt-2").backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.model.ignore_merges = True
        tokenizer.save_pretrained(folder)
        message = r"no name for how its tokenizer cuts text \(fingerprint \w{16}.*--converter"
        with pytest.raises(ModelError, match=message):
            plan(folder)

    @pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
    def test_of_known_patterns_are_recognised_without_their_fingerprint(self, folder, pre):
        byte_tokenizer(pre).save_pretrained(folder)
        assert plan(folder).vocabulary.pre == pre

    def test_are_recognised_by_their_fingerprint_first(self, folder, monkeypatch):
        found = vocabulary.fingerprint(byte_tokenizer())
        monkeypatch.setattr(vocabulary, "known_fingerprints", lambda: {found: "tekken"})
        assert plan(folder).vocabulary.pre == "tekken"

    def test_with_more_tokens_than_the_embedding_has_rows(self, folder):
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([f"[{i}]" for i in range(200)])
        tokenizer.save_pretrained(folder)
        with pytest.raises(ModelError, match="has a token 499, its embedding only 384 rows"):
            plan(folder)

    def test_end_with_the_token_of_the_chat_template(self, folder, tmp_path):
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
        tokenizer.save_pretrained(folder)
        write_gguf(plan(folder), tmp_path / "chat.gguf", "bf16")
        fields = read_fields(tmp_path / "chat.gguf")
        assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
        assert fields["tokenizer.chat_template"] == CHATML
        with GgufModel(tmp_path / "chat.gguf", threads=1) as model:
            assert tokenizer.convert_tokens_to_ids("<|endoftext|>") in model.end_ids

    def test_without_a_tokenizer_model_are_rebuilt_from_their_merges(self, tmp_path):
        """The scores that transformers 5 no longer saves: llama.cpp cuts text as the tokenizer does all the same."""
        folder = save_family(tmp_path / "gemma", "gemma2")
        (folder / "tokenizer.model").unlink()
        write_gguf(plan(folder), tmp_path / "gemma.gguf", "bf16")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with GgufModel(tmp_path / "gemma.gguf", threads=1) as model:
            for text in ("the cat sat on 1969 mats, far away from all hills", "Grüße 🎉  [NOTE] then it ran", "x"):
                assert model.tokenize(text, begin=True) == tokenizer(text).input_ids

    def test_that_put_a_space_in_front_of_every_text(self, tmp_path):
        """llama.cpp puts one behind every added token, too; a tokenizer not where a space follows an ordinary one."""
        folder = save_family(tmp_path / "mistral", "mistral")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        spaces = [normalizers.Replace(" ", SPACE), normalizers.Replace(Regex(rf"\A{SPACE}"), 2 * SPACE)]
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(spaces)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.save_pretrained(folder)
        assert plan(folder).vocabulary.adds_space
        write_gguf(plan(folder), tmp_path / "mistral.gguf", "bf16")
        space = tokenizer.convert_tokens_to_ids(SPACE)
        with GgufModel(tmp_path / "mistral.gguf", threads=1) as model:

            def both(text):
                return model.tokenize(text), tokenizer(text, add_special_tokens=False).input_ids

            for text in ("the cat", " the cat", "<|im_start|>user\nit<|im_end|>\n", "<|im_end|> it", "a[NOTE]on it"):
                theirs, ours = both(text)
                assert theirs == ours, text
            theirs, ours = both("[NOTE] on it")
            assert theirs == [ours[0], space, *ours[1:]]

    def test_that_swallow_spaces_behind_special_tokens(self, tmp_path):
        folder = save_family(tmp_path / "phi", "phi3")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokens = [AddedToken("<|user|>", rstrip=True, special=True), AddedToken("<|endoftext|>", special=True)]
        tokenizer.add_tokens(tokens, special_tokens=True)
        tokenizer.save_pretrained(folder)
        write_gguf(plan(folder), tmp_path / "phi.gguf", "bf16")
        with GgufModel(tmp_path / "phi.gguf", threads=1) as model:
            text = "<|user|>\nthe cat"
            assert model.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids
            assert model.metadata["general.name"] == "tiny (Phi-3)"

    def test_of_other_models_with_phi_3_in_their_name(self, folder, tmp_path):
        """llama.cpp goes by the name, and cannot open a file without the tokens that it expects of Phi-3."""
        assert safe_title("my-Phi3-run", byte_tokenizer()) == "my-phi_3-run"
        write_gguf(plan_conversion(folder, title="my-Phi3-run", source="tiny"), tmp_path / "a.gguf", "bf16")
        with GgufModel(tmp_path / "a.gguf", threads=1) as model:
            assert model.metadata["general.name"] == "my-phi_3-run"


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    folder = save_family(tmp_path / "qwen", "qwen3.5")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    assert {tensor.source for tensor in plan(folder).tensors} <= set(weights)


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("language_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.layers.0.attention.q_proj.weight", None),
        ("model.visual.blocks.0.norm1.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
    ],
)
def test_the_text_part_of_a_vision_language_model(stored, name):
    assert text_name(stored) == name


def test_nothing_of_this_machine_is_in_the_file(folder, tmp_path):
    shutil.move(folder, tmp_path / "secret-place")
    write_gguf(plan_conversion(tmp_path / "secret-place", title="tiny", source="tiny"), tmp_path / "a.gguf", "bf16")
    content = (tmp_path / "a.gguf").read_bytes()
    assert b"secret-place" not in content
    assert str(tmp_path).encode() not in content
