"""Scripts of the field, as they are written: older names are taken with one line, and all unknown ones are named."""

import copy
import dataclasses
from pathlib import Path

import pytest
from transformers import TrainingArguments

from oddsmith import ModelConfig, ORPOConfig, ScriptArguments
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.config.inherited import Verdict
from oddsmith.config.spellings import OLDER, markdown_table
from oddsmith.errors import ConfigError
from tests.unit.config.test_inherited import IN_NEWER_VERSIONS

PAGE = Path(__file__).parents[3] / "docs" / "from-trl.md"

# What TrainingArguments had from transformers 4.40 on, and what TRL's classes had from 0.8 on, and lost.
LOST = {
    *("adafactor", "dispatch_batches", "evaluation_strategy", "fp16_backend", "fp16_opt_level", "fsdp_min_num_params"),
    *("fsdp_transformer_layer_cls_to_wrap", "group_by_length", "half_precision_backend", "include_inputs_for_metrics"),
    *("include_tokens_per_second", "jit_mode_eval", "mp_parameters", "no_cuda", "overwrite_output_dir", "past_index"),
    *("per_gpu_eval_batch_size", "per_gpu_train_batch_size", "push_to_hub_model_id", "push_to_hub_organization"),
    *("push_to_hub_token", "ray_scope", "save_safetensors", "split_batches", "torchdynamo", "tpu_metrics_debug"),
    *("tpu_num_cores", "use_ipex", "use_legacy_prediction_loop", "use_mps_device", "warmup_ratio"),
    *("label_pad_token_id", "truncation_mode", "torch_dtype", "gradient_checkpointing_use_reentrant"),
    *("ignore_bias_buffers", "sanity_check"),
}


def orpo(folder, **settings) -> ORPOConfig:
    return ORPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, **settings)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("oddsmith")]


def test_every_name_that_was_lost_is_known():
    assert not LOST - set(OLDER)
    known = {field.name for kind in (ORPOConfig, ModelConfig, ScriptArguments) for field in dataclasses.fields(kind)}
    assert {new for older in OLDER.values() for new in older.new} <= known
    assert not set(OLDER) & known
    assert set(load_fields()) - IN_NEWER_VERSIONS <= known


@pytest.mark.parametrize(
    ("given", "expected", "line"),
    [
        ({"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}, "write eval_strategy='steps'"),
        ({"evaluate_during_training": True}, {"eval_strategy": "steps"}, "write eval_strategy='steps'"),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}, "write warmup_steps=0.1 (below 1 it is a share of all steps)"),
        ({"warmup_ratio": 0.1, "warmup_steps": 7}, {"warmup_steps": 7}, "no effect beside warmup_steps, which counts"),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}, "write warmup_steps=0.1"),
        ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}, "write per_device_train_batch_size=3"),
        ({"adafactor": True}, {"optim": "adafactor"}, "write optim='adafactor'"),
        ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}, "write include_for_metrics"),
        ({"push_to_hub_model_id": "m"}, {"hub_model_id": "m"}, "write hub_model_id='m'"),
        ({"push_to_hub_organization": "o"}, {"hub_model_id": "o/run"}, "write hub_model_id='o/run'"),
        ({"push_to_hub_token": "hf_secret"}, {"hub_token": "hf_secret"}, "older name: write hub_token"),
        ({"torchdynamo": "eager", "prefix_forest": False}, {"torch_compile_backend": "eager"},
         "write torch_compile_backend='eager'"),
        ({"gradient_checkpointing_use_reentrant": False}, {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
         "write gradient_checkpointing_kwargs={'use_reentrant': False}"),
        ({"overwrite_output_dir": True}, {}, "overwrite_output_dir has no effect: train() begins anew"),
        ({"use_mps_device": True}, {}, "use_mps_device has no effect: Apple's GPU is found by itself"),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"},
         "write train_sampling_strategy='group_by_length'"),
        ({"save_safetensors": False}, {}, "save_safetensors has no effect: weights are always saved"),
        ({"label_pad_token_id": 0}, {}, "label_pad_token_id has no effect: which tokens are learned"),
        ({"logging_dir": "logs"}, {"logging_dir": "logs"}, "environment variable TENSORBOARD_LOGGING_DIR"),
        ({"train_sampling_strategy": "batch_rebalance"}, {}, "others are taken as random"),
        ({"logging_nan_inf_filter": True}, {"logging_nan_inf_filter": False}, "it has no effect: a step with a NaN is"),
        ({"max_length": 64, "max_prompt_length": 64}, {"max_prompt_length": 64}, "not below max_length (64), so it"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_older_argument_is_taken_with_one_line(tmp_path, caplog, given, expected, line):
    args = orpo(tmp_path / "run", **given)
    assert {name: getattr(args, name) for name in expected} == expected
    (only,) = said(caplog)
    assert line in only
    assert "hf_secret" not in only


def test_an_older_device_is_taken(tmp_path, caplog):
    assert ORPOConfig(output_dir=str(tmp_path), no_cuda=True, bf16=False).use_cpu
    assert said(caplog) == ["no_cuda is an older name: write use_cpu=True"]


def test_all_steps_are_warmed_up(tmp_path):
    assert orpo(tmp_path, warmup_ratio=1).get_warmup_steps(7) == 7
    assert orpo(tmp_path, warmup_ratio=0.1).get_warmup_steps(70) == 7


def test_an_older_argument_that_changes_nothing_is_silent(tmp_path, caplog):
    """So are all that stand at their default in the dump of an older version."""
    unset = {name: older.unset[-1] for name, older in OLDER.items() if set(older.new) <= set(load_fields())}
    of_orpo = {field.name for field in dataclasses.fields(ORPOConfig)}
    args = orpo(tmp_path, **{name: value for name, value in unset.items() if set(OLDER[name].new) <= of_orpo})
    assert said(caplog) == []
    assert args.to_dict() == orpo(tmp_path).to_dict()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truncation_mode": "keep_start"}, "truncation_mode is 'keep_start'; a prompt that is too long is cut from"),
        ({"loss_type": "sigmoid"}, "loss_type is 'sigmoid'; the loss is ORPO's; leave it out, or override pair_losses"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1; the loss of ORPO has no such term; leave it out"),
        ({"warmup_ratio": 100}, "warmup_ratio is 100; expected a share of all steps, 0 to 1 (warmup_steps takes a"),
        ({"evaluation_strategy": "no", "eval_strategy": "steps"},
         "evaluation_strategy and eval_strategy are one setting, with two values; remove evaluation_strategy"),
        ({"gradient_checkpointing_use_reentrant": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
         "gradient_checkpointing_use_reentrant and gradient_checkpointing_kwargs are one setting, with two values"),
        ({"learnin_rate": 1e-5}, "unknown ORPOConfig setting learnin_rate; did you mean learning_rate?"),
        ({"learnin_rate": 1e-5, "lora_r": 8, "quickly": 1},
         "unknown ORPOConfig settings learnin_rate (did you mean learning_rate?), lora_r (lora_r is a setting of"
         " ModelConfig), quickly; docs/from-trl.md lists all settings"),
        ({"epochs": 1, "lr": 1}, "epochs (did you mean num_train_epochs?), lr (did you mean learning_rate?)"),
        ({"torch_dtype": "auto"}, "unknown ORPOConfig setting torch_dtype; dtype is a setting of ModelConfig"),
        ({"warmup_rato": 0.1}, "unknown ORPOConfig setting warmup_rato; did you mean warmup_steps?"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_taken_is_refused(tmp_path, given, message):
    with pytest.raises(ConfigError) as error:
        orpo(tmp_path, **given)
    assert message in str(error.value)


def test_the_settings_of_model_and_data(caplog):
    assert ModelConfig(torch_dtype="bfloat16", use_flash_attention_2=True) == ModelConfig(
        dtype="bfloat16", attn_implementation="flash_attention_2"
    )
    assert ScriptArguments(ignore_bias_buffers=True) == ScriptArguments()
    assert [line.partition(" ")[0] for line in said(caplog)] == [
        "torch_dtype", "use_flash_attention_2", "ignore_bias_buffers"
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match="unknown ModelConfig settings model .did you mean model_name_or_path.*, rank"
    ):
        ModelConfig(model="m", rank=8)
    with pytest.raises(ConfigError, match="unknown ScriptArguments setting beta; beta is a setting of ORPOConfig"):
        ScriptArguments(beta=0.1)


@pytest.mark.parametrize(
    ("given", "expected", "line"),
    [
        ({"dataset_mixer": {"a/b": 1.0}, "dataset_splits": ["train"]},
         {"dataset_name": "a/b", "dataset_train_split": "train"}, "write dataset_name='a/b' and dataset_train_split="),
        ({"dataset_mixer": {"a/b": 0.29}, "dataset_splits": ["train_prefs", "test_prefs"], "dataset_configs": ["c"]},
         {"dataset_name": "a/b", "dataset_config": "c", "dataset_train_split": "train_prefs[:29%]",
          "dataset_test_split": "test_prefs"}, "and dataset_test_split='test_prefs'"),
        ({"dataset_mixer": {"a": 1, "b": 0.5}},
         {"datasets": [{"path": "a", "split": "train"}, {"path": "b", "split": "train[:50%]"}],
          "eval_dataset_name": "a,b", "dataset_test_split": "test"}, "and eval_dataset_name='a,b' and"),
    ],
    ids=["one", "a share", "two"],
)  # fmt: skip
def test_the_mixture_of_a_recipe(caplog, given, expected, line):
    assert ScriptArguments(**given) == ScriptArguments(**expected)
    (only,) = said(caplog)
    assert line in only


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset_mixer": {"a": 0.005}}, "dataset_mixer holds the share 0.005; expected a whole percentage"),
        ({"dataset_mixer": {"a": 1}, "dataset_splits": ["all"]}, "dataset_mixer is not understood: expected shares"),
        ({"dataset_mixer": {"a": 1, "b": 1}, "dataset_configs": ["c"]}, "dataset_configs holds 1, and dataset_mixer 2"),
        ({"dataset_splits": ["train"]}, "dataset_splits and dataset_configs belong to dataset_mixer, which is missing"),
    ],
    ids=["share", "splits", "configs", "alone"],
)
def test_a_mixture_that_cannot_be_taken(given, message):
    with pytest.raises(ConfigError, match=message):
        ScriptArguments(**given)


def test_the_dump_of_other_arguments_is_taken(tmp_path, caplog):
    plain = TrainingArguments(output_dir=str(tmp_path), learning_rate=3e-5, use_cpu=True, eval_strategy="steps")
    args = ORPOConfig(**plain.to_dict())
    assert (args.learning_rate, args.eval_strategy, args.eval_steps) == (3e-5, "steps", plain.eval_steps)
    assert (args.hub_token, args.logging_nan_inf_filter, args.beta) == (None, False, 0.1)
    assert [line.partition(" ")[0] for line in said(caplog)] == ["logging_nan_inf_filter"]
    older = {"fsdp": [], "fsdp_config": {"min_num_params": 0, "xla": False}, "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>"}
    assert orpo(tmp_path, **older).hub_token is None
    again = ORPOConfig(**args.to_dict())
    assert again.to_dict() == args.to_dict()
    assert len(said(caplog)) == 1


def test_a_setting_can_be_read_under_its_older_name(tmp_path):
    assert ModelConfig(dtype="auto").torch_dtype == "auto"
    assert ModelConfig().trust_remote_code is False
    args = orpo(tmp_path, eval_strategy="steps", eval_steps=1)
    assert args.evaluation_strategy == "steps"
    assert (hasattr(args, "warmup_ratio"), hasattr(args, "torch_dtype"), hasattr(args, "quickly")) == (False,) * 3
    assert copy.deepcopy(args).to_dict() == args.to_dict()


def test_the_signature_stays_that_of_the_fields():
    assert "evaluation_strategy" not in ORPOConfig.__init__.__wrapped__.__annotations__
    assert dataclasses.replace(ModelConfig(lora_r=4), lora_alpha=8) == ModelConfig(lora_r=4, lora_alpha=8)


def test_the_page_on_trl_has_the_table():
    assert markdown_table() in PAGE.read_text(encoding="utf-8"), "renew it with spellings.markdown_table()"
    assert {older.verdict for older in OLDER.values()} == set(Verdict)
