"""The behaviour of ORPOTrainer that users of TRL and transformers expect."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    MixtralConfig,
    Qwen3MoeConfig,
    T5Config,
    TrainerCallback,
)

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.errors import ConfigError, ModelError, RowError
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer
from tests.tiny_runs import PLAIN, make_trainer

SETTINGS = {"max_steps": 3, "learning_rate": 1e-3}


def config(folder):
    return ORPOConfig(**{**PLAIN, **SETTINGS, "output_dir": str(folder)})


def trainer(folder, model=None, train=12, evaluate=None, **more):
    rows = Dataset.from_list(ragged_pairs(train, seed=1)) if isinstance(train, int) else train
    return make_trainer(folder, model, rows, evaluate, **{**SETTINGS, **more})


def test_loss_is_the_sum_of_its_parts_on_every_line_also_over_several_steps(tmp_path):
    run = trainer(tmp_path, max_steps=6, logging_steps=3, beta=0.4)
    run.train()
    lines = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        assert line["loss"] == pytest.approx(line["nll_loss"] + 0.4 * line["or_loss"], rel=1e-5)
        assert line["log_odds_ratio"] == pytest.approx(-line["or_loss"])
        assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], abs=1e-7)
        assert line["rewards/chosen"] == pytest.approx(0.4 * line["logps/chosen"])
        assert line["tokens_per_second"] > 0
        assert line["pairs_per_second"] > 0
        assert 0.05 < line["memory_gib"] < 100
        assert "logits/chosen" not in line


@pytest.mark.parametrize("stream", [False, True])
def test_evaluation_does_not_depend_on_its_batch_size(tmp_path, stream):
    rows = ragged_pairs(11, seed=2)
    results = []
    for batch_size in (1, 3, 16):
        run = trainer(tmp_path, per_device_eval_batch_size=batch_size)
        heldout = IterableDataset.from_generator(lambda: iter(rows)) if stream else Dataset.from_list(rows)
        results.append(run.evaluate(heldout))
    for name in ("loss", "nll_loss", "or_loss", "rewards/accuracies", "rewards/margins", "perplexity/chosen"):
        values = [metrics[f"eval_{name}"] for metrics in results]
        assert values == pytest.approx([values[0]] * 3, rel=1e-6), name


def test_evaluation_is_a_mean_over_tokens_computed_by_hand(tmp_path):
    rows = ragged_pairs(4, seed=5)
    run = trainer(tmp_path)
    metrics = run.evaluate(rows)
    tokenizer, model = tiny_tokenizer(), tiny_model().eval()
    nll, tokens, response_nll, response_tokens = 0.0, 0, 0.0, 0
    for row in rows:
        prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"]).input_ids]
        ids = [*prompt, *tokenizer(row["chosen"]).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        per_token = [-logp[t - 1, ids[t]].item() for t in range(1, len(ids))]
        nll, tokens = nll + sum(per_token), tokens + len(per_token)
        response = per_token[len(prompt) - 1 :]
        response_nll, response_tokens = response_nll + sum(response), response_tokens + len(response)
    assert metrics["eval_nll_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert metrics["eval_perplexity/chosen"] == pytest.approx(math.exp(response_nll / response_tokens), rel=1e-5)


def test_nll_on_the_response_alone(tmp_path):
    rows = ragged_pairs(6, seed=5)
    metrics = trainer(tmp_path, nll_on="response").evaluate(rows)
    assert metrics["eval_nll_loss"] == pytest.approx(math.log(metrics["eval_perplexity/chosen"]), rel=1e-6)
    assert metrics["eval_nll_loss"] != pytest.approx(trainer(tmp_path).evaluate(rows)["eval_nll_loss"], rel=1e-3)


def test_several_evaluation_sets_keep_their_own_prefix(tmp_path):
    sets = {"short": ragged_pairs(3, seed=8), "long": ragged_pairs(5, seed=9)}
    run = trainer(tmp_path, evaluate=sets, eval_strategy="steps", eval_steps=2)
    run.train()
    logged = {key for entry in run.state.log_history for key in entry}
    assert {"eval_short_rewards/margins", "eval_long_rewards/margins", "eval_short_loss"} <= logged
    assert "eval_rewards/margins" not in logged
    assert set(run.data_reports) == {"train", "short", "long"}
    both = run.evaluate()
    assert both["eval_short_loss"] != both["eval_long_loss"]


def test_a_dataset_dict_of_evaluation_sets_and_predict(tmp_path):
    sets = DatasetDict({"a": Dataset.from_list(ragged_pairs(3, seed=8))})
    run = trainer(tmp_path, evaluate=sets)
    assert "eval_a_loss" in run.evaluate()
    output = run.predict(Dataset.from_list(ragged_pairs(5, seed=3)))
    assert output.predictions.shape == (5, 2)
    assert output.metrics["test_rewards/accuracies"] == np.mean(output.predictions[:, 0] > output.predictions[:, 1])


def test_compute_metrics_gets_log_probabilities_in_the_order_of_the_dataset(tmp_path):
    rows = ragged_pairs(7, seed=4)
    seen = {}

    def compute_metrics(prediction):
        seen["predictions"], seen["labels"] = prediction
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    run = trainer(tmp_path, compute_metrics=compute_metrics, per_device_eval_batch_size=3)
    metrics = run.evaluate(rows)
    assert metrics["eval_accuracy"] == pytest.approx(metrics["eval_rewards/accuracies"])
    one_by_one = [trainer(tmp_path).evaluate(rows[i : i + 1])["eval_logps/chosen"] for i in (0, 6)]
    assert seen["predictions"][[0, 6], 0] == pytest.approx(one_by_one, rel=1e-5)
    assert (seen["labels"] == 0).all()


def test_a_run_that_stops_in_mid_epoch_resumes_where_it_was(tmp_path):
    settings = {"train": 14, "max_steps": 12, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    whole = trainer(tmp_path / "whole", **settings | {"save_strategy": "no"})
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 6

    first = trainer(tmp_path / "part", **settings, save_steps=6, callbacks=[Stop()])
    first.train()
    second = trainer(tmp_path / "part", **settings, save_steps=100, model=tiny_model(seed=9))
    second.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-6"))
    resumed = {entry["step"]: entry["loss"] for entry in second.state.log_history if "loss" in entry}
    expected = {entry["step"]: entry["loss"] for entry in whole.state.log_history if "loss" in entry}
    assert resumed == pytest.approx(expected, rel=1e-6)
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_model_init_and_callbacks_and_optimizers(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(set(logs))

    trainer(tmp_path, train=6, model_init=lambda: tiny_model(seed=3), callbacks=[Watch()]).train()
    assert any("rewards/margins" in keys for keys in seen)


def test_the_model_card_and_tags(tmp_path):
    run = trainer(tmp_path)
    run.create_model_card(model_name="my-model", dataset_name="org/pairs", tags="extra")
    text = (tmp_path / "README.md").read_text()
    assert {"orpo", "oddsmith"} <= set(run.model.model_tags)
    for part in ("- orpo", "- extra", "org/pairs", "2403.07691", "# my-model"):
        assert part in text
    assert str(tmp_path) not in text


def test_the_event_log_is_strict_json_and_complete(tmp_path):
    often = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    run = trainer(tmp_path, evaluate=ragged_pairs(3), **often)
    run.train()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [event["event"] for event in events[:2]] == ["start", "log"]
    assert events[-1]["event"] == "end"
    kinds = {event["event"] for event in events}
    assert {"start", "log", "evaluate", "pairs", "finding", "checkpoint", "end"} == kinds
    assert events[0]["data"]["train"]["kept"] == 12
    parameters = sum(p.numel() for p in run.model.parameters())
    assert events[0]["trainable_parameters"] == events[0]["parameters"] == parameters
    assert all(event["time"] > 0 and event["step"] >= 0 for event in events)


def test_generate_during_eval_records_answers(tmp_path):
    run = trainer(tmp_path, evaluate=ragged_pairs(3), generate_during_eval=True)
    run.evaluate()
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-2])  # the evaluation follows
    assert event["event"] == "samples"
    assert len(event["answers"]) == 3
    assert set(event["answers"][0]) == {"Prompt", "Policy", "is_cut"}
    assert all(answer["is_cut"] for answer in event["answers"])  # an untrained model ends none of its answers


def test_odd_settings_are_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="dataloader_drop_last"):
        trainer(tmp_path, train=3, per_device_train_batch_size=8, dataloader_drop_last=True).train()
    with pytest.raises(ConfigError, match="model is missing"):
        ORPOTrainer(args=config(tmp_path), train_dataset=ragged_pairs(3), processing_class=tiny_tokenizer())
    with pytest.raises(ConfigError, match="model_init_kwargs"):
        trainer(tmp_path, model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ConfigError, match="train_dataset is missing"):
        trainer(tmp_path, train=None).train()


def test_an_encoder_is_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(BertConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ModelError, match="does not generate text"):
        trainer(tmp_path, model=bert)


def test_encoder_decoder_models_train_on_the_plain_path(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 264, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, decoder_start_token_id=257))
    rows = ragged_pairs(4)
    run = trainer(tmp_path, model=model, train=rows, max_steps=25, per_device_train_batch_size=4, learning_rate=3e-2)
    before = run.evaluate(rows)
    run.train()
    after = run.evaluate(rows)
    assert after["eval_loss"] < before["eval_loss"] - 1
    labels = tiny_tokenizer()(rows[0]["chosen"]).input_ids
    single = run.evaluate(rows[:1])
    assert single["eval_nll_loss"] == pytest.approx(-single["eval_logps/chosen"], rel=1e-6)
    assert len(labels) > 0


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_router_loss_of_a_mixture_of_experts_counts_once_and_is_logged(tmp_path, family):
    sizes = {
        "vocab_size": 264, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5,
    }  # fmt: skip
    if family == "mixtral":
        moe = MixtralConfig(**sizes, num_local_experts=4)
    else:
        moe = Qwen3MoeConfig(**sizes, num_experts=4, moe_intermediate_size=16, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(moe)
    run = trainer(tmp_path, model=model, train=8, max_steps=2, gradient_accumulation_steps=2, beta=0.1)
    run.train()
    for line in (entry for entry in run.state.log_history if "loss" in entry):
        assert line["aux_loss"] > 0
        parts = line["nll_loss"] + 0.1 * line["or_loss"] + 0.5 * line["aux_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


def test_prompts_that_fill_max_length_are_dropped_and_nothing_becomes_nan(tmp_path):
    """TRL 1.16 keeps such rows, and its loss is NaN in the first step."""
    rows = ragged_pairs(10, seed=6)
    rows[3] = rows[3] | {"prompt": "word " * 40}
    rows[7] = rows[7] | {"prompt": "word " * 60}
    rows[5] = rows[5] | {"chosen": " the same start " * 9 + "a", "rejected": " the same start " * 9 + "b"}
    run = trainer(tmp_path, train=rows, max_length=96, max_steps=4, per_device_train_batch_size=8)
    report = run.data_reports["train"]
    dropped = {reason: numbers for reason, numbers in report.dropped.items() if numbers}
    assert sorted(row for numbers in dropped.values() for row in numbers) == [3, 5, 7]
    assert any("max_length" in reason for reason in dropped)
    assert any("identical" in reason for reason in dropped)
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_4_bit_base_with_checkpointing_learns_across_evaluations(tmp_path, reentrant):
    pytest.importorskip("bitsandbytes")
    from oddsmith import ModelConfig, get_peft_config, get_quantization_config
    from oddsmith.model.loading.models import load_model

    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    chosen = ModelConfig(use_peft=True, load_in_4bit=True, lora_r=8, lora_dropout=0.0)
    rows = ragged_pairs(8, seed=2)
    four_bit = get_quantization_config(chosen)
    base = load_model(str(tmp_path / "base"), dtype=torch.bfloat16, quantization_config=four_bit)
    run = trainer(
        tmp_path / "run", base, rows, rows, peft_config=get_peft_config(chosen), eval_strategy="steps", eval_steps=5,
        max_steps=20, per_device_train_batch_size=8, learning_rate=2e-2, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )  # fmt: skip
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)  # it goes on learning after each evaluation
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["model", "adapter", "model_init"])
def test_a_base_that_learns_a_chat_template_stops_at_its_end_of_turn_everywhere(tmp_path, kind):
    tokenizer = tiny_tokenizer(eos="<|endoftext|>")
    ends = sorted(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))

    def make():
        return tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)

    run = make_trainer(
        tmp_path, None if kind == "model_init" else make(), 2, tokenizer=tokenizer, max_steps=1, save_strategy="steps",
        save_steps=1, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM") if kind == "adapter" else None,
        **({"model_init": make} if kind == "model_init" else {}),
    )  # fmt: skip
    assert run.model.generation_config.eos_token_id == ends
    run.train()
    run.model.generation_config.max_new_tokens = 7  # a setting of a person
    run.save_model()
    run.save_model(str(tmp_path / "elsewhere"))
    for folder in (tmp_path, tmp_path / "checkpoint-1", tmp_path / "elsewhere"):
        settings = GenerationConfig.from_pretrained(folder)
        assert settings.eos_token_id == ends, folder
        assert settings.max_new_tokens == (None if folder.name == "checkpoint-1" else 7)


# ---- What the model cannot read


def with_unknown_token(model=None):
    """A tokenizer with a token more than the model has embeddings, which is in row 9 of the pairs."""
    rows = ragged_pairs(12, seed=1)
    rows[9] = {**rows[9], "rejected": " <extra>"}
    return tiny_tokenizer(extra_special=("<extra>",)), rows


UNKNOWN = r"row 9: token without embedding: token 258 \('<extra>'\) has no row among the model's 258 embeddings"


@pytest.mark.parametrize("which", ["train", "eval", "one of several", "model_init", "rows of tokens"])
def test_a_token_without_embedding_is_named_before_the_first_step(which, tmp_path):
    tokenizer, rows = with_unknown_token()
    data = {
        "train": {"train": rows},
        "eval": {"evaluate": rows},
        "one of several": {"evaluate": {"good": ragged_pairs(3), "bad": rows}},
        "model_init": {"train": rows, "model_init": lambda: tiny_model(vocab_size=258)},
        "rows of tokens": {"train": trainer(tmp_path, train=rows, tokenizer=tokenizer).train_dataset},
    }[which]
    source = {"eval": "eval", "one of several": "bad"}.get(which, "train")
    model = None if which == "model_init" else tiny_model(vocab_size=258)
    with pytest.raises(RowError, match=f"^{source}, {UNKNOWN}"):
        trainer(tmp_path, model, tokenizer=tokenizer, **data)


def test_rows_to_predict_are_checked_too(tmp_path):
    tokenizer, rows = with_unknown_token()
    run = trainer(tmp_path, tiny_model(vocab_size=258), tokenizer=tokenizer)
    with pytest.raises(RowError, match=UNKNOWN):
        run.predict(rows)


def test_a_row_of_a_stream_that_cannot_be_read_ends_the_run_and_the_steps_before_it_are_kept(tmp_path):
    tokenizer, rows = with_unknown_token()
    stream = IterableDataset.from_generator(lambda: iter(rows))
    run = trainer(
        tmp_path, tiny_model(vocab_size=258), stream, tokenizer=tokenizer, max_steps=6, save_strategy="steps",
        save_steps=50,
    )  # fmt: skip
    with pytest.raises(RowError, match=f"^train, {UNKNOWN}"):
        run.train()
    steps = run.state.global_step
    assert steps in (3, 4)  # the fifth step has the row; one batch is read ahead
    assert (tmp_path / f"checkpoint-{steps}" / "manifest.json").is_file()
