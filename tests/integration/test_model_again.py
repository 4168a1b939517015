"""A model after its training: as it was but for its weights, so whatever comes next is as with a new one."""

import copy
import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from oddsmith.errors import ModelError
from oddsmith.system import precision
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import let_transformers_add, make_trainer

SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "max_length": 64, "max_steps": 2, "per_device_train_batch_size": 4}
HELD_OUT = ragged_pairs(3, seed=1)
IDS = torch.arange(3, 12)[None]
TAGS = "model_tags"  # for the model card; they belong to the model


@pytest.fixture(autouse=True)
def multiplies_bf16(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_unit", lambda: "AVX512-BF16")


def adapter() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.2)


def make(folder, model, **settings):
    return make_trainer(folder, model, 8, HELD_OUT, **{**SETTINGS, **settings})


def run(trainer) -> list:
    """Train; return what was logged, the path, and the weights."""
    trainer.train()
    kept = ("loss", "grad_norm", "learning_rate", "eval_loss")
    logged = [entry[name] for entry in trainer.state.log_history for name in kept if name in entry]
    assert len(logged) >= 6
    return [*logged, trainer.path.name, *(weight.clone() for weight in trainer.model.state_dict().values())]


def assert_equal(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def contents(model) -> dict:
    """All attributes of all modules; of hooks and the like, which are kept in place, what is in them."""
    return {
        (name, key): dict(value) if key.startswith("_") and isinstance(value, dict) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in (TAGS, "_parameters", "_buffers", "_modules")
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return what a training of a new model gives, in bf16 or float32."""

    @functools.cache
    def train(*, bf16: bool) -> list:
        return run(make(tmp_path_factory.mktemp("alone"), tiny_model(), bf16=bf16))

    return train


CASES = {
    "float32": {},
    "bf16": {"bf16": True},
    "bf16, checkpointed": {"bf16": True, "gradient_checkpointing": True},
    "with evaluations": {"bf16": True, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
                         "save_strategy": "steps", "save_steps": 1},
    "padded, with noise": {"bf16": True, "prefix_forest": False, "neftune_noise_alpha": 1.0},
}  # fmt: skip
IN_EVERY_RUN = {("bf16, checkpointed", "full"), ("padded, with noise", "adapter")}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, marks=[] if (case, kind) in IN_EVERY_RUN else pytest.mark.slow)
        for case in CASES
        for kind in ("full", "adapter")
    ],
)
def test_a_second_training_equals_the_first(case, kind, tmp_path):
    model = tiny_model(attention_dropout=0.1).eval()
    model = get_peft_model(model, adapter()) if kind == "adapter" else model
    weights, before = copy.deepcopy(model.state_dict()), contents(model)
    first = run(make(tmp_path / "first", model, **CASES[case]))
    assert contents(model) == before
    assert model.config.use_cache
    model.load_state_dict(weights)
    trainer = make(tmp_path / "second", model, **CASES[case])
    assert_equal(run(trainer), first)
    model.load_state_dict(weights)
    torch.manual_seed(trainer.args.seed)  # of the noise, as its constructor does
    assert_equal(run(trainer), first)


def test_a_training_in_float32_after_one_in_bf16(alone, tmp_path):
    """It computed in bf16, on padded batches: accelerate's forward under autocast was still there."""
    model = tiny_model()
    weights = copy.deepcopy(model.state_dict())
    run(make(tmp_path / "bf16", model, bf16=True, gradient_checkpointing=True))
    model.load_state_dict(weights)
    assert_equal(run(make(tmp_path / "float32", model)), alone(bf16=False))
    assert alone(bf16=False)[:4] != alone(bf16=True)[:4]


def test_trainers_in_two_precisions_at_once(alone, tmp_path):
    """accelerate has one precision for a process, which new settings clear and the next trainer sets."""
    trainers = {bf16: make(tmp_path / str(bf16), tiny_model(), bf16=bf16) for bf16 in (True, False)}
    for bf16, trainer in trainers.items():
        assert_equal(run(trainer), alone(bf16=bf16))


@pytest.mark.parametrize("forest", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["packed", "padded"])
def test_evaluations_after_a_training_equal_those_in_it(forest, tmp_path):
    model = tiny_model().eval()
    before = contents(model)
    trainer = make(tmp_path, model, bf16=True, prefix_forest=forest, eval_strategy="steps", eval_steps=2)
    trainer.train()
    last = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert trainer.evaluate()["eval_loss"] == last
    assert trainer.predict(HELD_OUT).metrics["test_loss"] == last
    assert trainer.evaluate()["eval_loss"] == last
    assert contents(model) == before


def test_an_evaluation_in_16_bits_leaves_the_weights_alone(tmp_path):
    """transformers casts them for it and leaves it so: what is trained or saved afterwards is rounded."""
    model = tiny_model()
    before, weights = contents(model), copy.deepcopy(model.state_dict())
    trainer = make(tmp_path, model, bf16_full_eval=True)
    rounded, exact = trainer.evaluate()["eval_loss"], make(tmp_path, model).evaluate()["eval_loss"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == dict.fromkeys(weights, torch.float32)
    assert_equal(list(model.state_dict().values()), list(weights.values()))
    assert {key: value for key, value in contents(model).items() if key[1] != "training"} == {
        key: value for key, value in before.items() if key[1] != "training"
    }


class Interrupted(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_training_that_was_interrupted(alone, tmp_path):
    """The model answers like a new one with its weights, and can be trained again."""
    model = tiny_model(attention_dropout=0.1).eval()
    weights, before = copy.deepcopy(model.state_dict()), contents(model)
    settings = {"bf16": True, "gradient_checkpointing": True, "neftune_noise_alpha": 5.0}
    trainer = make(tmp_path, model, callbacks=[Interrupted()], **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert contents(model) == before
    assert not trainer.is_in_train
    other = tiny_model(seed=1).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(IDS).logits, other(IDS).logits)
    assert model.generate(IDS, max_new_tokens=5, do_sample=False).shape == (1, 14)
    model.load_state_dict(weights)
    assert_equal(run(make(tmp_path, model, bf16=True)), alone(bf16=True))


# ---- After an adapter


def test_a_model_with_an_adapter_inside(tmp_path):
    """PEFT puts its layers into the base, so the base that the user has is no longer a model by itself."""
    base = tiny_model()
    model = make(tmp_path, base, peft_config=adapter()).model
    with pytest.raises(ModelError, match="the base inside of a PeftModel, and cannot be saved without it"):
        make(tmp_path, base)
    with pytest.raises(ModelError, match="the model has an adapter already and peft_config asks for another"):
        make(tmp_path, base, peft_config=adapter())
    assert isinstance(make(tmp_path, model).model, PeftModel)
    assert make(tmp_path, model.unload(), peft_config=adapter()).model.get_base_model() is base


def test_a_base_whose_adapter_transformers_added(tmp_path):
    model = tiny_model()
    let_transformers_add(model, adapter())
    with pytest.raises(ModelError, match="the model has an adapter already"):
        make(tmp_path, model, peft_config=adapter())
    assert make(tmp_path, model).model is model
