"""What is computed before the first step, and beside the steps, is computed in the precision of the steps."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from oddsmith.config import training as config
from oddsmith.data.tokens.tokenized import TokenizedPair
from oddsmith.model.loading import setup
from oddsmith.model.logprobs import paths
from oddsmith.model.logprobs.token_budget import LiveBytes, step_bytes, token_budget
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
BF16, FLOAT32 = ("bf16", torch.bfloat16), ("off", torch.float32)


class Seen:
    """In which autocast, and in which type, attention computed, by what it computed for."""

    def __init__(self, trainer, monkeypatch):
        self.stage, self.found = "steps", {}
        self._model = None
        for module, name, stage in ((paths, "check_forest", "check"), (paths, "token_budget", "budget")):
            monkeypatch.setattr(module, name, self._staged(getattr(module, name), stage))
        for owner, name, stage in (
            (trainer.recorder, "record_answers", "answers"),
            (trainer, "measure", "base"),
            (trainer, "prediction_step", "evaluation"),
        ):
            function = getattr(owner, name)
            setattr(owner, name, self._staged(function, stage))
            if owner is trainer:  # which a subclass could have overridden: then batches are padded
                monkeypatch.setattr(type(trainer), "is_overridden", lambda *_: False)
        self.watch(trainer.model)

    def watch(self, model) -> None:
        attention = next(module for name, module in model.named_modules() if name.endswith("layers.1.self_attn"))
        attention.register_forward_hook(self._note)

    def _note(self, module, args, output) -> None:
        on = torch.is_autocast_enabled("cpu")
        autocast = {torch.bfloat16: "bf16", torch.float16: "fp16"}[torch.get_autocast_dtype("cpu")] if on else "off"
        self.found.setdefault(self.stage, set()).add((autocast, output[0].dtype))

    def _staged(self, function, stage):
        def staged(*args, **kwargs):
            with self.at(stage):
                return function(*args, **kwargs)

        return staged

    @contextmanager
    def at(self, stage):
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before


def only(found, *stages):
    """What ``Seen`` has found where all stages compute alike."""
    return {stage: {found} for stage in stages}


@pytest.fixture
def multiplies_bf16(monkeypatch):
    """A CPU without instructions for bf16 takes float32 in its place."""
    for module in (config, setup):
        monkeypatch.setattr(module, "emulates_bf16", lambda use_cpu=False: False)


def trainer_of(folder, monkeypatch, *, lora=False, **settings):
    model = settings.pop("model", None) or tiny_model(dtype=torch.bfloat16 if lora else torch.float32)
    rows = Dataset.from_list(ragged_pairs(8))
    settings = {"bf16": True, "max_steps": 1, "disable_dropout": True, **settings}
    trainer = make_trainer(folder, model, rows, ragged_pairs(3, seed=2), peft_config=LORA if lora else None, **settings)
    return trainer, Seen(trainer, monkeypatch)


@pytest.mark.parametrize(
    ("lora", "bf16"), [(False, True), (True, True), (True, False)], ids=["full", "LoRA", "LoRA in float32"]
)
def test_everything_computes_in_the_precision_of_the_steps(lora, bf16, tmp_path, monkeypatch, multiplies_bf16):
    settings = {"generate_during_eval": True, "eval_strategy": "steps", "eval_steps": 1, "bf16": bf16}
    model = tiny_model(dtype=torch.bfloat16 if lora and bf16 else torch.float32)
    trainer, seen = trainer_of(tmp_path, monkeypatch, lora=lora, model=model, **settings)
    trainer.train()
    assert trainer.path.name == "prefix forest"
    stages = {"check", "budget", "steps", "evaluation", "answers", *(["base"] if lora else [])}
    assert seen.found == only(BF16 if bf16 else FLOAT32, *stages)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_an_evaluation_alone_checks_in_its_own_precision(method, tmp_path, monkeypatch, multiplies_bf16):
    trainer, seen = trainer_of(tmp_path, monkeypatch)
    getattr(trainer, method)(trainer.eval_dataset)
    assert seen.found == only(BF16, "check", "budget", "evaluation")


def test_an_evaluation_wholly_in_bf16_checks_on_rounded_weights_and_the_training_after_it_anew(
    tmp_path, monkeypatch, multiplies_bf16
):
    trainer, seen = trainer_of(tmp_path, monkeypatch, bf16=False, bf16_full_eval=True)
    trainer.evaluate()
    rounded = ("off", torch.bfloat16)
    assert seen.found == only(rounded, "check", "budget", "evaluation")
    seen.found.clear()
    trainer.train()
    assert seen.found == only(FLOAT32, "check", "budget", "steps")


def test_a_second_evaluation_does_not_check_again(tmp_path, monkeypatch, multiplies_bf16):
    trainer, seen = trainer_of(tmp_path, monkeypatch)
    trainer.train()
    seen.found.clear()
    trainer.evaluate()
    trainer.evaluate()
    assert seen.found == {"evaluation": {BF16}}


def test_a_trainer_of_another_precision_in_between_changes_nothing(tmp_path, monkeypatch, multiplies_bf16):
    """accelerate keeps the precision of the newest trainer of a process."""
    trainer, seen = trainer_of(tmp_path, monkeypatch)
    trainer_of(tmp_path / "other", monkeypatch, bf16=False)
    assert trainer.path.name == "prefix forest"
    assert seen.found == only(BF16, "check", "budget")


def test_a_trial_checks_its_own_model_as_it_trains(tmp_path, monkeypatch, multiplies_bf16):
    made = []

    def init():
        made.append(tiny_model())
        return made[-1]

    settings = {"bf16": True, "max_steps": 1, "model_init": init, "is_encoder_decoder": False}
    trainer = make_trainer(tmp_path, None, Dataset.from_list(ragged_pairs(8)), **settings)
    seen = Seen(trainer, monkeypatch)
    own = trainer.call_model_init

    def watched(trial=None):
        model = own(trial)
        seen.watch(model)
        return model

    trainer.call_model_init = watched
    trainer.train()
    assert len(made) == 2  # one in the constructor
    assert seen.found == only(BF16, "check", "budget", "steps")


class Kept:
    """How many bytes of a step of one micro-batch are kept for its backward pass, by its tokens."""

    def __init__(self, trainer):
        self.found, self._model, self._logps = {}, trainer.model, trainer.stepper.logps
        trainer.stepper.logps = self.logps

    def logps(self, model, micro_batch):
        with LiveBytes([*self._model.parameters(), *self._model.buffers()]) as live:
            logps = self._logps(model, micro_batch)
        if model.training:
            self.found[micro_batch["input_ids"].numel()] = live.now
        return logps


def pair(tokens: int) -> dict:
    """Half of a row is the prompt, as in the rows that are measured."""
    prompt, answer = tokens // 2, tokens // 4
    sides = [[3 + (number * step) % 60 for number in range(prompt + answer)] for step in (1, 7)]
    chosen, rejected = sides[0], sides[0][:prompt] + sides[1][prompt:]
    end = prompt + answer
    return TokenizedPair(chosen, rejected, prompt, prompt, end, end).to_row(0)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["", "checkpoints"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_a_token_takes_what_was_measured(lora, settings, tmp_path, monkeypatch, multiplies_bf16):
    """Autocast halves it; in float32 a token of the whole model, for one, would seem to take 1.7 times as much."""
    measured = {}

    def noted(model, run, **more):
        for tokens in (192, 64, 192):  # attention makes its masks, and keeps them, when they are first needed
            measured[tokens] = step_bytes(model, partial(run, tokens, 10**9)).kept
        return token_budget(model, run, **more)

    monkeypatch.setattr(paths, "token_budget", noted)
    model = tiny_model(dtype=torch.bfloat16 if lora else torch.float32)
    rows = Dataset.from_list([pair(64), pair(192)])
    each = {"max_steps": 2, "per_device_train_batch_size": 1, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(tmp_path, model, rows, bf16=True, peft_config=LORA if lora else None, **each, **settings)
    kept = Kept(trainer)
    trainer.train()
    assert kept.found.keys() == measured.keys()
    a_token, in_training = ((of[192] - of[64]) / 128 for of in (measured, kept.found))
    assert in_training == pytest.approx(a_token, abs=48)  # the row itself: some int64 a token


def test_no_backward_pass_is_measured_under_deepspeed_however_it_was_asked_for(tmp_path, monkeypatch):
    """Its launcher sets the plugin, and leaves the setting ``deepspeed`` empty."""
    asked = []
    monkeypatch.setattr(
        paths, "token_budget", lambda *_, **more: asked.append(more["backward"]) or token_budget(*_, **more)
    )
    for plugin in (None, object()):
        trainer = make_trainer(tmp_path)
        trainer.args.deepspeed_plugin = plugin
        assert trainer.path.max_tokens
    assert asked == [True, False]


def test_a_model_of_few_tokens_is_measured_too(tmp_path):
    """One of letters or amino acids."""
    letters = Tokenizer(
        WordLevel({letter: i for i, letter in enumerate("?_.abcdefghijklmnopqrstuvwxyz ")}, unk_token="?")
    )
    letters.pre_tokenizer = Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?", pad_token="_", eos_token=".")
    rows = Dataset.from_list([{"prompt": "why", "chosen": " because it is", "rejected": " no"}] * 4)
    model = tiny_model(vocab_size=30, bos_token_id=2, eos_token_id=2, pad_token_id=1)
    trainer = make_trainer(tmp_path, model, rows, max_steps=1, tokenizer=tokenizer)
    trainer.train()
    assert isinstance(trainer.path, paths.ForestPath)
