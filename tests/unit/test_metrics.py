"""The metric catalogue: it holds what is logged, the documentation prints it, and an entry in it is on the page."""

import json
from pathlib import Path

import pytest
import torch

from oddsmith import metrics
from oddsmith.diagnose.names import known_name
from oddsmith.diagnose.readers import read_history
from oddsmith.metrics import BY_NAME, CHARTS, METRICS, Chart, Metric, Place, markdown_table
from oddsmith.monitor.report import page_html
from oddsmith.monitor.run import Run
from oddsmith.training.meter import OWN_LOSS, QUANTITIES, TrainingMeter, named_metrics

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
NEW = Metric("tail_loss", "mean loss of the worst tenth of the pairs", "falls", chart="tail", line="worst tenth")


def test_the_documentation_prints_the_catalogue():
    assert markdown_table() in DOCS.read_text(encoding="utf-8")


def test_each_metric_that_is_logged_is_in_the_catalogue():
    meter = TrainingMeter()
    sums = torch.ones(len(QUANTITIES), dtype=torch.float64)
    meter.add(sums, {"num_pairs": torch.tensor(1.0), "num_nll_tokens": torch.tensor(1.0)})
    meter._seconds, meter._skipped_steps = 1.0, 1
    logged = {*meter.read(1, lambda tensor: tensor, router_loss=True), *named_metrics(sums.tolist(), router_loss=True)}
    of_the_trainer = {"loss", "length_correlation", "grad_norm", "learning_rate", "epoch", "beta", OWN_LOSS}
    of_several_processes = {"tokens_per_second_per_gpu", "mfu", "waiting_share"}  # ``training/pace.py``
    of_a_gpu = {"gpu_memory_gib", "gpu_use", "gpu_temperature", "gpu_power_watts"}  # ``training/gpu_readings.py``
    assert logged | of_the_trainer | of_several_processes | of_a_gpu == set(BY_NAME)


def test_names_are_unique_and_charts_draw_something():
    assert len(BY_NAME) == len(METRICS)
    drawn = {metric.chart for metric in METRICS if metric.chart}
    assert drawn == {chart.id for chart in CHARTS if chart.kind == "lines"}
    assert all(metric.line for metric in METRICS if metric.chart)
    assert all(metric.label for metric in METRICS if metric.places - {Place.PROGRESS})


def test_one_entry_brings_a_metric_onto_the_page(tmp_path, monkeypatch):
    chart = Chart("tail", "Worst pairs </script>", "Should fall with the loss.")
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, NEW))
    monkeypatch.setattr(metrics, "CHARTS", (*CHARTS, chart))
    monkeypatch.setitem(BY_NAME, NEW.name, NEW)
    lines = [{"event": "log", "step": step, "loss": 2.0, "tail_loss": 9.0 - step} for step in (1, 2)]
    lines.append({"event": "evaluate", "step": 2, "eval_tail_loss": 7.5})
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    embedded = page_html().split('id="catalogue">')[1].split("</script>")[0]
    shown = json.loads(embedded)["charts"][-1]
    assert (shown["title"], shown["watch"]) == (chart.title, chart.watch)
    assert shown["lines"] == [{"metric": "tail_loss", "name": "worst tenth", "times_beta": False}]

    run = Run(tmp_path)
    run.refresh()
    series = run.series(None, None, 0, 10)
    assert series["training"]["tail_loss"]["values"] == [8.0, 7.0]
    assert series["held_out"][""]["tail_loss"]["values"] == [7.5]
    assert read_history(tmp_path).get("tail_loss").values.tolist() == [8.0, 7.0]
    known_name.cache_clear()


@pytest.mark.parametrize("place", Place)
def test_each_place_shows_metrics(place):
    assert metrics.shown_in(place)
