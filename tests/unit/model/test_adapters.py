"""Adapters: made from the settings, added to the right modules, or refused."""

import copy
import importlib.util

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from oddsmith.config import ModelConfig
from oddsmith.errors import MissingExtraError, ModelError
from oddsmith.model import adapters
from oddsmith.model.adapters import add_adapter, get_peft_config, get_quantization_config
from oddsmith.model.loading.models import load_model
from oddsmith.system.precision import Precision
from tests.tiny import tiny_model

IDS = torch.arange(1, 20)[None]
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted_modules(model) -> set[str]:
    """Return the last names of the modules that have an adapter."""
    return {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}


def train(model, steps: int = 3) -> torch.Tensor:
    """Take a few big steps, so that every trainable weight changes, and return the logits."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()(input_ids=IDS, labels=IDS).logits.detach()


def rounding_of_weights(model, ids: torch.Tensor, draws: int = 8) -> float:
    """How far float32 rounding moves the logits of a float64 model: each weight moved by up to half an epsilon.

    After the big steps above that is 8e-5 in this model with PiSSA and 5e-6 with DoRA, whatever the CPU. To compute in
    float32 rounds every product as well, so two ways to the same logits may lie a few times as far apart.
    """
    generator, logits, furthest = torch.Generator().manual_seed(0), model(ids).logits, 0.0
    for _ in range(draws):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for weight in moved.parameters():
                noise = torch.rand(weight.shape, generator=generator, dtype=weight.dtype) - 0.5
                weight *= 1 + noise * torch.finfo(torch.float32).eps
            furthest = max(furthest, (moved(ids).logits - logits).abs().max().item())
    return furthest


class TestSettings:
    def test_none_without_use_peft(self):
        assert get_peft_config(ModelConfig()) is None

    def test_all_linear_layers_by_default(self):
        config = get_peft_config(ModelConfig(use_peft=True))
        assert config.target_modules == "all-linear"
        assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
        assert config.task_type == TaskType.CAUSAL_LM
        assert config.init_lora_weights is True

    def test_products_are_computed_in_the_type_of_the_run(self, monkeypatch):
        chosen = ModelConfig(load_in_4bit=True, use_peft=True)
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert get_quantization_config(chosen, compute_dtype=dtype).bnb_4bit_compute_dtype is dtype
        monkeypatch.setattr(adapters, "best_precision", lambda: Precision("fp16", "a T4"))  # a script of one's own
        assert get_quantization_config(chosen).bnb_4bit_compute_dtype is torch.float16
        set_by_hand = ModelConfig(load_in_4bit=True, use_peft=True, dtype="bfloat16")
        assert (
            get_quantization_config(set_by_hand, compute_dtype=torch.float16).bnb_4bit_compute_dtype is torch.bfloat16
        )

    def test_every_flag_arrives(self):
        flags = {
            "lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.2, "lora_target_modules": ["q_proj", "v_proj"],
            "lora_target_parameters": ["mlp.experts.down_proj"], "lora_modules_to_save": ["lm_head"],
            "lora_task_type": "SEQ_2_SEQ_LM", "use_rslora": True, "use_dora": True,
            "init_lora_weights": "pissa_niter_4",
        }  # fmt: skip
        config = get_peft_config(ModelConfig(use_peft=True, **flags))
        assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.2)
        assert config.target_modules == {"q_proj", "v_proj"}
        assert config.target_parameters == ["mlp.experts.down_proj"]
        assert config.modules_to_save == ["lm_head"]
        assert config.task_type == "SEQ_2_SEQ_LM"
        assert config.use_rslora
        assert config.use_dora
        assert config.init_lora_weights == "pissa_niter_4"

    @pytest.mark.parametrize(
        ("flag", "expected"),
        [
            ("q_proj", {"q_proj"}),  # PEFT alone would take it for a pattern that no module path matches
            ("self_attn.q_proj", {"q_proj"}),
            (r".*\.(q|v)_proj", {"q_proj", "v_proj"}),
            ("all-linear", LINEAR),
        ],
    )
    def test_one_target(self, flag, expected):
        config = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=[flag]))
        assert adapted_modules(add_adapter(tiny_model(), config)) == expected


class TestQuantizationSettings:
    def test_none_unless_asked_for(self):
        assert get_quantization_config(ModelConfig()) is None

    def test_nf4_twice_in_bf16_by_default(self):
        config = get_quantization_config(ModelConfig(load_in_4bit=True, use_peft=True))
        assert config.load_in_4bit
        assert config.bnb_4bit_quant_type == "nf4"
        assert config.bnb_4bit_use_double_quant
        assert config.bnb_4bit_compute_dtype is torch.bfloat16

    def test_every_flag_arrives(self):
        flags = {"dtype": "float16", "use_bnb_nested_quant": False, "bnb_4bit_quant_storage": "bfloat16"}
        chosen = ModelConfig(load_in_4bit=True, use_peft=True, bnb_4bit_quant_type="fp4", **flags)
        config = get_quantization_config(chosen)
        assert config.bnb_4bit_quant_type == "fp4"
        assert not config.bnb_4bit_use_double_quant
        assert config.bnb_4bit_compute_dtype is torch.float16
        assert config.bnb_4bit_quant_storage is torch.bfloat16

    def test_8_bit(self):
        config = get_quantization_config(ModelConfig(load_in_8bit=True, use_peft=True))
        assert config.load_in_8bit
        assert not config.load_in_4bit

    @pytest.mark.parametrize("bits", [4, 8])
    def test_without_bitsandbytes(self, bits, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=rf'^{bits}-bit loading needs .* pip install "oddsmith\[4bit\]"$'):
            get_quantization_config(ModelConfig(**{f"load_in_{bits}bit": True}, use_peft=True))


class TestAddAdapter:
    def test_on_every_linear_layer_but_the_head(self):
        model = add_adapter(tiny_model(), get_peft_config(ModelConfig(use_peft=True)))
        assert isinstance(model, PeftModel)
        assert adapted_modules(model) == LINEAR
        assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)

    def test_starts_as_the_base(self):
        expected = tiny_model()(IDS).logits
        model = add_adapter(tiny_model(), LoraConfig(target_modules="all-linear")).eval()
        assert torch.equal(model(IDS).logits, expected)

    def test_adapter_in_float32_over_a_bf16_base(self):
        model = add_adapter(tiny_model(dtype=torch.bfloat16), LoraConfig(target_modules="all-linear"))
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}

    def test_leaves_the_settings_as_they_are(self):
        config = LoraConfig(target_modules="all-linear")
        before = config.to_dict()
        add_adapter(tiny_model(), config)
        assert config.to_dict() == before

    def test_task_follows_the_model(self):
        sizes = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        settings = T5Config(**sizes, decoder_start_token_id=0)
        model = add_adapter(T5ForConditionalGeneration(settings), get_peft_config(ModelConfig(use_peft=True)))
        assert model.peft_config["default"].task_type == TaskType.SEQ_2_SEQ_LM
        assert adapted_modules(model) == {"q", "k", "v", "o", "wi", "wo"}
        train(model, steps=1)

    def test_experts_by_parameter_name(self):
        settings = MixtralConfig(
            vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
        )  # fmt: skip
        chosen = ModelConfig(use_peft=True, lora_dropout=0.0, lora_target_parameters=["mlp.experts.down_proj"])
        config = get_peft_config(chosen)
        model = add_adapter(MixtralForCausalLM(settings), config)
        assert any("experts" in name for name, parameter in model.named_parameters() if parameter.requires_grad)

    def test_another_kind_of_adapter(self):
        config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
        assert isinstance(add_adapter(tiny_model(), config), PeftModel)

    @pytest.mark.parametrize(
        "flags",
        [{"use_dora": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "gaussian"}],
    )
    def test_each_kind_merges_to_what_was_trained(self, flags):
        torch.manual_seed(0)
        config = get_peft_config(ModelConfig(use_peft=True, lora_r=4, lora_dropout=0.0, **flags))
        model = add_adapter(tiny_model(), config)
        trained = train(model)
        exact = copy.deepcopy(model).double()
        exact_logits = exact(IDS).logits
        rounding = rounding_of_weights(exact, IDS)
        torch.testing.assert_close(exact.merge_and_unload()(IDS).logits, exact_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.merge_and_unload()(IDS).logits, trained, atol=8 * rounding, rtol=0)

    def test_rslora_scales_by_the_root_of_the_rank(self):
        config = get_peft_config(ModelConfig(use_peft=True, lora_r=16, lora_alpha=8, use_rslora=True))
        model = add_adapter(tiny_model(), config)
        assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 8 / 4


class TestRefused:
    def test_a_second_adapter(self):
        model = get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear"))
        with pytest.raises(ModelError, match="has an adapter already and peft_config asks for another; leave"):
            add_adapter(model, LoraConfig(target_modules="all-linear"))

    def test_settings_that_are_none(self):
        with pytest.raises(ModelError, match=r"peft_config is a dict; expected a peft config such as LoraConfig"):
            add_adapter(tiny_model(), {"r": 4})

    @pytest.mark.parametrize("targets", [["q_proj", "c_attn"], ["c_attn"], ".*c_attn"])
    def test_an_unknown_target_lists_the_candidates(self, targets):
        with pytest.raises(ModelError) as error:
            add_adapter(tiny_model(), LoraConfig(target_modules=targets))
        expected = "all-linear or some of: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
        assert "c_attn is not in this model (llama)" in str(error.value)
        assert str(error.value).endswith(expected)

    def test_candidates_of_a_model_with_another_kind_of_linear_layer(self):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
        with pytest.raises(ModelError, match="some of: c_attn, c_proj, c_fc$"):
            add_adapter(model, LoraConfig(target_modules=["q_proj"]))

    def test_an_unknown_module_to_save(self):
        with pytest.raises(ModelError, match="head_lm is not in this model"):
            add_adapter(tiny_model(), LoraConfig(target_modules="all-linear", modules_to_save=["head_lm"]))

    def test_a_module_of_the_wrong_kind(self):
        with pytest.raises(ModelError, match="does not fit the model: Target module LlamaMLP"):
            add_adapter(tiny_model(), LoraConfig(target_modules=["mlp"]))


class TestTiedHead:
    """The head is the input embedding: an adapter must neither untie the two silently nor change both when merged."""

    @pytest.fixture
    def folder(self, tmp_path):
        tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
        return tmp_path / "tied"

    def test_all_linear_leaves_it_alone(self, folder):
        model = add_adapter(load_model(str(folder)), LoraConfig(target_modules="all-linear"))
        assert adapted_modules(model) == LINEAR
        base = model.base_model.model
        assert base.lm_head.weight is base.model.embed_tokens.weight

    @pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"], ".*(q_proj|lm_head)"])
    def test_lora_on_it_is_refused(self, folder, targets):
        with pytest.raises(ModelError) as error:
            add_adapter(load_model(str(folder)), LoraConfig(target_modules=targets))
        assert "model.embed_tokens and lm_head are one weight in this model" in str(error.value)
        assert str(error.value).endswith("or train them in full with lora_modules_to_save=embed_tokens")

    def test_lora_on_a_head_of_its_own_is_fine(self):
        model = add_adapter(tiny_model(), LoraConfig(target_modules=["lm_head"]))
        assert adapted_modules(model) == {"lm_head"}

    @pytest.mark.parametrize("trained_in_full", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
    def test_trained_in_full_it_stays_tied(self, folder, tmp_path, trained_in_full):
        config = LoraConfig(r=4, target_modules="all-linear", modules_to_save=trained_in_full, task_type="CAUSAL_LM")
        model = add_adapter(load_model(str(folder)), config)
        trained = train(model)
        model.save_pretrained(tmp_path / "adapter")
        torch.testing.assert_close(load_model(str(tmp_path / "adapter"))(IDS).logits, trained)
        merged = model.merge_and_unload()
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(load_model(str(tmp_path / "merged"))(IDS).logits, trained, atol=1e-4, rtol=1e-4)

    def test_trained_in_full_where_peft_cannot_tie_it(self):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
        with pytest.raises(ModelError, match=r"transformer\.wte and lm_head are one weight in this model"):
            add_adapter(model, LoraConfig(target_modules=["c_attn"], modules_to_save=["lm_head"]))


def test_an_adapter_records_the_revision_of_its_base():
    model = tiny_model()
    model.revision = "v2"
    assert add_adapter(model, LoraConfig(target_modules="all-linear")).peft_config["default"].revision == "v2"
