"""Look at one training step with PyTorch's profiler: where the device's time goes, and where the host's does."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

LINES = 14
NAME_CHARACTERS = 70


class ProfiledStep(TrainerCallback):
    """Profile one optimizer step.

    Args:
        step: Its number from 1; ``None``: none.

    ``found`` is then ``seconds`` (of the step, slowed by the profiler), ``device_s`` (of all kernels together),
    ``kernels`` (launches), and ``device`` and ``host``: lists of ``name``, ``calls``, ``seconds``, longest first. On a
    CPU, which has no kernels of its own, ``device`` is empty.
    """

    def __init__(self, step: int | None) -> None:
        self.step, self.found = step, None
        self._profiler: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 != self.step:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self._profiler = profile(activities=activities, acc_events=True)
        self._profiler.start()
        self._started_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profiler is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started_s
        self._profiler.stop()
        # Regions with a name (an optimizer's step) are on the device, too, beside the kernels in them.
        events = [event for event in self._profiler.key_averages() if not event.is_user_annotation]
        self._profiler = None
        kernels = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
        self.found = {
            "seconds": seconds,
            "device_s": sum(event.self_device_time_total for event in kernels) / 1e6,
            "kernels": sum(event.count for event in kernels),
            "device": _longest(kernels, "self_device_time_total"),
            "host": _longest([event for event in events if event not in kernels], "self_cpu_time_total"),
        }


def _longest(events: list[Any], time_of: str) -> list[dict[str, Any]]:
    events = sorted(events, key=lambda event: -getattr(event, time_of))[:LINES]
    return [
        {"name": event.key[:NAME_CHARACTERS], "calls": event.count, "seconds": getattr(event, time_of) / 1e6}
        for event in events
    ]
