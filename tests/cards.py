"""Render model cards as the hub would, and require that nothing in them comes of a stranger's values."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import yaml
from markdown_it import MarkdownIt

from oddsmith.training.card import CardFacts, model_card
from oddsmith.training.card_record import CardRecord

HEADINGS = {"Use it", "Held-out figures", "Data", "How it was trained", "Citation"}
LINKS = re.compile(r"https://arxiv\.org/abs/2403\.07691|https://huggingface\.co/[\w.-]+(/[\w.-]+)?", re.ASCII)
# What GitHub and the hub make links, mentions or pictures of, although CommonMark does not.
OTHER_MARKUP = re.compile(
    r"https?://(?!arxiv\.org|huggingface\.co)|(?<!/)www\.|javascript:|[<@$]|!\[(?!loss, accuracy)", re.I
)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SEEN = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]*")
MOST_CHARACTERS = 200_000
# Texts that would be markup, steer a terminal, or break a line.
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!-- ", "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "[x]: https://evil.example", "[x][y]",
    "<https://evil.example>", "https://evil.example", "www.evil.example", "me@evil.example", "@someone", "$x$",
    "# heading", "x\n# heading", "x\r\n\r\n## Citation", "x\n===", "x\n---\ntags: [evil]\n---", "---", "- - -", "***",
    "1. one", "> quote", "    code", "| a | b |", "a | b", "`x`", "```\n# heading", "~~~\n# heading", "~~x~~",
    "**x**", "_x_", "*x*", "&lt;b&gt;", "\\", "x\\", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.x", "\u2066x", "\u200b",
    "\ud800", "\x00", "x" * 100_000, "", " ", "{{ 7 * 7 }}", "{x}", "{", "%s", '"); import os; os.abort() #',
]  # fmt: skip
_REPORT = {"rows": 7, "kept": 6, "dropped": {"same": [1]}, "cut": {"chosen": [2]}, "longest_tokens": 5, "max_length": 9}
_START = {
    "event": "start", "step": 0, "max_steps": 2, "model": "m", "parameters": 10, "trainable_parameters": 3,
    "precision": "bf16", "pairs_per_step": 4, "adapter": {"adapter": "LoRA", "rank": 8, "on": ["q_proj", "v_proj"]},
    "base": {"quantization": {"load_in_4bit": True}}, "data": {"train": _REPORT},
    "settings": {"beta": 0.1, "learning_rate": 1e-5, "optim": "adamw_torch", "system_prompt": "Be brief."},
}  # fmt: skip
# The events of a run.
SOUND = [
    _START,
    {"event": "log", "step": 1, "loss": 2.0},
    {"event": "log", "step": 2, "loss": 1.0},
    {"event": "evaluate", "step": 2, "eval_loss": 1.5, "eval_rewards/accuracies": 0.5, "eval_rewards/margins": 0.1},
    {"event": "stopped_early", "step": 2, "reason": "no better for 3 evaluations"},
    {"event": "end", "step": 2},
]


def require_plain(events: list[dict], name: str = "a-run", base: str | None = "org/base") -> str:
    """Require that the card of a run has the headings, links and tables of every card, and no more; return it."""
    record = CardRecord.of(events)
    if record.curves is not None:
        ElementTree.fromstring(record.curves)
    text = str(model_card(CardFacts(name, "adapter", base_model=base), record))
    text.encode()
    assert len(text) < MOST_CHARACTERS
    assert SEEN.fullmatch(text), "a control character, or one that turns the direction of writing"
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata).keys() <= {
        "base_model", "base_model_relation", "datasets", "library_name", "model_name", "pipeline_tag", "tags"
    }  # fmt: skip
    assert not (found := OTHER_MARKUP.search(FENCED.sub("", body))), found
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    _, *others = [after.content for opening, after in pairwise(tokens) if opening.type == "heading_open"]
    assert set(others) <= HEADINGS
    assert len(others) == len(set(others))
    assert {token.info for token in tokens if token.type == "fence"} <= {"python", "sh", "bibtex"}
    assert not {token.type for token in tokens} & {
        "html_block",
        "hr",
        "code_block",
        "ordered_list_open",
        "blockquote_open",
    }
    for token in tokens:
        for inner in token.children or ():
            assert inner.type not in ("html_inline", "em_open", "strong_open", "s_open"), inner
            if inner.type == "link_open":
                assert LINKS.fullmatch(inner.attrs["href"]), inner
            if inner.type == "image":
                assert inner.attrs["src"] == "curves.svg"
    return text
