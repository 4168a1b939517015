"""Models of strangers: the folder of one, of an adapter, and GGUF files."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from peft import LoraConfig

from oddsmith.data.formats import to_pair
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import TokenizedPair
from oddsmith.errors import ConfigError, DataError, ModelError
from oddsmith.model.adapters import add_adapter
from oddsmith.model.generation import context_length, stop_at_end_tokens
from oddsmith.model.limits import limits_of, require_pad_token
from oddsmith.model.loading.adapter_base import record_base
from oddsmith.model.loading.models import load_model, load_tokenizer
from oddsmith.model.loading.outline import outlined_limits
from tests.fuzz.answers import answered
from tests.fuzz.material import NUMBERS, SNIPPETS, TEXTS, VALUES, damaged
from tests.fuzz.target import Target, folder
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

PAIR = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "No."}
ODD = st.one_of(
    VALUES, NUMBERS, TEXTS, st.sampled_from([[], {}, [[]], 0, -1, 300, 2**31, 2**63, True, "0", [0] * 50, float("nan")])
)


@cache
def _sound() -> Path:
    """A model, and an adapter over it."""
    place = Path(tempfile.mkdtemp(prefix="oddsmith-sound-"))
    model, tokenizer = tiny_model(hidden_size=8, intermediate_size=8, num_hidden_layers=1), tiny_tokenizer()
    model.config._name_or_path = str(place / "model")
    for part in (model, tokenizer):
        part.save_pretrained(place / "model")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(model.state_dict(), "model.safetensors")}
    (place / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    (place / "model" / "special_tokens_map.json").write_text(json.dumps(tokenizer.special_tokens_map))
    (place / "model" / "added_tokens.json").write_text(json.dumps(tokenizer.get_added_vocab()))
    (place / "model" / "preprocessor_config.json").write_text('{"image_processor_type": "x", "size": 4}')
    tuned = add_adapter(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned.save_pretrained(place / "adapter")
    record_base(tuned).save(place / "adapter")
    write_gguf(place / "model.gguf", tiny_model(vocab_size=258, num_hidden_layers=1), tokenizer)
    return place


class Fault(NamedTuple):
    """What a file of a folder holds."""

    file: str
    content: bytes


@st.composite
def faults(draw: st.DrawFn, kind: str) -> Fault:
    """One file of JSON, with another value at one or more of its places, or with faults in its text."""
    file = draw(st.sampled_from(sorted(path.name for path in (_sound() / kind).glob("*.json"))))
    sample = (_sound() / kind / file).read_bytes()
    if draw(st.integers(0, 3)) == 0:
        return Fault(file, draw(damaged([sample])))
    document = json.loads(sample)
    for _ in range(draw(st.integers(1, 2))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys[:60])) if keys else None
            if key is None or not isinstance(place[key], dict | list) or draw(st.booleans()):
                break
            place = place[key]
        if key is not None:
            place[key] = draw(ODD)
    return Fault(file, json.dumps(document).encode("utf-8", "surrogatepass"))


def read_folder(kind: str, fault: Fault) -> None:
    """A model or an adapter is loaded, and everything asked of it that a training asks; or refused."""
    with folder() as place:
        shutil.copytree(_sound() / kind, place / kind)
        (place / kind / fault.file).write_bytes(fault.content)
        with answered(ModelError, DataError, ConfigError):
            use(str(place / kind))


def read_gguf(content: bytes) -> None:
    """A GGUF file is read as a trainable model, or refused."""
    with folder() as place:
        (place / "model.gguf").write_bytes(content)
        with answered(ModelError, DataError, ConfigError):
            use(str(place / "model.gguf"))


def use(name: str) -> None:
    """Load a model and its tokenizer, and compute the log-probabilities of a pair."""
    tokenizer = load_tokenizer(name)
    limits = outlined_limits(name, tokenizer)
    model: Any = load_model(name)
    limits = limits_of(model)
    require_pad_token(limits, tokenizer)
    stop_at_end_tokens(getattr(model, "base_model", model), tokenizer)
    context_length(model, tokenizer)
    pairs = PairTokenizer(tokenizer, max_length=64)
    (row,) = pairs.tokenize([to_pair(PAIR)])
    if isinstance(row, TokenizedPair):
        ids = row.chosen_ids
        if max(ids) < limits.embeddings:
            with torch.no_grad():
                model(torch.tensor([ids]))


@cache
def _gguf() -> bytes:
    return (_sound() / "model.gguf").read_bytes()


@st.composite
def odd_gguf(draw: st.DrawFn) -> bytes:
    """A GGUF file with other bytes in its header."""
    content = bytearray(_gguf())
    header = content.index(b"token_embd.weight")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, header - 8))
        new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([one for one in SNIPPETS if len(one) < 9]))
        content[at : at + len(new)] = new
    return bytes(content)


TARGETS = {
    "model folders": Target(faults("model"), lambda fault: read_folder("model", fault)),
    "adapter folders": Target(faults("adapter"), lambda fault: read_folder("adapter", fault)),
    "gguf files": Target(odd_gguf(), read_gguf),
}
