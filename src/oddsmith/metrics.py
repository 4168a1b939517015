"""The metric catalogue: every metric that a run logs, with its meaning and the places that show it. Needs no torch.

The meter, the event log, the diagnosis, the monitor's page, the progress line, the model card, ``oddsmith eval`` and
``docs/metrics.md`` read this table. To add a metric, add an entry here and its computation in ``training/meter.py``;
a new chart is an entry of ``CHARTS``.

Log-probabilities are means over the tokens of a response, in nats per token. An evaluation logs the same names behind
``eval_`` (or ``eval_NAME_`` with several evaluation sets). Names are TRL's where TRL has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Place(StrEnum):
    """Where a metric is shown, apart from the event log and the trackers, which get all of them."""

    PROGRESS = "progress"  # the progress line of a run
    TABLE = "table"  # the table that ``oddsmith eval`` prints
    CARD = "card"  # the held-out figures of the model card
    CURVES = "curves"  # a panel of the model card's picture


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: The key under which it is logged.
        meaning: What it is, for ``docs/metrics.md``.
        good: What it does when training goes well: ``"falls"``, ``"rises"``; empty where neither is good.
        label: Its short name on the progress line and in tables.
        format: How a table prints its value.
        progress_format: How the progress line prints it.
        places: Where it is shown.
        chart: ``id`` of the monitor's chart that draws it; ``None`` draws it nowhere.
        line: Its name in the legend of that chart.
        times_beta: Whether the chart draws it multiplied by beta.
        drop: On a narrow terminal the progress line leaves out metrics in this order, the lowest first; 0 keeps it.
    """

    name: str
    meaning: str
    good: str = ""
    label: str = ""
    format: str = "{:.4f}"
    progress_format: str = "{:.3f}"
    places: frozenset[Place] = field(default_factory=frozenset)
    chart: str | None = None
    line: str = ""
    times_beta: bool = False
    drop: int = 0


@dataclass(frozen=True)
class Chart:
    """One chart of the monitor's page.

    Args:
        id: Its name in addresses and in the page's code.
        title: Its heading.
        watch: What to watch for, in one or two sentences.
        unit: Unit of the vertical axis; empty for none.
        zero: Whether the axis shows its zero line.
        band: Whether the 95% confidence of the mean is drawn around it.
        range: Fixed ends of the axis.
        kind: ``"lines"`` over the steps; ``"histogram"`` and ``"lengths"`` draw held-out pairs and no
            metric, ``"ranks"`` the processes at the last log line.
    """

    id: str
    title: str
    watch: str
    unit: str = ""
    zero: bool = False
    band: bool = False
    range: tuple[float, float] | None = None
    kind: str = "lines"


_ALL = frozenset(Place)
_TABLES = frozenset({Place.TABLE, Place.CARD})

METRICS: tuple[Metric, ...] = (
    Metric(
        "loss",
        "NLL + beta * odds-ratio loss (+ router loss)",
        "falls",
        label="loss",
        places=_ALL,
        chart="loss",
        line="loss",
    ),
    Metric(
        "nll_loss",
        "mean negative log-likelihood of the chosen sequence's tokens (`nll_on`)",
        "falls; if it rises, lower the learning rate or beta",
        label="nll",
        places=frozenset({Place.PROGRESS, Place.TABLE}),
        chart="loss",
        line="NLL",
        drop=3,
    ),
    Metric(
        "or_loss",
        "mean of -log sigmoid(log odds ratio); 0.69 when chosen and rejected are equally likely",
        "falls",
        label="or",
        places=frozenset({Place.PROGRESS, Place.TABLE}),
        chart="loss",
        line="beta × odds-ratio loss",
        times_beta=True,
        drop=2,
    ),
    Metric("log_odds_ratio", "-`or_loss`, TRL's name; never above 0", "rises towards 0"),
    Metric(
        "log_odds_chosen",
        "mean of log odds(chosen) - log odds(rejected)",
        "rises",
        label="log odds of chosen",
        places=frozenset({Place.CARD}),
        chart="odds",
        line="log-odds",
    ),
    Metric("rewards/chosen", "beta * mean log-probability of chosen", "rises"),
    Metric("rewards/rejected", "beta * mean log-probability of rejected", "stays or falls"),
    Metric(
        "rewards/accuracies",
        "share of pairs whose chosen response is more likely than its rejected one",
        "rises",
        label="accuracy",
        format="{:.1%}",
        progress_format="{:.0%}",
        places=_ALL,
        chart="accuracy",
        line="accuracy",
        drop=6,
    ),
    Metric(
        "rewards/margins",
        "`rewards/chosen` - `rewards/rejected`",
        "rises",
        label="margin",
        progress_format="{:.3g}",
        places=_ALL,
        drop=4,
    ),
    Metric(
        "logps/chosen",
        "mean log-probability of chosen",
        "rises",
        chart="logps",
        line="chosen",
    ),
    Metric(
        "logps/rejected",
        "mean log-probability of rejected",
        "stays or falls",
        chart="logps",
        line="rejected",
    ),
    Metric(
        "perplexity/chosen",
        "exp of the mean NLL over the tokens of the chosen responses",
        "falls",
        label="perplexity",
        format="{:.3f}",
        places=_TABLES,
        chart="perplexity",
        line="perplexity",
    ),
    Metric(
        "length_correlation",
        "evaluation only: correlation, over the pairs, of the differences `chosen - rejected` in tokens and in"
        " log-probability",
        "stays small: near 1 or -1 only length was learned",
    ),
    Metric(
        "pair_loss", "with a loss of your own (`pair_losses`): its mean; `loss` = `nll_loss` + `pair_loss`", "falls"
    ),
    Metric("beta", "weight of the odds-ratio term, logged once a callback has changed it"),
    Metric("aux_loss", "router loss of a mixture-of-experts model, unscaled", "stays low"),
    Metric(
        "tokens_per_second",
        "tokens of all processes per second; evaluation and saving not counted",
        progress_format="{:,.0f} tokens/s",
        places=frozenset({Place.PROGRESS}),
        chart="speed",
        line="tokens per second",
        drop=1,
    ),
    Metric(
        "tokens_per_second_per_gpu",
        "`tokens_per_second` / number of processes; left out where there is one",
        chart="speed",
        line="per GPU",
    ),
    Metric(
        "mfu",
        "model FLOPs utilisation, 0 to 1: operations that the model needs for the tokens it computes (4 a token and"
        " weight, 6 where the weight is trained; embeddings left out) a second, / what the GPUs do at best in 16 bits;"
        " left out where that is not known",
    ),
    Metric(
        "waiting_share",
        "several processes: share of the time of the steps in which a process waits for the slowest one, mean over"
        " processes; of each process in the event `ranks`",
        "near 0",
    ),
    Metric("num_tokens", "tokens of all processes so far, in training; the name that TRL's other trainers use"),
    Metric("pairs_per_second", "pairs of all processes per second; evaluation and saving not counted"),
    Metric(
        "memory_gib",
        "GiB of the main process: the most it has held of its GPU; without one, its resident memory now",
        "flat",
        chart="memory",
        line="memory",
    ),
    Metric(
        "gpu_memory_gib",
        "GiB in use on the main process's GPU, by all programs",
        "flat",
        chart="memory",
        line="in use on the GPU",
    ),
    Metric(
        "gpu_use",
        "share of the last moments, 0 to 1, in which the main process's GPU computed; needs `nvidia-ml-py`, as do the"
        " next two",
        "high and even",
        chart="gpu",
        line="use",
    ),
    Metric(
        "gpu_temperature", "degrees Celsius of the main process's GPU", "flat", chart="temperature", line="temperature"
    ),
    Metric("gpu_power_watts", "watts that the main process's GPU draws", chart="power", line="power"),
    Metric(
        "grad_norm",
        "norm of the gradient before clipping; of transformers",
        "calm or falls",
        chart="gradient",
        line="gradient norm",
    ),
    Metric("learning_rate", "of transformers", chart="rate", line="learning rate"),
    Metric("epoch", "of transformers"),
    Metric(
        "skipped_steps",
        "optimizer steps since the last line that were skipped and enter none of its averages; left out where it is 0",
        "not there",
    ),
)

CHARTS: tuple[Chart, ...] = (
    Chart(
        "loss",
        "Loss",
        "All should fall. If the NLL rises while the odds-ratio part falls, the model unlearns language: lower beta or"
        " the learning rate.",
    ),
    Chart(
        "logps",
        "Log-probabilities",
        "Chosen should rise and rejected stay or fall. Both falling while the gap grows is over-penalisation.",
        unit="nats per token",
    ),
    Chart(
        "odds",
        "Log-odds, chosen against rejected",
        "Should rise above zero. The band is the 95% confidence of the mean; while it contains zero, it is not"
        " certain that anything is learned.",
        zero=True,
        band=True,
    ),
    Chart(
        "accuracy",
        "Accuracy",
        "The share of pairs whose chosen answer is likelier. Near 0.5 nothing is learned; near 1 at once means the"
        " pairs are trivial or leaked.",
        range=(0.0, 1.0),
    ),
    Chart(
        "margins",
        "Margins of the held-out pairs",
        "All margins should rise over the steps, not only the highest. Below zero the model prefers the rejected"
        " answer.",
        kind="histogram",
    ),
    Chart(
        "perplexity",
        "Perplexity of the chosen answers",
        "Should fall and stay low on held-out pairs. If it rises there while it falls in training, the model"
        " memorises the training pairs.",
    ),
    Chart(
        "lengths",
        "Length gap against margin",
        "A slope means that part of the preference is just “longer” or “shorter”. There should be none.",
        kind="lengths",
    ),
    Chart("rate", "Learning rate", "Warm-up should be over within the first tenth of the steps."),
    Chart(
        "gradient",
        "Gradient norm",
        "Calm or falling. Spikes come from odd rows or a learning rate that is too high.",
    ),
    Chart("speed", "Tokens per second", "Flat. A drop points to memory pressure, a busy machine or longer rows."),
    Chart(
        "waiting",
        "Waiting for the slowest process",
        "The share of the time of a step that each process waits for the slowest one, at the last log line. Low and"
        " even. A process that never waits while the others do has longer rows, a slower machine or slower storage.",
        kind="ranks",
        range=(0.0, 1.0),
    ),
    Chart("memory", "Memory", "Flat after the first steps. A steady climb ends in an out-of-memory error.", unit="GiB"),
    Chart(
        "gpu",
        "GPU use",
        "High and even. Low or jagged use means that the GPU waits for data, for other processes or for the CPU.",
        range=(0.0, 1.0),
    ),
    Chart(
        "temperature",
        "GPU temperature",
        "Level after the first minutes. At the GPU's limit, often 83 to 90 °C, it slows itself down.",
        unit="°C",
    ),
    Chart("power", "GPU power", "Near the GPU's limit while it computes.", unit="W"),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}


def shown_in(place: Place) -> list[Metric]:
    """Return the metrics that a place shows, in the order of the catalogue."""
    return [metric for metric in METRICS if place in metric.places]


def drawn_in(chart: Chart) -> list[Metric]:
    """Return the metrics that a chart draws, in the order of the catalogue."""
    return [metric for metric in METRICS if metric.chart == chart.id]


def markdown_table(metrics: Iterable[Metric] = METRICS) -> str:
    """Return the table of ``docs/metrics.md``."""
    rows = [f"| `{metric.name}` | {metric.meaning} | {metric.good} |" for metric in metrics]
    return "\n".join(["| name | meaning | when it goes well |", "|---|---|---|", *rows])
