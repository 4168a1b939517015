"""How far a run is: one live line on a terminal, one plain line a log elsewhere.

120/1500  8%  loss 2.314  nll 2.201  or 0.712  accuracy 55%  margin 0.012  1,234 tokens/s  3:20 left
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sized
from datetime import timedelta
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .console import is_live, is_main_process, say, stderr_console

REFRESH_PER_SECOND = 4

# Log key -> (name in the line, format), in the order of the line.
FIGURES = {
    "loss": ("loss", "{:.3f}"),
    "nll_loss": ("nll", "{:.3f}"),
    "or_loss": ("or", "{:.3f}"),
    "rewards/accuracies": ("accuracy", "{:.0%}"),
    "rewards/margins": ("margin", "{:.3g}"),
    "tokens_per_second": ("", "{:,.0f} tokens/s"),
}
MEASURED = tuple(key for key in FIGURES if key != "tokens_per_second")  # of the model rather than of the machine
# What goes first where a terminal is too narrow for all.
DROP_FIRST = ("tokens_per_second", "or_loss", "nll_loss", "rewards/margins", "percent", "rewards/accuracies")


class ProgressLine:
    """The line itself: a renderable that leaves out what does not fit the width."""

    def __init__(self, steps: int, first_step: int = 0):
        self.steps, self.step, self.first_step = steps, first_step, first_step
        self.logs: dict[str, float] = {}
        self.doing = ""
        self.started_at = time.monotonic()
        self._paused_s = 0.0

    def parts(self) -> dict[str, str]:
        """Everything there is to say, by key, in the order of the line."""
        found = {"step": f"{self.step}/{self.steps}", "percent": f"{self.step / self.steps:.0%}"} if self.steps else {}
        if self.doing:
            return found | {"doing": self.doing}
        found |= figures(self.logs, names=FIGURES)
        remaining = self.remaining_s()
        return found | ({"left": f"{clock(remaining)} left"} if remaining is not None else {})

    def text(self, width: int | None = None) -> str:
        """The line, at most ``width`` characters wide if that is possible."""
        found = self.parts()
        for key in (None, *DROP_FIRST):
            found.pop(key or "", None)
            line = "  ".join(found.values())
            if width is None or len(line) <= width:
                break
        return line

    def remaining_s(self) -> float | None:
        """Seconds until the last step at the pace so far; ``None`` before the first step."""
        done = self.step - self.first_step
        if not done or not self.steps:
            return None
        return (time.monotonic() - self.started_at - self._paused_s) / done * (self.steps - self.step)

    def pause(self, seconds: float) -> None:
        """Leave so many seconds (an evaluation) out of the pace."""
        self._paused_s += seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.text(options.max_width), no_wrap=True, overflow="ellipsis", style="cyan")


class ShowProgress(TrainerCallback):
    """Shows a run while it is entered and a callback of its trainer. Only the main process shows anything.

    Args:
        before: Called when training begins, before the first line is drawn.
    """

    def __init__(self, before: Callable[[TrainerState], object] = lambda state: None) -> None:
        self._before = before
        self.line = ProgressLine(0)
        self._live: Live | None = None
        self._training = False
        self._evaluating_since: float | None = None
        self._batches = 0

    def __enter__(self) -> ShowProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_live()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before(state)
        self._training, self.line = True, ProgressLine(state.max_steps, state.global_step)
        self._start_live()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._end_evaluation()
        self.line.step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.line.logs = logs
        if self._live is None:
            say("step " + self.line.text())

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start_live()
        self._evaluating_since = self._evaluating_since or time.monotonic()
        self._batches += 1
        loader = kwargs.get("eval_dataloader")
        total = f" of {len(loader)}" if isinstance(loader, Sized) else ""
        self.line.doing = f"evaluating: batch {self._batches}{total}"

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._end_evaluation()
        for line in evaluation_lines(metrics or {}) if self._training else ():
            say(f"step {state.global_step}  {line}", "bold")
        if state.global_step >= state.max_steps:
            self._end_live()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_live()

    def _start_live(self) -> None:
        if self._live is None and is_live() and is_main_process():
            self._live = Live(
                self.line, console=stderr_console(), refresh_per_second=REFRESH_PER_SECOND, transient=True
            )
            self._live.start()

    def _end_evaluation(self) -> None:
        if self._evaluating_since is not None:
            self.line.pause(time.monotonic() - self._evaluating_since)
        self._evaluating_since, self._batches, self.line.doing = None, 0, ""

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def evaluation_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Evaluation metrics in a line a dataset: ``eval  loss 2.101  nll 2.012  ...``."""
    sets = [key.removesuffix("_loss") for key in metrics if key.endswith("_loss") and key[:-5] + "_nll_loss" in metrics]
    lines = []
    for name in sets:
        lines.append(f"{name}  {'  '.join(figures(metrics, f'{name}_').values())}")
    return lines


def figures(metrics: Mapping[str, Any], prefix: str = "", names: Collection[str] = MEASURED) -> dict[str, str]:
    """The figures of a log line as they are shown, by key."""
    return {
        key: f"{FIGURES[key][0]} {FIGURES[key][1].format(metrics[prefix + key])}".strip()
        for key in names
        if isinstance(metrics.get(prefix + key), int | float)
    }


def clock(seconds: float) -> str:
    """``0:07``, ``12:05``, ``1:02:03``, ``2 days, 1:02:03``."""
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:0") else text.removeprefix("0:")
