"""Render an evaluation as one HTML page: tables, plots, the worst mistakes with their pictures, and the settings."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from abc_rag.errors import MissingExtraError
from abc_rag.evaluation.plots import draw
from abc_rag.evaluation.results import Mistake, Plot, Results, ResultTable, as_text, left_out
from abc_rag.search.page import STYLE, thumbnail
from abc_rag.types import ImageSource

__all__ = ["render_page"]

_MORE_STYLE = """
:root { --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --good: #4ade80; --bad: #f87171; } }
h2 { margin: 0 0 12px; } .wide { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 620px); font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: 8px; }
th, td { padding: 6px 0 6px 24px; text-align: right; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: .875rem; border-top: 0; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
td.words { min-width: 12em; overflow-wrap: anywhere; }
.plots { display: grid; gap: 18px; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
figure { margin: 0; } figure svg { width: 100%; max-width: 600px; height: auto; } figcaption { font-weight: 600; }
.mistakes { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); align-items: start; }
.pair { display: grid; gap: 8px; grid-template-columns: 1fr 1fr; } .pair figcaption { font-size: .8rem; }
.asked { font-weight: 600; margin: 8px 0; }
.right { color: var(--good); } .wrong { color: var(--bad); }
dl { margin: 8px 0 0; } dt { color: var(--soft); font-size: .8rem; } dd { margin: 0 0 6px; }
pre { overflow-x: auto; font-size: .8rem; margin: 8px 0 0; } summary { cursor: pointer; font-weight: 600; }
ul { margin: 0; padding-left: 20px; } ul li { border: 0; padding: 2px 0; }
"""


def render_page(results: Results) -> str:
    """Render the page; all text from models and data is escaped."""
    title = f"{results.benchmark}: {results.model}"
    parts = [
        "".join(f'<section class="wide">{_table(table)}</section>' for table in results.tables),
        _plots(results.plots),
        _notes(results.notes),
        _mistakes(results.mistakes),
        _bad(results.bad),
        _settings(results.as_dict()["settings"]),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{_MORE_STYLE}</style></head><body><main>"
        f'<h1>{html.escape(results.benchmark)}</h1><p class="soft">{html.escape(results.model)}</p>'
        f"{''.join(parts)}</main></body></html>\n"
    )


def _table(table: ResultTable) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(_cell(cell, as_text(cell)) for cell in row)}</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: object, text: str) -> str:
    words = isinstance(cell, str) and not text.replace(".", "").replace("-", "").replace(" ", "").isdigit()
    return f"<td{' class=words' if words else ''}>{html.escape(text)}</td>"


def _plots(plots: Sequence[Plot]) -> str:
    if not plots:
        return ""
    try:
        drawn = [f"<figure><figcaption>{html.escape(one.title)}</figcaption>{draw(one)}</figure>" for one in plots]
    except MissingExtraError as error:
        return f'<section><p class="soft">{html.escape(str(error))}</p></section>'
    return f'<section class="plots">{"".join(drawn)}</section>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f'<section class="soft"><ul>{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul></section>'


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return ""
    cards = "".join(_mistake(one) for one in mistakes)
    return f'<section><h2>The worst mistakes</h2><ol class="mistakes">{cards}</ol></section>'


def _mistake(one: Mistake) -> str:
    picture = "" if one.image is None else thumbnail(one.image)
    asked = f'<p class="asked">{html.escape(one.query)}</p>' if one.query else ""
    pair = ""
    if one.expected_image is not None or one.found_image is not None:
        sides = (("expected", "right", one.expected_image), ("found", "wrong", one.found_image))
        pair = f'<div class="pair">{"".join(_side(*side) for side in sides)}</div>'
    rank = "" if one.rank is None else f" &middot; rank {one.rank}"
    return (
        f"<li>{picture}{asked}{pair}<dl>"
        f'<dt>found{_score(one.score)}</dt><dd class="wrong">{html.escape(one.found)}</dd>'
        f'<dt>expected{_score(one.expected_score)}{rank}</dt><dd class="right">{html.escape(one.expected)}</dd>'
        "</dl></li>"
    )


def _side(name: str, kind: str, image: ImageSource | None) -> str:
    picture = "" if image is None else thumbnail(image)
    return f'<figure><figcaption class="{kind}">{name}</figcaption>{picture}</figure>'


def _score(score: float | None) -> str:
    return "" if score is None else f" &middot; {score:.3f}"


def _bad(bad: Mapping[str, Any]) -> str:
    if not bad.get("count"):
        return ""
    rows: list[Mapping[str, str]] = list(bad.get("rows", []))
    lines = [": ".join(part for part in (row["where"], row["problem"], row["detail"]) if part) for row in rows]
    more = f'<p class="soft">and {bad["count"] - len(rows)} more</p>' if bad["count"] > len(rows) else ""
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return (
        f"<section><details><summary>{html.escape(left_out(bad))}</summary><ul>{shown}</ul>{more}</details></section>"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    command = settings.get("command")
    shown = f"<pre>{html.escape(str(command))}</pre>" if command else ""
    text = html.escape(json.dumps(settings, indent=2, ensure_ascii=False))
    return f"<section><details open><summary>To repeat this</summary>{shown}<pre>{text}</pre></details></section>"
