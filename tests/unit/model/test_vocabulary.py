"""Rows for new tokens: where they start, which of them an adapter trains."""

import pytest
import torch
from peft import IA3Config, LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.model.adapters import add_adapter
from oddsmith.model.vocabulary import grow_embeddings, grown_rows, rows_of_adapter, start_at_mean, train_rows, untrained
from tests.tiny import SMALL, tiny_model

TOKENS = [264, 265]


def layers(model) -> list:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if head.weight is embedding.weight else [embedding, head]


def model_of(kind: str):
    if kind in ("tied", "untied"):
        return tiny_model(tie_word_embeddings=kind == "tied")
    sizes = {**SMALL, "partial_rotary_factor": 0.5} if kind == "phi" else SMALL
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize("kind", ["tied", "untied", "phi", "gpt2"])
def test_new_rows_are_the_mean_of_the_others(kind):
    model = model_of(kind)
    before = [layer.weight.detach().clone() for layer in layers(model)]
    state = torch.random.get_rng_state()
    grow_embeddings(model, 266)
    assert torch.equal(torch.random.get_rng_state(), state)
    for layer, weight in zip(layers(model), before, strict=True):
        assert torch.equal(layer.weight[:264], weight)
        torch.testing.assert_close(layer.weight[264:], weight.mean(0).expand(2, -1))
        if getattr(layer, "bias", None) is not None:
            torch.testing.assert_close(layer.bias[264:], layer.bias[:264].mean().expand(2))
    assert model.config.vocab_size == grown_rows(model) == 266
    assert model.get_output_embeddings().weight.shape[0] == 266


def test_embeddings_that_are_large_enough_stay():
    model = tiny_model()
    weight = model.get_input_embeddings().weight
    grow_embeddings(model, 258)
    assert model.get_input_embeddings().weight is weight
    assert grown_rows(model) is None


@pytest.mark.parametrize("kind", ["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_no_training_has_seen(kind, dtype):
    model = model_of(kind)
    model.resize_token_embeddings(320)  # transformers' own: the mean with a little noise
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = 0
    model.to(dtype)
    assert untrained(model, [3, 7, 256, 264, 300, 319, 400]) == ([7], [264, 300, 319])
    start_at_mean(model, [7])
    assert untrained(model, [3, 7, 256]) == ([], [7])


def trained(model) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_" not in name and "ia3_" not in name
    }


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("tied", {}, {"embed_tokens.token_adapter": (2, 16)}),
        ("untied", {}, {"embed_tokens.token_adapter": (2, 16), "lm_head.token_adapter": (2, 16)}),
        ("untied", {"modules_to_save": ["lm_head"]}, {"embed_tokens.token_adapter": (2, 16), "lm_head": (266, 16)}),
        ("tied", {"modules_to_save": ["embed_tokens"]}, {"embed_tokens": (266, 16)}),
        ("tied", {"modules_to_save": ["lm_head"]}, {"embed_tokens": (266, 16)}),
        (
            "untied",
            {"trainable_token_indices": {"embed_tokens": [5]}},
            {"embed_tokens.token_adapter": (3, 16), "lm_head.token_adapter": (2, 16)},
        ),
        ("untied", {"trainable_token_indices": [5]}, {"embed_tokens.token": (3, 16), "lm_head.token": (2, 16)}),
        ("untied", {"target_modules": ["q_proj", "lm_head"]}, {"embed_tokens.token_adapter": (2, 16)}),
        ("untied", {"target_modules": r".*(q_proj|lm_head)"}, {"embed_tokens.token_adapter": (2, 16)}),
    ],
    ids=[
        "tied",
        "untied",
        "head in full",
        "tied in full",
        "its head in full",
        "rows by name",
        "rows",
        "LoRA on the head",
        "by pattern",
    ],
)
def test_an_adapter_trains_the_rows_that_it_does_not_change_already(kind, settings, expected):
    model = model_of(kind)
    grow_embeddings(model, 266)
    given = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
    before = given.to_dict()
    found = trained(add_adapter(model, train_rows(model, given, TOKENS)))
    assert given.to_dict() == before
    assert len(found) == len(expected)
    for part, shape in expected.items():
        assert [found[name] for name in found if part in name] == [shape]


def test_a_head_with_a_bias_is_trained_in_full():
    """PEFT's layer of trainable rows computes a head without its bias."""
    model = model_of("phi")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    found = train_rows(model, config, [3, 4])
    assert found.trainable_token_indices == {"model.embed_tokens": [3, 4]}
    assert found.modules_to_save == ["lm_head"]


def test_an_adapter_without_rows_trains_the_layers_in_full():
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    assert train_rows(tiny_model(), config, [3]).modules_to_save == ["embed_tokens", "lm_head"]


def test_rows_of_an_adapter():
    assert rows_of_adapter(LoraConfig()) == 0
    assert rows_of_adapter(LoraConfig(trainable_token_indices=[3, 9])) == 10
    assert rows_of_adapter(LoraConfig(trainable_token_indices={"a": [3], "b": [11]})) == 12
    assert rows_of_adapter(IA3Config()) == 0
