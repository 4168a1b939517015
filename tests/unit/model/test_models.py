"""Models and tokenizers by name: what is loaded, and the errors where nothing can be."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from oddsmith.errors import ModelError
from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.command import save_model
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(1, 30)[None]
SIZES = {
    "vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A model folder with a tokenizer."""
    return save_model(tmp_path / "model")


@pytest.fixture
def adapter(folder, tmp_path):
    """A trained adapter on that model."""
    trained_adapter(str(folder), tmp_path / "adapter")
    return tmp_path / "adapter"


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def trained_adapter(base: str, path, **settings):
    """Save an adapter with weights that change the model, and return its logits."""
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks the base up on the hub
        model.save_pretrained(path)
    return model(IDS).logits


class TestWhatComesBack:
    def test_a_folder_in_float32_whatever_it_is_stored_in(self, tmp_path):
        stored = tiny_model(dtype=torch.bfloat16)
        stored.save_pretrained(tmp_path)
        assert load_model(str(tmp_path)).dtype is torch.float32
        assert load_model(str(tmp_path), dtype="auto").dtype is torch.bfloat16
        assert torch.equal(load_model(str(tmp_path)).lm_head.weight, stored.lm_head.weight.float())

    def test_its_name_is_the_one_it_was_loaded_by(self, folder):
        model = load_model(str(folder))
        assert model.config._name_or_path == model.name_or_path == str(folder)

    def test_the_attention_that_was_asked_for(self, folder):
        assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == "eager"

    def test_keyword_arguments_of_from_pretrained(self, folder):
        assert load_model(str(folder), use_safetensors=True).num_parameters() > 0
        with pytest.raises(ModelError, match="use_safetensors and weights_only cannot be turned off"):
            load_model(str(folder), use_safetensors=False)

    def test_an_encoder_decoder_as_one(self, tmp_path):
        config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
        assert isinstance(load_model(str(tmp_path)), T5ForConditionalGeneration)

    def test_nothing_is_printed_and_progress_bars_come_back(self, folder, capfd):
        logging.enable_progress_bar()
        load_model(str(folder))
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled()

    def test_code_of_its_own_only_when_trusted(self, tmp_path):
        settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
        source = (
            "from transformers import LlamaConfig, LlamaForCausalLM\n"
            "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
            "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        )
        tiny_model().save_pretrained(tmp_path)
        change_json(tmp_path / "config.json", **settings, architectures=["Own"])
        (tmp_path / "own.py").write_text(source)
        with pytest.raises(ModelError, match="its own Python code; read that code, then give --trust-remote-code"):
            load_model(str(tmp_path))
        assert type(load_model(str(tmp_path), trust_remote_code=True)).__name__ == "Own"


class TestTokenizer:
    def test_pads_on_the_right_with_its_end_token_if_it_has_no_other(self, folder):
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.padding_side == "right"

    def test_keeps_a_pad_token_of_its_own(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        tiny_tokenizer(pad="<pad>").save_pretrained(tmp_path)
        assert load_tokenizer(str(tmp_path)).pad_token == "<pad>"

    def test_none_in_the_folder(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"holds no tokenizer \(tokenizer_config.json or tokenizer.json\); save"):
            load_tokenizer(str(tmp_path))


class TestAdapterFolder:
    def test_its_base_with_the_adapter_on_top(self, folder, tmp_path):
        expected = trained_adapter(str(folder), tmp_path / "adapter")
        model = load_model(str(tmp_path / "adapter"))
        assert isinstance(model, PeftModel)
        assert torch.equal(model(IDS).logits, expected)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not torch.allclose(load_model(str(folder))(IDS).logits, expected, atol=0.1)

    def test_can_be_trained_further(self, adapter):
        model = load_model(str(adapter), is_trainable=True)
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trainable
        assert all("lora_" in name for name in trainable)

    def test_options_reach_the_base(self, adapter):
        model = load_model(str(adapter), dtype=torch.bfloat16, attn_implementation="eager")
        assert model.base_model.model.lm_head.weight.dtype is torch.bfloat16
        assert model.config._attn_implementation == "eager"

    def test_tokenizer_of_the_base_unless_it_has_its_own(self, adapter):
        assert load_tokenizer(str(adapter)).chat_template == tiny_tokenizer().chat_template
        tiny_tokenizer(chat_template="its own").save_pretrained(adapter)
        assert load_tokenizer(str(adapter)).chat_template == "its own"

    def test_base_that_is_gone(self, folder, adapter):
        folder.rename(folder.with_name("models"))
        message = r"adapter: is an adapter whose base model cannot be found: .*did you mean"
        with pytest.raises(ModelError, match=message):
            load_model(str(adapter))
        with pytest.raises(ModelError, match="whose base model cannot be found"):
            load_tokenizer(str(adapter))

    def test_base_that_was_never_named(self, adapter):
        change_json(adapter / "adapter_config.json", base_model_name_or_path=None)
        with pytest.raises(ModelError, match="names no base model; add base_model_name_or_path"):
            load_model(str(adapter))

    @pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
    def test_starts_that_change_the_base_find_the_same_base_again(self, folder, tmp_path, start):
        settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=start)
        model = add_adapter(load_model(str(folder)), settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter += 0.1
        expected = model.eval()(IDS).logits
        model.save_pretrained(tmp_path / "adapter")
        torch.manual_seed(7)
        torch.testing.assert_close(load_model(str(tmp_path / "adapter"))(IDS).logits, expected, atol=1e-4, rtol=1e-4)


class TestWhatIsSaid:
    def test_nothing_at_that_path(self, folder):
        message = rf"{folder}l: nothing there \(did you mean {folder}\?\); expected a model"
        with pytest.raises(ModelError, match=message):
            load_model(f"{folder}l")

    @pytest.mark.parametrize("name", ["./nowhere", "~/nowhere/at/all", "a/b/c", "nowhere/model.gguf"])
    def test_no_possible_place(self, name):
        with pytest.raises(ModelError, match="nothing there; expected a model folder, a .gguf file or a hub id"):
            load_tokenizer(name)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (" ", "the model's name is empty; expected a model folder"),
            ("bad name!", "neither a folder here nor a possible name on the hub"),
        ],
    )
    def test_no_possible_name(self, name, message):
        with pytest.raises(ModelError, match=message):
            load_model(name)

    def test_a_file_that_is_no_gguf(self, folder):
        with pytest.raises(ModelError, match=r"config\.json: is a file but no GGUF"):
            load_model(str(folder / "config.json"))

    def test_a_folder_without_a_model(self, tmp_path):
        message = r"no model \(config.json\) and no adapter \(adapter_config.json\); expected"
        with pytest.raises(ModelError, match=message):
            load_model(str(tmp_path))

    def test_a_folder_above_the_model(self, folder, tmp_path):
        with pytest.raises(ModelError, match=rf"holds no model .* did you mean {folder}\?"):
            load_model(str(tmp_path))

    def test_a_folder_around_a_gguf_file(self, tmp_path):
        (tmp_path / "model.gguf").touch()
        with pytest.raises(ModelError, match=rf"did you mean {tmp_path / 'model.gguf'}\?"):
            load_model(str(tmp_path))

    def test_an_encoder(self, tmp_path):
        BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"is an encoder \(bert\); ORPO needs a model that generates text"):
            load_model(str(tmp_path))

    def test_a_bert_that_was_made_a_decoder_passes(self, tmp_path):
        BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).save_pretrained(tmp_path)
        assert isinstance(load_model(str(tmp_path)), BertLMHeadModel)

    def test_a_classifier(self, tmp_path):
        LlamaForSequenceClassification(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"is a classifier \(LlamaForSequenceClassification\); ORPO needs"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("vit", "no text generation for its model type 'vit'; ORPO needs"),
            ("perpetuum", "cannot be loaded: .*perpetuum"),
        ],
    )
    def test_a_model_type_of_pictures_or_an_unknown_one(self, tmp_path, kind, message):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError, match=message):
            load_model(str(tmp_path))

    def test_damaged_weights(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="its weights are damaged"):
            load_model(str(folder))

    def test_missing_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelError, match="holds no model.safetensors; fetch or copy the whole model"):
            load_model(str(folder))

    def test_weights_of_another_shape(self, folder):
        change_json(folder / "config.json", vocab_size=300)
        with pytest.raises(ModelError, match="do not have the shapes that its configuration states"):
            load_model(str(folder))

    def test_attention_that_is_not_installed(self, folder):
        with pytest.raises(ModelError, match="cannot be loaded: .*nonsense"):
            load_model(str(folder), attn_implementation="nonsense")

    @pytest.mark.parametrize("load", [load_model, load_tokenizer])
    def test_the_hub_out_of_reach(self, load):
        message = r"^owner/no-such-model: is no folder here, and the hub cannot be reached"
        with pytest.raises(ModelError, match=message) as e:
            load("owner/no-such-model")
        assert "\n" not in str(e.value)
