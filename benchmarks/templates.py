"""What the guard around chat templates costs: rows rendered with it and with transformers' own environment, in turns.

    python benchmarks/templates.py [ROWS]

Rendering alone under each format of ``tests/templates.py``; then rendering and tokenizing with SmolLM2's tokenizer, as
a dataset is prepared. Processor time, the best of nine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from transformers.utils import chat_template_utils

sys.path.insert(0, str(Path(__file__).parent.parent))

from oddsmith.config import ORPOConfig
from oddsmith.data.formats import to_pair
from oddsmith.data.prepare import RowTokenizer
from oddsmith.data.templates.environment import guard_chat_templates
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.data.tokens.rendering import Renderer
from oddsmith.model.loading.models import load_tokenizer
from tests.templates import CHAT_FORMATS

REPEATS = 9
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "away"]


def rows(count: int) -> list[dict]:
    """Conversational pairs of about 100 and 200 words."""
    return [
        {
            "prompt": [{"role": "user", "content": f"{' '.join(WORDS * 8)} {number}"}],
            "chosen": [{"role": "assistant", "content": " ".join(WORDS * 20)}],
            "rejected": [{"role": "assistant", "content": " ".join(WORDS * 15)}],
        }
        for number in range(count)
    ]


def both(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds with transformers' environment and with ours, the best of several turns."""
    best = {PLAIN: float("inf"), GUARDED: float("inf")}
    for _ in range(REPEATS):
        for compile_template in best:
            chat_template_utils._compile_jinja_template = compile_template
            start = time.process_time()
            work()
            best[compile_template] = min(best[compile_template], time.process_time() - start)
    return best[PLAIN], best[GUARDED]


def show(name: str, plain_s: float, guarded_s: float) -> None:
    """Print one line."""
    print(f"{name:16} {plain_s * 1e3:8.1f} ms {guarded_s * 1e3:8.1f} ms {guarded_s / plain_s - 1:+7.1%}", flush=True)


PLAIN = chat_template_utils._compile_jinja_template
guard_chat_templates()
GUARDED = chat_template_utils._compile_jinja_template

if __name__ == "__main__":
    table = rows(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
    pairs = [to_pair(row) for row in table]
    total = [0.0, 0.0]
    for chat in CHAT_FORMATS:
        renderer = Renderer(chat.tokenizer())
        seconds = both(lambda renderer=renderer: [renderer.render(pair) for pair in pairs])
        total = [sum(two) for two in zip(total, seconds, strict=True)]
        show(chat.name, *seconds)
    show("all of them", *total)
    tokenizer = load_tokenizer("builtin:smollm2-135m-instruct")
    settings = ORPOConfig(output_dir="unused", report_to=[])
    prepare = RowTokenizer(PairTokenizer.from_settings(tokenizer, settings, is_encoder_decoder=False), "error", "rows")
    columns = {name: [row[name] for row in table] for name in table[0]}
    show("with its tokens", *both(lambda: prepare(columns, list(range(len(table))))))
