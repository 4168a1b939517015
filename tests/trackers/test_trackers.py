"""A training reports to a real tracker, and what that reads back is what the run's own event log has.

`make test-trackers` installs TensorBoard, W&B, MLflow and Trackio into an environment of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from oddsmith.system.run_folder import Event, read_events
from tests.command import SETTINGS, run_apart, save_config, save_model, save_pairs

pytestmark = [pytest.mark.slow, pytest.mark.apart]

WATCHED = ("log_odds_ratio", "nll_loss", "rewards/margins")
NAMES = {f"{kind}/{name}": f"{prefix}{name}" for kind, prefix in (("train", ""), ("eval", "eval_")) for name in WATCHED}
GLOBAL_STEP = "train/global_step"
PROJECT, NAME = "oddsmith-tests", "orpo-tiny"
SECRET = "hf_" + "s" * 34
Series = dict[str, dict[int, float]]  # name, that of an evaluation behind eval_ -> step -> value
Alert = tuple[str, str, str]  # level, title, text


class Read(NamedTuple):
    """What a tracker has of a run; ``None`` for alerts where it knows none."""

    series: Series
    alerts: list[Alert] | None = None


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe whose learning rate is much too high, so that something is found."""
    folder = tmp_path_factory.mktemp("recipe")
    return save_config(
        folder / "recipe.yaml",
        model_name_or_path=str(save_model(folder / "model")),
        dataset_name=str(save_pairs(folder / "pairs.jsonl", 32)),
        **{**SETTINGS, "learning_rate": 1.0},
        test_split_size=0.25,
        use_peft=True,
        max_steps=8,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=4,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=4,
        run_name=NAME,
        project=PROJECT,
        hub_token=SECRET,
    )


def alone(folder: Path) -> dict[str, str]:
    """Return an environment in which a tracker sees no account, and nothing of another run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    own = {"HOME": str(folder), "WANDB_MODE": "offline", "WANDB_PROJECT": PROJECT, "MLFLOW_EXPERIMENT_NAME": PROJECT}
    own["TRACKIO_DIR"] = str(folder / "trackio")  # without it a cache, which HF_HOME may put elsewhere than below HOME
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, **own, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def read_by(folder: Path, *words: str) -> str:
    """Run a tracker's own command, and return what it prints."""
    done = subprocess.run(words, cwd=folder, env=alone(folder), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_tensorboard(folder: Path) -> Read:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (logs,) = (folder / "run" / "runs").iterdir()
    reader = EventAccumulator(str(logs)).Reload()
    return Read({ours: {point.step: point.value for point in reader.Scalars(tag)} for tag, ours in NAMES.items()})


def of_wandb(folder: Path) -> Read:
    """With the reader that comes with W&B for the files of runs that were not sent: a JSON object for each record."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    records = [
        json.loads(line) for line in read_by(folder, "wandb", "leet", "inspect", "--json", str(run)).splitlines()
    ]
    (about,) = [record["run"] for record in records if record["type"] == "run"]
    assert (about["project"], about["display_name"]) == (PROJECT, NAME)
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    alerts = [record["alert"] for record in records if record["type"] == "alert"]
    return Read(
        {ours: {item[GLOBAL_STEP]: item[name] for item in items if name in item} for name, ours in NAMES.items()},
        [(alert["level"].lower(), alert["title"], alert["text"]) for alert in alerts],
    )


def of_mlflow(folder: Path) -> Read:
    """From the database that MLflow makes where it is told no other place."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])
    assert (run.info.run_name, run.info.status) == (NAME, "FINISHED")
    assert float(run.data.params["learning_rate"]) == 1.0
    points = {name: client.get_metric_history(run.info.run_id, name) for name in NAMES.values()}
    return Read({name: {point.step: point.value for point in found} for name, found in points.items()})


def of_trackio(folder: Path) -> Read:
    """Trackio counts what it is sent; the optimizer step is a value beside the others."""

    def values(metric: str) -> dict[int, float]:
        words = ("get", "metric", "--project", PROJECT, "--run", NAME, "--metric", metric, "--json")
        return {point["step"]: point["value"] for point in json.loads(read_by(folder, "trackio", *words))["values"]}

    steps = values(GLOBAL_STEP)
    found = json.loads(read_by(folder, "trackio", "list", "alerts", "--project", PROJECT, "--run", NAME, "--json"))
    return Read(
        {ours: {int(steps[own]): value for own, value in values(name).items()} for name, ours in NAMES.items()},
        [(alert["level"], alert["title"], alert["text"]) for alert in reversed(found["alerts"])],
    )


def of_events(run: Path) -> Read:
    """What the run's own event log has."""
    events = read_events(run)
    series: Series = {name: {} for name in NAMES.values()}
    for event in events:
        for name in series.keys() & event.keys() if event["event"] in (Event.LOG, Event.EVALUATE) else ():
            series[name][event["step"]] = event[name]
    level = {"watch": "warn", "act": "error"}
    return Read(
        series,
        [
            (
                level[event["verdict"]],
                f"{event['verdict']}: {event['rule'].replace('_', ' ')}",
                f"{event['evidence']}; {event['meaning']} -> {event['change']}",
            )
            for event in events
            if event["event"] == Event.FINDING
        ],
    )


READERS: dict[str, Callable[[Path], Read]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
    "trackio": of_trackio,
}


@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_has_what_the_event_log_has(tracker, recipe, tmp_path):
    words = ("train", recipe, "--output-dir", "run", "--report-to", tracker)
    done = run_apart(*words, cwd=tmp_path, env=alone(tmp_path))
    assert done.code == 0, done.err
    assert "left out" not in done.err
    assert "TRACKIO" not in done.out + done.err, "a finding is said twice"
    outcome = [line for line in done.out.splitlines() if "offline mode" not in line]  # transformers' own, of WANDB_MODE
    assert "".join(outcome).startswith("done: 8 steps"), "stdout has more than the outcome"

    expected, found = of_events(tmp_path / "run"), READERS[tracker](tmp_path)
    assert {name: sorted(values) for name, values in expected.series.items()} == {
        name: [0, 4, 8] if name.startswith("eval_") else [*range(1, 9)] for name in NAMES.values()
    }
    single = {"rel": 1e-6} if tracker == "tensorboard" else {"rel": 0, "abs": 0}  # which keeps 32 bits of a number
    for name, values in expected.series.items():
        assert found.series[name] == pytest.approx(values, **single), name
    assert len(expected.alerts) >= 2
    if found.alerts is not None:
        assert found.alerts == expected.alerts

    holders = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == []
