"""Where the steps of a log come from: written, on the bar of the training, computed from epochs, or counted."""

import pytest

from oddsmith.diagnose.console_log import history_of_lines
from oddsmith.diagnose.history import History
from oddsmith.diagnose.text import plain_lines
from tests.unit.diagnose.points import points


def read(text: str) -> History:
    return history_of_lines(part for line in text.split("\n") for part in plain_lines(line))


def bar(done: int, total: int, name: str = "", rate: str = "1.20s/it") -> str:
    return f"{name}{100 * done // total:3d}%|{'#' * (10 * done // total):<10}| {done}/{total} [00:01<00:10,  {rate}]"


def entry(number: int, **more: float) -> str:
    return str({"loss": 2 - number / 100, "epoch": number / 20, **more})


def steps(history: History) -> list[float]:
    return [step for step, _ in points(history, "loss")]


# Printed before the training, or within it by evaluations; none of them counts optimizer steps.
OTHER_BARS = {
    "map": bar(500, 500, "Map: ", "400 examples/s"),
    "map without a name": bar(500, 500, rate="400 examples/s"),
    "without a name": f"{bar(0, 16)}\n{bar(16, 16)}",
    "as long as the run": bar(600, 600, "Loading weights: ", "25657.37it/s"),
    "shards": bar(4, 4, "Loading checkpoint shards: ", "2.1s/it"),
    "tokenizing": f"{bar(0, 4800, 'Tokenizing: ', '? examples/s')}\r{bar(4800, 4800, 'Tokenizing: ')}",
    "two on a line": bar(8, 16) + bar(16, 16),
    "download": bar(37, 100, "model.safetensors: ", "50.3MB/s"),
}  # fmt: skip


@pytest.mark.parametrize("before", OTHER_BARS)
@pytest.mark.parametrize("between", ["\n", "\r", ""], ids=["line", "return", "nothing"])
def test_only_the_bar_that_moves_with_the_log_counts_steps(before, between):
    text = "\n".join(bar(10 * n, 600) + between + entry(n) for n in range(1, 13))
    history = read(f"{OTHER_BARS[before]}\n{text}")
    assert steps(history) == [10.0 * n for n in range(1, 13)]
    assert history.settings == {"max_steps": 600}
    assert history.unit == "steps"


@pytest.mark.parametrize("before", ["map", "map without a name", "without a name", "as long as the run"])
def test_without_a_bar_of_the_training_log_lines_are_counted(before):
    history = read(OTHER_BARS[before] + "\n" + "\n".join(entry(n) for n in range(1, 13)))
    assert (steps(history), history.unit) == ([float(n) for n in range(1, 13)], "log lines")
    assert "max_steps" not in history.settings


@pytest.mark.parametrize("batches", [5, 600])
def test_bars_of_evaluations_between_the_lines(batches):
    parts = []
    for n in range(1, 9):
        shown = [bar(1, batches), bar(batches, batches)]
        parts += [bar(10 * n, 600), entry(n), *shown, str({"eval_loss": 2.0, "epoch": n / 20})]
    history = read("\n".join(parts))
    assert steps(history) == [10.0 * n for n in range(1, 9)]
    assert history.held_out[""]["loss"].steps.tolist() == [10 * n for n in range(1, 9)]


def test_bars_behind_the_lines_and_bars_that_lag():
    """tqdm redraws ten times a second at most, and after each line that it lets through."""
    behind = "\n".join([bar(0, 400), *(f"{entry(n)}\n{bar(10 * n, 400)}" for n in range(1, 9))])
    assert steps(read(behind)) == [10.0 * n for n in range(1, 9)]
    lagging = "\n".join(
        [bar(5, 400), entry(1), bar(10, 400), entry(2), bar(20, 400), bar(25, 400), entry(3), bar(30, 400)]
    )
    assert steps(read(lagging)) == [5.0, 10.0, 25.0]


def test_a_full_bar_at_the_end_with_epochs_gives_the_steps():
    """As a terminal looks when all is over, copied: one bar, below the lines."""
    lines = "\n".join(entry(n) for n in range(1, 41))
    summary = str({"train_runtime": 10.0, "train_loss": 1.7, "epoch": 2.0})
    assert steps(read(f"{lines}\n{summary}\n{bar(400, 400)}")) == [10.0 * n for n in range(1, 41)]


def test_epochs_and_the_banner_give_the_steps():
    banner = "***** Running training *****\n  Num Epochs = 2\n  Total optimization steps = 1,000\n"
    history = read(banner + "\n".join(entry(n) for n in range(1, 21)))
    assert steps(history) == [25.0 * n for n in range(1, 21)]
    assert (history.last_step, history.steps_planned) == (500, 1000)


def test_bars_that_begin_anew_with_each_epoch():
    shown = (
        f"Epoch {epoch}: {bar(n, 10, rate=f'9.5it/s, loss={2 - n / 100}')}" for epoch in (0, 1) for n in range(1, 11)
    )
    history = read("\r".join(shown))
    assert steps(history) == [float(n) for n in range(1, 21)]


def test_a_table_of_epochs_has_no_steps():
    history = read("Epoch\tTraining Loss\tValidation Loss\n1\t1.9\t2.0\n2\t1.8\t1.9\n3\t1.7\t1.8")
    assert (steps(history), history.unit) == ([1.0, 2.0, 3.0], "epochs")
    assert history.held_out[""]["loss"].steps.tolist() == [1, 2, 3]
    with_bar = read("[300/300 05:58, Epoch 3/3]\nEpoch\tTraining Loss\n1\t1.9\n2\t1.8\n3\t1.7")
    assert (steps(with_bar), with_bar.unit) == ([100.0, 200.0, 300.0], "steps")


def test_an_evaluation_belongs_to_the_line_before_it():
    history = read(
        "\n".join(["{'eval_loss': 2.5}", *(f"{entry(n)}\n{{'eval_loss': 2.0, 'epoch': 1}}" for n in (1, 2, 3))])
    )
    assert steps(history) == [1.0, 2.0, 3.0]
    assert history.held_out[""]["loss"].steps.tolist() == [0, 1, 2, 3]


def test_what_a_later_attempt_repeats_counts_once():
    resumed = read("\n".join(f"step {step} loss {loss}" for step, loss in
        [(10, 2.0), (20, 1.9), (30, 1.8), (40, 1.7), (50, 1.6), (30, 1.82), (40, 1.72)]))  # fmt: skip
    assert points(resumed, "loss") == [(10, 2.0), (20, 1.9), (30, 1.82), (40, 1.72)]
    assert resumed.repeated == 3
    again = read("\n".join(entry(n) for n in [*range(1, 9), *range(1, 4)]))
    assert (steps(again), again.repeated) == ([1.0, 2.0, 3.0], 8)
    newest_first = read("\n".join(f"step {step} loss {step / 10}" for step in range(90, 0, -10)))
    assert (len(steps(newest_first)), newest_first.repeated) == (9, 0)


def test_the_same_line_from_every_process_counts_once():
    history = read("\n".join(f"[rank{rank}]: {entry(n)}" for n in range(1, 9) for rank in (0, 1)))
    assert steps(history) == [float(n) for n in range(1, 9)]
