"""What a stranger's model or adapter folder asks for: refused in one line, before anything of that size is built."""

import json
import shutil
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from peft import FourierFTConfig, LoraConfig

from oddsmith.config import ModelConfig, ORPOConfig
from oddsmith.errors import ConfigError, ModelError
from oddsmith.export.gguf.trial import require_survivable
from oddsmith.model.adapter_bounds import require_bounded_adapter
from oddsmith.model.adapters import add_adapter
from oddsmith.model.loading.models import load_model, load_tokenizer
from oddsmith.model.loading.outline import outline_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

LONGEST_CPU_S = 5
TOO_LARGE = {
    "num_hidden_layers": 10**7, "num_labels": 10**9, "num_experts": 10**9, "hidden_size": 10**9, "vocab_size": 10**9,
    "num_attention_heads": 10**9, "intermediate_size": 10**8, "max_position_embeddings": 10**13, "head_dim": 10**7,
    "layer_types": ["full_attention"] * 270_000,
}  # fmt: skip
ODD = (None, [], {}, "x", -1, 0, 1.5, float("nan"), float("inf"), True, 2**63, [[1]], {"a": [None]})


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    model, tokenizer = tiny_model(hidden_size=8, intermediate_size=8, num_hidden_layers=1), tiny_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(place / "model")
    settings = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    add_adapter(load_model(str(place / "model")), settings).save_pretrained(place / "adapter")
    return place


def _load_both(name: str) -> None:
    load_tokenizer(name)
    load_model(name)


def changed(sound: Path, tmp_path: Path, kind: str, file: str, values: dict) -> str:
    folder = tmp_path / kind
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound / kind, folder)
    path = folder / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, **values}))
    return str(folder)


@pytest.mark.parametrize("key", ["num_parameters", "total_params", "max_position_embeddings", "rope_theta"])
def test_large_numbers_that_make_nothing_pass(key, sound, tmp_path):
    load_model(changed(sound, tmp_path, "model", "config.json", {key: 7_000_000_000}))


@pytest.mark.parametrize("key", TOO_LARGE)
def test_more_than_the_weights_can_hold(key, sound, tmp_path):
    name = changed(sound, tmp_path, "model", "config.json", {key: TOO_LARGE[key]})
    start = time.process_time()
    for load in (load_model, lambda name: outline_model(name, dtype="float32")):
        with pytest.raises(ModelError, match=r"(model: .*(says|ask))|entries") as caught:
            load(name)
        assert "\n" not in str(caught.value)
    assert time.process_time() - start < LONGEST_CPU_S


def test_two_sizes_whose_product_is_too_large(sound, tmp_path):
    name = changed(sound, tmp_path, "model", "config.json", {"hidden_size": 2**16, "vocab_size": 2**20})
    with pytest.raises(ModelError, match=r"ask for [\d,]+ parameters, but its weights have [\d,]+ bytes"):
        load_model(name)


def test_layers_and_experts_together(sound, tmp_path):
    values = {"model_type": "mixtral", "num_hidden_layers": 8, "num_local_experts": 2**16}
    with pytest.raises(ModelError, match="expected at most"):
        load_model(changed(sound, tmp_path, "model", "config.json", values))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_values_of_any_type(file, sound, tmp_path):
    """Each setting of each file in turn: it is loaded, or refused in one line."""
    settings = json.loads((sound / "model" / file).read_text())
    for number, key in enumerate(settings):
        name = changed(sound, tmp_path, "model", file, {key: ODD[number % len(ODD)]})
        for load in (load_tokenizer, load_model):
            with suppress(ModelError):
                load(name)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", '"a"'])
def test_a_file_that_is_no_mapping(file, content, sound, tmp_path):
    kind = "adapter" if file == "adapter_config.json" else "model"
    name = changed(sound, tmp_path, kind, file, {})
    (Path(name) / file).write_text(content)
    with pytest.raises(ModelError, match=r"cannot be loaded|is damaged|holds|cannot be read by PEFT|expected"):
        _load_both(name)


NESTED = "((a*)*)*b|" + "(.*.*)*" * 3 + "x"
ADAPTERS = {
    "r": {"r": 10**9},
    "rank_pattern": {"rank_pattern": {"q_proj": 10**9}},
    "iterations": {"init_lora_weights": "pissa_niter_1000000"},
    "layers": {"layers_to_transform": [10**12]},
    "a list": {"layers_to_transform": [0] * 200_000},
    "target_modules": {"target_modules": NESTED},
    "exclude_modules": {"exclude_modules": NESTED},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": [NESTED]},
    "keys of rank_pattern": {"rank_pattern": {NESTED: 4}},
    "no pattern": {"target_modules": "*(q_proj"},
}
SEARCHED = ("target_modules", "exclude_modules", "layers_pattern", "keys of rank_pattern")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_without_end(kind, sound, tmp_path, monkeypatch):
    if kind in SEARCHED:
        monkeypatch.setattr("oddsmith.model.adapter_bounds.SEARCH_SECONDS", 0.5)
    name = changed(sound, tmp_path, "adapter", "adapter_config.json", ADAPTERS[kind])
    with pytest.raises(ModelError, match=r"expected at most|takes more than|no regular expression"):
        load_model(name)


def test_a_pattern_of_the_user_without_end(sound, monkeypatch):
    monkeypatch.setattr("oddsmith.model.adapter_bounds.SEARCH_SECONDS", 0.5)
    with pytest.raises(ModelError, match="takes more than"):
        add_adapter(load_model(str(sound / "model")), LoraConfig(r=2, target_modules=NESTED))


@pytest.mark.parametrize("pattern", (r"^(?!.*patch_embed).*(?:self_attn|mlp).*(?:q|k|v|up|down)_proj$", "(?i).*Q_proj"))
def test_ordinary_patterns_pass(pattern, sound):
    add_adapter(load_model(str(sound / "model")), LoraConfig(r=2, target_modules=pattern))


def test_a_seed_may_be_large():
    require_bounded_adapter("the adapter", FourierFTConfig(random_loc_seed=1234567890))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dataloader_num_workers", 100_000),
        ("dataset_num_proc", 100_000),
        ("dataloader_prefetch_factor", 10**6),
        ("per_device_train_batch_size", 10**12),
        ("max_length", 10**15),
        ("save_total_limit", 10**30),
        ("seed", 2**32),
    ],
)
def test_counts_of_a_recipe(setting, value, tmp_path):
    with pytest.raises(ConfigError, match=rf"{setting} is [\d,]+; expected at most"):
        ORPOConfig(output_dir=str(tmp_path), **{setting: value})


@pytest.mark.parametrize("settings", [{"lora_r": 10**9}, {"init_lora_weights": "pissa_niter_1000000"}])
def test_counts_of_an_adapter_in_a_recipe(settings):
    with pytest.raises(ConfigError, match="expected at most"):
        ModelConfig(**settings)


def with_number(path: Path, key: bytes, number: int) -> Path:
    content = bytearray(path.read_bytes())
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = struct.pack("<I", number)
    path.write_bytes(content)
    return path


class TestGguf:
    @pytest.fixture
    def file(self, tmp_path) -> Path:
        return write_gguf(tmp_path / "tiny.gguf", tiny_model(vocab_size=258), tiny_tokenizer())

    @pytest.mark.parametrize("number", [0, 10**6])
    def test_a_count_of_layers_that_it_has_not(self, file, number):
        with_number(file, b"llama.block_count", number)
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=rf"block_count is {number:,}; expected 1 to"):
                load(str(file))

    def test_weights_of_other_shapes_are_no_random_numbers(self, file):
        with pytest.raises(ModelError, match="shapes that its configuration states"):
            load_model(str(with_number(file, b"llama.feed_forward_length", 48)))

    def test_one_that_ends_llama_cpp(self, file, monkeypatch):
        """llama.cpp aborts without layers; our own check of the header, which sees that before, is left out."""
        pytest.importorskip("cyllama")
        unchecked = "import oddsmith.export.gguf.llama_cpp as l, oddsmith.export.gguf.trial as t;"
        unchecked += "l.check_gguf = lambda path: None; t.main()"
        monkeypatch.setattr("oddsmith.export.gguf.trial.run_module", lambda _: [sys.executable, "-P", "-c", unchecked])
        require_survivable(file)
        with pytest.raises(ModelError, match="its process was ended by SIGABRT"):
            require_survivable(with_number(file, b"llama.block_count", 0))
