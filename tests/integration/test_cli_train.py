"""``oddsmith train`` and ``oddsmith eval`` on a tiny model: what they write and print."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from oddsmith import ORPOTrainer
from oddsmith.cli.commands.train import rehearsal
from oddsmith.cli.commands.train.assembly import base_dtype
from oddsmith.cli.parsing.resolve import build, resolve
from oddsmith.cli.parsing.schema import load_fields
from oddsmith.diagnose.readers import read_history
from oddsmith.monitor.run import Run
from oddsmith.system import precision
from oddsmith.system.run_folder import PAIRS_FILE
from tests.command import SETTINGS, run_apart, run_here, save_config, save_model, save_pairs, save_rows
from tests.tiny import ragged_pairs


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a model, pairs and a configuration: 8 pairs to train on, 4 held out, 2 pairs a step."""
    folder = tmp_path_factory.mktemp("workshop")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl")
    paths = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "pairs.jsonl")}
    logging = {"logging_steps": 2, "save_steps": 2, "num_train_epochs": 1}
    save_config(folder / "config.yaml", **paths, **SETTINGS, **logging, test_split_size=4)
    return folder


@pytest.fixture
def train(workshop, tmp_path, capsys):
    """Runs ``oddsmith train`` with the configuration into ``tmp_path/run``."""

    def run(*words: object):
        return run_here(capsys, "train", workshop / "config.yaml", "--output-dir", tmp_path / "run", *words)

    return run


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


# ---- What a run leaves and says


def test_a_run_leaves_model_settings_and_events(train, workshop, tmp_path):
    outcome = train()
    run = tmp_path / "run"
    assert outcome.code == 0
    assert outcome.out.startswith("\ndone: 4 steps in ")
    assert "done: " not in outcome.err
    assert events(run)[0] == "start"
    assert events(run)[-1] in ("end", "evaluate")
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert (settings["learning_rate"], settings["max_length"], settings["beta"]) == (1e-3, 64, 0.1)
    before, after = load_file(workshop / "model" / "model.safetensors"), load_file(run / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (run / "README.md").is_file()


def test_without_a_terminal_a_run_is_reported_in_plain_lines(train, tmp_path):
    outcome = train()
    lines = outcome.err.splitlines()
    text = outcome.err + outcome.out  # what a run ends with is worth keeping
    assert "\x1b" not in text
    assert re.search(r"model +\S+: 13\.14 k parameters, 13\.14 k trainable \(100%\)", text)
    assert "train: 8 rows (standard), 8 kept" in text
    assert "eval: 4 rows (standard), 4 kept" in text
    assert re.search(r"longest sequence: \d+ tokens of 64 allowed", text)
    assert "4 steps in 1 epoch of 2 pairs each" in text
    assert "= batch size 2 x accumulation 1 x processes 1" in text
    assert re.search(r"^  learning +rate 0.001, linear, no warm-up; beta 0.1$", text, re.MULTILINE)
    assert re.search(r"^  evaluation +after the last step on 4 pairs$", text, re.MULTILINE)
    assert re.search(r"^  saving +every 2 steps; all are kept$", text, re.MULTILINE)
    assert re.search(r"^  time limit none; --time-limit 3h50m would stop", text, re.MULTILINE)
    assert re.search(r"^  batches +packed without padding", text, re.MULTILINE)
    assert re.search(r"^ +a step is computed in parts of at most [\d,]+ tokens", text, re.MULTILINE)
    assert "spread" not in text
    assert "float32: set by hand" in text
    logged = [line for line in lines if line.startswith("step 2/4  50%  loss ")]
    assert len(logged) == 1
    for name in ("nll ", "or ", "accuracy ", "margin ", "tokens/s", " left"):
        assert name in logged[0]
    assert any(line.startswith("step 4  eval  loss ") for line in lines)
    assert re.search(r"done: 4 steps in \d+:\d\d, \d\.\d\d GiB of resident memory at most", text)
    assert "training, at step 4: loss " in text
    assert "best evaluation, at step 4: loss " in text
    assert f"model in {tmp_path}/run: model.safetensors" in text
    assert "kept: the weights of step 4: the last\n" in text
    assert f"next: oddsmith eval {tmp_path}/run" in text
    assert f"next: oddsmith diagnose {tmp_path}/run" in text
    assert f"next: oddsmith monitor {tmp_path}/run" in text


def test_json_is_alone_on_stdout(workshop, tmp_path):
    words = ("--output-dir", tmp_path / "run", "--json", "--use-peft", "--lora-r", "2")
    outcome = run_apart("train", workshop / "config.yaml", *words)
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert (document["command"], document["steps"], document["files"]) == ("train", 4, ["adapter_model.safetensors"])
    assert document["metrics"]["step"] == 4
    assert {"loss", "nll_loss", "or_loss", "rewards/accuracies"} <= set(document["metrics"])
    assert document["best_evaluation"]["eval_loss"] <= document["evaluation"]["eval_loss"]
    assert document["data"]["train"]["kept"] == 8
    assert document["peak_memory_bytes"] > 10**8
    assert "LoRA of rank 2" in outcome.err
    assert "warn" not in outcome.err.lower()
    assert "gemm_4bit" not in outcome.err


def test_the_same_seed_gives_the_same_model_through_run_yaml(train, tmp_path, capsys):
    train("--beta", "0.3", "--num-train-epochs", "2")
    again = run_here(capsys, "train", tmp_path / "run" / "run.yaml", "--output-dir", tmp_path / "again")
    assert again.code == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "beta: 0.3" in (tmp_path / "again" / "run.yaml").read_text()


def test_the_figures_behind_the_batches_are_told_on_request(train):
    assert "packed and padded batches agree to" in train("--verbose", "--max-steps", "1").err


def test_a_rate_that_is_too_low_for_an_adapter_is_told_before_the_first_step(train):
    low = "warning: learning_rate 1e-06, the default of TRL, hardly changes an adapter; usual with LoRA"
    run = train("--use-peft", "--learning-rate", "1e-6").err
    assert run.index(low) < run.index("step 2/4")
    assert low in train("--use-peft", "--learning-rate", "1e-6", "--dry-run", "--output-dir", "elsewhere").err
    for words in (["--use-peft", "--learning-rate", "2e-4"], ["--learning-rate", "1e-6"]):
        assert "hardly changes" not in train("--overwrite-output-dir", "--max-steps", "1", *words).err


def test_the_end_says_which_checkpoint_was_kept_and_why(train, tmp_path):
    """With this metric every evaluation is the best: the one with the lowest loss is kept, which is not the first."""
    words = ("--eval-strategy", "steps", "--eval-steps", "1", "--save-steps", "1", "--load-best-model-at-end")
    same = ("--metric-for-best-model", "rewards/accuracies", "--greater-is-better", "--learning-rate", "1e-4")
    outcome = train(*words, *same, "--json")
    document = json.loads(outcome.out)
    history = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    found = {event["step"]: event for event in history if event["event"] == "evaluate"}
    best = max(event["eval_rewards/accuracies"] for event in found.values())
    equal = {step: event["eval_loss"] for step, event in found.items() if event["eval_rewards/accuracies"] == best}
    assert len(equal) > 1
    assert document["kept"]["step"] == min(equal, key=equal.__getitem__)
    assert f"kept: the weights of step {document['kept']['step']}: best rewards/accuracies of" in outcome.err
    assert "of equal ones the one with the lower loss" in outcome.err
    kept = load_file(tmp_path / "run" / f"checkpoint-{document['kept']['step']}" / "model.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(kept[name], final[name]) for name in kept)


def test_a_byte_order_mark_and_windows_line_ends_are_fine(train, workshop, tmp_path):
    pairs = (workshop / "pairs.jsonl").read_bytes()
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + pairs.replace(b"\n", b"\r\n"))
    document = json.loads(train("--json", "--dataset-name", tmp_path / "windows.jsonl", "--max-steps", "1").out)
    assert (document["steps"], document["data"]["train"]["kept"]) == (1, 8)


# ---- Folders and checkpoints


def test_a_second_run_in_the_same_folder_is_refused_resumed_or_replaces_the_first(train, tmp_path):
    run = tmp_path / "run"
    assert train().code == 0
    refused = train()
    assert (refused.code, "already holds a run" in refused.err) == (2, True)
    longer = ("--resume", "--num-train-epochs", "2")
    changed = train(*longer, "--learning-rate", "3e-2")
    assert (changed.code, "learning_rate: 0.001 -> 0.03." in changed.err) == (2, True), changed.err
    resumed = train(*longer)
    assert resumed.code == 0
    assert "8 steps now instead of 4; its learning rate follows linear over 8 steps" in resumed.err
    assert (run / "model.safetensors").read_bytes() == (run / "checkpoint-8" / "model.safetensors").read_bytes()
    assert "num_train_epochs: 2 " in (run / "run.yaml").read_text()
    assert "| steps | 8 |" in (run / "README.md").read_text()
    page = Run(run)
    page.refresh()
    assert (page.summary()["state"], page.summary()["step"], page.summary()["max_steps"]) == ("finished", 8, 8)
    assert read_history(run).training["loss"].steps.tolist() == [2, 4, 6, 8]
    assert f"going on from {run}/checkpoint-4" in resumed.err
    assert "step 4/8" not in resumed.err
    assert "step 6/8" in resumed.err
    assert events(run).count("start") == 2
    assert train("--overwrite-output-dir").code == 0
    assert events(run).count("start") == 1
    assert not (run / "checkpoint-8").exists()


def test_resuming_gives_what_an_unbroken_run_gives(train, workshop, tmp_path, capsys):
    assert train().code == 0
    words = ["--output-dir", tmp_path / "other", "--resume", tmp_path / "run" / "checkpoint-2"]
    assert run_here(capsys, "train", workshop / "config.yaml", *words).code == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "other"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_resume_without_a_checkpoint_starts_from_the_beginning(train, tmp_path):
    outcome = train("--resume")
    assert outcome.code == 0
    assert f"no checkpoint in {tmp_path}/run yet: starting from the beginning" in outcome.err


def test_a_checkpoint_of_another_kind_is_refused(train):
    assert train("--use-peft").code == 0
    assert "is a checkpoint of an adapter; add use_peft" in train("--resume").err


def test_training_an_adapter_further_can_be_gone_on_with(train, tmp_path):
    assert train("--use-peft", "--max-steps", "1").code == 0
    further = ("--model-name-or-path", tmp_path / "run", "--output-dir", tmp_path / "further", "--save-steps", "2")
    assert train(*further).code == 0
    resumed = train(*further, "--resume", tmp_path / "further" / "checkpoint-2")
    assert (resumed.code, "step 4/4" in resumed.err) == (0, True), resumed.err


# ---- Dry run


def test_a_dry_run_shows_origins_and_leaves_nothing(train, workshop, tmp_path):
    outcome = train("--dry-run", "--beta=0.2")
    assert outcome.code == 0
    lines = {line.split(":")[0]: line for line in outcome.out.splitlines() if "  # " in line}
    assert re.fullmatch(r"beta: 0\.2 +# --beta", lines["beta"])
    assert lines["max_length"].endswith(f"# {workshop}/config.yaml:5")
    assert "lora_r" not in lines
    assert "train: 8 rows (standard), 8 kept\n" in outcome.out
    assert "eval: 4 rows (standard), 4 kept\n" in outcome.out
    assert "  plain text, without the chat template; with it: chat_template_on_text: true\n" in outcome.out
    assert re.search(r"\nrow 0, what is learned in \[brackets\]\n  prompt\n    <\|im_start\|>\w", outcome.out)
    assert re.search(r"\n  chosen\n    \[.*<\|im_end\|>\]\n", outcome.out)
    assert "\nsteps: 4, 2 pairs each\n" in outcome.out
    assert re.search(r"disk: a checkpoint takes about \d+ kB; .* of them fit beside the final model", outcome.out)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_takes_a_sample_and_all_rows_on_request(train, workshop, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "SAMPLE_ROWS", 5)
    rows = [*ragged_pairs(11), {"prompt": "a", "chosen": "b", "rejected": "b"}, *ragged_pairs(2)]
    rows.insert(7, {"prompt": "a", "chosen": None, "rejected": "b"})
    words = ("--dry-run", "--dataset-name", save_rows(tmp_path / "rows.jsonl", rows), "--test-split-size", "null")
    outcome = train(*words)
    assert (outcome.code, outcome.err.count("error")) == (2, 1)  # a sample of 5 of 15 rows: 0, 4, 7, 10, 14
    assert "train: 5 rows (standard), 4 kept, 1 dropped (a sample of 15 rows; --full takes all)" in outcome.out
    assert "train, row 7: null value: chosen is null" in outcome.err
    outcome = train(*words, "--bad-rows", "drop")
    assert "  dropped 1: null value (row 7)\n" in outcome.out
    assert "\nsteps: 8 if no row is dropped, 2 pairs each" in outcome.out
    outcome = train(*words, "--bad-rows", "drop", "--full")
    assert "train: 15 rows (standard), 13 kept, 2 dropped\n" in outcome.out
    assert "  dropped 1: identical answers (row 12)\n" in outcome.out
    assert "\nsteps: 7, 2 pairs each" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    (
        (("--per-device-train-batch-size", "9", "--dataloader-drop-last"), "8 pairs are fewer than one step of 9"),
        (("--output-dir", "{workshop}"), "is not empty and holds no run"),
    ),
)
def test_a_dry_run_refuses_what_the_run_would(train, workshop, words, message):
    words = [word.format(workshop=workshop) for word in words]
    dry, wet = train(*words, "--dry-run"), train(*words)
    assert (dry.code, dry.err.splitlines()[-1]) == (wet.code, wet.err.splitlines()[-1])
    assert message in dry.err


def test_a_dry_run_reads_the_beginning_of_a_stream(train, monkeypatch):
    monkeypatch.setattr(rehearsal, "SAMPLE_ROWS", 5)
    outcome = train("--dry-run", "--dataset-streaming", "--max-steps", "3")
    assert "train: 5 rows (standard), 5 kept (the first rows of a stream)" in outcome.out
    assert "\nsteps: 3, 2 pairs each" in outcome.out


def test_a_mixture_says_what_each_dataset_gives(workshop, tmp_path, capsys):
    parts = [{"path": str(workshop / "pairs.jsonl"), "weight": weight} for weight in (1, 3)]
    names = {"model_name_or_path": str(workshop / "model"), "output_dir": str(tmp_path / "run")}
    config = save_config(tmp_path / "mixture.yaml", **SETTINGS, **names, datasets=parts, max_steps=1)
    for text in (run_here(capsys, "train", config, "--dry-run").out, run_here(capsys, "train", config).err):
        assert "mixture of 2 datasets: 16 of 24 rows, as many as the weights allow" in text
        assert "pairs.jsonl: 4 of 12 rows taken, 8 left out, weight 1" in text
        assert "pairs.jsonl: 12 of 12 rows taken, 0 left out, weight 3" in text


def test_a_dry_run_as_json(train):
    document = json.loads(train("--dry-run", "--json", "--hub-token", "hf_secret", "--num-processes", "2").out)
    assert document["settings"]["learning_rate"]["value"] == 1e-3
    assert document["settings"]["hub_token"] == {"value": None, "origin": "--hub-token"}
    assert (document["rows"], document["pairs_per_step"], document["steps"]) == (8, 4, 2)
    assert (document["data"]["train"]["kept"], document["data"]["eval"]["kept"]) == (8, 4)
    assert document["example"]["chosen"][0]["text"].endswith("<|im_end|>")
    assert document["checkpoint_bytes"] > 100_000
    assert document["checkpoints_that_fit"] > 0


# ---- eval


def test_eval_of_a_run_measures_what_the_run_held_out(train, tmp_path, capsys):
    trained = json.loads(train("--json", "--beta", "0.5", "--use-peft").out)["evaluation"]
    outcome = run_here(capsys, "eval", tmp_path / "run", "--use-cpu", "--no-bf16", "--json")
    document = json.loads(outcome.out)
    assert document["data"]["eval"]["kept"] == 4
    for name in ("loss", "nll_loss", "or_loss", "rewards/accuracies", "rewards/margins", "perplexity/chosen"):
        assert document["metrics"][f"eval_{name}"] == pytest.approx(trained[f"eval_{name}"], rel=1e-5), name


def test_eval_prints_a_table(workshop, capsys):
    words = ("--dataset-name", workshop / "pairs.jsonl", "--max-length", "64", "--use-cpu", "--no-bf16")
    outcome = run_here(capsys, "eval", workshop / "model", *words)
    assert outcome.code == 0
    rows = dict(line.split() for line in outcome.out.splitlines())
    assert list(rows) == ["pairs", "loss", "nll_loss", "or_loss", "accuracy", "margin", "perplexity"]
    assert rows["pairs"] == "12"
    assert float(rows["loss"]) == pytest.approx(float(rows["nll_loss"]) + 0.1 * float(rows["or_loss"]), abs=2e-4)


# ---- Several processes


def test_two_processes_train_one_model_and_one_of_them_prints(workshop, tmp_path, capsys):
    words = [workshop / "config.yaml", "--use-peft", "--lora-dropout", "0"]
    two_of_one = ["--per-device-train-batch-size", "1", "--num-processes", "2"]
    together = run_apart("train", *words, *two_of_one, "--no-use-cpu", "--output-dir", tmp_path / "two", "--json")
    alone = run_here(capsys, "train", *words, "--output-dir", tmp_path / "one", "--json")
    assert (together.code, alone.code) == (0, 0)
    two, one = json.loads(together.out), json.loads(alone.out)
    assert "batch size 1 x accumulation 1 x processes 2" in together.err
    assert together.err.count("Oddsmith") == 1
    assert two["steps"] == one["steps"] == 4
    assert two["evaluation"]["eval_loss"] == pytest.approx(one["evaluation"]["eval_loss"], rel=1e-5)
    shown = [json.loads((tmp_path / name / PAIRS_FILE).read_text())["sets"]["eval"] for name in ("two", "one")]
    assert [found["compared_with"] for found in shown] == [0, 0]  # with the base: both processes take the adapter off
    two_worst, one_worst = (found["inspected"]["worst"] for found in shown)
    for pair, same in zip(two_worst, one_worst, strict=True):
        assert pair["row"] == same["row"]
        assert pair["chosen"]["change"] == pytest.approx(same["chosen"]["change"], abs=2e-3)


# ---- Weights and memory


def test_too_little_memory_says_what_to_lower(train, monkeypatch):
    def out_of_memory(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ORPOTrainer, "train", out_of_memory)
    outcome = train()
    assert outcome.code == 1
    assert outcome.err.startswith("error: the device is out of memory; lower per_device_train_batch_size")


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ([], torch.float32),
        (["--bf16"], torch.float32),
        (["--use-peft", "--bf16"], torch.bfloat16),
        (["--use-peft", "--no-bf16"], torch.float32),
        (["--use-peft", "--bf16", "--dtype", "float32"], torch.float32),
        (["--dtype", "auto"], "auto"),
        (["--torch_dtype", "bf16"], torch.bfloat16),
        (["--model_init_kwargs", '{"torch_dtype": "bf16"}'], torch.bfloat16),
        (["--dtype", "float16", "--model_init_kwargs", '{"dtype": "torch.float32"}'], torch.float32),
    ],
)
def test_the_type_of_the_weights(words, dtype, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_bf16_unit", lambda: "AVX512-BF16")
    assert base_dtype(build(resolve(["--use-cpu", *words], load_fields()))) == dtype
