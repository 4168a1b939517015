"""A run that would train nothing is refused, and parameters without a gradient are named."""

import logging
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from oddsmith.errors import ConfigError, ModelError
from oddsmith.training.trainable import GradientCheck, in_words, require_gradient, require_trainable
from tests.tiny import tiny_model

ADAPTER = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
AT_STEP = SimpleNamespace(global_step=0, is_world_process_zero=True)
IDS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(tiny_model(), ADAPTER).save_pretrained(folder)
    return str(folder)


def adapted(change=lambda model: None) -> PeftModel:
    model = get_peft_model(tiny_model(), ADAPTER)
    change(model)
    return model


def loaded_by_transformers(adapter):
    model = tiny_model()
    model.load_adapter(adapter)
    return model


LOADED_FROZEN = "the adapter was loaded frozen; load it with is_trainable=True, as in PeftModel"
FROZEN = {
    "an adapter loaded frozen": (lambda adapter: PeftModel.from_pretrained(tiny_model(), adapter), LOADED_FROZEN),
    "one loaded by transformers": (loaded_by_transformers, LOADED_FROZEN),
    "a model frozen by hand": (lambda _: tiny_model().requires_grad_(False), "requires_grad is False for all"),
    "an adapter frozen by hand": (
        lambda _: adapted(lambda model: model.requires_grad_(False)),
        "the parameters of the adapter are frozen, too",
    ),
    "an adapter switched off": (
        lambda _: adapted(lambda model: model.base_model.disable_adapter_layers()),
        "switch it on .*, or load it with is_trainable=True",
    ),
    "a merged adapter": (lambda _: adapted(lambda model: model.merge_adapter()), "call unmerge_adapter()"),
}


@pytest.mark.parametrize("case", FROZEN)
def test_nothing_trainable(case, adapter):
    make, message = FROZEN[case]
    with pytest.raises(ModelError, match=message):
        require_trainable(make(adapter))


@pytest.mark.parametrize(
    "make",
    [
        lambda adapter: tiny_model(),
        lambda adapter: adapted(),
        lambda adapter: PeftModel.from_pretrained(tiny_model(), adapter, is_trainable=True),
    ],
    ids=["a model", "an adapter", "an adapter loaded to be trained"],
)
def test_something_trainable(make, adapter):
    require_trainable(make(adapter))


# ---- Gradients of the first step


def first_step(model, loss, *, optimizer=None, sharded=False) -> None:
    """Call the check as the training loop does, around a backward pass."""
    check = GradientCheck(is_sharded=lambda: sharded)
    optimizer = optimizer or torch.optim.SGD(model.parameters())
    check.on_train_begin(None, AT_STEP, None, model=model, optimizer=optimizer)
    loss().backward()
    check.on_pre_optimizer_step(None, AT_STEP, None, model=model)
    model.zero_grad()
    check.on_pre_optimizer_step(None, AT_STEP, None, model=model)  # of the second step


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("initialisation", [True, "gaussian"])
def test_gradients_everywhere(initialisation, caplog):
    """That of a LoRA's A is zero in the first step, because its B is."""
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=initialisation)
    model = get_peft_model(tiny_model(), config)
    first_step(model, lambda: model(IDS, labels=IDS).loss)
    assert not warnings_of(caplog)


def two_adapters():
    model = adapted()
    model.add_adapter("other", ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_parameters_without_gradient_are_named(reentrant, caplog):
    model = two_adapters()
    if reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    first_step(model, lambda: model(IDS, labels=IDS, use_cache=False).loss)
    layer = "model.layers.*.self_attn.q_proj.lora"
    assert warnings_of(caplog) == [
        "step 1: no gradient reaches 4 of 8 trainable parameters:"
        f" {layer}_A.other.weight (2), {layer}_B.other.weight (2)"
    ]


def test_gradients_that_are_all_zero(caplog):
    model = adapted()
    first_step(model, lambda: 0 * model(IDS, labels=IDS).loss)
    assert warnings_of(caplog) == ["step 1: every gradient is zero, so nothing is trained"]


def test_no_gradient_at_all():
    """Checkpointing gives the loss a gradient that leads to the frozen embeddings' output alone."""
    model = two_adapters()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("other" in name)
    with pytest.raises(ModelError, match=r"depends on no trainable parameter.*lora_A.other.weight \(2\).* not active"):
        require_gradient(model(IDS, labels=IDS).loss, model)
    model.enable_input_require_grads()
    with pytest.raises(ModelError, match=r"depends on no trainable parameter.*lora_A.other.weight \(2\)"):
        first_step(model, lambda: model(IDS, labels=IDS).loss)
    with torch.no_grad():
        require_gradient(model(IDS, labels=IDS).loss, model)  # of an evaluation


def test_shards_keep_their_gradients_elsewhere(caplog):
    model = two_adapters()
    first_step(model, lambda: model(IDS, labels=IDS).loss, sharded=True)
    assert not warnings_of(caplog)


# ---- Optimizers that users make


def test_an_optimizer_of_other_parameters_is_refused():
    base = tiny_model()
    optimizer = torch.optim.SGD(base.parameters())
    model = get_peft_model(base, ADAPTER)
    with pytest.raises(ConfigError, match="the optimizer holds none of the model's trainable parameters"):
        first_step(model, lambda: model(IDS, labels=IDS).loss, optimizer=optimizer)


def test_parameters_that_an_optimizer_lacks_are_named(caplog):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model["a"].parameters())
    first_step(model, lambda: model["b"](model["a"](torch.ones(2))).sum(), optimizer=optimizer)
    assert warnings_of(caplog) == ["the optimizer does not hold 2 trainable parameters: b.weight, b.bias"]


def test_names_of_many_parameters():
    names = [f"model.layers.{layer}.{name}.weight" for name in "abcdef" for layer in range(3)]
    assert in_words(["lm_head.weight", *names]) == (
        "lm_head.weight, model.layers.*.a.weight (3), model.layers.*.b.weight (3), model.layers.*.c.weight (3)"
        " and 3 other kinds"
    )
