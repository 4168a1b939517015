"""Every field of the settings works, by a test that is named here, or is told or refused in one line."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from oddsmith import ORPOConfig
from oddsmith.cli.parsing.resolve import build, resolve
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.config.inherited import FIELDS, WITHOUT_USE, Verdict, markdown_table
from oddsmith.errors import ConfigError

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "from-trl.md"

REFUSED = {
    "label_smoothing_factor": (0.1, "label_smoothing_factor is 0.1; the loss of ORPO has no label smoothing"),
    "enable_jit_checkpoint": (True, "enable_jit_checkpoint is on; it saves in the middle of a step; leave it out"),
    "dataloader_in_order": (False, "dataloader_in_order is off; the micro-batches of a step have to come in their"),
}
TOLD = {
    "logging_nan_inf_filter": (True, "logging_nan_inf_filter is on; it has no effect: a step with a NaN is skipped"),
    "train_sampling_strategy": (
        "batch_rebalance",
        "is 'batch_rebalance'; random, sequential and group_by_length work (the last not on a stream); others",
    ),
    "logging_dir": ("logs", "logging_dir is 'logs'; it counts for TensorBoard alone; newer transformers read"),
    "average_tokens_across_devices": (False, "average_tokens_across_devices is off; it has no effect: a step has"),
    "use_liger_kernel": (True, "use_liger_kernel is on; it has no effect: layers and head save that memory here"),
    "liger_kernel_config": ({"rope": True}, "liger_kernel_config is {'rope': True}; it has no effect"),
    "length_column_name": ("tokens", "length_column_name is 'tokens'; it has no effect: lengths are those of the"),
    "label_names": (["labels"], "label_names is ['labels']; it has no effect: labels are those of the pairs"),
    "fsdp": (True, "fsdp is on; sharding is left to transformers and accelerate"),
    "fsdp_config": ({"min_num_params": 8}, "fsdp_config is {'min_num_params': 8"),
    "accelerator_config": ({"split_batches": True}, "accelerator_config holds split_batches: only gradient_acc"),
    "do_eval": (True, "do_eval is on; it has no effect on the trainer; eval_strategy says when to evaluate"),
    "do_predict": (True, "do_predict is on; it has no effect on the trainer; call predict"),
    "local_rank": (0, "local_rank is 0; it has no effect; the launcher's variable LOCAL_RANK counts"),
}
IS_A_PACKAGE = {"deepspeed"}  # told too, but transformers needs the package to read it
IN_NEWER_VERSIONS = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # than the oldest that is supported

# Test file -> the fields that it tries.
TRIED = {
    "tests/integration/test_inherited_settings.py": "activation_checkpointing activation_checkpointing_kwargs"
    " adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size bf16_full_eval data_seed"
    " dataloader_multiprocessing_context dataloader_persistent_workers dataloader_pin_memory"
    " dataloader_prefetch_factor ddp_broadcast_buffers"
    " ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug disable_tqdm do_train"
    " eval_accumulation_steps eval_delay eval_use_gather_object fp16_full_eval full_determinism ignore_data_skip"
    " is_encoder_decoder log_level log_level_replica log_on_each_node logging_first_step logging_steps"
    " lr_scheduler_kwargs lr_scheduler_type max_completion_length project remove_unused_columns report_to"
    " resume_from_checkpoint run_name save_on_each_node skip_memory_metrics tf32"
    " torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id use_cache warmup_steps"
    " weight_decay",
    "tests/equivalence/test_trainer_vs_trl.py": "beta gradient_checkpointing learning_rate max_steps"
    " output_dir per_device_eval_batch_size per_device_train_batch_size seed",
    "tests/equivalence/test_step_invariance.py": "gradient_accumulation_steps max_tokens_per_microbatch"
    " num_train_epochs prefix_forest",
    "tests/integration/test_extension_points.py": "batch_eval_metrics eval_do_concat_batches eval_steps eval_strategy"
    " include_for_metrics include_num_input_tokens_seen load_best_model_at_end metric_for_best_model"
    " prediction_loss_only",
    "tests/integration/test_paths.py": "dataloader_num_workers disable_dropout gradient_checkpointing_kwargs"
    " max_skipped_steps neftune_noise_alpha",
    "tests/unit/config/test_inherited.py": "torch_compile torch_compile_backend torch_compile_mode",
    "tests/integration/test_numbers.py": "ddp_backend fp16 loss_spikes max_grad_norm optim_args",
    "tests/integration/test_async_save.py": "async_save",
    "tests/integration/test_resume.py": "early_stopping_patience early_stopping_threshold"
    " restore_callback_states_from_checkpoint save_only_model save_steps"
    " save_strategy save_total_limit",
    "tests/integration/test_stopping.py": "eval_on_start greater_is_better logging_strategy",
    "tests/integration/test_trainer.py": "dataloader_drop_last generate_during_eval nll_on",
    "tests/integration/test_push.py": "hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy"
    " hub_token push_to_hub",
    "tests/integration/test_drop_in.py": "padding_value",
    "tests/integration/test_loading_is_not_executing.py": "trust_remote_code",
    "tests/unit/config/test_config.py": "bf16 max_length orpo_alpha orpo_beta use_cpu",
    "tests/unit/config/test_optimizers.py": "optim optim_target_modules",
    "tests/integration/test_base_model.py": "chat_template",
    "tests/unit/data/test_processes.py": "dataset_num_proc",
    "tests/unit/data/test_prepare.py": "bad_rows chat_template_on_text min_score_margin",
    "tests/unit/data/tokens/test_system_prompt.py": "system_prompt",
    "tests/unit/data/tokens/test_tokenized.py": "max_prompt_length",
    "tests/unit/model/test_setup.py": "model_init_kwargs",
    "tests/unit/config/test_parallelism.py": "parallelism_config",
}


def test_each_field_of_the_installed_transformers_has_a_verdict():
    fields = {field.name for field in dataclasses.fields(ORPOConfig)}
    assert not fields - set(FIELDS), "add it to config/inherited.py: works, told or refused"
    assert not set(FIELDS) - fields - IN_NEWER_VERSIONS


def test_what_works_is_tried_by_a_test():
    tried = {name: file for file, names in TRIED.items() for name in names.split()}
    assert set(tried) == {name for name, fields in FIELDS.items() if fields.verdict is Verdict.WORKS}
    for file, names in TRIED.items():
        text = (ROOT / file).read_text(encoding="utf-8").replace("-", "_")
        assert [name for name in names.split() if not re.search(rf"\b_*{name}\b", text)] == [], file


def test_what_does_not_work_is_tried_here():
    rest = {name: fields.verdict for name, fields in FIELDS.items() if fields.verdict is not Verdict.WORKS}
    assert {name for name, verdict in rest.items() if verdict is Verdict.REFUSED} == set(REFUSED)
    assert {name for name, verdict in rest.items() if verdict is Verdict.TOLD} == set(TOLD) | IS_A_PACKAGE


def config(folder: Path, **settings) -> ORPOConfig:
    return ORPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, **settings)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(tmp_path, name):
    value, line = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(line)):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize("name", TOLD)
def test_it_is_told_once(tmp_path, caplog, name):
    value, line = TOLD[name]
    args = config(tmp_path, **{name: value})
    (record,) = [record.getMessage() for record in caplog.records]
    assert line in record
    assert not args.use_liger_kernel


COMPILED = [{"torch_compile": True}, {"torch_compile_backend": "eager"}, {"torch_compile_mode": "default"}]


@pytest.mark.parametrize("settings", COMPILED, ids=str)
@pytest.mark.parametrize("given", ["script", "flag", "YAML"])
def test_packed_rows_are_not_compiled_and_a_line_says_so(tmp_path, caplog, settings, given):
    ((name, value),) = settings.items()
    if given == "script":
        args = config(tmp_path, **settings)
    else:
        file = tmp_path / "run.yaml"
        file.write_text(f"{name}: {json.dumps(value)}" if given == "YAML" else "seed: 1", encoding="utf-8")
        flag = [f"--{name.replace('_', '-')}", *([] if value is True else [value])] if given == "flag" else []
        words = ["--config", file, "--output-dir", tmp_path / "run", "--use-cpu", "--no-bf16", *flag]
        args = build(resolve([str(word) for word in words], load_fields())).orpo
    assert (args.torch_compile, args.torch_compile_backend, args.torch_compile_mode) == (False, None, None)
    (record,) = [record.getMessage() for record in caplog.records]
    assert record.startswith("torch_compile is on; it has no effect on packed rows")
    assert "set prefix_forest to false" in record


def test_nor_where_accelerate_was_told_to(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    config(tmp_path)
    assert "ACCELERATE_DYNAMO_BACKEND" not in os.environ
    (record,) = [record.getMessage() for record in caplog.records]
    assert record.startswith("torch_compile is on; it has no effect on packed rows")


def test_padded_batches_are_compiled(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # transformers sets it, and later tests would find it
    args = config(tmp_path, prefix_forest=False, torch_compile_mode="default")
    assert (args.torch_compile, args.torch_compile_backend) == (True, "inductor")
    assert not [record for record in caplog.records if "prefix_forest" in record.getMessage()]


def test_what_works_is_silent(tmp_path, caplog):
    config(tmp_path, eval_strategy="steps", eval_steps=1, train_sampling_strategy="sequential")
    config(tmp_path, accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}})
    assert caplog.records == []


def test_the_page_on_trl_has_the_table():
    assert markdown_table() in PAGE.read_text(encoding="utf-8"), "renew it with inherited.markdown_table()"


def test_the_help_lists_what_is_of_use():
    listed = {name for name, field in load_fields().items() if field.listed}
    assert set(load_fields()) - listed == WITHOUT_USE
    assert not listed & {"label_smoothing_factor", "do_predict", "local_rank", "enable_jit_checkpoint", "label_names"}


def test_a_field_for_scripts_is_refused_by_the_command():
    resolved = resolve(["--output-dir", "run", "--batch-eval-metrics"], load_fields())
    with pytest.raises(ConfigError, match="--batch-eval-metrics: batch_eval_metrics is for scripts in Python"):
        build(resolved)
