"""Where the cache is, by the environment."""

from pathlib import Path

import pytest

from oddsmith.system.cache import cache_folder


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ODDSMITH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/oddsmith")),
        ({}, Path.home() / ".cache/oddsmith"),
        ({"ODDSMITH_CACHE": "~/models"}, Path.home() / "models"),
    ],
)
def test_where_the_cache_is(environment, expected, monkeypatch):
    for name in ("ODDSMITH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected
