"""GGUF files: model and tokenizer are loaded as they were written."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from oddsmith.errors import ModelError
from oddsmith.model.loading.gguf import convert_gguf, nearest_decimal
from oddsmith.model.loading.models import load_model, load_tokenizer
from tests.tiny import CHATML, tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

IDS = torch.arange(1, 30)[None]
MERGES = [("Ċ", "Ċ"), ("1", "2"), ("12", "3"), ("Ġ", "1"), ("a", "b"), ("b", "c")]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges that a pre-tokenizer may or may not prevent, and a whole word that no merge makes."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES), "abc"]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=MERGES))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture
def model():
    return tiny_model(vocab_size=258, rms_norm_eps=1e-5)


@pytest.fixture
def file(model, tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer())


class TestModel:
    def test_is_the_one_that_was_written(self, model, file):
        loaded = load_model(str(file))
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        assert loaded.dtype is torch.float32
        assert loaded.config._name_or_path == str(file)

    def test_decimals_are_not_a_float32_s_idea_of_them(self, file):
        loaded = load_model(str(file))
        assert loaded.config.rms_norm_eps == 1e-5
        assert loaded.model.norm.variance_epsilon == 1e-5

    def test_has_not_the_file_s_title_for_a_name(self, file):
        assert "A title" not in str(load_model(str(file)).config.to_dict())

    def test_can_be_trained_and_saved(self, file, tmp_path):
        loaded = load_model(str(file)).train()
        loaded(IDS, labels=IDS).loss.backward()
        assert all(parameter.grad is not None for parameter in loaded.parameters())
        loaded.save_pretrained(tmp_path / "saved")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(saved(IDS).logits, loaded.eval()(IDS).logits)

    def test_cut_off(self, file, tmp_path):
        (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:-1000])
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=r"cut\.gguf: is cut off"):
                load(str(tmp_path / "cut.gguf"))

    def test_in_another_type(self, file):
        assert load_model(str(file), dtype=torch.bfloat16).dtype is torch.bfloat16

    def test_converted_into_a_folder(self, model, file, tmp_path):
        convert_gguf(file, tmp_path / "folder")
        assert torch.equal(load_model(str(tmp_path / "folder"))(IDS).logits, model(IDS).logits)
        assert (
            load_tokenizer(str(tmp_path / "folder"))("\n\n1.").input_ids
            == load_tokenizer(str(file))("\n\n1.").input_ids
        )
        for settings in (tmp_path / "folder").glob("*.json"):
            assert str(tmp_path) not in settings.read_text()
            assert "A title" not in settings.read_text()

    def test_nothing_is_printed(self, file, capfd):
        load_model(str(file))
        load_tokenizer(str(file))
        assert capfd.readouterr() == ("", "")

    def test_no_gguf_inside(self, tmp_path):
        (tmp_path / "fake.gguf").write_bytes(b"GIF89a" + b"\0" * 100)
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=r"fake\.gguf: is no GGUF file: it does not begin with the letters"):
                load(str(tmp_path / "fake.gguf"))


class TestTokenizer:
    @pytest.mark.parametrize(
        ("pre", "text", "tokens"),
        [
            # Cut before the digit, so the newlines merge; each digit alone.
            ("smollm", "\n\n1.", ["ĊĊ", "1", "."]),
            ("smollm", "123 12", ["1", "2", "3", "Ġ", "1", "2"]),
            ("starcoder", "12", ["1", "2"]),
            # GPT-2 leaves the last newline to what follows, and keeps numbers whole.
            ("gpt-2", "\n\n1.", ["Ċ", "Ċ", "1", "."]),
            ("gpt-2", "123 12", ["123", "Ġ", "12"]),
            # Llama 3 cuts after three digits, Qwen 2 after each; neither leaves a space to a number.
            ("llama-bpe", "\n\n1.", ["ĊĊ", "1", "."]),
            ("llama-bpe", "123123 12", ["123", "123", "Ġ", "12"]),
            ("qwen2", "123 12", ["1", "2", "3", "Ġ", "1", "2"]),
            # "abc" is a word of the vocabulary that no merge leads to: a+b comes first.
            ("llama-bpe", "abc", ["abc"]),
            ("qwen2", "abc", ["ab", "c"]),
        ],
    )
    def test_cuts_text_as_its_pre_tokenizer_does(self, pre, text, tokens, model, tmp_path):
        path = write_gguf(
            tmp_path / "m.gguf", model, merging_tokenizer(), pre=pre, merges=[" ".join(m) for m in MERGES],
            add_bos=False,
        )  # fmt: skip
        tokenizer = load_tokenizer(str(path))
        assert tokenizer.tokenize(text) == tokens
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        tokenizer.save_pretrained(tmp_path / "saved")
        assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize(text) == tokens

    def test_special_tokens_template_and_context_come_from_the_file(self, file):
        tokenizer = load_tokenizer(str(file))
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert tokenizer.pad_token == "<|im_end|>"  # none in the file
        assert tokenizer.chat_template == CHATML
        assert tokenizer.model_max_length == 2048
        assert tokenizer("a<|im_end|>").input_ids == [*tokenizer("a").input_ids, tokenizer.eos_token_id]
        assert tokenizer.decode(tokenizer("a<|im_end|>").input_ids, skip_special_tokens=True) == "a"

    @pytest.mark.parametrize(
        ("pre", "add_bos", "starts"), [("smollm", True, 1), ("smollm", False, 0), ("llama-bpe", None, 1)]
    )
    def test_begin_token(self, pre, add_bos, starts, model, tmp_path):
        flag = {} if add_bos is None else {"add_bos": add_bos}
        tokenizer = load_tokenizer(str(write_gguf(tmp_path / "m.gguf", model, tiny_tokenizer(), pre=pre, **flag)))
        assert tokenizer("a").input_ids.count(tokenizer.bos_token_id) == starts
        assert tokenizer("a", add_special_tokens=False).input_ids.count(tokenizer.bos_token_id) == 0

    def test_unknown_pre_tokenizer_is_left_to_transformers(self, model, tmp_path):
        merges = [" ".join(merge) for merge in MERGES]
        path = write_gguf(tmp_path / "m.gguf", model, merging_tokenizer(), pre="viking", merges=merges)
        tokenizer = load_tokenizer(str(path))
        assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 2048)


@pytest.mark.parametrize("value", [1e-5, 1e-6, 0.22, 1e6, 500000.0, 0.1, 1 / 3])
def test_nearest_decimal_undoes_float32(value):
    single = torch.tensor(value, dtype=torch.float32).item()
    assert nearest_decimal(single) == pytest.approx(value, rel=1e-7)
    if value != 1 / 3:
        assert nearest_decimal(single) == value


def test_nearest_decimal_leaves_what_is_no_float32():
    assert nearest_decimal(9.9999997e-06) == 9.9999997e-06
    assert nearest_decimal(0.02) == 0.02
