"""Console logs of every trainer, in the format of the sources named beside them, with made-up figures."""

# ruff: noqa: E501  log lines are as long as they are
import math
import time
from pathlib import Path

import pytest

from oddsmith.diagnose.console_log import MAX_LINE, history_of_lines, lines_of
from oddsmith.diagnose.readers import read_history
from oddsmith.diagnose.rules import judge
from tests.unit.diagnose.points import points

HISTORIES = Path(__file__).parents[2] / "histories"


# transformers' PrinterCallback as TRL 0.8 had it: github.com/huggingface/trl/issues/1473 (NaN) and 1638.
TRL_2024 = """
{'loss': 1.5422, 'grad_norm': 0.91, 'learning_rate': 0.0001, 'rewards/chosen': -0.11, 'rewards/rejected': -0.12, 'rewards/accuracies': 0.6000000238418579, 'rewards/margins': 0.01, 'logps/rejected': -1.2, 'logps/chosen': -1.1, 'logits/rejected': 0.5, 'logits/chosen': 0.5, 'nll_loss': 1.48, 'log_odds_ratio': -0.62, 'log_odds_chosen': 0.15, 'epoch': 0.18}
{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 2.5000000000000002e-08, 'rewards/chosen': nan, 'rewards/rejected': nan, 'rewards/accuracies': 0.0, 'nll_loss': nan, 'log_odds_ratio': nan, 'log_odds_chosen': nan, 'epoch': 0.24}
{'eval_loss': 1.7, 'eval_runtime': 9.5, 'eval_samples_per_second': 10.4, 'eval_rewards/accuracies': 0.45, 'epoch': 0.24}
"""


def test_trl_lines_without_steps_count_as_log_lines():
    history = history_of_lines(TRL_2024.splitlines())
    assert points(history, "loss") == [(1, 1.5422), (2, 0.0)]
    assert math.isnan(history.get("nll_loss").values[1])
    assert history.steps_are_lines
    assert history.settings["beta"] == pytest.approx(0.1)
    assert history.held_out[""]["loss"].values.tolist() == [1.7]
    assert "not_finite" in {finding.rule for finding in judge(history)}


def test_a_real_log_of_trl_with_progress_bars():
    """TRL 1.16, transformers 5.23, recorded with 2>&1: bars, cursor movements, figures as text."""
    history = read_history(HISTORIES / "trl-console.log")
    assert history.get("loss").steps.tolist() == list(range(2, 25, 2))
    assert history.held_out[""]["loss"].steps.tolist() == [12, 24]
    assert history.settings == {"max_steps": 24, "beta": 0.2}


# Axolotl prints the same dicts, with its own throughput, after tqdm's bar: axolotl-ai-cloud/axolotl/pull/1735.
AXOLOTL = (
    "[2026-05-01 10:00:00,123] [INFO] [axolotl.train] Starting trainer...\n"
    "  3%|▎         | 10/400 [00:31<20:11,  3.11s/it]\r{'loss': 0.9, 'grad_norm': 0.85, 'learning_rate': 8e-06,"
    " 'nll_loss': 0.84, 'log_odds_ratio': -0.6, 'tokens_per_second_per_gpu': 1234.5, 'epoch': 0.03}\n"
    "  5%|▌         | 20/400 [01:02<19:40,  3.11s/it]\r{'loss': 0.8, 'nll_loss': 0.75, 'epoch': 0.05}\n"
)


def test_axolotl_takes_its_steps_from_the_bar(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(AXOLOTL, encoding="utf-8")
    history = read_history(path)
    assert points(history, "loss") == [(10, 0.9), (20, 0.8)]
    assert points(history, "tokens_per_second") == [(10, 1234.5)]
    assert history.settings["max_steps"] == 400
    assert points(history, "or_loss") == [(10, 0.6)]


# Unsloth in a notebook: tabs between the columns, " / " in the names, a banner of its own.
UNSLOTH = """
==((====))==  Unsloth - 2x faster free finetuning | Num GPUs used = 1
   \\\\   /|    Num examples = 50 | Num Epochs = 18 | Total steps = 120
 [120/120 05:58, Epoch 17/18]
Step\tTraining Loss\trewards / chosen\trewards / rejected\trewards / accuracies\trewards / margins\tlogps / rejected\tlogps / chosen\tnll_loss\tlog_odds_ratio\tlog_odds_chosen
1\t2.193100\t-0.120000\t-0.130000\t0.500000\t0.010000\t-1.300000\t-1.200000\t2.120000\t-0.650000\t0.140000
2\t2.101000\t-0.110000\t-0.140000\t1.000000\t0.030000\t-1.400000\t-1.100000\tNo Log\t-0.500000\t0.420000
"""


def test_unsloth_table():
    history = history_of_lines(UNSLOTH.splitlines())
    assert points(history, "loss") == [(1, 2.1931), (2, 2.101)]
    assert points(history, "logps/chosen") == [(1, -1.2), (2, -1.1)]
    assert points(history, "nll_loss") == [(1, 2.12)]
    assert points(history, "rewards/accuracies") == [(1, 0.5), (2, 1.0)]


def test_a_table_with_spaces_or_bars_and_validation_columns():
    for head, row in (
        ("# Step    Training Loss   Validation Loss  rewards / chosen", "# 50  0.69  0.70  -0.12"),
        ("| Step | Training Loss | Validation Loss | rewards / chosen |", "| 50 | 0.69 | 0.70 | -0.12 |"),
    ):
        history = history_of_lines([head, row])
        assert points(history, "loss") == [(50, 0.69)]
        assert history.held_out[""]["loss"].values.tolist() == [0.7]
        assert points(history, "rewards/chosen") == [(50, -0.12)]


# LLaMA-Factory: hiyouga/LlamaFactory/issues/3486 and 774 (trainer_log.jsonl, null in its last line), and the names of
# its ORPO metrics in src/llamafactory/train/dpo/trainer.py.
LLAMA_FACTORY_JSONL = """
{"current_steps": 10, "total_steps": 37, "loss": 9.2, "eval_loss": null, "predict_loss": null, "reward": null, "accuracy": 0.575, "learning_rate": 5e-07, "epoch": 0.27, "percentage": 27.03, "elapsed_time": "0:03:10", "remaining_time": "0:08:33"}
{"current_steps": 20, "total_steps": 37, "loss": 8.1, "accuracy": 0.6, "lr": 1e-06, "epoch": 0.53, "percentage": 54.05}
{"current_steps": 37, "total_steps": 37, "loss": null, "learning_rate": null, "epoch": 1.0, "percentage": 100.0}
"""
LLAMA_FACTORY_LOG = (
    "[INFO|2026-05-01 10:00:00] llamafactory.train.callbacks:143 >> {'loss': 1.9, 'learning_rate': 1.9e-06,"
    " 'epoch': 0.5, 'throughput': 2345.6}\n"
    "{'loss': 1.8, 'sft_loss': 1.75, 'odds_ratio_loss': 0.5, 'rewards/chosen': -0.175, 'logps/chosen': -1.75}\n"
)


def test_llama_factory(tmp_path):
    path = tmp_path / "trainer_log.jsonl"
    path.write_text(LLAMA_FACTORY_JSONL.lstrip(), encoding="utf-8")
    history = read_history(tmp_path)
    assert points(history, "loss") == [(10, 9.2), (20, 8.1)]  # the null of its last line is no NaN
    assert points(history, "rewards/accuracies") == [(10, 0.575), (20, 0.6)]
    assert points(history, "learning_rate") == [(10, 5e-7), (20, 1e-6)]
    assert history.settings["max_steps"] == 37
    history = history_of_lines(LLAMA_FACTORY_LOG.splitlines())
    assert points(history, "nll_loss") == [(2, 1.75)]
    assert points(history, "or_loss") == [(2, 0.5)]
    assert points(history, "tokens_per_second") == [(1, 2345.6)]


def test_ms_swift_logs_its_step_as_a_fraction():
    """Format: modelscope/ms-swift, tests/megatron (comments with logs)."""
    line = "{'loss': 2.5, 'nll_loss': 1.8, 'epoch': 0.08, 'global_step/max_steps': '5/100', 'elapsed_time': '1m 39s'}"
    history = history_of_lines([line])
    assert points(history, "loss") == [(5, 2.5)]
    assert history.settings["max_steps"] == 100


def test_a_dict_over_several_lines_and_two_in_one():
    history = history_of_lines(["{'loss': 0.8, 'grad_norm': 1.1,", " 'nll_loss': 0.7,", " 'epoch': 2.0}{'loss': 0.7}"])
    assert points(history, "loss") == [(1, 0.8), (2, 0.7)]
    assert points(history, "nll_loss") == [(1, 0.7)]


def test_our_own_console():
    history = history_of_lines(["step 10/200  5%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin -0.012"])
    assert points(history, "rewards/accuracies") == [(10, 0.55)]
    assert points(history, "rewards/margins") == [(10, -0.012)]
    assert history.settings["max_steps"] == 200


def test_a_huge_line_is_skipped(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("{'loss': 1.0}\n" + "x" * (3 * MAX_LINE) + "\n{'loss': 0.9}\n", encoding="utf-8")
    assert [len(line) for line in lines_of(path)] == [13, MAX_LINE, 13]
    assert points(read_history(path), "loss") == [(1, 1.0), (2, 0.9)]


@pytest.mark.parametrize(
    "text",
    ["{" * 900_000, "{'loss': nan, 'a" * 60_000, "step 1 " * 120_000, "|" * 900_000, " " * 900_000, "100%|" * 180_000],
)
def test_no_line_takes_more_than_a_moment(text):
    started_at = time.monotonic()
    history_of_lines([text] * 3)
    assert time.monotonic() - started_at < 5
