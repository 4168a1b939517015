"""Speed and memory of a comparison as bars, in a self-contained SVG that reads on a light and on a dark page."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from .report import GIB, LABELS, OURS

COLOURS = {OURS: "#d9622b", "trl-default": "#7d8fa3", "trl-best": "#4c6a88", "trl-split": "#a9b4c0"}
BAR, GAP, LABEL_WIDTH, PANEL, MARGIN = 18, 4, 150, 300, 20  # pixels
TEXT = "#7a7f87"  # grey enough for both pages


def plot(documents: list[dict[str, Any]]) -> str:
    """Draw one group of bars for each comparison, pairs a second on the left and peak memory on the right.

    Args:
        documents: What ``versus_trl.py --json`` printed.

    Returns:
        The SVG.
    """
    body: list[str] = []
    top = MARGIN
    for document in documents:
        body.append(_text(MARGIN, top + 12, _title(document), weight="bold"))
        top += 24
        body += _panel(document, top)
        top += len(document["trainers"]) * (BAR + GAP) + 26
    width = MARGIN * 2 + LABEL_WIDTH + 2 * PANEL
    first = documents[0]
    where = first["machine"]["device"] or f"{first['machine']['cpu']}, {first['machine']['cores']} cores"
    body.append(_text(MARGIN, top, f"{where}, {first['date']}", size=11))
    height = top + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' role="img" aria-label="speed and memory of Oddsmith and TRL" font-family="system-ui, sans-serif">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _title(document: dict[str, Any]) -> str:
    work = document["work"]
    kind = "LoRA" if work["adapter"] else "full fine-tuning"
    precision = "bf16" if work["bf16"] else "float32"
    model = work["model"].rpartition(":")[2].rpartition("/")[2]
    return f"{model}, {kind}, {precision}: {work['pairs']} pairs a step of {document['data']}"


def _panel(document: dict[str, Any], top: int) -> list[str]:
    good = [figures for figures in document["trainers"].values() if "failed" not in figures]
    memory = "GiB of device memory" if document["machine"]["device"] else "GiB of memory"
    columns = (
        (MARGIN + LABEL_WIDTH, "pairs_per_second", 1, "pairs/s"),
        (MARGIN + LABEL_WIDTH + PANEL, "peak_bytes", GIB, memory),
    )
    shapes = []
    for row, (trainer, figures) in enumerate(document["trainers"].items()):
        y = top + row * (BAR + GAP)
        shapes.append(_text(MARGIN, y + 13, LABELS[trainer]))
        for left, name, unit, what in columns:
            if "failed" in figures:
                shapes.append(_text(left, y + 13, figures["failed"]))
                continue
            longest = max(other[name] for other in good)
            width = (PANEL - 150) * figures[name] / longest
            colour = COLOURS[trainer]
            shapes.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
            shapes.append(_text(left + width + 6, y + 13, f"{figures[name] / unit:.2f} {what if row == 0 else ''}"))
    return shapes


def _text(x: float, y: float, text: str, *, size: int = 12, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{TEXT}">'
        f"{escape(text.strip())}</text>"
    )
