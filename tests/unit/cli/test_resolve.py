"""Command line and YAML to settings: precedence, origins, types, and messages for what does not fit."""

from __future__ import annotations

import pytest

from oddsmith.cli.parsing.resolve import Option, Resolved, resolve
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.errors import ConfigError

FIELDS = load_fields()
OPTIONS = (Option("dry_run", "switch", ""), Option("resume", "optional", ""), Option("num_processes", "value", ""))


def resolved(*words: str, **more) -> Resolved:
    return resolve(words, FIELDS, OPTIONS, **more)


def values(*words: str) -> dict:
    return {name: setting.value for name, setting in resolved(*words).settings.items()}


def error(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(*words)
    return str(caught.value)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes ``config.yaml`` into the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return "config.yaml"

    return write


def test_flag_beats_file_beats_default(config):
    found = resolved(config("beta: 0.2\nmax_length: 512\n"), "--beta", "0.3")
    assert (found.get("beta"), found.settings["beta"].where) == (0.3, "--beta")
    assert (found.get("max_length"), found.settings["max_length"].where) == (512, "config.yaml:2")
    assert found.get("lora_r") == 16
    assert "lora_r" not in found.settings


def test_flags_may_stand_before_the_file_and_the_file_behind_config(config):
    name = config("beta: 0.2\n")
    for words in (["--use-peft", name], ["--lora-target-modules", "q", "v", name], ["--config", name]):
        assert values(*words)["beta"] == 0.2


@pytest.mark.parametrize("flag", ["--max-length", "--max_length", "--max-length=64", "--max_length=64"])
def test_dashes_or_underscores_and_an_equals_sign(flag):
    words = [flag] if "=" in flag else [flag, "64"]
    assert values(*words) == {"max_length": 64}
    assert resolved(*words).settings["max_length"].where == flag.partition("=")[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bf16"], True),
        (["--bf16", "true"], True),
        (["--bf16", "False"], False),
        (["--bf16=0"], False),
        (["--bf16", "none"], None),
        (["--no-bf16"], False),
        (["--no_bf16"], False),
        (["--bf16", "--use-cpu"], True),
    ],
)
def test_switches(words, expected):
    assert values(*words)["bf16"] is expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lora_target_modules", "q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", "q_proj,v_proj"], ["q_proj", "v_proj"]),
        (["--lora_target_modules=q_proj,v_proj"], ["q_proj", "v_proj"]),
        (["--lora_target_modules", '["q_proj"]'], ["q_proj"]),
        (["--lora_target_modules", "all-linear"], ["all-linear"]),
        (["--lora_target_modules", r".*\.[qv]_proj{1,2}"], [r".*\.[qv]_proj{1,2}"]),
        (["--report_to", "wandb"], "wandb"),
        (["--report_to", "wandb", "tensorboard"], ["wandb", "tensorboard"]),
        (["--lr_scheduler_kwargs", '{"min_lr": 1e-7}'], {"min_lr": 1e-7}),
        (["--deepspeed", "zero3.json"], "zero3.json"),
        (["--fsdp"], True),
        (["--fsdp", "full_shard auto_wrap"], "full_shard auto_wrap"),
        (["--max_steps", "-1"], -1),
        (["--learning_rate", "8e-6"], 8e-6),
        (["--num_train_epochs", "2"], 2),
        (["--max_length", "none"], None),
        (["--eval_strategy", "no"], "no"),
        (["--datasets", '[{"path": "a.jsonl", "weight": 2}]'], [{"path": "a.jsonl", "weight": 2}]),
        (["--torch_dtype", "bfloat16"], "bfloat16"),
        (["--dtype", "bf16"], "bfloat16"),
        (["--torch-dtype=torch.float32"], "float32"),
    ],
)
def test_values_of_every_kind(words, expected):
    (found,) = values(*words).values()
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate: 1e-5", 1e-5),
        ("num_train_epochs: 2", 2),
        ("eval_strategy: no", "no"),
        ("bf16: yes", True),
        ("bf16: null", None),
        ("lora_target_modules: all-linear", ["all-linear"]),
        ("lora_target_modules:\n  - q_proj\n  - v_proj", ["q_proj", "v_proj"]),
        ("datasets:\n  - path: a.jsonl\n    weight: 2", [{"path": "a.jsonl", "weight": 2}]),
        ("torch_dtype: bfloat16", "bfloat16"),
        ("dtype: fp16", "float16"),
    ],
)
def test_values_in_yaml(config, line, expected):
    (found,) = values(config(line)).values()
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bta", "1"], "unknown flag --bta; did you mean --beta?"),
        (["--lr", "1"], "unknown flag --lr; did you mean --learning-rate?"),
        (
            ["--bta", "1", "2", "--beta=2", "--quickly=1", "--lr", "1e-5"],
            "unknown flags --bta (did you mean --beta?), --quickly, --lr (did you mean --learning-rate?);"
            " `oddsmith train --help-all` lists all settings",
        ),
        (["--truncation-mode", "keep_start"], "--truncation-mode is 'keep_start'; a prompt that is too long is cut"),
        (
            ["--no-cuda", "--no-use-cpu"],
            "--no-cuda and --no-use-cpu are one setting, with two values; remove --no-cuda",
        ),
        (["--dryrun"], "unknown flag --dryrun; did you mean --dry-run?"),
        (["--zzz"], "unknown flag --zzz; `oddsmith train --help-all` lists all settings"),
        (["--no-beta"], "--no-beta: beta is no switch; expected --beta VALUE"),
        (["-o", "x"], "unknown flag -o; every flag begins with two dashes"),
        (["--beta"], "--beta has no value; expected one after it, as in --beta VALUE"),
        (["--beta", "--bf16"], "--beta has no value; expected one after it, as in --beta VALUE"),
        (["--beta", "big"], "--beta is 'big'; expected a number"),
        (["--beta", "nan"], "--beta is 'nan'; expected a number"),
        (["--max-steps", "1.5"], "--max-steps is '1.5'; expected a whole number"),
        (["--seed", "9" * 30], f"--seed is '{'9' * 30}'; expected a whole number"),
        (["--beta", "9" * 400], f"--beta is '{'9' * 400}'; expected a number"),
        (["--lr-scheduler-kwargs", "[" * 300], f"--lr-scheduler-kwargs is '{'[' * 300}'; expected a mapping as JSON"),
        (["--bf16=maybe"], "--bf16 is 'maybe'; expected true or false"),
        (["--nll_on", "all"], "--nll_on is 'all'; expected 'sequence' or 'response'"),
        (["--lr-scheduler-kwargs", "min_lr=1"], "--lr-scheduler-kwargs is 'min_lr=1'; expected a mapping as JSON"),
        (["--dry-run=1"], "--dry-run takes no value; found '1'"),
        (["--num-processes"], "--num-processes has no value; expected one after it, as in --num-processes VALUE"),
        (["a.yaml", "b.yaml"], "found a.yaml and b.yaml; expected one configuration file, and flags after it"),
    ],
)
def test_what_a_flag_cannot_be(words, message):
    assert error(*words).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: big", "config.yaml:1: beta is the text 'big'; expected a number"),
        ("seed: 1\nbeta: [1]", "config.yaml:2: beta is the list [1]; expected a number"),
        ("beta: true", "config.yaml:1: beta is true; expected a number"),
        ("learning_rate: .nan", "config.yaml:1: learning_rate is nan; expected a number"),
        ("max_steps: 1.5", "config.yaml:1: max_steps is 1.5; expected a whole number"),
        ("max_steps: '10'", "config.yaml:1: max_steps is the text '10'; expected a whole number"),
        ("seed: null", "config.yaml:1: seed is empty (null); expected a whole number"),
        ("run_name: 5", "config.yaml:1: run_name is 5; expected a text"),
        ("bf16: 1", "config.yaml:1: bf16 is 1; expected true or false"),
        ("nll_on: all", "config.yaml:1: nll_on is the text 'all'; expected 'sequence' or 'response'"),
        ("lora_target_modules: [1]", "config.yaml:1: lora_target_modules is the list [1]; expected a list of texts"),
        ("datasets: a.jsonl", "config.yaml:1: datasets is the text 'a.jsonl'; expected a list of mappings"),
        ("learnin_rate: 1e-5", "config.yaml:1: unknown setting learnin_rate; did you mean learning_rate?"),
        ("sample_packing: true", "config.yaml:1: unknown setting sample_packing; `oddsmith train --help-all` lists"),
        ("resume: auto", "config.yaml:1: resume is a flag of the command, no setting; give --resume"),
        (
            "dtype: auto\ntorch_dtype: bf16",
            "config.yaml:2: torch_dtype and dtype are one setting, with two values; remove torch_dtype",
        ),
        (
            "bta: 1\nseed: 1\nquickly: 1",
            "unknown settings config.yaml:1: bta (did you mean beta?), config.yaml:3: quickly;"
            " `oddsmith train --help-all` lists all settings",
        ),
        ("warmup_ratio: 10", "config.yaml:1: warmup_ratio is 10; expected a share of all steps, 0 to 1"),
    ],
)
def test_what_a_line_cannot_be(config, text, message):
    assert error(config(text)).startswith(message)


@pytest.mark.parametrize(
    ("words", "expected", "line"),
    [
        (["--evaluation_strategy", "steps"], {"eval_strategy": "steps"}, "write --eval-strategy steps"),
        (["--evaluation-strategy=no"], {"eval_strategy": "no"}, "--evaluation-strategy is an older name: write"),
        (["--warmup_ratio", "0.1"], {"warmup_steps": 0.1}, "write --warmup-steps 0.1 (below 1 it is a share"),
        (["--no_cuda"], {"use_cpu": True}, "--no_cuda is an older name: write --use-cpu"),
        (["--no-cuda", "--beta", "1"], {"use_cpu": True, "beta": 1.0}, "write --use-cpu"),
        (["--torch_dtype", "bf16"], {"dtype": "bfloat16"}, "--torch_dtype is an older name: write --dtype bfloat16"),
        (["--use_flash_attention_2"], {"attn_implementation": "flash_attention_2"}, "write --attn-implementation"),
        (["--fsdp_min_num_params", "9"], {"fsdp_config": {"min_num_params": 9}}, 'write --fsdp-config {"min_num_p'),
        (
            ["--group_by_length", "true"],
            {"train_sampling_strategy": "group_by_length"},
            "--group_by_length is an older name: write --train-sampling-strategy group_by_length",
        ),
        (["--sortish_sampler", "true"], {}, "--sortish_sampler has no effect: micro-batches have about equal"),
        (["--half_precision_backend", "apex"], {}, "--half_precision_backend has no effect: fp16 and bf16 use"),
        (["--save_safetensors", "false"], {}, "--save_safetensors has no effect: weights are always saved as"),
        (["--no-save-safetensors"], {}, "--no-save-safetensors has no effect: weights are always saved as"),
        (["--warmup_ratio", "0.1", "--warmup_steps", "9"], {"warmup_steps": 9}, "has no effect beside --warmup_steps"),
        (["--push_to_hub_token", "hf_secret"], {"hub_token": "hf_secret"}, "older name: write --hub-token"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_older_name_is_taken_with_one_line(words, expected, line):
    found = resolved(*words)
    assert {name: setting.value for name, setting in found.settings.items()} == expected
    (said,) = found.lines
    assert line in said
    assert "hf_secret" not in said


def test_an_older_name_in_a_file_has_its_line_and_yields_to_a_flag(config):
    text = "evaluation_strategy: steps\nlogging_steps: 1\nno_cuda: false\nsortish_sampler: true\n"
    found = resolved(config(text), "--eval-strategy", "epoch")
    assert {name: setting.value for name, setting in found.settings.items()} == {
        "eval_strategy": "epoch", "logging_steps": 1.0
    }  # fmt: skip
    assert found.lines == [
        "config.yaml:1: evaluation_strategy is an older name: write eval_strategy: steps",
        "config.yaml:4: sortish_sampler has no effect: micro-batches have about equal numbers of tokens in any case",
    ]


def test_options_are_kept_apart_and_resume_takes_no_config_for_its_value(config):
    name = config("beta: 0.2\n")
    assert resolved("--resume", name).options == {"resume": ""}
    assert resolved("--resume", "--dry_run").options == {"resume": "", "dry_run": ""}
    assert resolved(name, "--resume", "run/checkpoint-5").options == {"resume": "run/checkpoint-5"}
    assert resolved("--num-processes=2").options == {"num_processes": "2"}


def test_changed_is_what_differs_from_the_default(config):
    found = resolved(config("beta: 0.1\nmax_length: 64\nlora_r: 8\n"), "--no-disable-dropout")
    assert list(found.changed()) == ["max_length", "disable_dropout", "lora_r"]  # in the order of the help


def test_each_dataclass_gets_its_own():
    found = resolved("--beta", "1", "--lora-r", "4", "--dataset-name", "d")
    assert found.of("ORPOConfig") == {"beta": 1.0}
    assert found.of("ModelConfig") == {"lora_r": 4}
    assert found.of("ScriptArguments") == {"dataset_name": "d"}


def test_a_command_with_a_positional_word():
    assert resolved("runs/a", "--beta", "1", max_positional=1).positional == ["runs/a"]
    with pytest.raises(ConfigError, match=r"found 'pairs\.jsonl'; expected a flag"):
        resolved("runs/a", "pairs.jsonl", max_positional=1)


def test_a_recipe_of_the_field(config):
    text = (
        "model_name_or_path: m\ntokenizer_name_or_path: m\ntorch_dtype: bfloat16\nuse_flash_attention_2: true\n"
        "dataset_mixer:\n  a/b: 1.0\ndataset_splits:\n- train_prefs\n- test_prefs\npreprocessing_num_workers: 12\n"
        'bf16: true\nhub_model_revision: v1\nlogging_strategy: "no"\nlr_scheduler_type: inverse_sqrt\nbeta: 0.05\n'
    )
    found = resolved(config(text))
    assert {name: setting.value for name, setting in found.settings.items()} == {
        "model_name_or_path": "m", "dtype": "bfloat16", "attn_implementation": "flash_attention_2",
        "dataset_name": "a/b", "dataset_train_split": "train_prefs", "dataset_test_split": "test_prefs",
        "dataset_num_proc": 12, "bf16": True, "hub_revision": "v1", "logging_strategy": "no",
        "lr_scheduler_type": "inverse_sqrt", "beta": 0.05,
    }  # fmt: skip
    assert found.settings["dataset_name"].where == "config.yaml:5"
    assert [line.split()[1] for line in found.lines] == [
        "torch_dtype", "use_flash_attention_2", "dataset_mixer", "preprocessing_num_workers", "hub_model_revision"
    ]  # fmt: skip
    assert error(config("tokenizer_name_or_path: other\n")).startswith("config.yaml:1: tokenizer_name_or_path is 'oth")
