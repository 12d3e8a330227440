"""HTML and Markdown: headings, tables, pictures beside the file; nothing from elsewhere, and nothing without end."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from document_helpers import ReadParts
from ingest_helpers import Index, counts, picture

from abc_rag import ChromaStore
from abc_rag.errors import DocumentError
from abc_rag.ingest.documents import DocumentOptions, Figure, Part, Passage
from abc_rag.ingest.documents.html import markup_parts, markup_text
from abc_rag.ingest.documents.parts import Linked

PAGE = """<!DOCTYPE html><html><head><title>Pumps</title><style>p {}</style></head><body><nav>Menu</nav><h1>Pumps</h1>
<p>A pump &amp; its<br>second <b>line</b>.</p><h2>Filters</h2>
<figure><img src="pictures/a%20filter.png" alt="red"><figcaption>Figure 1: A filter.</figcaption></figure>
<table><tr><th>part<th>number<tr><td>filter<td>MX-4471-B</table><script>alert(1)</script><p hidden>secret</p>
<h2>Seals</h2><img src="pictures/seal.png" alt="a seal"><ul><li>one<li>two</ul><pre>a
  b</pre></body></html>"""


def read(text: str, **options: object) -> list[Part]:
    return list(markup_parts(text, DocumentOptions(**options)))  # type: ignore[arg-type]


def told(parts: list[Part]) -> list[tuple[object, ...]]:
    return [
        (part.heading, part.text) if isinstance(part, Passage) else (part.heading, getattr(part, "caption", None))
        for part in parts
    ]


def test_paragraphs_tables_and_pictures_under_their_headings(tmp_path: Path, read_parts: ReadParts) -> None:
    filter_ = picture(tmp_path / "pictures" / "a filter.png", "red")
    seal = picture(tmp_path / "pictures" / "seal.png", "blue")
    path = tmp_path / "page"  # by its content
    path.write_text(PAGE)
    parts = list(read_parts(path))
    assert told(parts) == [
        (("Pumps",), "Pumps\n\nA pump & its\nsecond line."),
        (("Pumps", "Filters"), "Filters\n\nFigure 1: A filter."),
        (("Pumps", "Filters"), "Figure 1: A filter."),
        (("Pumps", "Filters"), "part | number\nfilter | MX-4471-B"),
        (("Pumps", "Seals"), "Seals"),
        (("Pumps", "Seals"), "a seal"),
        (("Pumps", "Seals"), "one\n\ntwo\n\na\n  b"),
    ]
    assert [part.data for part in parts if isinstance(part, Figure)] == [filter_.read_bytes(), seal.read_bytes()]
    assert [part.kind for part in parts if isinstance(part, Passage)].count("table") == 1
    assert not [part for part in read_parts(path, figures=False) if type(part) is Figure]


def test_pictures_within_the_text_itself(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png", "red").read_bytes()
    whole = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = read(f"<img src='{whole}' alt='red'><img src='data:image/png;base64,@@'><img src='data:text/html,hello'>")
    assert [(part.data, part.caption) for part in parts if isinstance(part, Figure)] == [(data, "red")]
    assert len(parts) == 1


ELSEWHERE = [
    *("../secret.png", "pictures/../../secret.png", "/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.png"),
    *("//127.0.0.1:9/a.png", "link.png", "missing.png", "", "a.txt", "%2e%2e/secret.png", "..\\secret.png", "%00"),
    *("pipe", ".", "http://[", "C:/secret.png"),
]


def test_what_is_elsewhere_is_not_opened(tmp_path: Path, read_parts: ReadParts) -> None:
    picture(tmp_path / "secret.png", "red")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("no picture")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe")
    path = folder / "a.html"
    path.write_text("<p>words<p>" + "".join(f"<img src='{target}'>" for target in ELSEWHERE))
    assert [type(part) for part in read_parts(path)] == [Passage]


def test_tables_that_are_there_for_the_layout_are_read_like_a_page() -> None:
    page = "<table><tr><td><h2>News</h2><p>of today<table><tr><td>a<td>b</table><td>aside</table><p>after"
    assert told(read(page)) == [(("News",), text) for text in ("News", "of today", "a | b", "aside", "after")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("<p>Grüße".encode(), "Grüße"),
        ("<p>Grüße".encode("latin-1"), "Grüße"),
        ("<meta charset='koi8-r'><p>насос".encode("koi8-r"), "насос"),
        ("\ufeff<p>насос".encode("utf-16"), "насос"),
        (b"<meta charset=rot13><p>words", "words"),
        (b"<p>a\0b", "ab"),
    ],
)
def test_any_encoding(data: bytes, said: str) -> None:
    (part,) = read(markup_text(data))
    assert isinstance(part, Passage)
    assert part.text == said


def test_what_xhtml_closes_at_once_does_not_swallow_the_rest() -> None:
    assert told(read("<html><head><title/><script src='x'/></head><body><p>words</p></body></html>")) == [((), "words")]


# --- What was made to do harm -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 100_000 + "words",
        "<table><tr><td>" * 30_000 + "words",
        "<figure>" * 50_000 + "words" + "<img src=a.png>",
        "<h1>" * 50_000 + "words",
        "<p hidden>" + "<b>" * 50_000 + "</b>" * 50_000 + "</p>words",
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><p>&b; words',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><p>&a; words',
        "<title" * 50_000 + "<p>words",
    ],
)
def test_nesting_and_entities_end(page: str) -> None:
    text = " ".join(part.text for part in read(page) if isinstance(part, Passage))
    assert "words" in text or "<title" in page
    assert "aaaa" not in text.replace('"aaaa"', "")
    assert "root:" not in text


def test_a_huge_table_comes_in_pieces() -> None:
    rows = 30_000
    parts = read("<table>" + "<tr><td>name<td>value" * rows + "</table>")
    assert len(parts) > 5
    assert sum(part.text.count("name | value") for part in parts if isinstance(part, Passage)) == rows


def test_too_many_parts_are_reported(tmp_path: Path, read_parts: ReadParts) -> None:
    path = tmp_path / "a.html"
    path.write_text("<h2>title</h2><p>words" * 100)
    *_, last = read_parts(path, limits={"max_parts": 50})
    assert "max_parts=50" in getattr(last, "reason", "")


def test_damaged_pages_are_read_as_far_as_they_go() -> None:
    data = PAGE.encode()
    for at in range(0, len(data), 61):
        read(markup_text(data[:at]))
        read(markup_text(data[:at] + b"<\xff\0</" + data[at:]))


# --- Markdown ---------------------------------------------------------------------------------------------


def test_markdown_with_headings_and_pictures(
    folder: Path, store: ChromaStore, index: Index, read_parts: ReadParts
) -> None:
    text = "---\nlayout: x\n---\n# Pumps\n\nA *pump*.\n\n![a filter](a%20b.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    (folder / "a.md").write_text(text)
    picture(folder / "a b.png", "red")
    parts = list(read_parts(folder / "a.md"))
    assert told(parts) == [(("Pumps",), said) for said in ("Pumps\n\nA pump.", "a filter", "a | b\n1 | 2")]
    (folder / "plain.md").write_text("Just\n\nwords.")  # a text, as ever
    report, _ = index()
    assert counts(report) == (6, 0, 0, 0)  # the picture is a file of its own as well
    assert counts(index()[0]) == (0, 6, 0, 0)
    assert {Path(record.document or record.source).name for record in store.records()} >= {"a.md", "plain.md"}


def test_a_markdown_text_without_structure_is_no_document(tmp_path: Path, read_parts: ReadParts) -> None:
    path = tmp_path / "a.md"
    path.write_text("Just words.")
    with pytest.raises(DocumentError, match="no document of a kind that is read"):
        list(read_parts(path))


def test_links_keep_what_is_said_and_where() -> None:
    (part,) = read("<h1>A</h1><img src='x.png' title='told'>")[1:]
    assert part == Linked(heading=("A",), target="x.png", caption="told")
    assert read("<img src=x.png width=1 height=1>") == []
