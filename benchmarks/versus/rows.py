"""The pairs of a comparison: those that both trainers keep whole and turn into the same tokens, and their counts.

    python -m versus.rows REQUEST.json ANSWER.json      (run by versus_trl.py, with benchmarks/ as the folder)

TRL renders each conversation (its ``maybe_extract_prompt`` and ``maybe_apply_chat_template``); what a template puts
behind the last end-of-turn token is cut off, because TRL would add a second end token behind it and Oddsmith would not.
Both trainers then get the same three strings, and a pair whose tokens or prompt lengths still differ is left out.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt
from trl.experimental.orpo import ORPOTrainer as TRLTrainer

from oddsmith.data.formats import PreferencePair, to_pair
from oddsmith.data.sources import load_rows
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.tokenized import TokenizedPair
from oddsmith.errors import RowError
from oddsmith.model.loading.models import load_tokenizer


class Side(NamedTuple):
    """One sequence of a pair: its token ids, and how many of them are the prompt's."""

    ids: list[int]
    prompt_tokens: int


class StepCounts(NamedTuple):
    """What one optimizer step is made of.

    Args:
        padded_tokens: Sequences times the longest one: what a padded batch computes.
        packed_tokens: Tokens of all sequences.
        forest_tokens: Different beginnings of the sequences: what has to be computed at least.
        target_positions: Different beginnings after which a token is predicted.
        visible_tokens: Over all different beginnings, the tokens in them: what attention looks at.
    """

    padded_tokens: int
    packed_tokens: int
    forest_tokens: int
    target_positions: int
    visible_tokens: int


def count_step(pairs: Iterable[tuple[Side, Side]]) -> StepCounts:
    """Count a step by definition: a beginning is numbered by the beginning one token shorter and its last token.

    Args:
        pairs: Chosen and rejected of each pair. All of chosen but its first token is predicted (the NLL), and the
            response of rejected.

    Returns:
        The counts.
    """
    number_of: dict[tuple[int, int], int] = {}
    predicting: set[int] = set()
    lengths, visible = [], 0
    for pair in pairs:
        for side, first_target in zip(pair, (1, max(pair[1].prompt_tokens, 1)), strict=True):
            beginning = -1
            for position, token in enumerate(side.ids):
                if position >= first_target:
                    predicting.add(beginning)
                key = (beginning, token)
                if key not in number_of:
                    number_of[key] = len(number_of)
                    visible += position + 1
                beginning = number_of[key]
            lengths.append(len(side.ids))
    return StepCounts(max(lengths) * len(lengths), sum(lengths), len(number_of), len(predicting), visible)


class SameRows:
    """Finds the rows of a dataset that TRL and Oddsmith train on token for token.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Most tokens of a sequence; a pair with a longer one is left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.ours = PairTokenizer(tokenizer, max_length=None)
        self.trl = object.__new__(TRLTrainer)  # its tokenize_row needs these three alone, and no model
        self.trl.processing_class, self.trl.is_encoder_decoder, self.trl.max_length = tokenizer, False, sys.maxsize
        self.left_out: Counter[str] = Counter()

    def render(self, row: dict[str, Any]) -> dict[str, str]:
        """The row's prompt, chosen and rejected as TRL renders them, up to the last end-of-turn token."""
        pair = to_pair(row)
        columns = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        text = maybe_apply_chat_template(maybe_extract_prompt(columns), self.tokenizer)
        for name in ("chosen", "rejected"):
            answer, end, behind = text[name].rpartition(self.tokenizer.eos_token)
            if end and not behind.strip():
                text[name] = answer + end
        return {name: text[name] for name in ("prompt", "chosen", "rejected")}

    def tokens(self, text: dict[str, str]) -> tuple[Side, Side] | str:
        """Chosen and rejected of a rendered row, or why it is left out."""
        (ours,) = self.ours.tokenize([PreferencePair(text["prompt"], text["chosen"], text["rejected"])])
        if not isinstance(ours, TokenizedPair):
            return ours.reason
        try:
            theirs = self.trl.tokenize_row(text)
        except ValueError:
            return "TRL refuses it"
        sides = []
        for name in ("chosen", "rejected"):
            ids = getattr(ours, f"{name}_ids")
            side = Side(ids, getattr(ours, f"{name}_prompt_tokens"))
            labels = [-100] * side.prompt_tokens + ids[side.prompt_tokens : getattr(ours, f"{name}_end")]
            if ids != theirs[f"{name}_input_ids"] or labels != theirs[f"{name}_labels"]:
                return "other tokens in TRL"
            if len(ids) > self.max_length:
                return f"longer than {self.max_length} tokens"
            sides.append(side)
        return sides[0], sides[1]

    def take(self, rows: list[dict[str, Any]], count: int, seed: int) -> tuple[list[dict[str, str]], list]:
        """The first ``count`` good rows of a shuffle.

        Args:
            rows: All rows.
            count: How many are wanted.
            seed: Of the shuffle.

        Returns:
            The rendered rows, and their tokens. Why others were met and left out is counted in ``left_out``.

        Raises:
            SystemExit: There are fewer.
        """
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        texts, sides = [], []
        for number in order:
            if len(texts) == count:
                return texts, sides
            try:
                text = self.render(rows[number])
            except RowError as error:
                self.left_out[error.reason] += 1
                continue
            tokens = self.tokens(text)
            if isinstance(tokens, str):
                self.left_out[tokens] += 1
                continue
            texts.append(text)
            sides.append(tokens)
        if len(texts) < count:
            sys.exit(f"{count} rows are needed and {len(texts)} are left of {len(rows)}; lower --steps")
        return texts, sides


def main(request_file: str, answer_file: str) -> None:
    """Read the request, choose the rows, write them with their counts."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    pairs, steps = request["pairs"], request["steps"]
    same = SameRows(load_tokenizer(request["model"]), request["max_length"])
    texts, sides = same.take(list(load_rows(request["data"])), pairs * steps, request["seed"])
    counts = [count_step(sides[start : start + pairs])._asdict() for start in range(0, len(sides), pairs)]
    with open(answer_file, "w", encoding="utf-8") as file:
        json.dump({"rows": texts, "steps": counts, "left_out": dict(same.left_out)}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
