"""Draw the diagrams of the guides, as SVG that follows the reader's light or dark setting.

python scripts/draw_figures.py
"""

from __future__ import annotations

import html
from pathlib import Path

IMAGES = Path(__file__).parents[1] / "docs" / "images"
STYLE = """
.box { fill: #ffffff; stroke: #c9d1dc; } .key { fill: #e8f0fe; stroke: #3b82f6; } .bar { fill: #3b82f6; }
.lane { fill: #f4f6f9; stroke: none; } .arrow { stroke: #7a8699; fill: none; } .head { fill: #7a8699; }
text { font: 14px system-ui, sans-serif; fill: #1c2330; } .bold { font-weight: 600; }
.soft { fill: #5b677a; font-size: 12.5px; } .middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .box { fill: #1c212b; stroke: #414b5b; } .key { fill: #1b2a44; stroke: #3b82f6; } .lane { fill: #171b23; }
  text { fill: #e7ebf2; } .soft { fill: #9aa4b5; }
}
"""


def text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}">{html.escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, style: str = "box") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" class="{style}"/>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A straight arrow, to the right or down."""
    if x == to_x:
        head = f"{to_x - 5:g},{to_y - 8:g} {to_x + 5:g},{to_y - 8:g} {to_x:g},{to_y:g}"
    else:
        head = f"{to_x - 8:g},{to_y - 5:g} {to_x - 8:g},{to_y + 5:g} {to_x:g},{to_y:g}"
    return (
        f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" class="arrow" stroke-width="1.5"/>'
        f'<polygon points="{head}" class="head"/>'
    )


def svg(width: int, height: int, label: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{html.escape(label)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def retrieval() -> str:
    """The path of a question: each step with an example below it."""
    steps = [
        ("Question", ["could you show me", "the picture with a", "blue background?"], "box"),
        ("Rewrite", ["instruction: what colour", "is the background?", "target: a blue background"], "box"),
        ("Search", ["the target's vector", "against one vector, and", "facets, of each picture"], "box"),
        ("Second look", ["the pictures found,", "embedded again under", "the instruction"], "key"),
        ("Answer", ["threshold, diversity, k:", "pictures and passages", "with scores and traces"], "box"),
    ]
    width, gap, top = 184, 22, 14
    parts = []
    for place, (name, lines, style) in enumerate(steps):
        x = 8 + place * (width + gap)
        parts += [box(x, top, width, 112, style), text(x + width / 2, top + 28, name, "bold middle")]
        parts += [text(x + width / 2, top + 54 + 18 * row, line, "soft middle") for row, line in enumerate(lines)]
        if place:
            parts.append(arrow(x - gap + 1, top + 56, x - 1, top + 56))
    second = 8 + 3 * (width + gap) + width / 2
    parts += [
        text(second, top + 134, "but not for questions of fact,", "soft middle"),
        text(second, top + 151, "such as what a turtle eats", "soft middle"),
        text(8, top + 134, "With a picture, the question is the instruction:", "soft"),
        text(8, top + 151, "the picture is embedded under it, and that vector searches.", "soft"),
    ]
    return svg(
        8 * 2 + 5 * width + 4 * gap, top + 162, "A question is rewritten, searched, looked at again, answered", parts
    )


def models() -> str:
    """Memory for the weights of each model, by the machine that it fits."""
    rows = [
        ("any machine, for development", "abc-mini: emoji only", 0.01, "0.01 GB"),
        ("no GPU, photographs", "EmbeddingGemma 2, float32", 1.8, "1.8 GB"),
        ("GPU of 8 GB", "Qwen3-VL-Embedding 2B", 4.3, "4.3 GB"),
        ("GPU of 12 GB", 'abc, weights="int4"', 6.2, "6.2 GB"),
        ("GPU of 16 GB", 'abc, weights="int8"', 9.4, "9.4 GB"),
        ("GPU of 24 GB", "abc, bfloat16", 15.6, "15.6 GB"),
    ]
    parts = [
        text(8, 22, "your machine", "soft"),
        text(250, 22, "model", "soft"),
        text(505, 22, "weights in memory, without activations", "soft"),
    ]
    for row, (machine, model, size, label) in enumerate(rows):
        y = 34 + 36 * row
        width = max(2.0, 24 * size)
        parts += [
            box(0, y, 960, 30, "lane"),
            text(8, y + 20, machine),
            text(250, y + 20, model, "bold"),
            f'<rect x="505" y="{y + 7}" width="{width:g}" height="16" rx="3" class="bar"/>',
            text(513 + width, y + 20, label, "soft"),
        ]
    return svg(960, 34 + 36 * len(rows), "Which model for which machine", parts)


FIGURES = {"retrieval.svg": retrieval, "models.svg": models}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
