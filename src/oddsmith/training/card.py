"""Write the model card ``README.md``: how to use a model, its held-out figures, its data and how it was trained.

The figures come from the event log of the run. A base or a dataset is named only by its id on the hub, and all other
values are from a fixed selection, so that no path, token or host name gets into the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import transformers
from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..data.report import counted
from ..metrics import BY_NAME, Place, shown_in
from ..model.loading.builtin import PACKAGES, PREFIX, is_builtin
from ..model.loading.place import is_gguf
from ..system.run_folder import CARD_FILE, CURVES_FILE, events_that_count
from .curves import curves_svg

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

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
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

chat = pipeline("text-generation", model="{name}")
"""
_ADAPTER_PIPELINE = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig, pipeline

model, tokenizer = AutoPeftModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
model.generation_config = GenerationConfig.from_pretrained("{name}")  # with the end of turn that it learned
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_UNNAMED_PIPELINE = """\
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, pipeline

# `base`: the model that the adapter was trained on. It was made in Python, so nothing here can load it.
model, tokenizer = PeftModel.from_pretrained(base, "{name}"), AutoTokenizer.from_pretrained("{name}")
model.generation_config = GenerationConfig.from_pretrained("{name}")  # with the end of turn that it learned
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_OWN_PIPELINE = """\
from transformers import pipeline

from oddsmith.inference.loading import load_for_inference

model, tokenizer = load_for_inference("{name}")
chat = pipeline("text-generation", model=model, tokenizer=tokenizer)
"""
_CHAT = """\
answer = chat([{{"role": "user", "content": "What is a good first step?"}}], max_new_tokens=128)
print(answer[0]["generated_text"][-1]["content"])"""
_CONTINUE = """\
print(chat("A good first step is", max_new_tokens=128)[0]["generated_text"])"""
_SEQ2SEQ = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
"""
_MULTIMODAL = """\
from transformers import {auto_class}, AutoTokenizer

model, tokenizer = {auto_class}.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
"""
_ANSWER_IN_A_CHAT = """\
messages = [{{"role": "user", "content": "What is a good first step?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))"""
_UNNAMED_SEQ2SEQ = """\
from peft import PeftModel
from transformers import AutoTokenizer

# `base`: the model that the adapter was trained on. It was made in Python, so nothing here can load it.
model, tokenizer = PeftModel.from_pretrained(base, "{name}"), AutoTokenizer.from_pretrained("{name}")
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


def write_card(folder: Path, facts: CardFacts, events: Sequence[Mapping[str, Any]]) -> None:
    """Write ``README.md`` into a folder, and ``curves.svg`` if the event log, which may be empty, has curves."""
    events = events_that_count(events)
    curves = curves_svg(events)
    if curves is not None:
        (folder / CURVES_FILE).write_text(curves, encoding="utf-8")
    model_card(facts, events, has_curves=curves is not None).save(folder / CARD_FILE)


def model_card(facts: CardFacts, events: Sequence[Mapping[str, Any]], *, has_curves: bool = False) -> ModelCard:
    """Return a card with valid hub metadata; ``has_curves`` says that ``curves.svg`` is beside it."""
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
    start: Mapping[str, Any] = next((event for event in reversed(events) if event.get("event") == "start"), {})
    on_base = f" on [{base}](https://huggingface.co/{base})" if base else ""
    sections = [
        f"# {name.rpartition('/')[2]}",
        f"{IS[facts.kind]}{on_base} with [ORPO](https://arxiv.org/abs/2403.07691) (odds ratio preference optimization)"
        f" by Oddsmith {__version__}.",
        "\n".join(f"- {note}" for note in facts.notes),
        "## Use it\n\n" + _usage(facts, name, system_prompt_of(start)),
        _held_out(events),
        _data(start.get("data", {})),
        _training(start, events),
        f"![loss, accuracy and margin over the steps]({CURVES_FILE})" if has_curves else "",
        f"Made with Oddsmith {__version__}, transformers {transformers.__version__}.",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def system_prompt_of(start: Mapping[str, Any]) -> str | None:
    """Return the system message that a run gave its rows, from its start event; None where it gave none."""
    return (start.get("settings") or {}).get("system_prompt")


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
    """Return base and datasets of the card in a folder, which names only those with a hub id."""
    file = folder / CARD_FILE
    if not file.is_file():
        return None, []
    data = ModelCard.load(file, ignore_metadata_errors=True).data
    datasets = [data.datasets] if isinstance(data.datasets, str) else list(data.datasets or [])
    return (data.base_model if isinstance(data.base_model, str) else None), datasets


def _public_name(name: str) -> str:
    """Return the name of a model without the folders of a path."""
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else Path(name).resolve().name


def _usage(facts: CardFacts, name: str, system_prompt: str | None) -> str:
    short, place = name.rpartition("/")[2], facts.place or name
    if facts.kind == "gguf":
        files = ", ".join(f"`{file}`" for file in facts.files)
        file = facts.files[0] if facts.files else f"{short}-Q4_K_M.gguf"
        return f"Files: {files or 'GGUF'}\n\n" + _shell(
            f"llama-cli -m {file}", f"ollama create {short.lower()} -f Modelfile", f"ollama run {short.lower()}"
        )
    if facts.is_encoder_decoder:
        opening, end = (_UNNAMED_SEQ2SEQ if facts.base == "unnamed" else _SEQ2SEQ), _ANSWER
    elif facts.auto_class and facts.base == "named":
        opening, end = _MULTIMODAL, _ANSWER_IN_A_CHAT if facts.has_chat_template else _ANSWER
    else:
        opening, end = _opening(facts), _CHAT if facts.has_chat_template else _CONTINUE
    code = (opening + end).format(name=place, auto_class=facts.auto_class)
    if system_prompt is not None:  # with which it was trained
        message = json.dumps({"role": "system", "content": system_prompt}, ensure_ascii=False)
        code = code.replace('[{"role": "user"', f'[{message}, {{"role": "user"')
    text = f"With {_libraries(facts)}:\n\n```python\n{code}\n```"
    if facts.is_encoder_decoder or facts.auto_class or facts.base == "unnamed":
        return text
    return f"{text}\n\nWith llama.cpp and Ollama, converted by Oddsmith with its extra `gguf`:\n\n" + _shell(
        f"oddsmith export {place} --to gguf --quantize q4_k_m --output gguf",
        "llama-cli -m gguf/*-Q4_K_M.gguf",
        f"ollama create {short.lower()} -f gguf/Modelfile && ollama run {short.lower()}",
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


def _shell(*lines: str) -> str:
    return "```sh\n" + "\n".join(lines) + "\n```"


def _held_out(events: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the last evaluation, a column a dataset."""
    columns: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("event") == "evaluate":
            for key in event:
                if key.endswith("_rewards/accuracies"):
                    columns[key.removesuffix("_rewards/accuracies")] = event
    if not columns:
        return ""
    titles = [prefix.removeprefix("eval").removeprefix("_") or "held-out pairs" for prefix in columns]
    lines = ["## Held-out figures", "", f"| | {' | '.join(titles)} |", "|---|" + "---:|" * len(columns)]
    lines.append(f"| after step | {' | '.join(str(event['step']) for event in columns.values())} |")
    for metric in shown_in(Place.CARD):
        values = [event.get(f"{prefix}_{metric.name}") for prefix, event in columns.items()]
        if any(isinstance(value, int | float) for value in values):
            cells = [metric.format.format(value) if isinstance(value, int | float) else "" for value in values]
            lines.append(f"| {metric.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Accuracy: {BY_NAME['rewards/accuracies'].meaning}."])


def _data(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of rows per dataset: kept, dropped and why, cut and where."""
    if not reports:
        return ""
    lines = ["## Data", "", "| | rows | kept | dropped | cut | longest |", "|---|---:|---:|---:|---:|---:|"]
    remarks = []
    for source, report in reports.items():
        dropped = {reason: len(rows) for reason, rows in report["dropped"].items()}
        cut = {side: len(rows) for side, rows in report["cut"].items()}
        lines.append(
            f"| {source} | {report['rows']:,} | {report['kept']:,} | {sum(dropped.values()):,}"
            f" | {len(set().union(*report['cut'].values())):,} | {counted(report['longest_tokens'], 'token')} |"
        )
        remarks += [f"- {source}: {count:,} dropped, {reason}" for reason, count in dropped.items()]
        if cut:
            sides = ", ".join(f"{count:,} {side}" for side, count in cut.items())
            limit = f" to fit {report['max_length']:,} tokens" if report.get("max_length") else ""
            remarks.append(f"- {source}: cut{limit}: {sides}")
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def _training(start: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of settings that a reader needs to repeat the run."""
    facts: dict[str, Any] = {}
    if start.get("parameters"):
        total, trained = start["parameters"], start["trainable_parameters"]
        facts["parameters"] = f"{total:,}, {trained:,} of them trained"
    facts |= {name.replace("_", " "): value for name, value in (start.get("adapter") or {}).items()}
    quantization = (start.get("base") or {}).get("quantization")
    if quantization:
        facts["base"] = "4 bits while training" if quantization.get("load_in_4bit") else "8 bits while training"
    if start.get("precision"):
        facts["precision"] = {"no": "float32"}.get(start["precision"], start["precision"])
    if start.get("pairs_per_step"):
        facts["pairs per step"] = start["pairs_per_step"]
    steps = [event["step"] for event in events if event.get("event") in ("log", "end")]
    if steps:
        facts["steps"] = max(steps)
    stopped = [event for event in events if event.get("event") == "stopped_early"]
    if stopped and steps and stopped[-1]["step"] == max(steps):
        facts["stopped early"] = stopped[-1].get("reason")
    settings = start.get("settings") or {}
    told = {name: value for name, value in settings.items() if name != "system_prompt"}  # which the code above has
    facts |= {f"`{name}`": value for name, value in told.items() if value is not None and value != -1}
    if not facts:
        return ""
    rows = [
        f"| {name} | {', '.join(map(str, value)) if isinstance(value, list) else value} |"
        for name, value in facts.items()
    ]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *rows])
