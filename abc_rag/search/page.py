"""One self-contained HTML page that shows questions and what was found, pictures included."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image

from abc_rag.errors import ImageError, InputError, StoreError
from abc_rag.files import write
from abc_rag.images.open import open_image
from abc_rag.images.read import describe_source
from abc_rag.search.answer import Answer
from abc_rag.search.evidence import Evidence
from abc_rag.search.markdown import render_markdown
from abc_rag.search.pictures import Pictures
from abc_rag.search.places import marked
from abc_rag.types import URL, Hit, ImageSource, Record

__all__ = ["STYLE", "Shown", "render_html", "thumbnail", "write_html"]

STYLE = """
:root { color-scheme: light dark; --bar: #3b82f6; --best: #2563eb; --tint: #eff5ff; --track: #e6e9ef;
  --line: #d5d9e0; --soft: #5b6675; --card: #fff; --page: #f4f6f9; --ink: #1c2330; }
@media (prefers-color-scheme: dark) {
  :root { --best: #6ea8fe; --tint: #1d2a44; --track: #2a303b;
    --line: #333a46; --soft: #9aa4b5; --card: #1c212b; --page: #12161d; --ink: #e7ebf2; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: var(--page); color: var(--ink); }
main { max-width: 1440px; margin: 0 auto; padding: clamp(12px, 2vw, 28px); }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 0; }
p { margin: 4px 0; } .soft { color: var(--soft); font-size: .875rem; } .lead { max-width: 110ch; margin: 8px 0; }
a { color: inherit; text-decoration-color: var(--soft); } a:hover { color: var(--best); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px; margin: 18px 0; }
.ask { display: flex; gap: 18px; align-items: center; margin-bottom: 14px; }
.ask:empty { display: none; } .ask img { width: 120px; border-radius: 8px; }
ol { list-style: none; padding: 0; margin: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%), 1fr)); }
ol > li { border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow-wrap: anywhere;
  display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: 0; }
li img { width: 100%; max-height: 320px; object-fit: contain; border-radius: 6px; display: block; }
li img.page { width: auto; max-width: 100%; max-height: 560px; box-sizing: border-box; background: #fff;
  border: 1px solid var(--line); }
li.best { border-color: var(--best); box-shadow: 0 0 0 1px var(--best); background: var(--tint); }
.badge { background: var(--best); color: var(--card); border-radius: 99px; padding: 0 10px;
  font-size: .75rem; font-weight: 600; display: inline-block; margin-bottom: 8px; }
.text { white-space: pre-line; } .scale { background: var(--track); border-radius: 2px; margin: 10px 0 4px; }
.bar { height: 4px; border-radius: 2px; background: var(--bar); }
code, pre { font-size: .9em; } pre { overflow-x: auto; margin: 4px 0; }
blockquote { margin: 4px 0; padding-left: 10px; border-left: 3px solid var(--line); }
.answer { white-space: pre-line; font-size: 1.1rem; margin: 0 0 14px; max-width: 90ch; }
.answer mark { background: none; color: inherit; border-bottom: 2px dotted var(--soft); }
li:has(:target) { border-color: var(--best); box-shadow: 0 0 0 2px var(--best); }
summary { cursor: pointer; color: var(--soft); font-size: .875rem; margin-top: 6px; }
li ul { margin: 4px 0; padding-left: 20px; list-style: disc; }
"""
"""Style sheet of this package's pages."""
_THUMBNAIL = 220
_PAGE = 1000  # pixels of a page's longer side: its text can be read
_MARKDOWN = (".md", ".markdown")


@dataclass(frozen=True)
class Shown:
    """An answer and the picture that was asked about, if there was one.

    Attributes:
        answer: What was found.
        image: The picture that was asked about.
        evidence: Where in a picture the answer lies, by the hit's id; such a hit has the map under a toggle.
    """

    answer: Answer
    image: ImageSource | None = None
    evidence: Mapping[str, Evidence] = field(default_factory=dict)


def _hit(
    rank: int, hit: Hit, names: Mapping[str, str], pictures: Pictures, place: str, evidence: Evidence | None
) -> str:
    record = hit.record
    address = _address(record)
    shown = _on_its_page(record, pictures)
    if shown and address is not None:
        shown = f'<a rel="noreferrer noopener" href="{html.escape(address, quote=True)}">{shown}</a>'
    elif not shown and record.modality == "image" and record.source:
        shown = _no_preview("the picture is on the web") if record.source_type == "url" else _found(record, pictures)
    if evidence is not None:
        shown += _where(evidence, f"where the answer lies in {record.source or record.id}")
    # One scale for the whole page: the cosine from 0 to 1, whose differences the score halves.
    width = round(100 * min(1.0, max(0.0, 2 * hit.score - 1)))
    page = f", p. {record.page_label}" if record.page is not None else ""
    name = html.escape((names.get(_file(record)) or record.id) + page)
    if address is not None:
        name = f'<a rel="noreferrer noopener" href="{html.escape(address, quote=True)}">{name}</a>'
    best = ' class="best"' if rank == 1 else ""
    badge = '<span class="badge">best answer</span>' if rank == 1 else ""
    judged = "" if hit.confidence is None else f" &middot; confidence {hit.confidence:.3f}"
    return (
        f'<li{best}><div id="{place}-{rank}">{badge}{shown}{_text(record)}</div>'
        f'<div class="scale"><div class="bar" style="width:{width}%"></div></div>'
        f'<span class="soft">{rank}. score {hit.score:.3f}{judged} &middot; {record.modality} &middot; {name}</span>'
        "</li>"
    )


def _text(record: Record) -> str:
    if not record.text:
        return ""
    if record.source_type == "path" and str(record.source).lower().endswith(_MARKDOWN):
        return render_markdown(record.text)
    return f'<p class="text">{html.escape(record.text)}</p>'


def _file(record: Record) -> str:
    """The file that a record is from: of a part of a document, the document."""
    return record.document or str(record.source)


def _address(record: Record) -> str | None:
    """Where a link to a record's file leads, in a PDF to the page. Nothing is opened before somebody follows it."""
    source = _file(record)
    # A document that was fetched is named by its URL; any other by an absolute path.
    if (record.document or record.source_type == "url") and re.match("https?://", source, re.IGNORECASE):
        address = source
    elif (record.document or record.source_type == "path") and os.path.isabs(source) and "\0" not in source:
        address = Path(source).as_uri()
    else:
        return None
    bare = address.partition("#")[0]
    # What browsers understand. It counts pages as they lie in the file, whatever they are called.
    return f"{bare}#page={record.page}" if record.page is not None and bare.lower().endswith(".pdf") else address


def _names(sources: Iterable[str]) -> dict[str, str]:
    """The end of each path, as long as it takes to tell it from the others."""
    left = {source: [part for part in re.split(r"[/\\]", source) if part] for source in sources if source}
    names: dict[str, str] = {}
    count = 0
    while left:
        count += 1
        ends = {source: "/".join(parts[-count:]) for source, parts in left.items()}
        often = Counter(ends.values())
        names |= {source: end for source, end in ends.items() if often[end] == 1 or count >= len(left[source])}
        left = {source: parts for source, parts in left.items() if source not in names}
    return names


def _on_its_page(record: Record, pictures: Pictures) -> str:
    """The page of a part of a document with its place on it; empty where there is no picture of that page."""
    try:
        page = pictures.page_of(record)
        if page is None:
            return ""
        drawn = marked(open_image(pictures.read(page)).image, page, record)
    except (StoreError, ImageError):
        return ""
    return _embedded(drawn, f"{_file(record)}, p. {record.page_label}", _PAGE, ' class="page"')


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


def _where(evidence: Evidence, name: str) -> str:
    """A toggle with the picture's map."""
    told = evidence.reason or "What counts keeps its colours, under an orange tint."
    figures = (
        f"similarity {evidence.similarity:.2f}, {evidence.without:.2f} without the picture; {evidence.passes} passes"
    )
    return (
        f"<details><summary>{'where the answer lies' if evidence.evidence else 'no evidence'}</summary>"
        f'{_embedded(evidence.picture(), name, 2 * _THUMBNAIL)}<p class="soft">{html.escape(told)}<br>{figures}</p>'
        "</details>"
    )


def _no_preview(reason: str) -> str:
    return f'<p class="soft">(no preview: {html.escape(reason)})</p>'


def _copy(source: ImageSource, name: str) -> str:
    """A small copy inside the page, so that the page can be moved and mailed."""
    return _embedded(open_image(source).image, name, 2 * _THUMBNAIL)


def _embedded(picture: PIL.Image.Image, name: str, side: int, more: str = "") -> str:
    picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img{more} alt="{html.escape(name, quote=True)}" src="data:image/jpeg;base64,{data}">'


def _written(answer: Answer, place: str) -> str:
    """The answer in words: each citation leads to its source, and a sentence without one is underlined."""
    if not answer.text:
        return ""
    text = html.escape(answer.text)
    if bare := sorted({html.escape(one) for one in answer.unsupported}, key=len, reverse=True):
        text = re.sub("|".join(map(re.escape, bare)), r'<mark title="no source">\g<0></mark>', text)
    text = re.sub(r"(?<=[\[,])(\s*)(\d+)(?=[\],])", rf'\1<a href="#{place}-\2">\2</a>', text)
    return f'<p class="answer">{text}</p>'


def _section(shown: Shown, names: Mapping[str, str], pictures: Pictures, *, heading: bool, place: str) -> str:
    answer = shown.answer
    picture = thumbnail(shown.image) if shown.image is not None else ""
    instruction = (
        f"<p>instruction: <code>{html.escape(answer.instruction)}</code></p>" if answer.instruction is not None else ""
    )
    if shown.image is None and answer.rewrite is not None and answer.rewrite.target != answer.question:
        instruction = f"<p>searched for: <code>{html.escape(answer.rewrite.target)}</code></p>" + instruction
    hits = "".join(
        _hit(rank, hit, names, pictures, place, shown.evidence.get(hit.id)) for rank, hit in enumerate(answer.hits, 1)
    )
    title = f"<h2>{html.escape(answer.question or '(picture alone)')}</h2>" if heading else ""
    about = f"<div>{title}{instruction}</div>" if title or instruction else ""
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in answer.notes)
    said = _written(answer, place) + notes
    return (
        f'<section><div class="ask">{picture}{about}</div>{said}<ol>{hits or "<li>nothing found</li>"}</ol></section>'
    )


def render_html(
    shown: Sequence[Shown], *, title: str, subtitle: str = "", lead: str = "", pictures: Pictures | None = None
) -> str:
    """The page as a string; everything that came from outside is escaped.

    Args:
        shown: Answers, in order.
        title: Heading of the page.
        subtitle: A line below it.
        lead: What the page shows, in a sentence or two.
        pictures: Opens the pictures that were found, such as `Retriever.pictures`. If not given, only those that were
            indexed on this machine are shown.
    """
    pictures = pictures or Pictures()
    names = _names({_file(hit.record) for one in shown for hit in one.answer.hits})
    sections = "".join(
        _section(one, names, pictures, heading=not _headed(one, title, len(shown)), place=f"source-{number}")
        for number, one in enumerate(shown, 1)
    )
    introduction = f'<p class="lead">{html.escape(lead)}</p>' if lead else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="soft">{html.escape(subtitle)}</p>{introduction}{sections}'
        "</main></body></html>\n"
    )


def _headed(shown: Shown, title: str, count: int) -> bool:
    """Whether the page's heading already says what was asked."""
    return shown.answer.question == title or (count == 1 and shown.answer.question is None)


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
