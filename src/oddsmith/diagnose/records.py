"""Find what a text says of a run: names that we know, with a number each.

| looks like | printed by |
|---|---|
| ``{'loss': 0.80, 'grad_norm': nan, ...}`` | transformers: TRL, Axolotl, ms-swift; numbers in quotes since version 5 |
| ``{'loss': np.float64(0.8), 'grad_norm': tensor(1.2, device='cuda:0')}`` | own callbacks |
| ``{"current_steps": 10, "total_steps": 37, "loss": ...}`` | LLaMA-Factory; ms-swift has ``global_step/max_steps`` |
| ``step: 10, loss: 0.8``, ``step=10 loss=0.8``, ``Step [10/600], Loss: 0.8`` | own loops |
| ``step 120/1500  8%  loss 2.314  nll 2.201``, ``Iter 36: Train loss 4.04, ...`` | ours, MLX |
| ``Num Epochs = 3 | Total steps = 1,250``, ``trainable params: 41,943,040 || all params: ...`` | Unsloth, PEFT |

Whatever stands around them (times, ranks, levels) is not looked at, because only known names count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..metrics import BY_NAME
from .names import SUMMARY, TRAIN_LOSS, canonical

# Every repetition below is bounded or atomic, so that no line takes more time than its length.
NUMBER = r"[-+]?(?>nan|inf(?:inity)?|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)%?"
# As in np.float64(0.8), tensor([0.8], device='cuda:0') or "0.8".
_WRAPPED = r"""['"\[(]{0,4}(?:[A-Za-z_][\w.]{0,40}\(\s?['"\[(]{0,4})?"""
_VALUE = re.compile(
    rf"""(?P<between>\\?['"]?\s{{0,40}}[:=]\s{{0,40}}|(?<=[\w)])\s{{1,40}}){_WRAPPED}(?P<number>{NUMBER})"""
    r"(?:\s{0,4}(?:/|\bof\b)\s{0,4}(?P<of>\d[\d,]{0,20}))?(?!\w|[:/.]\w|[,-]\d)",
    re.IGNORECASE,
)
_CELL = re.compile(rf"""{_WRAPPED}(?P<number>{NUMBER})(?:['"\])].*)?""", re.IGNORECASE | re.DOTALL)
# Between a name and what stands before it.
_BOUNDARY = re.compile(r"[^\w/@.% -]|\s{2,}|\s-+\s")
# Words before a name that do not change what it means; any other makes it another quantity, as in "critic loss".
_QUALIFIERS = frozenset(
    ["avg", "average", "mean", "total", "current", "running", "batch", "smoothed", "overall", "and", "at", "after"]
)
_OF_EVALUATION = re.compile(r"\b(?:eval(?:uation)?|valid(?:ation)?|val|test|dev)\b(?![-=./\\])", re.IGNORECASE)
MAX_NAME = 80
BESIDE_RESULTS = frozenset(["epoch", "learning_rate"])  # logged beside the metrics
NEVER_EVALUATED = frozenset(
    [*BESIDE_RESULTS, "grad_norm", "skipped_steps", "tokens_per_second", "tokens_per_second_per_gpu", "memory_gib"]
)


class Pair(NamedTuple):
    """A known name and its number."""

    name: str  # of names.canonical
    number: float
    of: float | None = None  # 600 in "step 10/600"
    is_marked: bool = True  # by a colon or an equals sign, not only by a space


@dataclass
class Record:
    """What was logged together, and where."""

    values: dict[str, float] = field(default_factory=dict)  # metric, behind eval_ if held-out -> number
    step: int | None = None
    facts: dict[str, float] = field(default_factory=dict)  # of the whole run: values of names.FACTS
    is_summary: bool = False  # of the whole training, at its end
    # Progress bars at the record: steps in all -> steps done, by the last bar before it and by the first after it.
    before: dict[int, int] = field(default_factory=dict)
    after: dict[int, int] = field(default_factory=dict)

    @property
    def metrics(self) -> set[str]:
        """Return the names of the results in it."""
        return self.values.keys() - BESIDE_RESULTS

    @property
    def is_training(self) -> bool:
        """Return whether there is a result of the training."""
        return any(not name.startswith("eval_") for name in self.metrics)

    def says_as(self, other: Record) -> bool:
        """Return whether it says the same as another record."""
        return (self.values, self.step) == (other.values, other.step)

    def merge(self, other: Record) -> None:
        """Add what another record says."""
        self.values |= other.values
        self.facts |= other.facts
        self.step = self.step if other.step is None else other.step
        self.is_summary |= other.is_summary


def record_of(text: str) -> Record:
    """Return what a text says.

    What stands behind a word such as "evaluation" is held-out. Names and numbers with nothing but spaces between them
    may be those of a sentence: two are needed, such as a step and a metric.
    """
    found = list(pairs_in(text))
    if len(found) < 2 and not any(pair.is_marked for _, pair in found):
        return Record()
    mark = _OF_EVALUATION.search(text) if any(part in text.lower() for part in ("val", "test", "dev")) else None
    if mark is None:
        return record_of_pairs(pair for _, pair in found)
    return record_of_pairs(
        pair._replace(name=f"eval_{pair.name}") if place > mark.start() and _may_be_held_out(pair.name) else pair
        for place, pair in found
    )


def record_of_pairs(pairs: Iterable[Pair]) -> Record:
    """Return the record of known names and their numbers. Of several names of the step the best counts."""
    record, step_name = Record(), ""
    values, facts = record.values, record.facts
    for name, number, of, is_marked in pairs:
        if name in BY_NAME or name.startswith("eval_") or name == TRAIN_LOSS:
            values[name] = number
            if of and name == "epoch":
                facts["epochs"] = of
            if name == "beta" and is_marked:  # a setting, which is also logged with the metrics once it has changed
                facts["beta"] = number
        elif name.startswith("step"):
            if (not step_name or name < step_name) and 0 <= number <= 1e15:
                record.step, step_name = int(number), name
                facts |= {"max_steps": of} if of else {}
        elif name in SUMMARY:
            record.is_summary = True
        elif is_marked:
            facts |= {name: number, **({"parameters": of} if of and name == "trainable_parameters" else {})}
    if values.keys() == {"beta"}:
        values.clear()
    return record


def _may_be_held_out(name: str) -> bool:
    return name in BY_NAME and name not in NEVER_EVALUATED


def pairs_in(text: str) -> Iterator[tuple[int, Pair]]:
    """Yield the known names with a number in a text, each with the place where its name ends."""
    end = 0
    for match in _VALUE.finditer(text):
        name = _name_before(text, max(end, match.start() - MAX_NAME), match.start(), match["between"])
        if name is not None:
            of = as_figure(match["of"]) if match["of"] else None
            yield match.start(), Pair(name, as_figure(match["number"]), of, not match["between"].isspace())
        end = match.end()


def _name_before(text: str, low: int, high: int, between: str) -> str | None:
    """Return the known name that ends at a place; ``None`` if none does."""
    quote = between.lstrip("\\")[:1]
    if quote in ("'", '"'):
        start = text.rfind(quote, low, high)
        return canonical(text[start + 1 : high]) if start >= 0 else None
    return name_at_end(text[low:high])


def name_at_end(text: str) -> str | None:
    """Return the known name that the last words of a text are; ``None`` if they are none, or mean something else."""
    words = _BOUNDARY.split(text)[-1].split()[-5:]
    for first in range(len(words)):
        if (name := canonical(" ".join(words[first:]))) is not None:
            return name if first == 0 or _leaves_meaning(words[first - 1]) else None
    return None


def _leaves_meaning(word: str) -> bool:
    return word.lower() in _QUALIFIERS or word.isupper() or not word.isalpha()


def as_figure(text: str) -> float:
    """Return a number that ``NUMBER`` matches: commas separate thousands, and 55% is 0.55."""
    digits = text.replace(",", "")
    return float(digits[:-1]) / 100 if digits.endswith("%") else float(digits)


def cell_number(text: str) -> float | None:
    """Return the number that a cell is (``1,000``, ``55%``, ``np.float64(0.8)``); ``None`` for another text."""
    match = _CELL.fullmatch(text.strip())
    return as_figure(match["number"]) if match else None
