"""``oddsmith doctor``: print what this machine and this installation have, in one screen to paste into a report.

Nothing slow is imported: versions are those of the installed packages, devices those that the driver names. No secret,
no name of a user and no host is printed; what lies in the home folder is written with ``~``.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from ... import __version__
from ...model.loading.builtin import PACKAGES
from ...planning.cards import BF16_FROM, FP16_FROM
from ...system.files import cache_folder, free_bytes, in_units
from ...system.machine import (
    NvidiaGpu,
    bf16_unit,
    free_memory_bytes,
    nvidia_gpus,
    processor_flags,
    processor_name,
    usable_cores,
)
from ...system.secrets import SECRET_NAME, masked
from ..parsing.resolve import resolve
from ..terminal.console import quiet_libraries, show_line
from ..terminal.outcome import JSON, TRACEBACK, Judged

USAGE = "oddsmith doctor [--json]"
INTRO = (
    "Says what this machine and this installation have: versions, devices, precision, memory, disk and extras, in one"
    " screen to paste into a report. It holds no secret, and no name of a user or host. Exit code 3: a package that"
    " Oddsmith needs is missing or too old.",
)
OPTIONS = (JSON, TRACEBACK)
FAULTY = 3
DISTRIBUTION = "oddsmith"
SHOWN = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "huggingface_hub")
# Extras that are not for users.
OF_DEVELOPERS = frozenset({"test", "dev", "browser", "docs", "release", "trackers", "notebook"})
# Variables that change what a run does; others may hold anything.
VARIABLES = re.compile(
    r"(CUDA_VISIBLE_DEVICES|HIP_VISIBLE_DEVICES|OMP_NUM_THREADS|HF_HUB_OFFLINE|HF_HOME|HF_ENDPOINT|HF_DATASETS_CACHE"
    r"|ODDSMITH_\w+|PYTORCH_(CUDA_)?ALLOC_CONF|ATEN_CPU_CAPABILITY|NCCL_\w+|ACCELERATE_\w+|WORLD_SIZE)"
)


def doctor(arguments: Sequence[str]) -> Judged:
    """Run ``oddsmith doctor``; the exit code is 3 where a package that is needed is missing or too old."""
    quiet_libraries()
    given = resolve(arguments, {}, OPTIONS, max_positional=1)
    document = _document()
    if "json" not in given.options:
        for line in _lines(document):
            show_line(line)
    return Judged(document, FAULTY if document["faults"] else 0)


def _document() -> dict[str, Any]:
    gpus = nvidia_gpus()
    needed, extras, without_wheel = _requirements()
    return {
        "command": "doctor",
        "oddsmith": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in SHOWN},
        "processor": {"name": processor_name(), "cores": usable_cores(), "bf16": bf16_unit(processor_flags())},
        "gpus": [gpu._asdict() for gpu in gpus or ()],
        "device": _device(gpus),
        "precision": _precision(gpus),
        "memory": {"free_bytes": free_memory_bytes(), "total_bytes": psutil.virtual_memory().total},
        "disk": {name: {"place": _anonymous(str(place)), "free_bytes": free_bytes(place)} for name, place in _places()},
        "extras": extras,
        "without_wheel": without_wheel,
        "environment": _environment(),
        "faults": needed,
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    def line(name: str, text: str) -> str:
        return f"{name:<10} {text}"

    yield line("oddsmith", f"{found['oddsmith']}, Python {found['python']}, {found['system']}")
    versions = [f"{name} {version or 'missing'}" for name, version in found["packages"].items()]
    yield line("packages", ", ".join(versions))
    processor = found["processor"]
    yield line("processor", f"{processor['name']}, {processor['cores']} cores")
    for gpu in found["gpus"]:
        capability = ".".join(map(str, gpu["capability"]))
        yield line("gpu", f"{gpu['name']}, {in_units(gpu['memory_bytes'])}, {capability}, driver {gpu['driver']}")
    yield line("device", found["device"])
    yield line("precision", found["precision"])
    memory = found["memory"]
    yield line("memory", f"{in_units(memory['free_bytes'])} free of {in_units(memory['total_bytes'])}")
    for name, place in found["disk"].items():
        yield line("disk" if name == "here" else "", f"{in_units(place['free_bytes'])} free {name} ({place['place']})")
    there = [name for name, missing in found["extras"].items() if not missing]
    yield line("extras", f"{', '.join(there) or 'none'}")
    for name, missing in found["extras"].items():
        if missing and set(missing) <= set(found["without_wheel"]):
            yield line("", f"{name} is missing: there is no wheel of {', '.join(missing)} for this processor")
        elif missing:
            yield line("", f'{name} is missing ({", ".join(missing)}): pip install "{DISTRIBUTION}[{name}]"')
    for name, value in found["environment"].items():
        yield line("variable", f"{name}={value}")
    for fault in found["faults"]:
        yield line("fault", fault)
    yield ""
    yield "faults above: mend them first" if found["faults"] else "all that Oddsmith needs is installed"


def _device(gpus: list[NvidiaGpu] | None) -> str:
    """Say what a run would compute on, as far as it can be told without torch."""
    build = (_version("torch") or "").partition("+")[2]
    if gpus:
        if build == "cpu":
            return "the processor: a GPU is here, but this torch is built without CUDA; install one with (pytorch.org)"
        return f"{len(gpus)} x {gpus[0].name}"
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple's GPU (MPS)"
    return "the processor: no NVIDIA GPU is found" + (f" (torch is built for {build})" if build else "")


def _precision(gpus: list[NvidiaGpu] | None) -> str:
    """Say in which numbers a run computes by default (``system/precision.py``)."""
    if gpus and (_version("torch") or "").partition("+")[2] != "cpu":
        capability = gpus[0].capability
        name = "bf16" if capability >= BF16_FROM else "fp16" if capability >= FP16_FROM else "float32"
        return f"{name}: compute capability {'.'.join(map(str, capability))}"
    unit = bf16_unit(processor_flags())
    return f"bf16: the processor has {unit}" if unit else "float32: the processor has no bf16 units that are known"


def _requirements() -> tuple[list[str], dict[str, list[str]], list[str]]:
    """Return what is wrong with the packages that are needed, what each extra lacks, and what has no wheel here.

    The last are packages that an extra installs on x86-64, and by its marker not on this machine.
    """
    try:
        stated, provided = metadata.requires(DISTRIBUTION) or [], metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [f"{DISTRIBUTION} itself is not installed: it runs from its sources"], {}, []
    requirements = list(map(Requirement, stated))
    extras = [name for name in provided.get_all("Provides-Extra") or () if name not in OF_DEVELOPERS]
    needed = [fault for one in requirements if _applies(one, "") and (fault := _fault(one))]
    optional = {extra: [one for one in requirements if _is_of(one, extra)] for extra in extras}
    lacking = {extra: [one.name for one in ones if _fault(one)] for extra, ones in optional.items()}
    for package in PACKAGES.values():
        if package.extra in lacking and any(map(_version, package.distributions)):
            lacking[package.extra] = []  # any of them will do, not only the first, which the extra installs
    without_wheel = [one.name for extra, ones in optional.items() for one in ones if not _applies(one, extra)]
    return needed, lacking, without_wheel


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Return whether an extra has a requirement, here or on x86-64 alone."""
    return not _applies(requirement, "") and (
        _applies(requirement, extra) or _applies(requirement, extra, machine="x86_64")
    )


def _applies(requirement: Requirement, extra: str, machine: str = "") -> bool:
    environment = {"extra": extra, "platform_machine": machine or platform.machine()}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _fault(requirement: Requirement) -> str | None:
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing; expected {requirement.name}{requirement.specifier}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}; expected {requirement.name}{requirement.specifier}"
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _places() -> Iterator[tuple[str, Path]]:
    yield "here", Path.cwd()
    yield "for our cache", cache_folder()
    hub = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    yield "for models of the hub", Path(hub).expanduser()


def _environment() -> dict[str, str]:
    names = [name for name in sorted(os.environ) if VARIABLES.fullmatch(name) and not SECRET_NAME.search(name)]
    return {name: _anonymous(masked(os.environ[name])) for name in names}


def _anonymous(text: str) -> str:
    """Return a text without the user's name: the home folder is ``~``, and the name elsewhere ``USER``."""
    home = str(Path.home())
    text = re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if len(home) > 1 else text
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return text
    return re.sub(rf"(?<![\w.-]){re.escape(user)}(?![\w.-])", "USER", text)
