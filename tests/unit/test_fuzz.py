"""Whatever a reader is given, it reads or refuses in words: the same few examples each time (`make fuzz`: new ones)."""

import math

import pytest
from hypothesis import HealthCheck, Phase, settings

from oddsmith.errors import DataError
from tests.fuzz.answers import Hang, answered
from tests.fuzz.targets import TARGETS

EXAMPLES = 120  # one or two seconds a target
# A checkpoint is a folder that is copied and synced; an Arrow or Parquet file is read in a process that is started.
# The beginning of a request is waited on.
FEWER = {"checkpoints": 40, "folders of Arrow": 3, "Parquet": 2, "spreadsheets": 10, "odd tables": 10}
FEWER |= {
    "requests to the monitor": 12,
    "requests to serve": 12,
    "model folders": 40,
    "gguf files": 40,
    "model cards": 40,
}


@pytest.mark.parametrize("share", [0.4, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_it_reads_or_refuses_whatever_it_is_given(name, share):
    chosen = settings(
        max_examples=math.ceil(share * FEWER.get(name, EXAMPLES)),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    TARGETS[name].test(chosen)()


def _for_ever():
    while True:
        pass


class TestTheNetHolds:
    def test_another_error(self):
        with pytest.raises(KeyError), answered(DataError):
            raise KeyError("x")

    def test_an_error_of_another_class_than_the_reader_s(self):
        with pytest.raises(DataError), answered():
            raise DataError("x")

    def test_a_hang(self, monkeypatch):
        monkeypatch.setattr("tests.fuzz.answers.MOST_CPU_S", 0.05)
        with pytest.raises(Hang), answered(DataError):
            _for_ever()

    def test_a_flood_of_memory(self, monkeypatch):
        monkeypatch.setattr("tests.fuzz.answers.MOST_GROWTH_BYTES", 50_000_000)
        monkeypatch.setattr("tests.fuzz.answers._peak_bytes", iter([1_000, 60_000_000]).__next__)
        with pytest.raises(AssertionError, match="memory grew by 59,999,000 bytes"), answered(DataError):
            pass

    def test_a_message_that_says_nothing(self):
        with pytest.raises(AssertionError, match="without a word"), answered(DataError):
            raise DataError(" ")
