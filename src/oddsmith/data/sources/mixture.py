"""Mix several datasets into one, in given shares.

Without weights every row of every dataset takes part. With weights, of which only the ratio counts, the mixture is as
large as it can be without repeating a row: from dataset i with n_i rows and weight w_i

    k_i = round(w_i * T),   T = min over i of n_i / w_i

rows are drawn with the seed and kept in their order. The parts are interleaved evenly: row j of k_i gets the position
(j + 1/2) / k_i.

    k = 4, 2     a a b a a b  ->  positions a 1/8 3/8 5/8 7/8, b 1/4 3/4  ->  a b a a b a

A stream has no length. Without weights its parts take turns until all are exhausted; with weights each row comes from
part i with probability w_i / sum(w), and the mixture ends with the first part that is exhausted.
(``datasets.interleave_datasets`` would force one schema on all parts: a missing column becomes a null, and text beside
messages an error.)

Source: the rule for k_i is that of TRL 1.16 (``fraction`` of a dataset mixture), which takes the first rows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...system.strict_json import read_json
from ...system.words import counted
from ..formats.values import kind_of
from .json_lines import JsonLines, on_disk
from .naming import parse_columns

if TYPE_CHECKING:
    import datasets


MAX_WEIGHT = 1e300


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    path: str  # hub id, file, folder, or ``builtin:house-style``
    name: str | None = None  # configuration of a hub dataset
    split: str | None = None  # split, or a slice of one; by default the training split
    weight: float | None = None  # relative share of the mixture's rows; give every part one, or none
    columns: Mapping[str, str] = field(default_factory=dict)  # where its columns have other names (naming.py)


@dataclass(frozen=True)
class Share:
    """How much of one dataset takes part in a mixture."""

    name: str  # what its part says: path, configuration and split
    weight: float | None
    rows: int | None  # how many it has, and how many are taken; None for streams, which have no length
    taken: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def shares_of(parts: Sequence[Part], totals: Sequence[int] | None) -> list[Share]:
    """Return the share of each part, given how many rows it has; None for streams."""
    names = [" ".join(filter(None, (part.path, part.name, part.split))) for part in parts]
    weights = [part.weight for part in parts]
    if totals is None:
        return [Share(name, weight, None, None) for name, weight in zip(names, weights, strict=True)]
    taken = row_counts(totals, weights_of(parts))
    return list(map(Share, names, weights, totals, taken))


def weights_of(parts: Sequence[Part]) -> list[float] | None:
    """Return the weights of a mixture; None where its parts have none."""
    weights = [part.weight for part in parts if part.weight is not None]
    return weights or None


def share_lines(shares: Sequence[Share]) -> list[str]:
    """Return in sentences how many rows each dataset of a mixture has, how many are taken and left out."""
    taken = [share.taken for share in shares if share.taken is not None]
    rows = sum(share.rows or 0 for share in shares)
    if not taken:
        end = "until all are" if shares[0].weight is None else "until the first is"
        lines = [f"mixture of {len(shares)} streams, read {end} exhausted"]
    elif sum(taken) == rows:
        lines = [f"mixture of {counted(len(shares), 'dataset')}: all {counted(rows, 'row')}"]
    else:
        lines = [
            f"mixture of {counted(len(shares), 'dataset')}: {sum(taken):,} of {counted(rows, 'row')}, as many as the"
            " weights allow without repeating one; without weights all are taken"
        ]
    for share in shares:
        weight = "" if share.weight is None else f"weight {share.weight:g}"
        counts = ""
        if share.rows is not None and share.taken is not None:
            counts = f"{share.taken:,} of {counted(share.rows, 'row')} taken, {share.rows - share.taken:,} left out"
        lines.append(f"  {share.name}: {', '.join(filter(None, (counts, weight)))}".removesuffix(": "))
    return lines


def parse_mixture(entries: Any) -> list[Part]:
    """Parse the setting ``datasets``: a list of paths or of objects with the fields of ``Part``, or its JSON text.

    Entries with an unknown key or a wrong value, and weights of only some parts, raise a ``ConfigError``.
    """
    if isinstance(entries, str):
        try:
            entries = read_json(entries)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"datasets is not JSON at character {error.pos}: {error.msg};"
                ' expected a list such as [{"path": "pairs.jsonl", "weight": 2}]'
            ) from error
    if not isinstance(entries, list | tuple) or not entries:
        raise ConfigError(
            f"datasets is {kind_of(entries)}; expected a list of {{path, name, split, weight, columns}} with at least"
            " one entry"
        )
    parts = [_part(entry, f"datasets[{position}]") for position, entry in enumerate(entries)]
    weighted = [part.weight is not None for part in parts]
    if any(weighted) and not all(weighted):
        raise ConfigError(
            f"datasets[{weighted.index(False)}] has no weight, others have; give all of them one, or none"
        )
    return parts


def _part(entry: Any, where: str) -> Part:
    if isinstance(entry, str):
        return Part(entry)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {kind_of(entry)}; expected an object with path, name, split, weight and columns")
    known = [known.name for known in fields(Part)]
    for key in entry:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"expected {', '.join(known)}"
            raise ConfigError(f"{where} has the unknown key {key!r}; {hint}")
    for key in ("path", "name", "split"):
        value = entry.get(key)
        if not isinstance(value, str) and (key == "path" or value is not None):
            raise ConfigError(f"{where}.{key} is {kind_of(value)}; expected text")
    weight = entry.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 < weight < MAX_WEIGHT):
        raise ConfigError(f"{where}.weight is {weight!r}; expected a number above 0")
    return Part(**{**entry, "columns": parse_columns(entry.get("columns"), f"{where}.columns")})


def row_counts(totals: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Return how many rows each dataset gives to a mixture: k_i of the formula above, at least 1."""
    if weights is None:
        return list(totals)
    scale = min(total / weight for total, weight in zip(totals, weights, strict=True))
    return [max(1, round(weight * scale)) for weight in weights]


def mix(parts: Sequence[Any], weights: Sequence[float] | None, seed: int) -> Any:
    """Mix lists of rows or ``datasets.Dataset``s, none of them empty; without weights all rows are taken.

    The result is a ``Dataset`` where all parts are some of the same schema, and ``JsonLines`` where all are text files
    of which some are large, else a list of rows.
    """
    counts = row_counts([len(part) for part in parts], weights)
    order = []
    for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
        taken = sorted(random.Random(f"{seed} {number}").sample(range(len(part)), count))
        order += [((rank + 0.5) / count, number, row) for rank, row in enumerate(taken)]
    places = [(number, row) for _, number, row in sorted(order)]
    schemas = [getattr(part, "features", None) for part in parts]
    starts = [sum(len(part) for part in parts[:number]) for number in range(len(parts))]
    if schemas[0] is not None and all(schema == schemas[0] for schema in schemas):
        import datasets

        return datasets.concatenate_datasets(list(parts)).select([starts[number] + row for number, row in places])
    if any(isinstance(part, JsonLines) for part in parts) and all(isinstance(part, list | JsonLines) for part in parts):
        found = (part if isinstance(part, JsonLines) else on_disk(part, Path("mixture")) for part in parts)
        large = [part for part in found if part is not None]
        if len(large) == len(parts):
            return JsonLines.joined(large).select([starts[number] + row for number, row in places])
    lists = [part if isinstance(part, list) else list(part) for part in parts]
    return [lists[number][row] for number, row in places]


def mix_streams(
    streams: Sequence[datasets.IterableDataset], weights: Sequence[float] | None, seed: int
) -> datasets.IterableDataset:
    """Mix streams by the rule above; the same seed gives the same rows in the same order."""
    import datasets

    # A tuple: lists in gen_kwargs are taken for shards.
    sources = {"streams": tuple(streams), "weights": tuple(weights) if weights else None, "seed": seed}
    return datasets.IterableDataset.from_generator(_interleaved, gen_kwargs=sources)


def _interleaved(
    streams: Sequence[Iterable[dict[str, Any]]], weights: Sequence[float] | None, seed: int
) -> Iterator[dict[str, Any]]:
    iterators = [iter(stream) for stream in streams]
    if weights is not None:
        draw = random.Random(seed)
        while True:
            (iterator,) = draw.choices(iterators, weights)
            try:
                yield next(iterator)
            except StopIteration:
                return
    while iterators:
        for iterator in tuple(iterators):
            try:
                yield next(iterator)
            except StopIteration:
                iterators.remove(iterator)
