"""Console logs of every trainer, in the format of the sources named beside them, with made-up figures."""

# ruff: noqa: E501  log lines are as long as they are
import json
import math
import time
from pathlib import Path

import pytest

from oddsmith.diagnose.console_log import history_of_lines
from oddsmith.diagnose.findings import Verdict, overall
from oddsmith.diagnose.history import History
from oddsmith.diagnose.readers import read_history
from oddsmith.diagnose.rules import judge
from oddsmith.diagnose.text import plain_lines, text_of_html
from tests.unit.diagnose.points import points

HISTORIES = Path(__file__).parents[2] / "histories"


# transformers' PrinterCallback as TRL 0.8 had it: github.com/huggingface/trl/issues/1473 (NaN) and 1638.
TRL_2024 = """
{'loss': 1.5422, 'grad_norm': 0.91, 'learning_rate': 0.0001, 'rewards/chosen': -0.11, 'rewards/rejected': -0.12, 'rewards/accuracies': 0.6000000238418579, 'rewards/margins': 0.01, 'logps/rejected': -1.2, 'logps/chosen': -1.1, 'logits/rejected': 0.5, 'logits/chosen': 0.5, 'nll_loss': 1.48, 'log_odds_ratio': -0.62, 'log_odds_chosen': 0.15, 'epoch': 0.18}
{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 2.5000000000000002e-08, 'rewards/chosen': nan, 'rewards/rejected': nan, 'rewards/accuracies': 0.0, 'nll_loss': nan, 'log_odds_ratio': nan, 'log_odds_chosen': nan, 'epoch': 0.24}
{'eval_loss': 1.7, 'eval_runtime': 9.5, 'eval_samples_per_second': 10.4, 'eval_rewards/accuracies': 0.45, 'epoch': 0.24}
"""


def read(text: str) -> History:
    return history_of_lines(part for line in text.split("\n") for part in plain_lines(line))


def verdict(history: History) -> Verdict:
    return overall(finding.verdict for finding in judge(history))


def test_trl_lines_without_steps_count_as_log_lines():
    history = history_of_lines(TRL_2024.splitlines())
    assert points(history, "loss") == [(1, 1.5422), (2, 0.0)]
    assert math.isnan(history.get("nll_loss").values[1])
    assert history.unit == "log lines"
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
    assert points(history, "tokens_per_second_per_gpu") == [(10, 1234.5)]
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


def test_a_dict_that_a_terminal_has_wrapped_within_a_number():
    history = read("{'loss': 1.5422, 'learning_rate': 0.00\n01, 'rewards/rej\nected': -0.12}\n{'loss': 1.4}")
    assert points(history, "loss") == [(1, 1.5422), (2, 1.4)]
    assert points(history, "learning_rate") == [(1, 0.0001)]
    assert points(history, "rewards/rejected") == [(1, -0.12)]


def test_a_dict_that_was_cut_off_does_not_swallow_the_next():
    history = read("{'loss': 1.5, 'grad_norm': 0.9, 'rewards/ch\n{'loss': 1.4}\n{'loss': 1.3, 'grad_norm': 0.9")
    assert points(history, "loss") == [(1, 1.5), (2, 1.4), (3, 1.3)]
    assert points(history, "grad_norm") == [(1, 0.9)]  # the last number may have gone on


def test_dicts_in_dicts():
    lines = [json.dumps({"step": 10 * n, "train": {"loss": 2.0 / n}, "eval": {"loss": 3.0 / n}}) for n in (1, 2)]
    history = read("\n".join([*lines, json.dumps({"metrics": {"loss": 0.5}, "step": 30})]))
    assert points(history, "loss") == [(10, 2.0), (20, 1.0), (30, 0.5)]
    assert history.held_out[""]["loss"].values.tolist() == [3.0, 1.5]


def test_train_loss_is_the_mean_of_the_run_at_its_end_and_a_metric_in_each_line():
    of_transformers = "{'loss': 1.5, 'epoch': 0.1}\n***** train metrics *****\n  train_loss  =  9.9\n  epoch  =  1.0"
    assert points(read(of_transformers), "loss") == [(1, 1.5)]
    assert points(read("{'loss': 1.5}\n{'train_runtime': 3.0, 'train_loss': 9.9, 'epoch': 1.0}"), "loss") == [(1, 1.5)]
    assert points(read("train_loss: 1.5\ntrain_loss: 1.4"), "loss") == [(1, 1.5), (2, 1.4)]


# What people's terminals, clusters and containers put before a line.
BEFORE = {
    "nothing": "",
    "rank": "[rank0]: ",
    "torchrun": "[default0]:",
    "time": "2025-03-01 10:00:00,123 - INFO - trainer - ",
    "level": "INFO:root:",
    "container": "trainer-1  | ",
    "kubernetes": "2025-03-01T10:00:00.123456789Z stdout F ",
    "ray": "\x1b[36m(RayTrainWorker pid=1234)\x1b[0m ",
    "quoted": "> ",
}
RISING = [1.82, 2.9, 4.4, 6.1, 8.42]
FORMS = {
    "dict": "{{'loss': {loss}, 'grad_norm': 1.0}}",
    "numpy": "{{'loss': np.float64({loss}), 'grad_norm': tensor(1.0, device='cuda:0')}}",
    "quoted": "{{'loss': '{loss}', 'grad_norm': '1'}}",
    "colon": "loss: {loss}, grad_norm: 1.0, learning_rate: 1e-05",
    "one value": "loss: {loss}",
    "equals": "loss={loss} grad_norm=1.0",
    "step": "step {number} loss {loss}",
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("form", FORMS)
def test_five_lines_of_a_loss_that_explodes_are_not_healthy(before, form):
    lines = [BEFORE[before] + FORMS[form].format(loss=loss, number=n) for n, loss in enumerate(RISING, 1)]
    history = read("\n".join(lines))
    assert points(history, "loss") == list(enumerate(RISING, 1))
    assert verdict(history) is Verdict.ACT
    assert verdict(read("\n".join(lines[:4]))) is Verdict.CANNOT_TELL


BANNER = """
==((====))==  Unsloth - 2x faster free finetuning | Num GPUs used = 1
   \\\\   /|    Num examples = 1,200 | Num Epochs = 1 | Total steps = 30
 "-____-"     Trainable parameters = 41,943,040 of 8,072,204,288 (0.52% trained)
"""


def test_four_rows_of_thirty_steps_are_too_little_to_judge():
    rows = "".join(f"{step}\t{2 - step / 100}\t-0.2\n" for step in range(1, 5))
    history = read(f"{BANNER}Step\tTraining Loss\trewards / chosen\n{rows}")
    assert (history.last_step, history.steps_planned, history.log_lines) == (4, 30, 4)
    assert history.trains_adapter is True
    assert [finding.rule for finding in judge(history)] == ["too_little"]


def model_card(rows: int = 10) -> str:
    head = "| Training Loss | Epoch | Step | Validation Loss | Rewards/chosen | Nll Loss | Log Odds Ratio |"
    body = "".join(
        f"| {'No log' if n == 1 else 2 - n / 10} | {n / 10} | {10 * n} | {2.1 - n / 10} | -0.1 | {2 - n / 10} | -0.5 |\n"
        for n in range(1, rows + 1)
    )
    return (
        "It achieves the following results on the evaluation set:\n- Loss: 9.9\n- Rewards/chosen: -9.9\n\n"
        "The following hyperparameters were used during training:\n- learning_rate: 8e-06\n- num_epochs: 1\n\n"
        f"### Training results\n\n{head}\n{'|:---:' * 7}|\n{body}"
    )


def test_a_model_card():
    history = read(model_card())
    assert (history.last_step, history.log_lines, history.evaluations) == (100, 9, 10)
    assert points(history, "loss")[0] == (20, 1.8)
    assert set(history.training) == {"loss", "epoch"}
    assert history.held_out[""]["nll_loss"].values.tolist()[0] == 1.9
    assert history.settings["learning_rate"] == 8e-6
    assert verdict(history) is Verdict.HEALTHY


def test_the_columns_of_an_evaluation_accuse_no_training():
    """Over-fitting, as a console shows it and as a notebook does: the same findings."""
    training = [1.6 - n / 20 for n in range(20)]
    held_out = [1.75 - n / 40 if n < 8 else 1.35 + n / 20 for n in range(20)]
    logps = [-nll - 0.2 for nll in held_out]
    console = "\n".join(
        f"{{'loss': {a:.4f}, 'epoch': {n / 5}}}\n{{'eval_loss': {b:.4f}, 'eval_logps/chosen': {c:.4f},"
        f" 'eval_logps/rejected': {2 * c:.4f}, 'eval_nll_loss': {b - 0.1:.4f}, 'epoch': {n / 5}}}"
        for n, (a, b, c) in enumerate(zip(training, held_out, logps, strict=True))
    )
    notebook = "Step\tTraining Loss\tValidation Loss\tLogps/chosen\tLogps/rejected\tNll Loss\n" + "\n".join(
        f"{20 * n + 20}\t{a:.4f}\t{b:.4f}\t{c:.4f}\t{2 * c:.4f}\t{b - 0.1:.4f}"
        for n, (a, b, c) in enumerate(zip(training, held_out, logps, strict=True))
    )
    rules = [{finding.rule for finding in judge(read(text))} for text in (console, notebook)]
    assert rules[0] == rules[1]
    assert "over_fitting" in rules[1]


def test_what_looks_like_metrics_and_was_not_read_is_counted_and_shown():
    history = read("step: 10, loss: 1.5\n" + "step: 20, loss: 1,4500\n" * 3 + "nothing to see\n")
    assert (history.skipped, history.unread, history.unread_example) == (4, 3, "step: 20, loss: 1,4500")
    assert "not_read" in {finding.rule for finding in judge(history)}
    partly = read("iteration 10/ 600 | lm loss: 1.2E+00 | grad norm: 1.2 |")
    assert (points(partly, "grad_norm"), partly.unread) == ([(10, 1.2)], 1)


def test_our_own_console():
    history = history_of_lines(["step 10/200  5%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin -0.012"])
    assert points(history, "rewards/accuracies") == [(10, 0.55)]
    assert points(history, "rewards/margins") == [(10, -0.012)]
    assert history.settings["max_steps"] == 200


LONG = 300_000
LONG_LINES = {
    "braces": "{" * LONG,
    "open dicts": "{'loss': nan, 'a" * (LONG // 15),
    "steps": "step 1 " * (LONG // 7),
    "names": "loss " * (LONG // 5),
    "bars of tables": "|" * LONG,
    "semicolons": "a;" * (LONG // 2),
    "spaces": "a" + " " * LONG + "b",
    "spaces in a dict": f"{{'loss'{' ' * LONG}x}}",
    "progress bars": "100%|" * (LONG // 5),
    "notebook bars": "[1/1 1:1 " * (LONG // 9),
    "epochs": "epoch 1 " * (LONG // 8) + "1%|",
    "digits": "9" * LONG,
    "digits in a dict": f"{{'loss': {'9' * LONG}x}}",
    "html": "<td " * (LONG // 4),
}


@pytest.mark.parametrize("text", LONG_LINES.values(), ids=LONG_LINES)
def test_no_line_takes_more_than_a_moment(text):
    started_at = time.monotonic()
    history_of_lines([text])
    text_of_html([text])
    assert time.monotonic() - started_at < 5
