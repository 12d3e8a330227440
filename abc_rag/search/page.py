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
from abc_rag.images.open import open_image
from abc_rag.images.read import describe_source
from abc_rag.search.answer import Answer
from abc_rag.search.pictures import Pictures
from abc_rag.types import URL, Hit, ImageSource, Record

__all__ = ["STYLE", "Shown", "render_html", "thumbnail", "write_html"]

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
"""Style sheet of this package's pages."""
_THUMBNAIL = 220


@dataclass(frozen=True)
class Shown:
    """An answer and the picture that was asked about, if there was one."""

    answer: Answer
    image: ImageSource | None = None


def _hit(rank: int, hit: Hit, best: float, pictures: Pictures) -> str:
    record = hit.record
    shown = ""
    if record.modality == "image" and record.source:
        shown = _no_preview("the picture is on the web") if record.source_type == "url" else _found(record, pictures)
    text = f"<p>{html.escape(record.text)}</p>" if record.text else ""
    # The bar shows the cosine, whose differences the score halves.
    width = round(100 * max(0.0, 2 * hit.score - 1) / max(1e-9, 2 * best - 1))
    return (
        f'<li>{shown}{text}<div class="bar" style="width:{width}%"></div>'
        f'<span class="soft">{rank}. score {hit.score:.3f} &middot; {record.modality} &middot; '
        f"{html.escape(Path(str(record.source)).name or record.id)}</span></li>"
    )


def _found(record: Record, pictures: Pictures) -> str:
    try:
        return _copy(pictures.read(record), record.source)
    except ImageError as error:
        return _no_preview(error.reason)


def thumbnail(source: ImageSource) -> str:
    """A small copy of a picture as HTML; or a note in its place, where it is on the web or cannot be opened."""
    if isinstance(source, URL) or (isinstance(source, str) and re.match("https?://", source, re.IGNORECASE)):
        # Looking at a result must not fetch anything.
        return _no_preview("the picture is on the web")
    try:
        return _copy(source, describe_source(source))
    except ImageError as error:
        return _no_preview(error.reason)


def _no_preview(reason: str) -> str:
    return f'<p class="soft">(no preview: {html.escape(reason)})</p>'


def _copy(source: ImageSource, name: str) -> str:
    """A small copy inside the page, so that the page can be moved and mailed."""
    picture = open_image(source).image
    picture.thumbnail((_THUMBNAIL * 2, _THUMBNAIL * 2), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(name, quote=True)}" src="data:image/jpeg;base64,{data}">'


def _section(shown: Shown, pictures: Pictures) -> str:
    answer = shown.answer
    picture = thumbnail(shown.image) if shown.image is not None else ""
    instruction = (
        f"<p>instruction: <code>{html.escape(answer.instruction)}</code></p>" if answer.instruction is not None else ""
    )
    if shown.image is None and answer.rewrite is not None and answer.rewrite.target != answer.question:
        instruction = f"<p>searched for: <code>{html.escape(answer.rewrite.target)}</code></p>" + instruction
    # After MMR the first hit need not be the one with the highest score.
    best = max((hit.score for hit in answer.hits), default=0.0)
    hits = "".join(_hit(rank, hit, best, pictures) for rank, hit in enumerate(answer.hits, 1))
    return (
        f'<section><div class="ask">{picture}<div><h2>{html.escape(answer.question or "(picture alone)")}</h2>'
        f"{instruction}</div></div><ol>{hits or '<li>nothing found</li>'}</ol></section>"
    )


def render_html(shown: Sequence[Shown], *, title: str, subtitle: str = "", pictures: Pictures | None = None) -> str:
    """The page as a string; everything that came from outside is escaped.

    Args:
        shown: Answers, in order.
        title: Heading of the page.
        subtitle: A line below it.
        pictures: Opens the pictures that were found, such as `Retriever.pictures`. If not given, only those that were
            indexed on this machine are shown.
    """
    pictures = pictures or Pictures()
    sections = "".join(_section(one, pictures) for one in shown)
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
