"""``optim``: every name of transformers trains here, or is refused when the settings are made, with the reason."""

import pytest
import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.training_args import OptimizerNames

from oddsmith import ORPOConfig
from oddsmith.config import optimizers
from oddsmith.errors import ConfigError, MissingExtraError
from oddsmith.training.preflight import require_whole_steps

TORCH = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
BITSANDBYTES = (
    "adamw_bnb_8bit", "adamw_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "lion_8bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
PACKAGE = {
    **dict.fromkeys(BITSANDBYTES, "bitsandbytes"),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), "galore-torch"),
    "apollo_adamw": "apollo-torch",
    "grokadamw": "grokadamw",
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), "schedulefree"),
    "stable_adamw": "torch-optimi",
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao"),
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch-npu",
    "adamw_anyprecision": "git+https://github.com/pytorch/torchdistx",
}
REFUSED = (
    "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
)  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return lambda name, **more: ORPOConfig(output_dir=str(tmp_path), optim=name, use_cpu=True, **more)


def test_each_name_of_transformers_is_in_the_table():
    assert {name.value for name in OptimizerNames} == {*TORCH, *PACKAGE, *REFUSED}


@pytest.mark.parametrize("name", [*TORCH, *BITSANDBYTES])
def test_it_makes_a_step(config, name):
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    layer = torch.nn.Linear(4, 4)
    before = layer.weight.detach().clone()
    kind, options = Trainer.get_optimizer_cls_and_kwargs(config(name, learning_rate=0.1), layer)
    optimizer = kind(layer.parameters(), **options)
    require_whole_steps(optimizer, layer)
    layer(torch.ones(4)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_within_the_backward_pass_is_refused(config, name):
    with pytest.raises(ConfigError, match=f"optim is {name}, which changes .* within the backward pass.*adafactor"):
        config(name)


@pytest.mark.parametrize("name", PACKAGE)
def test_a_missing_package_is_named(config, monkeypatch, name):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: None)
    with pytest.raises(MissingExtraError) as error:
        config(name)
    needs = f"optim: {name} needs an optional dependency; install it with: pip install {PACKAGE[name]}"
    assert str(error.value) == needs


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("galore_adamw", {"optim_target_modules": "all-linear"}, "state cannot be written .* save_only_model: true"),
        ("apollo_adamw", {"optim_target_modules": ["q_proj"]}, "state cannot be written"),
        ("grokadamw", {}, "state cannot be written"),
        ("galore_adafactor", {"save_only_model": True}, "optim_target_modules is missing"),
        ("galore_adafactor", {"save_only_model": True, "optim_target_modules": "all-linear"}, None),
        ("grokadamw", {"save_strategy": "no"}, None),
        ("schedule_free_sgd", {}, None),
    ],
)
def test_what_else_it_needs(config, monkeypatch, name, settings, message):
    monkeypatch.setattr(optimizers, "find_spec", lambda module: module)
    if message is None:
        assert config(name, **settings).optim == name
    else:
        with pytest.raises(ConfigError, match=message):
            config(name, **settings)


class StepsInBackward(torch.optim.SGD):
    def fused_backward(self, loss, lr): ...  # as LOMO has it


@pytest.mark.parametrize(
    "optimizer", [StepsInBackward([torch.zeros(1)]), LayerWiseDummyOptimizer()], ids=["lomo", "layerwise"]
)
def test_an_optimizer_made_elsewhere_is_refused_too(optimizer):
    with pytest.raises(ConfigError, match=f"the optimizer is {type(optimizer).__name__}, which changes the weights"):
        require_whole_steps(optimizer)


def test_hooks_by_which_a_step_may_be_made_are_named(caplog):
    layer = torch.nn.Linear(2, 2)
    require_whole_steps(torch.optim.SGD(layer.parameters()), layer)
    assert not caplog.messages
    layer.weight.register_post_accumulate_grad_hook(lambda weight: None)
    require_whole_steps(torch.optim.SGD(layer.parameters()), layer)
    assert "1 parameters have hooks that run after each backward pass, so at every micro-batch" in caplog.text
