"""Event logs, states and CSV exports; and anything at all without a crash."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oddsmith.diagnose.history import HistoryBuilder
from oddsmith.diagnose.readers import read_history
from oddsmith.diagnose.rules import judge
from oddsmith.errors import DataError
from oddsmith.metrics import BY_NAME
from tests.unit.diagnose.points import points


# W&B: the chart's export has three columns a run; run.history() has the logged names.
def test_wandb_csv(tmp_path):
    path = tmp_path / "chart.csv"
    path.write_text(
        '"Step","brisk-pond-1 - train/loss","brisk-pond-1 - train/loss__MIN","brisk-pond-1 - train/loss__MAX"\n'
        '"0","1.64","1.64","1.64"\n"1","1.60","1.60","1.60"\n',
        encoding="utf-8",
    )
    assert points(read_history(path), "loss") == [(0, 1.64), (1, 1.6)]
    path.write_text("Step,a - b - train/loss,c - train/loss\n5,1.5,9.9\n", encoding="utf-8")  # one run is diagnosed
    assert points(read_history(path), "loss") == [(5, 1.5)]
    path.write_text(
        "_step,_runtime,train/loss,train/rewards/chosen,eval/loss,train/global_step\n"
        "0,3.1,2.5,-0.3,,10\n1,6.0,NaN,-0.2,,20\n2,9.0,,,2.2,20\n",
        encoding="utf-8",
    )
    history = read_history(path)
    assert history.get("loss").steps.tolist() == [10, 20]
    assert math.isnan(history.get("loss").values[1])
    assert history.held_out[""]["loss"].values.tolist() == [2.2]


def test_tensorboard_csv_has_its_quantity_in_the_name(tmp_path):
    for tag in ("train_loss", "train_rewards_accuracies", "eval_loss", "train_log_odds_chosen"):
        rows = "".join(f"1654943296.2,{step},{step / 100}\n" for step in (10, 20))
        (tmp_path / f"runs_May01-tag-{tag}.csv").write_text("Wall time,Step,Value\n" + rows, encoding="utf-8")
    history = read_history(tmp_path)
    assert points(history, "loss") == [(10, 0.1), (20, 0.2)]
    assert points(history, "rewards/accuracies") == [(10, 0.1), (20, 0.2)]
    assert points(history, "log_odds_chosen") == [(10, 0.1), (20, 0.2)]
    assert history.held_out[""]["loss"].steps.tolist() == [10, 20]


def test_trainer_state_and_the_adapter_beside_it(tmp_path):
    state = {
        "global_step": 20,
        "max_steps": 40,
        "log_history": [{"step": 10, "loss": 2.0}, "nonsense", {"step": 20, "loss": float("nan"), "eval_loss": 1.0}],
    }
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "adapter_config.json").write_text("{}")
    history = read_history(tmp_path)
    assert history.get("loss").steps.tolist() == [10, 20]
    assert history.trains_adapter is True
    assert (history.steps_planned, history.finished) == (40, False)


def events(*lines: dict) -> str:
    return "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)


def test_null_in_an_event_log_is_nan_and_broken_lines_are_skipped(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        events(
            {"event": "start", "step": 0, "max_steps": 20, "beta": 0.2, "settings": {"learning_rate": 1e-4}},
            {"event": "log", "step": 10, "loss": 2.0, "nll_loss": None},
        )
        + '{"event": "log", "step": 2\n\x00\xff\n'
        + events({"event": "log", "step": 20, "loss": 1.5}, {"event": "end", "step": 20}),
        encoding="latin-1",
    )
    history = read_history(tmp_path)
    assert points(history, "loss") == [(10, 2.0), (20, 1.5)]
    assert math.isnan(history.get("nll_loss").values[0])
    assert (history.skipped, history.finished) == (2, True)
    assert history.settings == {"max_steps": 20, "beta": 0.2, "learning_rate": 1e-4}


def test_a_step_done_twice_counts_once_and_an_older_run_in_the_file_not_at_all(tmp_path):
    (tmp_path / "events.jsonl").write_text(
        events(
            {"event": "start", "step": 0},
            {"event": "log", "step": 90, "loss": 9.0},
            {"event": "evaluate", "step": 0, "eval_loss": 3.0},
            {"event": "start", "step": 0},
            {"event": "log", "step": 10, "loss": 2.0},
            {"event": "log", "step": 20, "loss": 1.9},
            {"event": "start", "step": 10},
            {"event": "log", "step": 20, "loss": 1.8},
        )
    )
    history = read_history(tmp_path)
    assert points(history, "loss") == [(10, 2.0), (20, 1.8)]
    assert history.held_out[""]["loss"].steps.tolist() == [0]


def test_evaluations_with_another_prefix_are_evaluations(tmp_path):
    """As ``trainer.evaluate(test, metric_key_prefix="test")`` logs them, and an evaluation of the training pairs."""
    (tmp_path / "events.jsonl").write_text(
        events(
            {"event": "log", "step": 10, "loss": 2.0, "epoch": 0.1},
            {"event": "evaluate", "step": 10, "test_loss": 1.9, "test_rewards/accuracies": 0.5, "epoch": 0.1},
            {"event": "evaluate", "step": 10, "train_loss": 1.8, "train_rewards/accuracies": 0.6},
        )
    )
    history = read_history(tmp_path)
    assert set(history.training) == {"loss", "epoch"}
    assert {name: group["loss"].values.tolist() for name, group in history.held_out.items()} == {
        "test": [1.9],
        "train": [1.8],
    }


ENTRIES = [
    *({"step": 10 * n, "loss": 2.0 - n / 10, "epoch": n / 10} for n in range(1, 5)),
    {"step": 40, "eval_loss": 1.7},
]
STATE = {"log_history": ENTRIES, "global_step": 40, "max_steps": 100}
PAGE = "<table><tr><th>Step</th>\n<th>Training Loss</th>\n<th>Validation Loss</th></tr>" + "".join(
    f"<tr><td>{10 * n}</td>\n<td>{2.0 - n / 10}</td>\n<td>{'No log' if n < 4 else 1.7}</td></tr>\n" for n in range(1, 5)
)
OUTPUTS = [
    {"output_type": "stream", "text": ["Num Epochs = 1\n", "x\n"]},
    {"data": {"text/html": PAGE.splitlines(True)}},
]
DOCUMENTS = {
    "state.txt": json.dumps(STATE),
    "indented.txt": json.dumps(STATE, indent=2),
    "history.json": json.dumps(ENTRIES),
    "history_indented.txt": json.dumps(ENTRIES, indent=2),
    "lines.json": "\n".join(map(json.dumps, ENTRIES)),
    "lines.jsonl": "\n".join(map(json.dumps, ENTRIES)),
    "printed.log": str(ENTRIES),
    "notebook.ipynb": json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": OUTPUTS}], "nbformat": 4}, indent=1),
    "page.html": f"<html><body>{PAGE}</table></body></html>",
    "events_of_others.jsonl": "\n".join(json.dumps({"event": "train", **entry}) for entry in ENTRIES),
    "frame.csv": "step,loss,eval_loss\n10,1.9,\n20,1.8,\n30,1.7,\n40,1.6,\n,,1.7\n",
    "frame.tsv": "step\tloss\teval_loss\n10\t1.9\t\n20\t1.8\t\n30\t1.7\t\n40\t1.6\t1.7\n",
}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_one_history_in_many_files(tmp_path, name, encoding):
    (tmp_path / name).write_text(DOCUMENTS[name], encoding=encoding)
    history = read_history(tmp_path / name)
    assert points(history, "loss") == [(10, 1.9), (20, 1.8), (30, 1.7), (40, 1.6)]
    assert history.held_out[""]["loss"].values.tolist() == [1.7]
    assert history.held_out[""]["loss"].steps.tolist() == [40]
    assert history.source == str(tmp_path / name)


def test_the_folder_of_ms_swift(tmp_path):
    lines = [{"loss": 2.0 - n / 10, "epoch": n / 10, "global_step/max_steps": f"{10 * n}/100"} for n in range(1, 5)]
    (tmp_path / "logging.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"last_model_checkpoint": "x"}])))
    history = read_history(tmp_path)
    assert points(history, "loss") == [(10, 1.9), (20, 1.8), (30, 1.7), (40, 1.6)]
    assert history.settings["max_steps"] == 100


def test_the_mean_of_a_whole_run_is_no_curve(tmp_path):
    for tag, value in (("train_loss", 0.5), ("train_train_loss", 9.9)):
        (tmp_path / f"run-a-tag-{tag}.csv").write_text(f"Wall time,Step,Value\n1.0,10,{value}\n")
    assert points(read_history(tmp_path), "loss") == [(10, 0.5)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.json", None, "is not there"),
        ("empty.log", b"", "no metric found"),
        ("words.log", b"nothing to see here\n" * 10, "no metric found"),
        (
            "unknown.log",
            b"step 10 critic loss: 1.5\n",
            "no metric found in it (not understood: 'step 10 critic loss: 1.5')",
        ),
        ("trainer_state.json", b'{"log_history": ', "no readable JSON"),
        ("other.json", b'{"a": 1}', "no log_history"),
        ("deep.json", b'{"a":' + b"[" * 100_000, "no readable JSON"),
        ("binary.csv", bytes(range(256)) * 40, "no metric found"),
        ("head.csv", b"a,b,c\n1,2,3\n", "no metric found"),
    ],
)
def test_where_nothing_can_be_read_one_line_says_so(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_history(tmp_path / name)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"holds no metrics; expected events\.jsonl"):
        read_history(tmp_path)


FRAGMENTS = [
    "{'loss': 0.8, 'epoch': 1}", "{'loss': nan,", "}", "{", '{"event": "log", "step": 3, "loss": 1e999}',
    '{"event": "start", "step": 0, "settings": 7}', '{"event": "log", "step": 99999999999999999999999, "loss": 1}',
    '{"event": "start", "step": 0, "beta": 1' + "0" * 400 + "}", "Step\tTraining Loss", "7\t0.5", "| Step | loss |",
    " 10%|#         | 1/10 [00:01<00:09]", "step 3/9  loss .", "Wall time,Step,Value", "Step,a - train/loss", "1,2,3",
    "Step Training Loss Validation Loss", "7 0.5 No log", "a;step;loss", "loss=1.2 Epoch 1/3", "Total steps = 1,250",
    "Epoch 1: 50%|#  | 5/10 [00:01<00:09, 1it/s, loss=nan]", "<td>", "[ 6/12 00:30 < 00:31, 1.9 it/s, Epoch 1e9/1]",
    "{'loss': tensor(1.2, device='cuda:0'), 'epoch': np.float64(inf)}", "step: 1e300 loss: 1", "epoch: 1e308 loss: 2",
    "'loss': '1e309'", "\x1b[A\x1b[31m{'loss': inf}", "\x00",
]  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=40)), max_size=12).map("\n".join)
names = st.sampled_from(["events.jsonl", "train.log", "trainer_state.json", "table.csv", "run-tag-train_loss.csv"])


@given(name=names, text=texts)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_breaks_a_reader_or_a_rule(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        history = read_history(path)
    except DataError:
        return
    judge(history)


numbers = st.one_of(st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=5), st.just([1]))


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 400), st.integers()),
            st.dictionaries(st.sampled_from([*BY_NAME, "eval_loss", "eval_x_nll_loss"]), numbers),
        ),
        max_size=40,
    ),
    settings_given=st.dictionaries(st.sampled_from(["beta", "max_steps", "parameters", "learning_rate"]), numbers),
)
@settings(max_examples=150, deadline=None)
def test_no_numbers_break_a_rule(rows, settings_given):
    builder = HistoryBuilder()
    for step, values in rows:
        builder.add(step, values, null_is_nan=True)
    builder.history.settings.update(settings_given)
    for finding in judge(builder.build()):
        json.dumps(finding.to_dict(), allow_nan=False)
