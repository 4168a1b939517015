"""Score answers with a reward model: ``reward:MODEL``, any sequence-classification model of transformers.

Question and answer are rendered with the chat template of the model; one without a template gets them as a pair of
texts. The score is the logit of its head. A model with several heads is told which:

    reward:MODEL#helpfulness              the logit of one, by its name in ``id2label`` or its number
    reward:MODEL#helpfulness:0.8,verbosity:-0.2      sum of weight times logit
    reward:MODEL#mean                     the mean of all

Answers are batched by length, the longest first; where the model can be packed (packed_rewards.py), by question, whose
prompt is then computed once. None is cut: one with more tokens than the model reads has no score.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ...data.tokens.content_parts import as_template_reads
from ...errors import ConfigError, ModelError
from ...model.computing import clear_computing, require_finite_logits
from ...model.generation import context_length
from ...model.limits import limits_of
from ...model.loading.adapter_base import fingerprint
from ...model.loading.completeness import require_all_weights
from ...model.loading.load_errors import clear_errors
from ...model.loading.models import load_tokenizer
from ...model.loading.place import is_adapter_folder, is_gguf, locate
from ...model.loading.plausible import require_plausible_settings, require_plausible_size
from ...model.loading.quiet import no_progress_bars
from ...model.loading.setup import compute_in_float32
from ...model.loading.untrusted_files import refuse_code_in_folder, refuse_code_in_hub_model
from ...system.memory import clear_memory_errors, is_device_out_of_memory
from ...system.precision import dtype_to_answer, emulates_bf16
from ..records import Answer, Asked, Question, Said, Score, digest_of
from .packed_rewards import is_packable, packed_logits

BATCH_TOKENS, BATCH_ANSWERS = 8_192, 32  # at most, padding counted
AT_ONCE = 64  # questions whose answers are sorted by length together; most of their scores come at the end
MEAN = "mean"

_HEAD = re.compile(r"(.+?)(?::([+-]?(?:\d+\.?\d*|\.\d+)))?")

Encoding = Mapping[str, list[int]]


class RewardJudge:
    """A judge that computes a reward. Its model is in memory only while it scores.

    Args:
        name: Its name.
        path: Of a sequence-classification model.
        heads: The weight of each head in the score.
    """

    def __init__(self, name: str, path: str, heads: Mapping[int, float]):
        self.name, self._path, self._heads = name, path, heads
        self._tokenizer = load_tokenizer(path)
        self._basis = digest_of(fingerprint(path), sorted(heads.items()))

    def basis(self, question: Question) -> str:
        """Return a digest of the weights of the model and of its heads."""
        return self._basis

    def score(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said]]:
        """Score the answers to many questions, a batch after the other.

        A model that computes NaN, or nothing, is a ``ModelError``; a single answer that does not fit into memory an
        ``OutOfMemoryError``.
        """
        model = RewardModel(self.name, _load(self._path), self._tokenizer, self._heads)
        for start in range(0, len(asked), AT_ONCE):  # tokens of all would fill the memory
            for position, place, score in model.scores(asked[start : start + AT_ONCE]):
                yield start + position, {place: score}


class RewardModel:
    """A reward model that is loaded.

    Args:
        name: What messages call it.
        model: A sequence-classification model in evaluation mode.
        tokenizer: Its tokenizer.
        heads: The weight of each head in the score.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, heads: Mapping[int, float]
    ):
        self.name, self.model, self.tokenizer, self.heads = name, model, tokenizer, heads
        limits = (context_length(model, tokenizer), limits_of(model).positions)
        self._most_tokens = min((limit for limit in limits if limit), default=None)
        self._has_pad_token = model.config.get_text_config().pad_token_id is not None
        self._packs = is_packable(model)
        self._markers = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)

    def scores(self, asked: Sequence[Asked]) -> Iterator[tuple[int, int, Score]]:
        """Yield the scores that are missing, each with the position of its question and the place of its answer."""
        encoded: list[tuple[int, int, Encoding]] = []
        for position, one in enumerate(asked):
            for place in one.missing:
                found = self._encode(one.question, one.answers[place])
                if isinstance(found, Score):
                    yield position, place, found
                else:
                    encoded.append((position, place, found))
        is_packed = self._packs and all(one.keys() <= {"input_ids", "attention_mask"} for *_, one in encoded)
        if not is_packed:
            encoded.sort(key=lambda one: -len(one[2]["input_ids"]))
        for batch in _batches_by_question(encoded) if is_packed else _batches(encoded):
            for (position, place, _), value in zip(
                batch, self._rewards([one for *_, one in batch], is_packed=is_packed), strict=True
            ):
                is_finite = math.isfinite(value)
                yield position, place, Score(value) if is_finite else Score(None, "the model computes infinity")

    def _encode(self, question: Question, answer: Answer) -> Encoding | Score:
        """Return the tokens of a question with an answer; a score where there can be none."""
        text = answer.text
        for marker in self._markers:  # written out by the answer, they would end its turn
            if marker in text:
                text = text.replace(marker, f"{marker[0]} {marker[1:]}")
        if self.tokenizer.chat_template is None:
            asked = "\n\n".join(message["content"] for message in question.messages)
            encoding = self.tokenizer(asked, text)
        else:
            messages = [*question.messages, {"role": "assistant", "content": text}]
            try:
                rendered = self.tokenizer.apply_chat_template(
                    as_template_reads(self.tokenizer, messages), tokenize=False
                )
            except (TemplateError, TypeError, ValueError) as error:
                return Score(None, f"its chat template refuses the conversation ({type(error).__name__})")
            encoding = self.tokenizer(rendered, add_special_tokens=False)
        tokens = len(encoding["input_ids"])
        if self._most_tokens is not None and tokens > self._most_tokens:
            return Score(None, f"longer than the {self._most_tokens:,} tokens that it reads")
        return {name: encoding[name] for name in encoding} if tokens else Score(None, "no tokens")

    def _rewards(self, batch: Sequence[Encoding], *, is_packed: bool = False) -> list[float]:
        """Return the rewards of answers, in smaller batches where the memory of the device does not suffice."""
        pad = None if is_packed else self._pad_token(batch)
        if pad is None and len(batch) > 1 and not is_packed:
            return [value for one in batch for value in self._rewards([one])]
        try:
            with clear_memory_errors("use a smaller reward model", device=len(batch) == 1):
                return self._weighed(self._packed(batch) if is_packed else self._padded(batch, pad or 0))
        except RuntimeError as error:
            if len(batch) == 1 or not is_device_out_of_memory(error):
                raise
        half = len(batch) // 2
        return self._rewards(batch[:half], is_packed=is_packed) + self._rewards(batch[half:], is_packed=is_packed)

    def _pad_token(self, batch: Sequence[Encoding]) -> int | None:
        """Return what to pad with: the model's pad token, else one that no answer has.

        A decoder takes the last token that is no pad token for the end of the answer. Without a pad token it takes the
        last one, so a token of the answers would give another reward in a batch than alone.
        """
        settings = self.model.config.get_text_config()
        if self._has_pad_token:
            return int(settings.pad_token_id)
        used = {token for one in batch for token in one["input_ids"]}
        free = next((token for token in range(limits_of(self.model).embeddings) if token not in used), None)
        settings.pad_token_id = free
        return free

    @torch.no_grad()
    def _padded(self, batch: Sequence[Encoding], pad: int) -> Tensor:
        width = max(len(one["input_ids"]) for one in batch)
        tensors = {
            name: torch.tensor(
                [list(one[name]) + [pad if name == "input_ids" else 0] * (width - len(one[name])) for one in batch],
                device=self.model.device,
            )
            for name in batch[0]
        }
        with clear_computing(self.name):
            logits_BH: Tensor = self.model(**tensors).logits
        return logits_BH

    def _packed(self, batch: Sequence[Encoding]) -> Tensor:
        pad = self.model.config.get_text_config().pad_token_id if self._has_pad_token else None
        with clear_computing(self.name):
            return packed_logits(self.model, [one["input_ids"] for one in batch], pad)

    def _weighed(self, logits_BH: Tensor) -> list[float]:
        """Return the sum of the heads that count."""
        require_finite_logits(self.name, self.model, [logits_BH])
        heads = list(self.heads)
        weights_H = torch.tensor([self.heads[head] for head in heads], dtype=torch.float64)
        return (logits_BH[:, heads].double().cpu() @ weights_H).tolist()


def _batches_by_question(
    encoded: Sequence[tuple[int, int, Encoding]],
) -> Iterator[Sequence[tuple[int, int, Encoding]]]:
    """Yield batches of answers with those to a question together, of at most ``BATCH_TOKENS`` before packing."""
    batch: list[tuple[int, int, Encoding]] = []
    tokens = 0
    for _, answers in groupby(encoded, key=lambda one: one[0]):
        group = list(answers)
        size = sum(len(one["input_ids"]) for *_, one in group)
        if batch and tokens + size > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch += group
        tokens += size
    if batch:
        yield batch


def _batches(encoded: Sequence[tuple[int, int, Encoding]]) -> Iterator[Sequence[tuple[int, int, Encoding]]]:
    """Yield batches of answers, which are sorted by length, the longest first."""
    start = 0
    while start < len(encoded):
        width = len(encoded[start][2]["input_ids"])
        end = start + max(1, min(BATCH_ANSWERS, BATCH_TOKENS // width))
        yield encoded[start:end]
        start = end


def open_judge(kind: str, rest: str, *, name: str, concurrency: int = 1) -> RewardJudge:
    """Open a reward model, which is loaded when it is to score: the model that answers has memory until then.

    Heads that are not said, or are others, are a ``ConfigError``. What is not there, cannot be read, lacks weights, or
    is no sequence-classification model is a ``ModelError``.
    """
    path, _, asked = rest.rpartition("#")
    if not path or Path(rest).expanduser().exists():
        path, asked = rest, ""
    outline = _load(path, has_values=False)
    return RewardJudge(name, path, _heads(name, outline.config, asked.strip()))


def _load(name: str, *, has_values: bool = True) -> PreTrainedModel:
    """Load a reward model, on the accelerator if there is one; without its values to see that it is whole."""
    place = locate(name)
    needed = "expected a reward model of transformers (...ForSequenceClassification)"
    if is_gguf(place):
        raise ModelError(f"{name}: is a GGUF file; {needed}")
    if is_adapter_folder(Path(place)):
        raise ModelError(f"{name}: is an adapter; merge it into its base first, for {needed.removeprefix('expected ')}")
    refuse_code_in_folder(name, place, trust_remote_code=False)
    dtype = dtype_to_answer()
    auto_class = AutoModelForSequenceClassification
    with no_progress_bars(), clear_errors(name, "main"):
        if Path(place).is_dir():
            require_plausible_settings(name, Path(place) / "config.json")
        config = AutoConfig.from_pretrained(place)
        classes = config.architectures or []
        if type(config) not in auto_class._model_mapping or any(one.endswith("ForCausalLM") for one in classes):
            raise ModelError(f"{name}: is no reward model ({', '.join(classes) or config.model_type}); {needed}")
        refuse_code_in_hub_model(name, place, "main", False, None)
        require_plausible_size(name, Path(place), config, auto_class)
        options = {} if has_values else {"device_map": "meta"}
        model, found = auto_class.from_pretrained(
            place, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        require_all_weights(name, found)
    if not has_values:
        return model
    if emulates_bf16():
        compute_in_float32(model)
    if torch.accelerator.is_available():
        model = model.to(torch.accelerator.current_accelerator())
    return model.eval()


def _heads(name: str, config: Any, asked: str) -> dict[int, float]:
    """Return the weight of each head that counts."""
    number = int(config.num_labels)
    labels = {head: str(config.id2label.get(head, head)) for head in range(number)}
    if not asked:
        if number > 1:
            raise ConfigError(
                f"{name}: has {number} heads ({', '.join(labels.values())[:300]}); say which one counts, as in"
                f" {name}#{labels[0]}, or {name}#mean"
            )
        return {0: 1.0}
    if asked == MEAN and MEAN not in labels.values():
        return dict.fromkeys(range(number), 1 / number)
    heads: dict[int, float] = {}
    for part in asked.split(","):
        match = _HEAD.fullmatch(part.strip())
        head = match and next((head for head, label in labels.items() if match[1] in (label, str(head))), None)
        if match is None or head is None:
            raise ConfigError(f"{name}: has no head {part.strip()!r}; it has {', '.join(labels.values())[:300]}")
        heads[head] = float(match[2] or 1)
    return heads
