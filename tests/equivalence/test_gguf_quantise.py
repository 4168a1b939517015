"""Quantised GGUF files against another build of ggml's quantiser: every tensor bit for bit, and which type it gets."""

from collections import Counter

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from oddsmith.errors import ConfigError, ExportError
from oddsmith.export.atomic import clear_write_errors
from oddsmith.export.gguf.convert import plan_conversion, write_gguf
from oddsmith.export.gguf.llama_cpp import GgufModel
from oddsmith.export.gguf.quantise import FILE_TYPES, check_types, is_quantised, quantise
from tests.llama_cpp_oracle import quantise_with_ggml, read_tensors
from tests.tiny_families import save_family

QUANTISED = [name for name in FILE_TYPES if is_quantised(name)]
PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A model with rows that 256 divides and a tied head, and one with other rows."""
    root = tmp_path_factory.mktemp("sources")
    sizes = {"wide": {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": True}, "narrow": {}}
    for name, settings in sizes.items():
        folder = save_family(root / name, "llama", **settings)
        write_gguf(plan_conversion(folder, title="tiny", source="tiny"), root / f"{name}.gguf", "bf16")
    return root


def types(path):
    return {name: kind for name, (kind, _) in read_tensors(path).items()}


@pytest.mark.parametrize("source", ["wide", "narrow"])
@pytest.mark.parametrize("name", QUANTISED)
def test_tensors_are_those_of_ggml(name, source, sources, tmp_path):
    quantise(sources / f"{source}.gguf", tmp_path / "out.gguf", name)
    plain = {
        name: quants.dequantize(values, kind)
        for name, (kind, values) in read_tensors(sources / f"{source}.gguf").items()
    }
    quantised = read_tensors(tmp_path / "out.gguf")
    assert quantised.keys() == plain.keys()
    for tensor, (kind, values) in quantised.items():
        if kind in PLAIN:
            assert tensor.endswith(("norm.weight", ".bias"))
            assert np.array_equal(quants.dequantize(values, kind), plain[tensor])
        else:
            assert np.array_equal(values, quantise_with_ggml(plain[tensor], kind)), (tensor, kind)
    field = GGUFReader(tmp_path / "out.gguf").fields["general.file_type"]
    assert field.contents() == FILE_TYPES[name].number
    with GgufModel(tmp_path / "out.gguf", threads=1) as model:
        assert np.isfinite(model.logits([1, 2, 3])).all()


def test_a_tied_embedding_gets_more_bits_and_there_is_no_head(sources, tmp_path):
    quantise(sources / "wide.gguf", tmp_path / "out.gguf", "q4_k_m")
    found = types(tmp_path / "out.gguf")
    assert found["token_embd.weight"] == GGMLQuantizationType.Q6_K
    assert "output.weight" not in found
    assert found["blk.0.attn_q.weight"] == GGMLQuantizationType.Q4_K
    assert found["blk.0.attn_norm.weight"] == GGMLQuantizationType.F32


def test_rows_that_256_does_not_divide_fall_back(sources, tmp_path):
    quantise(sources / "narrow.gguf", tmp_path / "out.gguf", "q4_k_m")
    found = Counter(kind.name for kind in types(tmp_path / "out.gguf").values() if kind != GGMLQuantizationType.F32)
    assert set(found) == {"Q5_0", "Q8_0"}


def test_names_of_types():
    assert check_types(["Q4_K_M", " f16", "q4_k_m"]) == ["q4_k_m", "f16"]
    with pytest.raises(ConfigError, match="quantize is 'q4km'; expected one or several of: f32, f16"):
        check_types(["q8_0", "q4km"])


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up(sources, tmp_path):
    out, message = tmp_path / "out.gguf", r"out\.gguf: nothing was written \(no space left on device\); make room"
    with pytest.raises(ExportError, match=message), clear_write_errors(out):
        quantise(sources / "wide.gguf", out, "q4_0")


def test_what_llama_cpp_says_is_passed_on(tmp_path):
    (tmp_path / "junk.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ExportError, match="cannot quantise to q8_0: .*"):
        quantise(tmp_path / "junk.gguf", tmp_path / "out.gguf", "q8_0")
