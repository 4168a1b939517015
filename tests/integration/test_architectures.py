"""docs/models.md against what the product does with a tiny model of each architecture."""

import pytest
import transformers

from tests.architectures import ARCHITECTURES, PAGE, batches_of, row_of, rows_of_page, save_tiny

pytestmark = pytest.mark.skipif(
    f"transformers {transformers.__version__}." not in PAGE.read_text(encoding="utf-8"),
    reason="docs/models.md was made with another version of transformers",
)

# Some of each kind: packed (attention alone, beside a recurrence, with images), padded, refused.
IN_EVERY_RUN = {"gpt-oss", "Qwen3.5 (text)", "Qwen3-VL", "BLOOM", "BERT"}
# Packed without sharing; trained and merged as well, because its mixer reads weights that an adapter must leave alone.
WHOLE = {"Jamba"}
# What most people train, and one of each other kind; the other rows are exhaustive.
SLOW = {
    "Llama 1 to 3", "Mistral", "Mixtral", "Qwen2, Qwen2.5", "Qwen2.5-VL", "Qwen3", "Qwen3-MoE", "Qwen3-VL",
    "Qwen3-Next", "Qwen3.5 (text)", "Gemma 3 (text)", "Gemma 3", "Gemma 4 (text)", "Phi-3, Phi-4", "SmolLM3", "OLMo 2",
    "Granite 4 (hybrid)", "DeepSeek V3", "GLM 4.5", "gpt-oss", "Command R7B", "GPT-2", "GPT-NeoX, Pythia", "BLOOM",
    "LFM2", "Mamba 2", "T5, FLAN-T5", "BERT",
}  # fmt: skip


def test_the_page_has_a_row_for_each():
    assert list(rows_of_page()) == list(ARCHITECTURES)
    assert ARCHITECTURES.keys() >= WHOLE | IN_EVERY_RUN | SLOW


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_row(name, tmp_path):
    assert str(row_of(name, tmp_path)) == rows_of_page()[name]


@pytest.mark.parametrize("name", sorted(IN_EVERY_RUN))
def test_batches(name, tmp_path):
    batches, why = batches_of(save_tiny(name, tmp_path / "base"), tmp_path / "run")
    assert rows_of_page()[name].split(" | ")[2:3] == [batches]
    assert why in rows_of_page()[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SLOW else pytest.mark.exhaustive)
        for name in ARCHITECTURES
        if name not in WHOLE
    ],
)
def test_all_rows(name, tmp_path):
    assert str(row_of(name, tmp_path)) == rows_of_page()[name]
