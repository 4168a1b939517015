"""GPUs are known by name, however it is spelled, or planned for by their memory."""

import pytest

from oddsmith.errors import ConfigError
from oddsmith.planning.cards import CARDS, card_of, gpu_of
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


@pytest.mark.parametrize(
    ("name", "gb", "card"),
    [
        ("NVIDIA H100 80GB HBM3", 85, "H100"), ("NVIDIA H200", 150, "H200"), ("NVIDIA L4", 24, "L4"),
        ("NVIDIA A100-SXM4-80GB", 85, "A100"), ("NVIDIA A100-SXM4-40GB", 42, "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", 42, "A100-40GB"), ("NVIDIA GeForce RTX 4090", 25, "RTX 4090"), ("Tesla T4", 16, "T4"),
        ("Tesla V100-SXM2-32GB", 34, "V100"),
        ("NVIDIA H100 PCIe", 85, None), ("NVIDIA H100 NVL", 100, None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 17, None), ("AMD Instinct MI300X", 206, None), ("Fake", 10, None),
    ],
)  # fmt: skip
def test_the_rates_of_a_gpu_of_this_machine_are_those_of_its_own_card(name, gb, card):
    assert card_of(name, int(gb * 1e9)) is (None if card is None else CARDS[card])


@pytest.mark.parametrize("name", CARDS)
def test_what_a_card_does_at_best_is_known(name):
    assert CARDS[name].bf16 < peak_operations(f"NVIDIA {name}")
