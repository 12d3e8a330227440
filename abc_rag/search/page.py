"""One self-contained HTML page that shows questions and what was found, pictures included."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from abc_rag.errors import ImageError, InputError
from abc_rag.files import write
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.images.read import describe_source
from abc_rag.search.answer import Answer
from abc_rag.types import URL, Hit, ImageSource

__all__ = ["STYLE", "Shown", "render_html", "thumbnail", "write_html"]

_THUMBNAIL = 220
STYLE = """
:root { color-scheme: light dark; --bar: #3b82f6;
  --line: #d5d9e0; --soft: #667; --card: #fff; --page: #f4f6f9; --ink: #1c2330; }
@media (prefers-color-scheme: dark) {
  :root { --line: #333a46; --soft: #9aa4b5; --card: #1c212b; --page: #12161d; --ink: #e7ebf2; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: var(--page); color: var(--ink); }
main { max-width: 1120px; margin: 0 auto; padding: 24px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 0; }
p { margin: 4px 0; } .soft { color: var(--soft); font-size: .875rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px; margin: 18px 0; }
.ask { display: flex; gap: 18px; align-items: center; margin-bottom: 14px; }
.ask img { width: 120px; border-radius: 8px; }
ol { list-style: none; padding: 0; margin: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
li { border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-wrap: anywhere; }
li img { width: 100%; border-radius: 6px; display: block; }
.bar { height: 4px; border-radius: 2px; background: var(--bar); margin: 8px 0 4px; }
code { font-size: .9em; }
"""


@dataclass(frozen=True)
class Shown:
    """An answer and the picture that was asked about, if there was one."""

    answer: Answer
    image: ImageSource | None = None


def thumbnail(source: ImageSource) -> str:
    """A small copy inside the page, so that it can be moved and mailed; or a note that the picture is gone."""
    if isinstance(source, URL) or (isinstance(source, str) and re.match("https?://", source, re.IGNORECASE)):
        return '<p class="soft">(no preview: the picture is on the web)</p>'
    try:
        # Local files only: looking at a result must not fetch anything.
        picture = open_image(source, limits=ImageLimits(allow_urls=False)).image
    except ImageError as error:
        return f'<p class="soft">(no preview: {html.escape(error.reason)})</p>'
    picture.thumbnail((_THUMBNAIL * 2, _THUMBNAIL * 2), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(describe_source(source), quote=True)}" src="data:image/jpeg;base64,{data}">'


def _hit(rank: int, hit: Hit, best: float) -> str:
    record = hit.record
    shown = "" if record.picture is None else thumbnail(record.picture)
    text = f"<p>{html.escape(record.text)}</p>" if record.text else ""
    # The bar shows the cosine, whose differences the score halves.
    width = round(100 * max(0.0, 2 * hit.score - 1) / max(1e-9, 2 * best - 1))
    return (
        f'<li>{shown}{text}<div class="bar" style="width:{width}%"></div>'
        f'<span class="soft">{rank}. score {hit.score:.3f} &middot; {record.modality} &middot; '
        f"{html.escape(Path(record.source).name or record.id)}</span></li>"
    )


def _section(shown: Shown) -> str:
    answer = shown.answer
    picture = thumbnail(shown.image) if shown.image is not None else ""
    instruction = (
        f"<p>instruction: <code>{html.escape(answer.instruction)}</code></p>" if answer.instruction is not None else ""
    )
    if shown.image is None and answer.rewrite is not None and answer.rewrite.target != answer.question:
        instruction = f"<p>searched for: <code>{html.escape(answer.rewrite.target)}</code></p>" + instruction
    # After MMR the first hit need not be the one with the highest score.
    best = max((hit.score for hit in answer.hits), default=0.0)
    hits = "".join(_hit(rank, hit, best) for rank, hit in enumerate(answer.hits, 1)) or "<li>nothing found</li>"
    return (
        f'<section><div class="ask">{picture}<div><h2>{html.escape(answer.question or "(picture alone)")}</h2>'
        f"{instruction}</div></div><ol>{hits}</ol></section>"
    )


def render_html(shown: Sequence[Shown], *, title: str, subtitle: str = "") -> str:
    """The page as a string; everything that came from outside is escaped."""
    sections = "".join(_section(one) for one in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(subtitle)}</p>{sections}</main></body></html>\n'
    )


def write_html(path: str | os.PathLike[str], page: str) -> Path:
    """Write a page and return its absolute path.

    Raises:
        InputError: It cannot be written there.
    """
    target = Path(os.path.expanduser(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, page)
        return target.resolve()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{target}: cannot be written ({reason}); choose another path") from error
