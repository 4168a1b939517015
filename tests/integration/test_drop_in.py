"""What a script for TRL overrides, sets or changes: it works, or is refused before the first step."""

import inspect
import json
import re
from dataclasses import dataclass
from math import sqrt

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSeq2SeqLM, T5Config, TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from trl.experimental.orpo import ORPOConfig as TRLConfig
from trl.experimental.orpo import ORPOTrainer as TRLTrainer

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.errors import ConfigError
from oddsmith.training.drop_in import OF_TRL
from oddsmith.training.live_settings import LiveSettings
from oddsmith.training.private_names import BYPASSED_METHODS
from tests.command import save_model
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import PLAIN, make_trainer

ROWS = Dataset.from_list(ragged_pairs(8, seed=1))
HELD_OUT = Dataset.from_list(ragged_pairs(4, seed=2))


def make(folder, kind=ORPOTrainer, **more):
    settings = {"max_steps": 1, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 4, "max_grad_norm": 1e9}
    return make_trainer(folder, None, ROWS, HELD_OUT, kind=kind, **{**settings, "learning_rate": 1e-3, **more})


def lines(trainer) -> list[dict[str, float]]:
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer that has made one step over all rows."""
    trainer = make(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, float]:
    """The evaluation of the untrained model."""
    return make(tmp_path_factory.mktemp("untrained")).evaluate()


class TestMethodsThatAreNeverCalled:
    @pytest.mark.parametrize("name", [*OF_TRL, *BYPASSED_METHODS])
    def test_a_subclass_is_refused(self, tmp_path, name):
        mine = type("Mine", (ORPOTrainer,), {name: lambda self, *args: None})
        with pytest.raises(ConfigError, match=f"^Mine replaces methods .* instead of {name}, "):
            mine("no model", ORPOConfig(output_dir=str(tmp_path), use_cpu=True))

    @pytest.mark.parametrize("name", ["odds_ratio_loss", "_get_train_sampler"])
    def test_so_is_an_assignment_to_the_trainer(self, trainer, monkeypatch, name):
        monkeypatch.setitem(vars(trainer), name, lambda *args: None)
        with pytest.raises(ConfigError, match=f"instead of {name}, override"):
            trainer.train()

    def test_so_is_one_to_our_class(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ORPOTrainer, "tokenize_row", lambda self, row: row, raising=False)
        with pytest.raises(ConfigError, match="instead of tokenize_row, change the rows"):
            make(tmp_path)

    def test_so_is_a_function_for_the_loss(self, trainer, monkeypatch):
        monkeypatch.setattr(trainer, "compute_loss_func", lambda outputs, labels, num_items_in_batch: 0)
        with pytest.raises(ConfigError, match="compute_loss_func is never called here: override"):
            trainer.train()

    def test_several_are_named_together(self, tmp_path):
        class Mine(ORPOTrainer):
            def odds_ratio_loss(self, chosen, rejected): ...
            def concatenated_forward(self, model, batch): ...
            def get_batch_loss_metrics(self, model, batch, train_eval): ...
            def store_metrics(self, metrics, train_eval): ...

        with pytest.raises(ConfigError) as error:
            make(tmp_path, Mine)
        assert "instead of get_batch_loss_metrics, odds_ratio_loss and concatenated_forward, override" in str(
            error.value
        )
        assert "; instead of store_metrics, " in str(error.value)

    def test_trl_has_no_other_methods(self):
        theirs = {name for name, value in vars(TRLTrainer).items() if callable(getattr(TRLTrainer, name))}
        assert {name for name in theirs if not name.startswith("__")} - set(OF_TRL) <= set(dir(ORPOTrainer))

    def test_calling_one_names_what_to_do_instead(self, trainer):
        with pytest.raises(AttributeError, match="no attribute 'get_batch_loss_metrics', a method of TRL's .*override"):
            trainer.get_batch_loss_metrics(trainer.model, {})
        assert not hasattr(trainer, "store_metrics")

    @pytest.mark.parametrize(
        ("name", "method", "call"),
        [
            ("compute_loss", lambda self, model, inputs, return_outputs=False: 0, "num_items_in_batch=..."),
            ("training_step", lambda self, model, inputs: 0, "training_step(model, inputs, num_items_in_batch)"),
            ("log", lambda self, logs: None, "log(logs, start_time)"),
            ("get_batch_samples", lambda self, model, batch: ("", ""), "get_batch_samples(epoch_iterator, num_batches"),
        ],
        ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
    )
    def test_an_old_signature_is_refused(self, tmp_path, name, method, call):
        with pytest.raises(ConfigError) as error:
            make(tmp_path, type("Mine", (ORPOTrainer,), {name: method}))
        assert f"Mine.{name} is called as " in str(error.value)
        assert call in str(error.value)


# ---- Methods that get batches


class Doubled(ORPOTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert num_items_in_batch is None  # as with TRL, whose batches have no `labels`
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        return (2 * loss, outputs) if return_outputs else 2 * loss


class DoubledWithoutOutputs(ORPOTrainer):
    def compute_loss(self, *args, **kwargs):
        kwargs["return_outputs"] = False
        return 2 * super().compute_loss(*args, **kwargs)


class DoubledStep(ORPOTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        """The recipe of transformers, with a factor."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        loss = 2 * loss / self.current_gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class SharesOfTheStep(ORPOTrainer):
    loss_is_scaled_for_ga = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        chosen = -self.stepper.logps(model, inputs).logp_chosen_B.sum() / inputs["num_pairs"]
        return (chosen, {}) if return_outputs else chosen


class OneForEach(ORPOTrainer):
    """A loss whose gradient is 1 for each weight of the output layer, whatever the batch."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs.pop("weight")
        loss = model.lm_head.weight.sum()
        return (loss, {"mine": loss}) if return_outputs else loss


def split(accumulation: int) -> dict[str, int]:
    return {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}


class TestMethodsThatGetBatches:
    @pytest.mark.parametrize(
        ("kind", "accumulation"),
        [
            (Doubled, 4),
            (DoubledWithoutOutputs, 8),
            (DoubledStep, 2),
            *(pytest.param(kind, n, marks=pytest.mark.slow) for kind in (Doubled, DoubledStep) for n in (1, 8)),
        ],
    )
    def test_what_changes_our_loss_does_not_depend_on_the_accumulation(self, tmp_path, trainer, kind, accumulation):
        (line,) = lines(make(tmp_path, kind, **split(accumulation)))
        plain = trainer.state.log_history[0]
        for name in ("loss", "grad_norm"):
            assert line[name] == pytest.approx(2 * plain[name], rel=1e-5), name
        for name in ("nll_loss", "rewards/margins"):
            assert line[name] == pytest.approx(plain[name], rel=1e-5), name

    @pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 4])
    def test_a_loss_of_one_s_own_is_averaged_over_micro_batches(self, tmp_path, accumulation):
        trainer = make(tmp_path, OneForEach, **split(accumulation))
        weight = trainer.model.lm_head.weight
        loss = weight.sum().item()
        (line,) = lines(trainer)
        assert line["grad_norm"] == pytest.approx(sqrt(weight.numel()), rel=1e-5)
        assert line["loss"] == pytest.approx(loss, rel=1e-5)

    def test_a_class_may_return_shares_of_the_step(self, tmp_path, trainer):
        (line,) = lines(make(tmp_path, SharesOfTheStep, **split(4)))
        assert line["loss"] == pytest.approx(-trainer.state.log_history[0]["logps/chosen"], rel=1e-5)

    @pytest.mark.parametrize("kind", [Doubled, DoubledWithoutOutputs, OneForEach])
    def test_an_evaluation_has_their_loss_and_our_metrics(self, tmp_path, plain, kind):
        mine = make(tmp_path / "mine", kind)
        loss = mine.model.lm_head.weight.sum().item() if kind is OneForEach else 2 * plain["eval_loss"]
        metrics = mine.evaluate()
        assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)
        for name in ("eval_nll_loss", "eval_rewards/margins", "eval_log_odds_ratio"):
            assert metrics[name] == pytest.approx(plain[name], rel=1e-5)

    @pytest.mark.parametrize("predicts", [False, True])
    def test_a_prediction_step_of_one_s_own(self, tmp_path, plain, predicts):
        class Mine(ORPOTrainer):
            def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
                with torch.no_grad():
                    loss = self.compute_loss(model, self._prepare_inputs(inputs))
                logits = torch.ones(len(inputs["chosen_labels"]), 2) if predicts else None
                return loss, logits, None if logits is None else logits[:, 0]

        seen = []
        trainer = make(tmp_path, Mine, compute_metrics=lambda prediction: seen.append(prediction.predictions) or {})
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(plain["eval_loss"], rel=1e-5)
        assert [predictions.shape for predictions in seen] == [(4, 2)] * predicts


# ---- Attributes


class TestAttributes:
    def test_they_are_those_of_the_settings(self, tmp_path):
        trainer = make(tmp_path, max_length=64, max_prompt_length=9, max_completion_length=20, beta=0.3)
        assert (trainer.beta, trainer.max_length, trainer.max_prompt_length) == (0.3, 64, 9)
        assert (trainer.max_completion_length, trainer.label_pad_token_id) == (20, -100)
        assert (trainer.is_encoder_decoder, trainer.aux_loss_enabled, trainer.aux_loss_coef) == (False, False, 0.0)
        assert trainer.tokenizer is trainer.processing_class
        assert trainer.padding_value == trainer.processing_class.pad_token_id
        assert (trainer.generate_during_eval, trainer.truncation_mode) == (False, "keep_end")

    def test_none_is_missing(self, trainer):
        theirs = re.findall(r"\bself\.([a-z]\w*)\b(?:, self\.\w+)* = ", inspect.getsource(TRLTrainer))
        assert {"beta", "max_length", "aux_loss_coef"} < set(theirs)
        assert [name for name in set(theirs) if not hasattr(trainer, name)] == []

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("max_length", "rows are tokenized when the trainer is made; give max_length in ORPOConfig"),
            ("max_prompt_length", "rows are tokenized"),
            ("max_completion_length", "rows are tokenized"),
            ("padding_value", "never takes part in the result"),
            ("label_pad_token_id", "never takes part"),
            ("truncation_mode", "prompts are cut from the left"),
            ("is_encoder_decoder", "it is the model's"),
            ("decoder_start_token_id", "it is the model's"),
            ("use_dpo_data_collator", "it says whether"),
            ("aux_loss_enabled", "set output_router_logits in the model's config"),
            ("aux_loss_coef", "set router_aux_loss_coef in the model's config"),
            ("processing_class", "the rows are tokenized with it"),
            ("tokenizer", "the rows are tokenized with it"),
        ],
    )
    def test_one_that_can_no_longer_change_says_why(self, trainer, name, reason):
        setattr(trainer, name, getattr(trainer, name))  # as subclasses do
        with pytest.raises(ConfigError, match=f"{name} .*{reason}"):
            setattr(trainer, name, 7)

    def test_one_that_is_set_too_early_says_where_to_give_it(self, tmp_path):
        class Mine(ORPOTrainer):
            def __init__(self, *args, **kwargs):
                self.beta = 0.5
                super().__init__(*args, **kwargs)

        with pytest.raises(ConfigError, match="beta is set before the trainer is made; give it in ORPOConfig"):
            make(tmp_path, Mine)

    def test_a_beta_that_is_none_is_refused(self, trainer):
        with pytest.raises(ConfigError, match="beta is -1; expected a number from 0 upwards"):
            trainer.beta = -1
        assert trainer.beta == 0.1


class Change(TrainerCallback):
    """Change a setting after a step: by the trainer's attribute, or by ``args``."""

    def __init__(self, by_attribute=True, **values):
        self.by_attribute, self.values = by_attribute, values
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for name, value in self.values.items():
                setattr(self.trainer if self.by_attribute else args, name, value)


FOUR_STEPS = {"max_steps": 4, "per_device_train_batch_size": 2, "beta": 0.5, "save_strategy": "steps", "save_steps": 3}


def run(folder, change, **more):
    trainer = make(folder, callbacks=[change], **{**FOUR_STEPS, **more})
    change.trainer = trainer
    return trainer


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The folder and the log of a run whose beta becomes 2 after its second step."""
    folder = tmp_path_factory.mktemp("changed")
    return folder, lines(run(folder, Change(beta=2.0)))


class TestSettingsThatChangeWhileTraining:
    def test_beta_counts_from_the_next_step_on(self, changed):
        folder, logged = changed
        assert [line.get("beta") for line in logged] == [None, None, 2.0, 2.0]
        for line, beta in zip(logged, [0.5, 0.5, 2.0, 2.0], strict=True):
            assert line["loss"] == pytest.approx(line["nll_loss"] + beta * line["or_loss"], rel=1e-6)
            assert line["rewards/chosen"] == pytest.approx(beta * line["logps/chosen"])
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        assert [event.get("beta") for event in events if event["event"] == "log"][2:4] == [2.0, 2.0]

    def test_a_line_averages_the_steps_with_their_beta_which_args_may_set(self, tmp_path, changed):
        (together,) = lines(run(tmp_path, Change(by_attribute=False, beta=2.0), logging_steps=4, save_strategy="no"))
        for name in ("loss", "rewards/chosen", "rewards/margins"):
            assert together[name] == pytest.approx(sum(line[name] for line in changed[1]) / 4), name

    def test_a_resumed_run_continues_with_it(self, changed):
        folder, logged = changed
        resumed = make(folder, **FOUR_STEPS)
        resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
        assert resumed.beta == 2.0
        assert [line["loss"] for line in resumed.state.log_history if "loss" in line][-1] == logged[-1]["loss"]

    def test_what_was_read_at_the_start_is_reported_once(self, caplog):
        live = LiveSettings(args := ORPOConfig("run", learning_rate=1e-5, report_to="none", use_cpu=True))
        for step in range(3):
            live.on_step_begin(args, TrainerState(global_step=step), None)
            args.learning_rate, args.max_grad_norm = 1.0, 7.0
        assert [message for message in caplog.messages if "has become" in message] == [
            "step 1: learning_rate has become 1.0, which has no effect: it was read when training began; change the lr"
            " of optimizer.param_groups and the base_lrs of lr_scheduler"
        ]

    def test_the_number_of_accumulation_steps_cannot_change(self, tmp_path):
        change = Change(by_attribute=False, gradient_accumulation_steps=3)
        with pytest.raises(ConfigError, match="gradient_accumulation_steps has become 3; it cannot change while"):
            run(tmp_path, change, save_strategy="no").train()


# ---- What TRL's documentation trains on


def turns(question, *answers):
    asked = [{"role": "user", "content": question}] if question else []
    return [[*asked, {"role": "assistant", "content": answer}] for answer in answers]


def forms_of_trl() -> dict[str, list[dict]]:
    """The same pairs as text and as conversations, with the prompt in a column and at the beginning of both answers."""
    rows = [{name: text.strip() for name, text in row.items()} for row in ragged_pairs(8, seed=3)]
    answers = [(row["chosen"], row["rejected"]) for row in rows]
    asked = [turns(row["prompt"], *sides) for row, sides in zip(rows, answers, strict=True)]
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    alone = [dict(zip(("chosen", "rejected"), turns("", *sides), strict=True)) for sides in answers]
    return {
        "text": [{**row, "chosen": f" {row['chosen']}", "rejected": f" {row['rejected']}"} for row in rows],
        "text alone": [{side: f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected")} for row in rows],
        "conversation": [{"prompt": prompt, **row} for prompt, row in zip(prompts, alone, strict=True)],
        "conversation alone": [dict(zip(("chosen", "rejected"), sides, strict=True)) for sides in asked],
    }


def encoder_decoder():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "vocab_size": 264}
    return AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, decoder_start_token_id=257))


class TestFormsOfTRL:
    @pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
    @pytest.mark.parametrize("form", ["text", "conversation"])
    def test_an_implicit_prompt_gives_the_same_rows(self, tmp_path, form, kind):
        model = tiny_model if kind == "decoder" else encoder_decoder
        columns = ("chosen_input_ids", "chosen_prompt_tokens", "rejected_input_ids", "prompt_input_ids")
        rows = [
            [{name: row.get(name) for name in columns} for row in trainer.train_dataset]
            for trainer in (
                make_trainer(tmp_path, model(), forms_of_trl()[name]) for name in (form, f"{form} alone")
            )
        ]  # fmt: skip
        if form == "text":  # words that both answers begin with go to the prompt, so where it ends may differ
            whole = [[(row["prompt_input_ids"] or []) + row["chosen_input_ids"] for row in side] for side in rows]
            assert whole[0] == whole[1]
        else:
            assert rows[0] == rows[1]

    @pytest.mark.parametrize("form", ["text alone", "conversation alone"])
    def test_an_adapter_trains_on_it(self, tmp_path, form):
        adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        rows = Dataset.from_list(forms_of_trl()[form])
        options = {"peft_config": adapter, "remove_unused_columns": False, "max_steps": 2, "learning_rate": 1e-2}
        trainer = make_trainer(tmp_path, None, rows, rows, eval_strategy="steps", **options)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if "lora_" in name}
        assert "eval_loss" in trainer.state.log_history[-2]

    def test_weights_in_half_precision_by_the_settings(self, tmp_path):
        save_model(tmp_path / "model", model=tiny_model())
        settings = {"model_init_kwargs": {"dtype": torch.float16}, "max_steps": 1, "learning_rate": 0.1}
        args = ORPOConfig(output_dir=str(tmp_path / "run"), **PLAIN, **settings)
        trainer = ORPOTrainer(model=str(tmp_path / "model"), args=args, train_dataset=ROWS)
        trainer.train()
        assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float16}
        assert trainer.processing_class is not None


# ---- What older scripts give the trainer


def older(folder, tokenizer=None, args=None, **more):
    """A trainer as an older script makes it, and what it was told."""
    args = args or ORPOConfig(output_dir=str(folder), **PLAIN)
    return ORPOTrainer(tiny_model(), args, train_dataset=ROWS, tokenizer=tokenizer or tiny_tokenizer(), **more)


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("oddsmith")]


class Processor:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


OF_TOKENIZER = "tokenizer is an older name: write processing_class=..."


class TestOlderScripts:
    def test_the_tokenizer(self, tmp_path, caplog):
        tokenizer = tiny_tokenizer()
        trainer = older(tmp_path, tokenizer)
        assert trainer.processing_class is tokenizer
        assert told(caplog) == [OF_TOKENIZER]

    def test_a_processor(self, tmp_path, caplog):
        tokenizer = tiny_tokenizer()
        trainer = make_trainer(tmp_path, tokenizer=Processor(tokenizer))
        assert trainer.processing_class is tokenizer
        assert told(caplog) == ["processing_class is a Processor: its tokenizer is taken, as pairs are texts"]

    def test_settings_beside_args(self, tmp_path, caplog):
        trainer = older(
            tmp_path, beta=0.25, max_length=12, max_prompt_length=5, dataset_num_proc=1, label_pad_token_id=0
        )
        assert (trainer.beta, trainer.max_length, trainer.args.max_prompt_length) == (0.25, 12, 5)
        assert trainer.pair_tokenizer.max_length == 12
        assert max(map(len, trainer.train_dataset["chosen"])) > 12  # so rows were cut
        assert told(caplog)[:3] == [
            OF_TOKENIZER,
            "settings belong in args: write ORPOConfig(beta=0.25, max_length=12, max_prompt_length=5,"
            " dataset_num_proc=1)",
            "label_pad_token_id has no effect: which tokens are learned is told by lengths, not by token ids",
        ]

    def test_none_stands_for_what_args_says(self, tmp_path, caplog):
        trainer = older(tmp_path, max_length=None, beta=None, compute_loss_func=None)
        assert (trainer.max_length, trainer.beta) == (ORPOConfig.max_length, ORPOConfig.beta)
        assert told(caplog)[0] == OF_TOKENIZER
        assert not any(line.startswith("settings belong in args") for line in told(caplog))

    def test_they_are_checked(self, tmp_path):
        with pytest.raises(ConfigError, match="beta is -1; expected a number from 0 upwards"):
            older(tmp_path, beta=-1)

    def test_plain_training_arguments(self, tmp_path, caplog):
        plain = {**PLAIN, "output_dir": str(tmp_path), "learning_rate": 1e-3, "max_steps": 1}
        trainer = make_trainer(tmp_path / "ours", None, ROWS, **plain)
        theirs = older(tmp_path, args=TrainingArguments(**plain), beta=0.1)
        for run in (trainer, theirs):
            run.train()
        assert isinstance(theirs.args, ORPOConfig)
        assert theirs.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]
        assert told(caplog)[:3] == [
            OF_TOKENIZER,
            "args is a TrainingArguments: write Oddsmith's ORPOConfig; the settings in args are taken"
            " (learning_rate=0.001), the others have ORPOConfig's defaults",
            "settings belong in args: write ORPOConfig(beta=0.1)",
        ]

    def test_arguments_of_one_s_own_keep_their_fields(self, tmp_path):
        @dataclass
        class Mine(TRLConfig):
            mine: str = "x"

        trainer = older(tmp_path, args=Mine(output_dir=str(tmp_path), **PLAIN, beta=0.3, mine="y"))
        assert (trainer.beta, trainer.args.mine) == (0.3, "y")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"beta": 0.1, "processor_class": 1, "learning_rate": 1, "ref": 2},
             "unknown ORPOTrainer arguments processor_class (did you mean processing_class?), learning_rate"
             " (learning_rate is a setting: give it in args, as ORPOConfig(learning_rate=...)), ref; docs/from-trl.md"),
            ({"compute_loss_func": print}, "compute_loss_func; instead, override pair_losses, or compute_loss"),
            ({"max_seq_length": 9}, "max_seq_length; max_length is a setting: give it in args, as ORPOConfig(max_len"),
            ({"args": {"beta": 1}}, "args is a dict; expected an ORPOConfig"),
            ({"processing_class": "gpt2"}, "processing_class and tokenizer are one argument, with two values; give pr"),
            ({"tokenizer": "gpt2"}, "processing_class is a str; expected a tokenizer, or a processor that has one"),
            ({"loss_type": "sigmoid"}, "loss_type is 'sigmoid'; the loss is ORPO's; leave it out"),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
    )  # fmt: skip
    def test_what_is_refused(self, tmp_path, given, message):
        with pytest.raises(ConfigError) as error:
            older(tmp_path, **given)
        assert message in str(error.value)

    def test_the_folder_of_tensorboard(self, tmp_path):
        class Board(TensorBoardCallback):  # without the package, which writes the files
            def __init__(self):
                self.logging_dir = None

        callbacks = Board(), Board()
        for callback, folder in zip(callbacks, (str(tmp_path), None), strict=True):
            make_trainer(tmp_path, callbacks=[callback], logging_dir=folder)
        assert [callback.logging_dir for callback in callbacks] == [str(tmp_path), None]
