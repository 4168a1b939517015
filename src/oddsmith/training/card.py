"""Write the model card ``README.md``: how to use a model, its held-out figures, its data and how it was trained.

The figures come from the event log of the run. A base or a dataset is named only by its id on the hub, and all other
values are from a fixed selection, so that no path, token or host name gets into the card.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..errors import first_line
from ..model.loading.builtin import PACKAGES, PREFIX, is_builtin
from ..model.loading.place import is_gguf
from ..system.files import replacing
from ..system.outside import open_file
from ..system.run_folder import CARD_FILE, CURVES_FILE
from .card_record import CardRecord, Events
from .card_text import as_text, visible

logger = logging.getLogger(__name__)

TAGS = ("oddsmith", "orpo")
Kind = Literal["adapter", "model", "merged", "gguf"]
# How the base of an adapter is loaded: by PEFT, by us, or by nobody, because the model was made in Python.
BaseKind = Literal["named", "builtin", "gguf", "unnamed"]

# What the hub's metadata calls each kind, and its relation to its base. A merged model is a fine-tune, because "merge"
# means a mixture of several models there.
LIBRARY: dict[Kind, str] = {"adapter": "peft", "model": "transformers", "merged": "transformers", "gguf": "gguf"}
RELATION: dict[Kind, str] = {"adapter": "adapter", "model": "finetune", "merged": "finetune", "gguf": "finetune"}
IS: dict[Kind, str] = {
    "adapter": "This adapter was trained",
    "model": "This model was trained",
    "merged": "This model was trained",
    "gguf": "This model, in the format of llama.cpp, was trained",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{,95}(/[A-Za-z0-9][\w.-]{,95})?", re.ASCII)
_METADATA = re.compile(r"\s{,9}---\r?\n(.*?)\r?\n---", re.DOTALL)
MOST_NAME = 255  # characters, as of folders
MOST_METADATA = 100_000  # characters
MOST_PROMPT = 10_000  # characters of a system message that the code of a card gives
_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gguf", ".txt", ".yaml")

CITATION = """\
@article{hong2024orpo,
    title        = {{ORPO: Monolithic Preference Optimization without Reference Model}},
    author       = {Jiwoo Hong and Noah Lee and James Thorne},
    year         = 2024,
    eprint       = {arXiv:2403.07691}
}"""

_PIPELINE = """\
from transformers import pipeline

chat = pipeline("text-generation", model={name})
"""
_ADAPTER_PIPELINE = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig, pipeline

model, tokenizer = AutoPeftModelForCausalLM.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
model.generation_config = GenerationConfig.from_pretrained({name})  # with the end of turn that it learned
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_UNNAMED_PIPELINE = """\
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, pipeline

# `base`: the model that the adapter was trained on. It was made in Python, so nothing here can load it.
model, tokenizer = PeftModel.from_pretrained(base, {name}), AutoTokenizer.from_pretrained({name})
model.generation_config = GenerationConfig.from_pretrained({name})  # with the end of turn that it learned
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_OWN_PIPELINE = """\
from transformers import pipeline

from oddsmith.inference.loading import load_for_inference

model, tokenizer = load_for_inference({name})
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_CHAT = """\
answer = chat([{{"role": "user", "content": "What is a good first step?"}}], max_new_tokens=128)
print(answer[0]["generated_text"][-1]["content"])"""
_CONTINUE = """\
print(chat("A good first step is", max_new_tokens=128)[0]["generated_text"])"""
_SEQ2SEQ = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
"""
_MULTIMODAL = """\
from transformers import {auto_class}, AutoTokenizer

model, tokenizer = {auto_class}.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
"""
_ANSWER_IN_A_CHAT = """\
messages = [{{"role": "user", "content": "What is a good first step?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))"""
_UNNAMED_SEQ2SEQ = """\
from peft import PeftModel
from transformers import AutoTokenizer

# `base`: the model that the adapter was trained on. It was made in Python, so nothing here can load it.
model, tokenizer = PeftModel.from_pretrained(base, {name}), AutoTokenizer.from_pretrained({name})
"""
_ANSWER = """\
inputs = tokenizer("What is a good first step?", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))"""
_REASONS: dict[BaseKind, str] = {
    "builtin": "whose built-in models come from packages of their own",
    "gguf": "because the base is a GGUF file",
}


@dataclass(frozen=True)
class CardFacts:
    """The facts of a card that are not in the event log."""

    name: str  # id on the hub, or any name; of a path only the last part is used
    kind: Kind
    place: str | None = None  # what code loads it by: an id on the hub, or a folder beside the run's; else the name
    base: BaseKind = "named"  # of an adapter
    base_model: str | None = None  # left out unless it is on the hub
    datasets: Sequence[str] = ()  # left out unless they are on the hub
    tags: Iterable[str] = ()  # hub tags beside oddsmith and orpo
    has_chat_template: bool = True
    is_encoder_decoder: bool = False
    auto_class: str = ""  # of transformers, where a pipeline for text does not know the model
    notes: Sequence[str] = ()  # sentences about the files, such as how exact they are
    files: Sequence[str] = ()  # names of GGUF files


def write_card(folder: Path, facts: CardFacts, events: Events | CardRecord) -> None:
    """Write ``README.md`` into a folder, and ``curves.svg`` if the event log, which may be empty, has curves."""
    record = CardRecord.of(events)
    if record.curves is not None:
        with replacing(folder / CURVES_FILE) as partial:
            partial.write_text(record.curves, encoding="utf-8")
    with replacing(folder / CARD_FILE) as partial:
        partial.write_text(str(model_card(facts, record)), encoding="utf-8")


def model_card(facts: CardFacts, events: Events | CardRecord) -> ModelCard:
    """Return a card with valid hub metadata; the curves that it shows are beside it, in ``curves.svg``.

    Names and values from other people's files become text: none is markup, or ends the code that it is in.
    """
    record = CardRecord.of(events)
    name, base, datasets = _public_name(facts.name), hub_id(facts.base_model), [*map(hub_id, facts.datasets)]
    data = ModelCardData(
        base_model=base,
        base_model_relation=RELATION[facts.kind] if base else None,
        datasets=[known for known in datasets if known] or None,
        library_name=LIBRARY[facts.kind],
        model_name=name,
        pipeline_tag=None if facts.is_encoder_decoder else "text-generation",
        tags=sorted({*TAGS, *facts.tags, *(["gguf"] if facts.kind == "gguf" else [])}),
    )
    on_base = f" on [{as_text(base)}](https://huggingface.co/{base})" if base else ""
    sections = [
        f"# {as_text(name.rpartition('/')[2])}",
        f"{IS[facts.kind]}{on_base} with [ORPO](https://arxiv.org/abs/2403.07691) (odds ratio preference optimization)"
        f" by Oddsmith {__version__}.",
        "\n".join(f"- {note}" for note in facts.notes),
        "## Use it\n\n" + _usage(facts, name, record.system_prompt),
        record.held_out,
        record.data,
        record.training,
        f"![loss, accuracy and margin over the steps]({CURVES_FILE})" if record.curves else "",
        f"Made with Oddsmith {__version__}, transformers {transformers.__version__}.",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def hub_id(name: str | None) -> str | None:
    """Return the hub id that a name is, or that of a built-in model; ``None`` for paths, files and built-in data."""
    if not name:
        return None
    if name.startswith(PREFIX) and name.removeprefix(PREFIX) in PACKAGES:
        return PACKAGES[name.removeprefix(PREFIX)].hub_id
    if not _HUB_ID.fullmatch(name) or name.lower().endswith(_FILES) or Path(name).exists():
        return None
    return name


def place_of(folder: Path, run: Path) -> str:
    """Return a folder as seen from the folder in which the run folder is, if it is in the run folder."""
    folder, run = folder.resolve(), run.resolve()
    return str(folder.relative_to(run.parent) if folder.is_relative_to(run) else folder.name)


def base_kind(name: str | None) -> BaseKind:
    """Return how the base of an adapter is loaded, from its name."""
    if not name:
        return "unnamed"
    return "builtin" if is_builtin(name) else "gguf" if is_gguf(name) else "named"


def card_names(folder: Path) -> tuple[str | None, list[str]]:
    """Return base and datasets of the card in a folder, which names only those with a hub id.

    A card whose metadata cannot be read, such as one edited by hand, names none; a warning says so.
    """
    file = folder / CARD_FILE
    try:
        if not file.is_file():
            return None, []
        with open_file(file, "r", encoding="utf-8") as opened:
            beginning = opened.read(MOST_METADATA)
        metadata = _METADATA.match(beginning)
        data = yaml.safe_load(metadata[1]) if metadata else {}
        base, datasets = data.get("base_model"), data.get("datasets") or []
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = first_line(error) or type(error).__name__
        logger.warning("%s: its metadata cannot be read (%s), so no base or dataset is taken from it", file, reason)
        return None, []
    datasets = datasets if isinstance(datasets, list) else [datasets]
    return (base if isinstance(base, str) else None), [name for name in datasets if isinstance(name, str)]


def _public_name(name: str) -> str:
    """Return the name of a model without the folders of a path."""
    is_id = _HUB_ID.fullmatch(name) and not Path(name).exists()
    return name if is_id else visible(Path(visible(name)).resolve().name)[:MOST_NAME] or "model"


def _usage(facts: CardFacts, name: str, system_prompt: str | None) -> str:
    short, place = name.rpartition("/")[2], visible(facts.place or name)
    ollama_name = re.sub(r"[^\w.+-]+", "-", short.lower()).strip("-.") or "model"
    if facts.kind == "gguf":
        files = ", ".join(map(as_text, facts.files))
        file = shlex.quote(visible(facts.files[0])) if facts.files else f"{short}-Q4_K_M.gguf"
        return f"Files: {files or 'GGUF'}\n\n" + _shell(
            f"llama-cli -m {file}", f"ollama create {ollama_name} -f Modelfile", f"ollama run {ollama_name}"
        )
    if facts.is_encoder_decoder:
        opening, end = (_UNNAMED_SEQ2SEQ if facts.base == "unnamed" else _SEQ2SEQ), _ANSWER
    elif facts.auto_class and facts.base == "named":
        opening, end = _MULTIMODAL, _ANSWER_IN_A_CHAT if facts.has_chat_template else _ANSWER
    else:
        opening, end = _opening(facts), _CHAT if facts.has_chat_template else _CONTINUE
    code = (opening + end).format(name=_quoted(place), auto_class=facts.auto_class)
    if system_prompt is not None and len(system_prompt) <= MOST_PROMPT:  # with which it was trained
        message = f'{{"role": "system", "content": {_quoted(system_prompt)}}}'
        code = code.replace('[{"role": "user"', f'[{message}, {{"role": "user"', 1)
    text = f"With {_libraries(facts)}:\n\n```python\n{code}\n```"
    if facts.is_encoder_decoder or facts.auto_class or facts.base == "unnamed":
        return text
    return f"{text}\n\nWith llama.cpp and Ollama, converted by Oddsmith with its extra `gguf`:\n\n" + _shell(
        f"oddsmith export {shlex.quote(place)} --to gguf --quantize q4_k_m --output gguf",
        "llama-cli -m gguf/*-Q4_K_M.gguf",
        f"ollama create {ollama_name} -f gguf/Modelfile && ollama run {ollama_name}",
    )


def _opening(facts: CardFacts) -> str:
    if facts.base == "unnamed":
        return _UNNAMED_PIPELINE
    if facts.base != "named":
        return _OWN_PIPELINE
    return _ADAPTER_PIPELINE if facts.kind == "adapter" else _PIPELINE


def _libraries(facts: CardFacts) -> str:
    if facts.base in _REASONS:
        return f"Oddsmith, {_REASONS[facts.base]}"
    return "transformers and PEFT" if facts.kind == "adapter" else "transformers"


def _quoted(text: str) -> str:
    """Return a text as a string of Python and JSON, on one line, with escapes for what cannot be seen."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


def _shell(*lines: str) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```"
