"""Makes the rejected answers of the demo's pairs: the base model's own replies to their questions.

    python scripts/make_demo_pairs.py                       # both shipped files, in place
    python scripts/make_demo_pairs.py --check               # changes nothing; fails if a reply is not the shipped one
    python scripts/make_demo_pairs.py my_questions.jsonl    # any file of rows with "prompt" and "chosen"

The files are the source: each line has a ``prompt`` and a ``chosen`` answer, both written by hand, and the script
rewrites ``rejected``. To add a question, add a line without ``rejected`` and run it. Replies are greedy, in float32,
and end with the model's turn or at ``--max-new-tokens``, where they are kept as they are. It takes some minutes. The
last digits of a sum depend on the processor, so on another one a few replies may take another turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oddsmith.data.builtin import FILES
from oddsmith.data.builtin.style import keeps_style, word_count
from oddsmith.errors import DataError
from oddsmith.model.loading.models import load_model, load_tokenizer

BUILTIN = Path(__file__).resolve().parents[1] / "src" / "oddsmith" / "data" / "builtin"
MAX_NEW_TOKENS = 120
BATCH_SIZE = 32


def main(argv: list[str] | None = None) -> int:
    """Reads the files, asks the model, writes the files, prints what came out."""
    options = _parser().parse_args(argv)
    model, tokenizer = load_model(options.model, dtype=torch.float32), load_tokenizer(options.model)
    changed = 0
    for path in options.files:
        rows = read_rows(path)
        replies = base_replies(
            model,
            tokenizer,
            [row["prompt"] for row in rows],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
        )
        new_rows = [with_rejected(row, reply) for row, reply in zip(rows, replies, strict=True)]
        changed += sum(new != old for new, old in zip(new_rows, rows, strict=True))
        if not options.check:
            write_rows(path, new_rows)
        print("\n".join([f"{path.name}: {len(new_rows)} pairs", *summary(new_rows)]), flush=True)
    print(f"{changed} rejected answers {'differ from the files' if options.check else 'are new'}")
    return 1 if options.check and changed else 0


def base_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> list[str]:
    """The model's greedy replies to conversations.

    Args:
        model: A causal language model; it is put into evaluation mode.
        tokenizer: Its tokenizer, with a chat template whose turns end with the tokenizer's EOS token.
        prompts: One list of messages each.
        max_new_tokens: Where a reply that does not end by itself is cut.
        batch_size: How many prompts are answered together. Prompts of similar length share a batch, padded on the left.

    Returns:
        The replies in the order of the prompts, without special tokens and outer white space.
    """
    model.eval()
    encodings = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)
    ids: list[list[int]] = encodings["input_ids"]
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    replies = [""] * len(ids)
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        generated = _generate(model, tokenizer, [ids[index] for index in batch], max_new_tokens)
        for index, reply_ids in zip(batch, generated, strict=True):
            replies[index] = tokenizer.decode(reply_ids, skip_special_tokens=True).strip()
        print(f"{start + len(batch)} of {len(ids)} replies", file=sys.stderr, flush=True)
    return replies


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of token lists, each up to its first EOS token (left out) or the limit."""
    width, eos = max(map(len, prompts)), tokenizer.eos_token_id
    input_ids_BT = torch.tensor([[eos] * (width - len(ids)) + ids for ids in prompts])
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    output_BT = model.generate(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    continuations = output_BT[:, width:].tolist()
    return [ids[: ids.index(eos)] if eos in ids else ids for ids in continuations]


def with_rejected(row: dict[str, Any], reply: str) -> dict[str, Any]:
    """Fills in one rejected answer.

    Args:
        row: A row with ``prompt`` and ``chosen``; a ``rejected`` it may have is replaced.
        reply: The model's reply.

    Returns:
        A new row with all three.

    Raises:
        DataError: The reply has no words or equals the chosen answer, so that the question teaches nothing.
    """
    question, chosen = row["prompt"][-1]["content"], row["chosen"][0]["content"]
    wordless = word_count(reply) == 0  # nothing at all, or one small picture after another
    if wordless or reply == chosen:
        found = "has no words" if wordless else "equals the chosen answer"
        raise DataError(f"{question!r}: the model's reply {found}; replace the question")
    return {
        "prompt": row["prompt"],
        "chosen": row["chosen"],
        "rejected": [{"role": "assistant", "content": reply}],
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Plain sentences about the two sides: how many keep the house style, and their mean length in words."""
    lines = []
    for side in ("chosen", "rejected"):
        answers = [row[side][0]["content"] for row in rows]
        kept, words = sum(map(keeps_style, answers)), sum(map(word_count, answers)) / len(answers)
        share = f"{kept} of {len(rows)} keep the style ({kept / len(rows):.1%})"
        lines.append(f"  {side}: {share}, {words:.1f} words on average")
    return lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a JSONL file: one row a line, letters beyond ASCII as they are."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fill the rejected answers of pairs with a model's own replies.")
    parser.add_argument("files", nargs="*", type=Path, default=[BUILTIN / name for name in FILES.values()])
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct", help="hub id, folder, GGUF file, builtin")
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
