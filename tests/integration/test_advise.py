"""``oddsmith advise``: a recipe from a configuration, a tokenizer and pairs, and that ``oddsmith train`` takes it."""

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from transformers import (
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    Qwen3MoeConfig,
    T5Config,
)

from oddsmith.data.builtin import demo_pairs
from oddsmith.data.too_long import SUGGESTED
from oddsmith.planning.cards import FREE
from oddsmith.usual import RULES, rule_for, table
from tests.command import Outcome, run_here, save_model, save_rows
from tests.tiny import ragged_pairs

ROOT = Path(__file__).parents[2]
CPU = ("--use-cpu", "--no-bf16")  # the same on every machine


def tiny_experts() -> MixtralForCausalLM:
    """Return a tiny model with four experts a layer."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MixtralForCausalLM(MixtralConfig(vocab_size=264, num_key_value_heads=2, num_local_experts=4, **shape))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with pairs, and a model without its weights."""
    folder = tmp_path_factory.mktemp("advise")
    save_model(folder / "model")
    (folder / "model" / "model.safetensors").rename(folder / "weights")
    save_rows(folder / "pairs.jsonl", ragged_pairs(80))
    save_rows(folder / "few.jsonl", ragged_pairs(20))
    return folder


@pytest.fixture
def advise(workshop, tmp_path, capsys, monkeypatch):
    """Run ``oddsmith advise`` on the model and the pairs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, data: object = workshop / "pairs.jsonl") -> Outcome:
        return run_here(capsys, "advise", workshop / "model", data, *words)

    return run


def test_it_writes_a_recipe_with_a_reason_for_each_setting(advise, tmp_path):
    done = advise("--gpu", "24GB")
    assert done.code == 0, done.err
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    settings = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    unexplained = [lines[number] for number in settings if not lines[number - 1].startswith("#")]
    assert unexplained[1:] == [
        next(line for line in lines if line.startswith("dataset_name"))
    ]  # the two that are given
    recipe = yaml.safe_load(text)
    assert recipe["beta"] == rule_for("beta", parameters=1e6).value
    assert recipe["max_length"] in SUGGESTED
    assert (recipe["use_peft"], recipe["per_device_train_batch_size"], recipe["test_split_size"]) == (True, 8, 16)
    assert "# Source: the authors (github.com/xfactlab/orpo/issues/5)" in text
    assert "recipe.yaml is written. Next: oddsmith train recipe.yaml" in done.out
    for way in ("  all weights ", "> LoRA ", "  LoRA, 4 bits "):
        assert any(line.startswith(way) and line.endswith("fits") for line in done.out.splitlines()), way
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("pairs", "steps"),
    [("few.jsonl", 3 * 3), pytest.param("pairs.jsonl", 3 * 8, marks=pytest.mark.slow)],  # 20, and 64 beside 16 held out
)
def test_the_recipe_trains_as_it_is(advise, workshop, capsys, pairs, steps):
    assert advise(*CPU, data=workshop / pairs).code == 0
    (workshop / "weights").rename(workshop / "model" / "model.safetensors")
    try:
        done = run_here(capsys, "train", "recipe.yaml", "--json")
    finally:
        (workshop / "model" / "model.safetensors").rename(workshop / "weights")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == steps


@pytest.mark.slow
def test_a_recipe_for_the_builtin_model_trains_as_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_rows(tmp_path / "mine.jsonl", demo_pairs("train")[:8])
    assert (
        run_here(capsys, "advise", "builtin:smollm2-135m-instruct", "mine.jsonl", "--num-train-epochs", "1").code == 0
    )
    done = run_here(capsys, "train", "recipe.yaml", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 1


def test_a_file_that_is_there_is_never_replaced(advise, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine", encoding="utf-8")
    done = advise()
    assert (done.code, done.err) == (
        2,
        "error: recipe.yaml: is there already; give another name with --output NAME.yaml\n",
    )
    (tmp_path / "link.yaml").symlink_to(tmp_path / "nowhere")
    assert advise("--output", "link.yaml").code == 2
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_gpus_may_be_counted_beside_their_name(advise):
    document = json.loads(advise("--gpu", "h100", "x8", "--json").out)
    assert (document["machine"]["name"], document["machine"]["gpus"]) == ("H100", 8)
    settings = {one["setting"]: one["value"] for one in document["settings"]}
    assert settings["per_device_train_batch_size"] == 1  # 8 pairs a step, on 8 GPUs
    assert document["next"] == "oddsmith train recipe.yaml --num-processes 8"
    assert document["ways"]["full"]["sharing"] == "DDP"
    assert document["time_s"]["from"] > 0


def test_what_is_given_stays_and_is_not_advised(advise, tmp_path):
    document = json.loads(advise("--gpu", "24GB", "--beta", "0.3", "--max-length", "48", "--no-use-peft", "--json").out)
    advised = {one["setting"] for one in document["settings"]}
    assert not advised & {"beta", "max_length", "use_peft", "lora_r"}
    tokens = document["tokens"]
    assert (document["training"], tokens["max_length"]) == ("full", 48)
    assert tokens["quantiles"]["1.0"] > 48  # of whole pairs
    assert tokens["cut_share"] > 0.5
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["beta"], recipe["max_length"], recipe["use_peft"]) == (0.3, 48, False)
    assert recipe["learning_rate"] == rule_for("learning_rate", parameters=1e6).value


def test_a_recipe_may_be_all_that_is_given(advise, tmp_path):
    assert advise("--gpu", "24GB", "--gradient-accumulation-steps", 4).code == 0
    first = tmp_path / "recipe.yaml"
    recipe = yaml.safe_load(first.read_text(encoding="utf-8"))
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 8
    again = advise("--gpu", "24GB", "--config", first, "--output", "again.yaml")
    assert again.code == 0, again.err
    assert yaml.safe_load((tmp_path / "again.yaml").read_text(encoding="utf-8")) == recipe


def test_a_mixture_of_experts_is_advised_an_adapter(workshop, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "experts", model=tiny_experts())
    done = run_here(capsys, "advise", "experts", workshop / "few.jsonl", "--gpu", "24GB")
    assert done.code == 0, done.err
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["use_peft"], recipe["lora_dropout"]) == (True, 0.0)  # PEFT gives experts none with dropout


# Shapes of large models, of which nothing but the configuration is there.
LARGE: dict[str, PreTrainedConfig] = {
    "Mixtral 8x7B": MixtralConfig(),
    "Qwen3 235B": Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
        num_experts=128, moe_intermediate_size=1536,
    ),
    "DeepSeek V3": DeepseekV3Config(),
    "Llama 405B": LlamaConfig(
        vocab_size=128_256, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8,
    ),
    "Gemma 3 27B": Gemma3TextConfig(
        hidden_size=5376, intermediate_size=21_504, num_hidden_layers=62, num_attention_heads=32,
        num_key_value_heads=16, head_dim=128,
    ),
    "T5 11B": T5Config(
        d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    ),
}  # fmt: skip
CLASSES = {
    "mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM",
    "llama": "LlamaForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "t5": "T5ForConditionalGeneration",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_model_takes_less_than_half_a_minute(workshop, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workshop / "model", tmp_path / "large")
    config = LARGE[name]
    config.architectures = [CLASSES[config.model_type]]
    config.save_pretrained(tmp_path / "large")
    started_s = time.process_time()
    done = run_here(capsys, "advise", "large", workshop / "few.jsonl", "--gpu", "h100", "x8", "--json")
    assert time.process_time() - started_s < 60  # 5 to 18 s on a core of its own, twice that on one that others use
    assert done.code in (0, 3), done.err
    assert json.loads(done.out)["ways"]["lora"]["bytes"]["activations"] > 0


@pytest.mark.slow
def test_padded_batches_that_do_not_fit_have_fewer_pairs_at_once(workshop, tmp_path, capsys, monkeypatch):
    """8 pairs a step stay, also with fewer in each micro-batch; a given number is kept."""
    monkeypatch.chdir(tmp_path)
    wide = save_model(tmp_path / "wide", num_hidden_layers=2)
    config = json.loads((wide / "config.json").read_text(encoding="utf-8"))
    (wide / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**18}), encoding="utf-8")
    (wide / "model.safetensors").unlink()

    def advise(*words: object) -> dict:
        flags = ("--no-prefix-forest", "--use-peft", "--no-bf16", "--json", *words)
        done = run_here(capsys, "advise", wide, workshop / "pairs.jsonl", *flags)
        assert done.code == 0, done.err
        return json.loads(done.out)["ways"]["lora"]

    roomy = advise("--gpu", "80GB", "--output", "roomy.yaml")["bytes"]
    memory = f"{(roomy['sum'] - roomy['activations'] / 4) / FREE / 1e9:.3f}GB"
    way = advise("--gpu", memory)
    assert way["pairs_per_microbatch"] < 8
    assert (way["fits"], way["gradient_checkpointing"]) == (True, False)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["per_device_train_batch_size"] == recipe["per_device_eval_batch_size"] == way["pairs_per_microbatch"]
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] == 8
    way = advise("--gpu", memory, "--per-device-train-batch-size", 8, "--output", "kept.yaml")
    assert (way["pairs_per_microbatch"], way["gradient_checkpointing"]) == (8, True)


def test_a_test_split_of_the_data_set_is_used(advise, workshop, tmp_path):
    for name, count in (("train", 80), ("test", 30)):
        (tmp_path / "data").mkdir(exist_ok=True)
        save_rows(tmp_path / "data" / f"{name}.jsonl", ragged_pairs(count, seed=len(name)))
    done = advise("--gpu", "24GB", data=tmp_path / "data")
    assert done.code == 0, done.err
    assert "the data set's own 30 pairs to evaluate on" in " ".join(done.out.split())
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert (recipe["dataset_test_split"], recipe["eval_strategy"]) == ("test", "steps")
    assert "test_split_size" not in recipe
    asked = advise("--gpu", "24GB", "--test-split-size", 16, "--output", "asked.yaml", data=tmp_path / "data")
    assert asked.code == 0, asked.err
    assert "dataset_test_split" not in yaml.safe_load((tmp_path / "asked.yaml").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_where_nothing_fits_no_recipe_is_written(workshop, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    large = save_model(tmp_path / "large", num_hidden_layers=2)
    config = json.loads((large / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 2048, "intermediate_size": 2**17}
    (large / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (large / "model.safetensors").unlink()
    done = run_here(capsys, "advise", large, workshop / "few.jsonl", "--gpu", "1GB")
    assert (done.code, (tmp_path / "recipe.yaml").exists()) == (3, False), done.err
    assert "does not fit" in done.out
    assert "Nothing fits." in done.out


def test_what_is_quoted_of_faulty_rows_and_names_does_no_harm(advise, tmp_path):
    """Invalid rows are left out, pairs that are there twice counted; a name stays in its comment, off the terminal."""
    rows = [*ragged_pairs(20), {"prompt": "Why?", "chosen": " Because."}, *ragged_pairs(3)]
    name = save_rows(tmp_path / "a\nbeta: 9\n\x1b[2J.jsonl", rows)
    done = advise(*CPU, "--output", "out.yaml", data=name)
    assert done.code == 0, done.err
    assert "repeated pairs: 3" in done.out
    assert "24 rows" in done.out
    assert "\x1b" not in done.out
    recipe = yaml.safe_load((tmp_path / "out.yaml").read_text(encoding="utf-8"))
    assert (recipe["dataset_name"], recipe["bad_rows"]) == (str(name), "drop")
    assert recipe["beta"] != 9


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "advise.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in page
    assert len(list(table())) == len(RULES) + 2
