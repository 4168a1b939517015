"""GGUF files against llama.cpp's own converter: every tensor bit for bit, every key, every family."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from oddsmith.errors import MissingExtraError
from oddsmith.export.gguf.convert import plan_conversion, write_gguf
from oddsmith.export.gguf.llama_cpp import GgufModel
from oddsmith.export.gguf.vocabulary import PROBE, fingerprint, known_fingerprints
from oddsmith.model.loading.builtin import _packaged_gguf
from oddsmith.model.loading.gguf import load_gguf_tokenizer
from tests.llama_cpp_oracle import convert_with_llama_cpp, llama_cpp_source, read_fields, read_tensors
from tests.tiny_families import FAMILIES, PRE, class_of, save_family

# What the two tell about the model's name, and what is said here though llama.cpp would assume the same.
OURS_OR_THEIRS = {
    "general.basename", "general.finetune", "general.license", "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
}  # fmt: skip

IN_EVERY_RUN = {
    "llama", "llama3.1", "llama2", "mixtral", "ministral3-images", "qwen2", "qwen3-images", "qwen3.5",
    "qwen3.5-experts-images", "gemma2", "gemma3-images", "phi3-long", "smollm3", "granite", "olmo3", "gpt-oss", "lfm2",
}  # fmt: skip
each_family = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in IN_EVERY_RUN else pytest.mark.slow) for family in FAMILIES]
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, request):
    """Model folders of the families that this run tests."""
    root = tmp_path_factory.mktemp("families")
    asked = {getattr(item, "callspec", None) and item.callspec.params.get("family") for item in request.session.items}
    return {family: save_family(root / family, family) for family in FAMILIES if family in asked | {"llama", "gemma2"}}


def as_transformers_4_saved(folder, copy):
    """With the added tokens in ``tokenizer_config.json``, the only place where llama.cpp looks for those of a
    ``tokenizer.model``. Where transformers 5 saved the folder it takes them for padding, as nothing tells it better."""
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((copy / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {
        str(number): {"content": added.content, "special": added.special}
        for number, added in tokenizer.added_tokens_decoder.items()
    }
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def theirs(folders, tmp_path_factory):
    """All families by llama.cpp's converter, in one process."""
    root = tmp_path_factory.mktemp("theirs")
    copies = {family: as_transformers_4_saved(folder, root / family) for family, folder in folders.items()}
    jobs = [(folder, root / f"{family}.gguf", "bf16", PRE.get(family, "smollm")) for family, folder in copies.items()]
    jobs.append((copies["llama"], root / "llama-f16.gguf", "f16", "smollm"))
    jobs.append((copies["gemma2"], root / "gemma2-f32.gguf", "f32", None))
    convert_with_llama_cpp(jobs)
    return root


def convert(folder, path, encoding="bf16"):
    write_gguf(plan_conversion(folder, title="tiny", source=folder.name), path, encoding)
    return path


def assert_same_tensors(ours, theirs):
    ours, theirs = read_tensors(ours), read_tensors(theirs)
    assert sorted(ours) == sorted(theirs)
    for name, (kind, values) in theirs.items():
        assert ours[name][0] == kind, name
        assert np.array_equal(ours[name][1], values), name


@each_family
def test_tensors_are_those_of_llama_cpp(family, folders, theirs, tmp_path):
    assert_same_tensors(convert(folders[family], tmp_path / "ours.gguf"), theirs / f"{family}.gguf")


@pytest.mark.parametrize(("family", "encoding"), [("llama", "f16"), ("gemma2", "f32")])
def test_tensors_of_other_encodings(family, encoding, folders, theirs, tmp_path):
    ours = convert(folders[family], tmp_path / "ours.gguf", encoding)
    assert_same_tensors(ours, theirs / f"{family}-{encoding}.gguf")


@each_family
def test_settings_and_tokens_are_those_of_llama_cpp(family, folders, theirs, tmp_path):
    ours, expected = (
        read_fields(convert(folders[family], tmp_path / "ours.gguf")),
        read_fields(theirs / f"{family}.gguf"),
    )
    scores, expected_scores = (fields.pop("tokenizer.ggml.scores", None) for fields in (ours, expected))
    found, wanted = ({k: v for k, v in each.items() if k not in OURS_OR_THEIRS} for each in (ours, expected))
    assert found == wanted
    if scores is not None:
        # Scores count only among tokens that are joined from others, and only by their order.
        tokens, kinds = ours["tokenizer.ggml.tokens"], ours["tokenizer.ggml.token_type"]
        joined = [i for i, kind in enumerate(kinds) if kind == 1 and len(tokens[i]) > 1]
        assert len(joined) > 50
        assert np.array_equal(np.argsort([scores[i] for i in joined]), np.argsort([expected_scores[i] for i in joined]))


def test_fingerprints_are_those_of_llama_cpp():
    source = (llama_cpp_source() / "conversion" / "base.py").read_text(encoding="utf-8")
    function = source[source.index("Marker: Start get_vocab_base_pre") : source.index("Marker: End get_vocab_base_pre")]
    pairs = re.findall(r'chkhsh == "(\w{64})":\s*(?:#.*\s*)?res = "([^"]+)"', function)
    assert len(pairs) == function.count("chkhsh ==")
    assert known_fingerprints() == dict(pairs)
    assert repr(PROBE) in function


def test_a_real_tokenizer_has_its_fingerprint():
    """SmolLM2's, as the built-in model has it."""
    try:
        path, _ = _packaged_gguf("smollm2-135m-instruct")
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert known_fingerprints()[fingerprint(load_gguf_tokenizer(path))] == "smollm"


def read(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, class_of(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()


@each_family
def test_llama_cpp_computes_and_cuts_text_as_transformers_does(family, folders, tmp_path):
    plan = plan_conversion(folders[family], title="tiny", source=family)
    # In bf16 llama.cpp rounds activations, and may choose another expert.
    write_gguf(plan, tmp_path / "ours.gguf", "f32" if plan.settings.get("num_experts_per_tok") else "bf16")
    tokenizer, model = read(folders[family])
    text = "<|im_start|>user\nthe cat sat, 1969: Grüße 🎉[NOTE] on  a mat<|im_end|>\n"
    if plan.vocabulary.adds_space:  # as transformers 5.24 reads tokenizer.model; test_families.py has the difference
        text = text.replace("[NOTE] on", "[NOTE]on")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # A context no longer than the text: llama.cpp chooses LongRoPE's factors by the context, not by the text.
    with GgufModel(tmp_path / "ours.gguf", threads=1, context_length=len(ids)) as loaded, torch.no_grad():
        assert loaded.tokenize(text) == ids
        logp, logq = (
            torch.as_tensor(logits).double().log_softmax(-1)
            for logits in (model(torch.tensor([ids])).logits[0], loaded.logits(ids))
        )
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert end in loaded.end_ids
        assert (loaded.begin_id is not None) == (tokenizer.encode("a")[0] == tokenizer.bos_token_id)
    assert (logp.exp() * (logp - logq)).sum(-1).mean() < 1e-3  # llama.cpp rounds keys, values and activations
