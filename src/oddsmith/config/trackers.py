"""Refuse a tracker of ``report_to`` that transformers does not know or that is not installed, before a model is loaded.

transformers refuses it only when the trainer is made.
"""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigError, MissingExtraError

NONE, ALL = "none", "all"
# Tracker of transformers -> its modules, one of which has to be there, and what pip installs.
TRACKERS: dict[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml",), "azureml-sdk"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub mlflow"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": ((), ""),  # takes no package, but a variable of the environment
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}


def trackers(report_to: Any) -> str | list[str]:
    """Return ``report_to`` as transformers takes it: ``"none"``, ``"all"`` or a list of trackers.

    Raise ``ConfigError`` for what is no tracker, and for ``none`` or ``all`` beside others; ``MissingExtraError`` for a
    tracker that is not installed.
    """
    if report_to is None:  # YAML's null, and `--report-to none`
        return NONE
    names = [report_to] if isinstance(report_to, str) else report_to
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"report_to is {report_to!r}; expected a tracker, a list of trackers, none or all")
    for name in names:
        if name in (NONE, ALL) and len(names) > 1:
            raise ConfigError(f"report_to has {name} beside other trackers; give it alone, or leave it out")
        if name not in (*TRACKERS, NONE, ALL):
            near = difflib.get_close_matches(name.lower(), TRACKERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(TRACKERS)}, none or all"
            raise ConfigError(f"report_to: {name!r} is no tracker; {hint}")
        modules, package = TRACKERS.get(name, ((), ""))
        if modules and not any(map(find_spec, modules)):
            raise MissingExtraError(f"report_to: {name}", package=package)
    return names[0] if names and names[0] in (NONE, ALL) else list(names)
