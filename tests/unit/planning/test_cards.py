"""GPUs are known by name, however it is spelled, or planned for by their memory."""

import pytest

from oddsmith.errors import ConfigError
from oddsmith.planning.cards import CARDS, gpu_of
from oddsmith.system.peaks import peak_operations


@pytest.mark.parametrize("text", ["h100", "H100", "rtx4090", "RTX 4090", "4090", "rtx-4090", "a100-40gb", "B200"])
def test_a_known_gpu_is_found_by_its_name(text):
    gpu = gpu_of(text)
    assert gpu.card is CARDS[gpu.name]
    assert gpu.precision == "bf16"


def test_an_older_gpu_trains_in_fp16():
    assert gpu_of("t4").precision == gpu_of("V100").precision == "fp16"


@pytest.mark.parametrize(("text", "size"), [("24GB", 24e9), ("24gb", 24e9), ("24 GiB", 24e9), ("16g", 16e9)])
def test_a_size_is_a_gpu_without_rates(text, size):
    gpu = gpu_of(text)
    assert (gpu.memory, gpu.card) == (size, None)


@pytest.mark.parametrize("text", ["", "h999", "24", "-3GB", "0GB", "1e9GB", "99999999GB", "nan"])
def test_anything_else_is_refused_with_the_names(text):
    with pytest.raises(ConfigError, match="--gpu is "):
        gpu_of(text)


@pytest.mark.parametrize("name", CARDS)
def test_what_a_card_does_at_best_is_known(name):
    assert CARDS[name].bf16 < peak_operations(f"NVIDIA {name}")
