"""GGUF files in llama.cpp: the same logits and answers as in transformers, and one line for a file that is broken."""

import codecs
import os
import platform
import re
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch

from oddsmith.errors import MissingExtraError, ModelError
from oddsmith.export.gguf.llama_cpp import BATCH_TOKENS, GgufModel, available_processors, load_cyllama, load_failure
from oddsmith.model.loading.gguf_header import check_gguf
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

MERGES = ["t h", "th e", "Ġ the"]  # none of them a token: llama.cpp only wants that there are merges


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=258).eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model, tiny_tokenizer(), merges=MERGES)


@pytest.fixture
def loaded(file):
    with GgufModel(file, threads=1) as loaded:
        yield loaded


def greedy(model, ids, count):
    options = {"do_sample": False, "eos_token_id": 257, "pad_token_id": 257}
    return model.generate(torch.tensor([ids]), max_new_tokens=count, **options)[0, len(ids) :].tolist()


class TestLogits:
    def test_are_those_of_transformers(self, model, loaded):
        ids = loaded.tokenize("The cat sat on a mat; then it ran far away, and nobody saw it again.")
        expected = model(torch.tensor([ids])).logits[0].detach().numpy()
        # llama.cpp keeps keys and values in float16: 11 bits, of logits up to 10.
        np.testing.assert_allclose(loaded.logits(ids), expected, atol=2e-2)

    def test_do_not_depend_on_batches_nor_on_what_was_computed_before(self, file):
        ids = list(np.random.default_rng(0).integers(0, 256, BATCH_TOKENS + 40))
        with GgufModel(file, threads=1) as loaded:
            assert loaded.logits(ids).shape == (BATCH_TOKENS + 40, 258)
            short = loaded.logits(ids[:50])
            np.testing.assert_allclose(loaded.logits(ids)[:50], short, atol=2e-2)

    def test_of_a_prompt_longer_than_the_context(self, file):
        model = GgufModel(file, context_length=256, threads=1)
        with model as loaded, pytest.raises(ModelError, match="300 tokens.*256"):
            loaded.logits([1] * 300)

    def test_of_nothing(self, loaded):
        with pytest.raises(ModelError, match="no tokens"):
            loaded.logits([])


class TestAnswers:
    def test_are_those_of_transformers(self, model, loaded):
        ids = loaded.tokenize("the cat sat")
        assert list(loaded.generate(ids, max_new_tokens=12)) == greedy(model, ids, 12)[:12]

    def test_of_a_second_turn_do_not_depend_on_the_first(self, file, loaded):
        first = loaded.tokenize("the cat sat on")
        list(loaded.generate(first, max_new_tokens=5))
        for second in ([*first, 1, 2, 3], first, first[:3], loaded.tokenize("another")):
            with GgufModel(file, threads=1) as fresh:
                expected = list(fresh.generate(second, max_new_tokens=8))
            assert list(loaded.generate(second, max_new_tokens=8)) == expected

    def test_end_with_the_end_token_which_is_left_out(self, loaded):
        assert 257 in loaded.end_ids
        for seed in range(100):
            ids = list(loaded.generate([5], max_new_tokens=300, temperature=3.0, seed=seed))
            assert not loaded.end_ids & set(ids)
            if len(ids) < 300:
                return
        pytest.fail("none of a hundred answers ended")

    def test_that_are_sampled_repeat_with_their_seed(self, loaded):
        def sample(seed):
            return list(loaded.generate([5, 6], max_new_tokens=20, temperature=1.0, top_p=0.95, seed=seed))

        assert sample(1) == sample(1)
        assert sample(1) != sample(2)

    def test_stop_where_the_context_is_full(self, file):
        with GgufModel(file, context_length=256, threads=1) as loaded:
            options = {"max_new_tokens": 50, "temperature": 2.0}
            answers = [len(list(loaded.generate([7] * 250, **options, seed=seed))) for seed in (1, 2, 3)]
        assert max(answers) == 7  # 256 - 250, and the one that the last position predicts


class TestTokens:
    @pytest.mark.parametrize("text", ["plain", "Grüße 🎉 漢字", "a\n\n b", ""])
    def test_come_back_as_text(self, loaded, text):
        assert loaded.detokenize(loaded.tokenize(text)).decode() == text

    def test_are_those_of_the_tokenizer(self, loaded):
        text = "<|im_start|>user\nGrüße<|im_end|>\n"
        assert loaded.tokenize(text) == tiny_tokenizer()(text).input_ids

    def test_of_special_texts_only_where_wanted(self, loaded):
        assert loaded.tokenize("<|im_end|>") == [257]
        assert len(loaded.tokenize("<|im_end|>", special=False)) == len("<|im_end|>")
        assert loaded.detokenize([257]) == b""
        assert loaded.detokenize([257], special=True) == b"<|im_end|>"

    def test_that_cut_a_character_can_be_streamed(self, loaded):
        decoder = codecs.getincrementaldecoder("utf-8")()
        pieces = [decoder.decode(loaded.detokenize([token])) for token in loaded.tokenize("🎉ä")]
        assert pieces == ["", "", "", "🎉", "", "ä"]

    def test_and_the_template_of_the_file(self, loaded):
        assert loaded.chat_template == tiny_tokenizer().chat_template
        assert loaded.metadata["general.architecture"] == "llama"
        assert loaded.begin_id is None


def test_llama_cpp_prints_nothing(file, capfd):
    with GgufModel(file, threads=1) as loaded:
        list(loaded.generate([5], max_new_tokens=2))
    assert capfd.readouterr() == ("", "")


class TestBrokenFiles:
    def test_cut_anywhere(self, file, tmp_path):
        content, cut = file.read_bytes(), tmp_path / "cut.gguf"
        for length in [*range(0, 4000, 7), *range(4000, len(content) - 32, 997), len(content) - 33]:
            cut.write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"cut\.gguf: (is cut off|is no)"):
                check_gguf(cut)
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError, match="is cut off"):
            GgufModel(cut)

    HUGE = 2**62
    KEY = struct.pack("<Q1s", 1, b"k")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (struct.pack("<IQQ", 3, HUGE, 1), "4,611,686,018,427,387,904 tensors"),
            (struct.pack("<IQQ", 3, 1, HUGE), "4,611,686,018,427,387,904 keys"),
            (struct.pack("<IQQQ", 3, 0, 1, HUGE), "name of a key claims 4,611"),
            (struct.pack("<IQQ", 3, 0, 1) + KEY + struct.pack("<IQ", 8, HUGE), "a text in the header ends after"),
            (struct.pack("<IQQ", 3, 0, 1) + KEY + struct.pack("<IIQ", 9, 8, HUGE), "strings in one list"),
            (struct.pack("<IQQ", 3, 0, 1) + KEY + struct.pack("<IIQ", 9, 4, HUGE), "a list of 4,611"),
            (struct.pack("<IQQ", 3, 0, 1) + KEY + struct.pack("<IIQ", 9, 9, 1), "unknown type 9"),
            (struct.pack("<IQQ", 3, 0, 1) + KEY + struct.pack("<I", 77), "unknown type 77"),
            (struct.pack("<IQQ", 3, 1, 0) + KEY + struct.pack("<I", HUGE % 2**32 + 9), "9 dimensions"),
            (
                struct.pack("<IQQ", 3, 1, 0) + KEY + struct.pack("<I4QIQ", 4, *[2**60] * 4, 0, 0),
                "is cut off: its tensors",
            ),
            (struct.pack("<IQQ", 3, 1, 0) + KEY + struct.pack("<IQIQ", 1, 32, 0, HUGE), "is cut off: its tensors"),
            (struct.pack("<IQQ", 99, 0, 0), "version 99"),
        ],
    )
    def test_that_claim_what_they_cannot_hold(self, tmp_path, header, message):
        path = tmp_path / "huge.gguf"
        path.write_bytes(b"GGUF" + header + bytes(1000))
        self.expect_bounded(path, message)

    def test_of_a_million_claims_that_all_seem_to_fit(self, tmp_path):
        """A file of 2 GB (sparse) can hold what it claims, and is refused all the same before it is walked through."""
        path = tmp_path / "sparse.gguf"
        strings = 200_000_000
        with path.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + self.KEY + struct.pack("<IIQ", 9, 8, strings))
            file.truncate(2_000_000_000)
        self.expect_bounded(path, "200,000,000 strings")

    def expect_bounded(self, path, message):
        tracemalloc.start()
        start = time.perf_counter()
        try:
            with pytest.raises(ModelError, match=message):
                GgufModel(path)
            assert time.perf_counter() - start < 5
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    def test_of_another_kind_or_architecture_or_missing(self, file, tmp_path):
        path = tmp_path / "other.gguf"
        with pytest.raises(ModelError, match="no file is there"):
            GgufModel(path)
        path.write_text("no model at all")
        with pytest.raises(ModelError, match="is no GGUF file"):
            GgufModel(path)
        path.write_bytes(file.read_bytes().replace(b"llama", b"lhama"))
        message = "unknown model architecture: 'lhama'; the llama.cpp in cyllama [0-9.]+ is older"
        with pytest.raises(ModelError, match=message):
            GgufModel(path)


def test_why_a_server_could_not_load_a_file_is_in_its_log():
    """Lines of xllamacpp's, which ends with an exception that says nothing."""
    log = (
        "0.00.016.4 E llama_model_load: error loading model: unknown model architecture: 'lhama'\n"
        "0.00.016.7 E srv          init: exiting due to model loading error\nRuntimeError: Failed to init server\n"
    )
    expected = r"unknown model architecture: 'lhama'; the llama.cpp in xllamacpp [0-9.]+ is older than that"
    assert re.fullmatch(expected, load_failure(log, "xllamacpp"))
    assert load_failure("listening\nan error of another kind", "xllamacpp") is None


def test_threads_are_as_many_as_the_other_libraries_may_have(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_processors() == 3
    for nothing in ("", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert available_processors() == len(os.sched_getaffinity(0))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a wheel for every processor")
def test_where_there_is_no_wheel(monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingExtraError) as error:
        load_cyllama("an export to GGUF")
    assert str(error.value) == (
        "an export to GGUF needs an optional dependency;"
        " there is no wheel of llama.cpp (cyllama) for Linux on this processor, aarch64"
    )


def test_without_the_extra(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(MissingExtraError, match=r'pip install "oddsmith\[gguf\]"'):
        GgufModel(file)
