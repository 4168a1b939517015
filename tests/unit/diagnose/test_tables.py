"""Tables of notebooks, model cards and exports: which column is what, and which line is a row."""

import pytest

from oddsmith.diagnose.tables import table_of

NOTEBOOK = (
    *("Step", "Training Loss", "Validation Loss", "Runtime", "Samples Per Second"),
    *("Rewards / chosen", "Logits/chosen", "Logits / rejected", "Nll Loss", "Log Odds Ratio"),
)
ROW = ("10", "1.9", "2.0", "12.3", "8.1", "-0.1", "-2.1", "-2.2", "1.8", "-0.6")
READ = {
    "loss": 1.9,
    "eval_loss": 2.0,
    "eval_rewards/chosen": -0.1,
    "eval_nll_loss": 1.8,
    "eval_log_odds_ratio": -0.6,
}


@pytest.mark.parametrize("separator", ["\t", " | ", "   ", " ", ","], ids=["tabs", "bars", "wide", "spaces", "commas"])
@pytest.mark.parametrize(
    "before", ["", "> ", "[rank0]: ", "2025-03-01 10:00:00 INFO "], ids=["", "quoted", "rank", "time"]
)
def test_columns_of_an_evaluation_are_not_those_of_the_training(separator, before):
    record = table_of(before + separator.join(NOTEBOOK)).row(before + separator.join(ROW))
    assert (record.step, record.values) == (10, READ)


def values(head: str, row: str) -> dict[str, float]:
    return table_of(head).row(row).values


def test_a_validation_loss_or_the_time_of_an_evaluation_marks_the_others_as_evaluated():
    assert values("Step\tTraining Loss\trewards / chosen", "1\t2.1\t-0.1") == {"loss": 2.1, "rewards/chosen": -0.1}
    by_unsloth = "Step\tTraining Loss\tValidation Loss\trewards / chosen"
    assert values(by_unsloth, "1\t2.1\t2.2\t-0.1") == {"loss": 2.1, "eval_loss": 2.2, "eval_rewards/chosen": -0.1}
    assert values("Step\tTraining Loss\tRuntime\tRewards/chosen", "1\t2.1\t3\t-0.1")["eval_rewards/chosen"] == -0.1


def test_where_evaluations_have_a_prefix_the_rest_is_of_the_training():
    head = "step,loss,grad_norm,rewards/chosen,eval_loss,eval_rewards/chosen"
    assert values(head, "10,1.9,2,-0.1,2.0,-0.2") == {
        "loss": 1.9, "grad_norm": 2.0, "rewards/chosen": -0.1, "eval_loss": 2.0, "eval_rewards/chosen": -0.2,
    }  # fmt: skip
    assert values("epoch,train loss,train acc,val loss,val acc", "1,1.9,0.5,2.0,0.4") == {
        "epoch": 1.0, "loss": 1.9, "rewards/accuracies": 0.5, "eval_loss": 2.0, "eval_rewards/accuracies": 0.4,
    }  # fmt: skip


def test_several_evaluation_sets_of_a_notebook():
    head = "Step\tTraining Loss\tValidation Loss\tCode Loss\tCode Rewards/chosen"
    assert values(head, "10\t1.9\tNo log\t2.0\t-0.1") == {
        "loss": 1.9,
        "eval_code_loss": 2.0,
        "eval_code_rewards/chosen": -0.1,
    }


def test_steps_may_stand_in_any_column_and_cells_may_be_empty():
    table = table_of("| Training Loss | Epoch | Step | Validation Loss |")
    assert table.row("|:-------------:|:-----:|:----:|:---------------:|") is None
    record = table.row("| No log | 0.1 | 1,000 | 2.0 |")
    assert (record.step, record.values) == (1000, {"epoch": 0.1, "eval_loss": 2.0})
    assert table_of("Epoch\tTraining Loss").row("3\t1.9").values == {"epoch": 3.0, "loss": 1.9}


def test_pandas_prints_an_index_and_rows_without_separators_must_be_whole():
    table = table_of("    Step  Training Loss  Validation Loss")
    assert table.row("0     50            1.9              2.0").values == {"loss": 1.9, "eval_loss": 2.0}
    assert table.row("50  No log  2.0").values == {"eval_loss": 2.0}
    assert table.row("50  1.9") is None
    assert table.row("the 50 of 1.9 are") is None


def test_exports():
    assert values("Step,a - train/loss,a - train/loss__MIN,b - train/loss", "5,1.5,1.4,9.9") == {"loss": 1.5}
    record = table_of("_step,_runtime,train/loss,eval/loss,train/global_step").row("2,9.0,,2.2,20")
    assert (record.step, record.values) == (20, {"eval_loss": 2.2})
    assert table_of("Wall time,Step,Value", "loss").row("1654943296.2,10,0.5").values == {"loss": 0.5}
    assert table_of("Wall time,Step,Value") is None
    tidy = table_of("tag,step,value")
    assert [tidy.row(row).values for row in ("train/loss,10,1.9", "eval/loss,10,2.0")] == [
        {"loss": 1.9},
        {"eval_loss": 2.0},
    ]
    assert tidy.row("other,10,1.9") is None
    assert values("step;loss;eval_loss", "10;1,9;2,0") == {"loss": 1.9, "eval_loss": 2.0}
    assert values("epoch,step,train_loss,val_loss", "0,10,1.9,") == {"epoch": 0.0, "loss": 1.9}


@pytest.mark.parametrize(
    "line",
    [
        "step 10 loss 1.5",
        "Step",
        "the loss of each step",
        "a,b,c",
        "loss",
        "Step\tName",
        "10\t1.9",
        "x" * 5000,
        "|" * 5000,
    ],
)
def test_other_lines_are_no_heads(line):
    assert table_of(line) is None
