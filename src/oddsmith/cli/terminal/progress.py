"""Show how far a run is: one live line on a terminal, one plain line for each log elsewhere.

120/1500  8%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.012  1,234 tokens/s  3:20 left
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerState

from ...metrics import Metric, Place, shown_in
from ...system.time_left import PaceOfRun
from .console import is_live, is_main_process, record, say, stderr_console
from .counting import clock, pace

REFRESH_PER_SECOND = 4
TOLD_S = 10.0  # between lines about the tokenizing of rows

PROGRESS_METRICS = shown_in(Place.PROGRESS)
SPEED = "tokens_per_second"  # describes the machine, not the model: only the live line has it
MODEL_METRICS = [metric for metric in PROGRESS_METRICS if metric.name != SPEED]
# The parts that a narrow terminal leaves out, in this order; the percentage goes between metrics, see Metric.drop.
_DROPS = {metric.name: metric.drop for metric in PROGRESS_METRICS if metric.drop} | {"percent": 5}
DROP_ORDER = sorted(_DROPS, key=_DROPS.__getitem__)


class ProgressLine:
    """The progress line: a renderable that leaves out what does not fit the width."""

    def __init__(self, steps: int, first_step: int = 0):
        self.steps, self.step = steps, first_step
        self.logs: dict[str, float] = {}
        self.doing = ""
        self.pace = PaceOfRun(steps, first_step, time.monotonic())

    def parts(self) -> dict[str, str]:
        """Return all parts of the line, by key, in their order."""
        found = {"step": f"{self.step}/{self.steps}", "percent": f"{self.step / self.steps:.0%}"} if self.steps else {}
        if self.doing:
            return found | {"doing": self.doing}
        found |= figures(self.logs, metrics=PROGRESS_METRICS)
        remaining = self.remaining_s()
        return found | ({"left": f"{clock(remaining)} left"} if remaining is not None else {})

    def text(self, width: int | None = None) -> str:
        """Return the line, at most ``width`` characters wide if that is possible."""
        found = self.parts()
        line = "  ".join(found.values())
        for key in DROP_ORDER:
            if width is None or len(line) <= width:
                break
            found.pop(key, None)
            line = "  ".join(found.values())
        return line

    def remaining_s(self) -> float | None:
        """Return the seconds until the last step at the pace so far; ``None`` before the first step."""
        return self.pace.seconds_left(self.step, time.monotonic())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.text(options.max_width), no_wrap=True, overflow="ellipsis", style="cyan")


class ShowProgress(TrainerCallback):
    """Shows a run, as a context manager and a callback of its trainer. Only the main process shows anything.

    ``before`` is called when training begins, before the first line is drawn. ``above`` is drawn over the live line.
    """

    only_looks_on = True

    def __init__(
        self,
        before: Callable[[TrainerState], object] = lambda state: None,
        above: RenderableType | None = None,
    ) -> None:
        self._before, self._above = before, above
        self.line = ProgressLine(0)
        self._live: Live | None = None
        self._training = False
        self._batches = 0  # of an evaluation, so far

    def __enter__(self) -> ShowProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_live()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._before(state)
        self._training, self.line = True, ProgressLine(state.max_steps, state.global_step)
        self._start_live()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._end_evaluation()
        self.line.step = state.global_step

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.line.logs = logs
        if self._live is None:
            say("step " + self.line.text())
        else:
            record("step " + self.line.text())

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._start_live()
        self._batches += 1
        loader = kwargs.get("eval_dataloader")
        total = f" of {len(loader)}" if isinstance(loader, Sized) else ""
        self.line.doing = f"evaluating: batch {self._batches}{total}"

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self._end_evaluation()
        self.line.pace.add_evaluation(metrics or {})
        for line in evaluation_lines(metrics or {}) if self._training else ():
            say(f"step {state.global_step}  {line}", "bold")
        if state.global_step >= state.max_steps:
            self._end_live()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._end_live()

    def _start_live(self) -> None:
        if self._live is None and is_live() and is_main_process():
            shown = self.line if self._above is None or not self._training else Group(self._above, self.line)
            self._live = Live(shown, console=stderr_console(), refresh_per_second=REFRESH_PER_SECOND, transient=True)
            self._live.start()

    def _end_evaluation(self) -> None:
        self._batches, self.line.doing = 0, ""

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class TokenizingLines:
    """Prints how far the tokenizing of rows is, at most every ``TOLD_S`` seconds; for where no bar can be drawn."""

    def __init__(self, source: str):
        self._source = source
        self._started_at = self._told_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take the number of rows that are done, and that of all."""
        now = time.monotonic()
        if now < self._told_at + TOLD_S or done == total:
            return
        self._told_at = now
        how_fast = pace(done, now - self._started_at, total - done)
        say(f"{self._source}: {done:,} of {total:,} rows tokenized, {how_fast}")


def evaluation_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Format the metrics of an evaluation, one line a dataset: ``eval  loss 2.101  nll 2.012  ...``."""
    sets = [key.removesuffix("_loss") for key in metrics if key.endswith("_loss") and key[:-5] + "_nll_loss" in metrics]
    return [f"{name}  {'  '.join(figures(metrics, f'{name}_').values())}" for name in sets]


def figures(logs: Mapping[str, Any], prefix: str = "", metrics: Iterable[Metric] = MODEL_METRICS) -> dict[str, str]:
    """Format the metrics of a log line, by name; those that were not logged are left out."""
    return {
        metric.name: f"{metric.label} {metric.progress_format.format(logs[prefix + metric.name])}".strip()
        for metric in metrics
        if isinstance(logs.get(prefix + metric.name), int | float)
    }
