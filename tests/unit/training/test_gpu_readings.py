"""Readings of the GPU: none without one, and none that the driver does not give."""

import pytest
import torch

from oddsmith.training.gpu_readings import GpuReadings

COUNTERS = {"utilization": 37, "temperature": 61, "power_draw": 250_000}


@pytest.fixture
def driver(monkeypatch):
    """The counters of a driver; ``None`` for one that it does not offer."""
    counters = dict(COUNTERS)
    asked = []

    def counter(name):
        def read():
            asked.append(name)
            if counters[name] is None:
                raise ModuleNotFoundError("pynvml")
            return counters[name]

        return read

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    for name in counters:
        monkeypatch.setattr(torch.cuda, name, counter(name))
    return counters, asked


def test_where_no_gpu_is_used_nothing_is_read(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert GpuReadings().read() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_real_gpu_is_read():
    torch.cuda.init()
    found = GpuReadings().read()
    assert 0 < found["gpu_memory_gib"] < 1000
    assert 0 <= found.get("gpu_use", 0.0) <= 1
    assert 0 < found.get("gpu_temperature", 20.0) < 120


def test_readings_are_in_our_units(driver):
    expected = {"gpu_memory_gib": 70.0, "gpu_use": 0.37, "gpu_temperature": 61.0, "gpu_power_watts": 250.0}
    assert GpuReadings().read() == pytest.approx(expected)


def test_on_rocm_the_power_is_in_watts_already(driver, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    driver[0]["power_draw"] = 250
    assert GpuReadings().read()["gpu_power_watts"] == 250.0


def test_what_the_driver_does_not_give_is_asked_for_once(driver):
    counters, asked = driver
    counters["temperature"] = None
    readings = GpuReadings()
    for _ in range(3):
        assert readings.read().keys() == {"gpu_memory_gib", "gpu_use", "gpu_power_watts"}
    assert asked.count("temperature") == 1
