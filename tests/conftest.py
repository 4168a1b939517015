"""Settings for every test: no network, few threads, reproducible."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread for each worker of pytest-xdist: the models are tiny, and threads of several workers would wait for cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what runs in the background with SIGINT ignored, and processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings
from transformers.utils import logging as transformers_logging

from oddsmith.cli.terminal import console
from tests.faults import file_size_limit
from tests.upload_hub import upload_hub

settings.register_profile("oddsmith", deadline=None, derandomize=True)
settings.load_profile("oddsmith")
os.fsync = lambda descriptor: None  # no test cuts the power, and a disk takes 4 to 20 ms for each of 50 files of a run
console.SILENT_S = 60.0  # whole outputs are compared, and this machine may be busy


def pytest_collection_finish() -> None:
    """Take what is imported by now out of the garbage collector's sight.

    Every training collects garbage, and would look at the million objects of the libraries and tests each time: a third
    of the time of the tests that train.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def small_files():
    """Limit the size of files to 64 KiB, as on a full disk."""
    with file_size_limit(65536):
        yield


@pytest.fixture
def verbosity():
    """Take back what ``log_level`` sets for the whole process."""
    before = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(before)


@pytest.fixture(scope="session")
def benchmarks():
    """The folder of the benchmarks, from which their modules can be imported."""
    folder = Path(__file__).parent.parent / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture
def hub():
    """A hub on this machine: the requests it got, and the environment of a process that uses it."""
    with upload_hub() as made:
        yield made
