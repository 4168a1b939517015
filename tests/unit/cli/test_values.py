"""Numbers and durations of a command's own flags."""

from __future__ import annotations

import pytest

from oddsmith.cli.parsing.values import seconds_of, whole_number
from oddsmith.errors import ConfigError


def test_a_whole_number_has_a_default_and_a_least():
    assert whole_number({}, "batch_size", 16) == 16
    assert whole_number({"batch_size": "4"}, "batch_size", 16, minimum=1) == 4
    with pytest.raises(ConfigError, match="^--batch-size is 0; expected 1 or more$"):
        whole_number({"batch_size": "0"}, "batch_size", 16, minimum=1)
    with pytest.raises(ConfigError, match="^--batch-size is '1.5'; expected a whole number$"):
        whole_number({"batch_size": "1.5"}, "batch_size", 16)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3h50m", 13800),
        ("45m", 2700),
        ("90s", 90),
        ("90", 90),
        ("1.5s", 1.5),
        ("1d2h", 93600),
        ("1-02:00:00", 93600),
        ("2-12", 216000),
        ("3:50:00", 13800),
        ("30:00", 1800),
        (" 2H ", 7200),
    ],
)
def test_a_time_is_read_as_people_and_slurm_write_it(text, seconds):
    assert seconds_of(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-5", "3h50", "5x", "1:2:3:4", "9" * 200, "nan", "inf", "1e3"])
def test_what_is_no_time_is_refused(text):
    if text == "3h50":  # the last unit may be left out: seconds
        assert seconds_of(text, "--time-limit") == 3 * 3600 + 50
        return
    with pytest.raises(ConfigError, match="^--time-limit is .*; expected a time such as 3h50m"):
        seconds_of(text, "--time-limit")
