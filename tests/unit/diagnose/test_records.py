"""What a line says: known names with a number, in the spellings of trainers and of people's own loops."""

import math

import pytest

from oddsmith.diagnose.records import cell_number, record_of

# text -> step, values
LINES = {
    "dict": ("{'loss': 1.5, 'grad_norm': 2, 'epoch': 0.1}", None, {"loss": 1.5, "grad_norm": 2.0, "epoch": 0.1}),
    "quoted numbers": ("{'loss': '1.5', 'learning_rate': '1e-05'}", None, {"loss": 1.5, "learning_rate": 1e-5}),
    "thousands": ("{'loss': '1.5', 'grad_norm': '1,234', 'step': '1,000'}", 1000, {"loss": 1.5, "grad_norm": 1234.0}),
    "numpy": ("{'loss': np.float64(1.5), 'grad_norm': np.float32(2.0)}", None, {"loss": 1.5, "grad_norm": 2.0}),
    "tensor": ("{'loss': tensor(1.5), 'epoch': 0.1}", None, {"loss": 1.5, "epoch": 0.1}),
    "tensor on a device": (
        "{'loss': tensor(1.5, device='cuda:0', dtype=torch.bfloat16, grad_fn=<DivBackward0>), 'grad_norm': 2}",
        None,
        {"loss": 1.5, "grad_norm": 2.0},
    ),
    "tensor of one": ("{'loss': tensor([1.5], device='cuda:0')}", None, {"loss": 1.5}),
    "json": ('{"loss":1.5,"step":10,"epoch":0.1}', 10, {"loss": 1.5, "epoch": 0.1}),
    "json in json": (r'{"log":"{\"loss\": 1.5, \"step\": 10}\n","stream":"stdout"}', 10, {"loss": 1.5}),
    "no quotes": ("{loss: 1.5, grad_norm: 2}", None, {"loss": 1.5, "grad_norm": 2.0}),
    "colons": ("step: 10, loss: 1.5, lr: 1.0E-05", 10, {"loss": 1.5, "learning_rate": 1e-5}),
    "equals": ("[train] step=10 loss=1.5 grad_norm=2", 10, {"loss": 1.5, "grad_norm": 2.0}),
    "bars": ("Step 10/600 | Loss: 1.5 | LR: 1e-5", 10, {"loss": 1.5, "learning_rate": 1e-5}),
    "brackets": ("Epoch [1/3], Step [10/600], Loss: 1.5", 10, {"epoch": 1.0, "loss": 1.5}),
    "spaces": ("iter 10 loss 1.5 lr 1e-5", 10, {"loss": 1.5, "learning_rate": 1e-5}),
    "tabs": ("step\t10\tloss\t1.5", 10, {"loss": 1.5}),
    "dashes": ("epoch 1 - step 10 - loss: 1.5", 10, {"epoch": 1.0, "loss": 1.5}),
    "mlx": ("Iter 10: Train loss 1.5, Learning Rate 1e-5, Tokens/sec 67.7", 10,
        {"train_loss": 1.5, "learning_rate": 1e-5, "tokens_per_second": 67.7}),
    "w&b": ("train/loss=1.5 train/global_step=10 _step=3", 10, {"loss": 1.5}),
    "ms-swift": ("{'loss': 1.5, 'global_step/max_steps': '10/94', 'percentage': '23.40%', 'elapsed_time': '33m 10s'}",
        10, {"loss": 1.5}),
    "time before it": ("2025-03-01 10:00:00,123 - INFO - trainer.py:143 - loss: 1.5", None, {"loss": 1.5}),
    "rank before it": ("[rank0]: {'loss': 1.5}", None, {"loss": 1.5}),
    "container before it": ("trainer-1  | loss: 1.5", None, {"loss": 1.5}),
    "kubernetes before it": ("2025-03-01T10:00:00.123456789Z stdout F {'loss': 1.5}", None, {"loss": 1.5}),
    "our own": ("step 10/200  5%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin -0.012", 10,
        {"loss": 2.314, "nll_loss": 2.201, "or_loss": 0.712, "rewards/accuracies": 0.55, "rewards/margins": -0.012}),
    "evaluation by name": ("eval_loss: 1.5, val_acc: 0.6, test_loss: 1.4", None,
        {"eval_loss": 1.5, "eval_rewards/accuracies": 0.6, "eval_test_loss": 1.4}),
    "evaluation by a word": ("Evaluation at step 10: {'loss': 1.5, 'rewards/chosen': -0.1, 'epoch': 0.1}", 10,
        {"eval_loss": 1.5, "eval_rewards/chosen": -0.1, "epoch": 0.1}),
    "both": ("step 10 train loss 1.5 val loss 1.6", 10, {"train_loss": 1.5, "eval_loss": 1.6}),
    "average": ("avg loss: 1.5", None, {"loss": 1.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_lines(case):
    text, step, values = LINES[case]
    record = record_of(text)
    assert (record.step, record.values) == (step, values)


@pytest.mark.parametrize("number", ["nan", "NaN", "tensor(nan, device='cuda:0')", "'nan'", "np.float64(nan)"])
def test_nan_is_a_number(number):
    assert math.isnan(record_of(f"{{'loss': {number}, 'epoch': 0.1}}").values["loss"])
    assert (
        record_of(f"{{'loss': {number.replace('nan', 'inf').replace('NaN', '-Infinity')}}}").values["loss"] ** 2
        == math.inf
    )


@pytest.mark.parametrize(
    "text",
    [
        "critic loss: 1.5",  # another quantity
        "the loss 0.5 looks odd",
        "loss: 0,8234",  # a decimal comma, or two numbers
        "loss: 10:00:01",
        "loss: 3.5GB",
        "loss: 2025-03-01",
        "'my loss': 1.5",
        "Gradient accumulation steps = 4",
        "logging_steps=10, eval_steps=100, adam_beta1=0.9, loss_type=sigmoid",
    ],
)
def test_nothing_is_read_into_a_line(text):
    record = record_of(text)
    assert (record.step, record.values, record.facts) == (None, {}, {})


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Num examples = 1,200 | Num Epochs = 1 | Total steps = 1,250", {"epochs": 1, "max_steps": 1250}),
        ("  Total optimization steps = 1,800", {"max_steps": 1800}),
        ("trainable params: 41,943,040 || all params: 8,072,204,288 || trainable%: 0.5196",
            {"trainable_parameters": 41_943_040, "parameters": 8_072_204_288}),
        ('"-____-"     Trainable parameters = 41,943,040 of 8,072,204,288 (0.52% trained)',
            {"trainable_parameters": 41_943_040, "parameters": 8_072_204_288}),
        ("beta=0.1,", {"beta": 0.1}),
        ("Step 10 of 600, loss: 1.5", {"max_steps": 600}),
    ],
)  # fmt: skip
def test_facts_of_the_whole_run(text, facts):
    assert record_of(text).facts == facts


def test_cells():
    cells = {"1.5": 1.5, " 1,000 ": 1000.0, "55%": 0.55, "np.float64(0.5)": 0.5, "1e-05": 1e-5, "'2'": 2.0}
    assert {cell: cell_number(cell) for cell in cells} == cells
    assert [cell_number(cell) for cell in ("No log", "", "1.5 of 2", "loss: 1", "2025-03-01", "0:10:00")] == [None] * 6
