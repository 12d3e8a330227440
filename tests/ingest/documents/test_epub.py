"""EPUB: chapters in the order of the book, with its pictures; bombs, and references that lead out of it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import PIL.Image
import pytest
from document_helpers import ReadParts
from ingest_helpers import Index, counts

from abc_rag.errors import DocumentError
from abc_rag.ingest.documents import Figure, Passage, Unread

CONTAINER = '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
BOOK = """<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The Pump</dc:title></metadata><manifest>
<item id="b" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/one%20.xhtml" media-type="application/xhtml+xml"/>
<item id="p" href="p.png" media-type="image/png" properties="cover-image"/>
<item id="out" href="../../etc/passwd" media-type="application/xhtml+xml"/>
</manifest><spine><itemref idref="a"/><itemref idref="out"/><itemref idref="b"/>
<itemref idref="a"/></spine></package>"""
DOCTYPE = '<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/xhtml11.dtd">'


def png(colour: str) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), colour).save(out, "PNG")
    return out.getvalue()


def book(path: Path, **changed: bytes | str) -> Path:
    members: dict[str, bytes | str] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": BOOK,
        "OEBPS/text/one .xhtml": f"{DOCTYPE}<html><head><title>The Pump</title></head><body><h1>One</h1><p>First.</p>"
        "<p><img src='../p.png' alt='again'/><img src='../q.png' alt='a seal'/><img src='../../../x.png'/>"
        "<img src='http://127.0.0.1:9/x.png'/></p></body></html>",
        "OEBPS/text/two.xhtml": "<html><head><title/></head><body><h1>Two</h1><p>Second.</p></body></html>",
        "OEBPS/p.png": png("red"),
        "OEBPS/q.png": png("blue"),
        "../../x.png": png("green"),
    }
    members |= {
        name: changed.pop(name.split("/")[-1].split(".")[0]) for name in members if name[:-4].endswith(tuple(changed))
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(zipfile.ZipInfo(name) if name == "mimetype" else name, data)
    return path


def replaced(path: Path, member: str, data: bytes | str) -> Path:
    with zipfile.ZipFile(path) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    members[member] = data if isinstance(data, bytes) else data.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, old in members.items():
            packed.writestr(zipfile.ZipInfo(name) if name == "mimetype" else name, old)
    return path


def test_chapters_in_their_order_and_each_picture_once(tmp_path: Path, read_parts: ReadParts) -> None:
    parts = list(read_parts(book(tmp_path / "book")))
    assert [(part.heading, part.text) for part in parts if isinstance(part, Passage)] == [
        (("The Pump", "One"), "One\n\nFirst."),
        (("The Pump", "Two"), "Two\n\nSecond."),
    ]
    assert [(part.caption, part.data) for part in parts if isinstance(part, Figure)] == [
        ("The Pump", png("red")),
        ("a seal", png("blue")),
    ]


def test_a_book_is_indexed_and_again_for_nothing(folder: Path, index: Index) -> None:
    book(folder / "book.epub")
    assert counts(index()[0]) == (4, 0, 0, 0)
    assert counts(index()[0]) == (0, 4, 0, 0)


def test_bombs_are_refused(tmp_path: Path, read_parts: ReadParts) -> None:
    path = replaced(book(tmp_path / "book"), "OEBPS/text/two.xhtml", b"0" * 2_000_000)
    with pytest.raises(DocumentError, match="unpacks to"):
        list(read_parts(path, limits={"max_unpacked": 1_000_000}))
    laughs = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><package>&b;</package>'
    for member in ("OEBPS/book.opf", "META-INF/container.xml"):
        with pytest.raises(DocumentError, match="defines a document type"):
            list(read_parts(replaced(book(tmp_path / "book"), member, laughs)))
    outside = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><html><body><p>&a; words</p></body></html>'
    parts = read_parts(replaced(book(tmp_path / "book"), "OEBPS/text/two.xhtml", outside))
    texts = [part.text for part in parts if isinstance(part, Passage)]
    assert "words" in texts[-1]
    assert "root:" not in "".join(texts)


@pytest.mark.parametrize(
    ("member", "data", "said"),
    [
        ("META-INF/container.xml", "<container/>", "does not say where its chapters are"),
        ("META-INF/container.xml", "<contain", "damaged XML"),
        ("OEBPS/book.opf", "<package/>", "has no chapters"),
        (
            "META-INF/encryption.xml",
            "<encryption><CipherData><CipherReference URI='OEBPS/text/two.xhtml'/></CipherData></encryption>",
            "is encrypted by its seller",
        ),
    ],
)
def test_what_is_wrong_is_said(member: str, data: str, said: str, tmp_path: Path, read_parts: ReadParts) -> None:
    with pytest.raises(DocumentError, match=said):
        list(read_parts(replaced(book(tmp_path / "book"), member, data)))


def test_damaged_books_are_named_and_a_bad_chapter_costs_that_chapter(tmp_path: Path, read_parts: ReadParts) -> None:
    path = book(tmp_path / "book")
    data = path.read_bytes()
    at = data.index(b"OEBPS/text/two.xhtml") + 20
    path.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    parts = list(read_parts(path))
    assert [part.heading[-1] for part in parts if isinstance(part, Passage)] == ["One"]
    assert ["two.xhtml" in part.reason for part in parts if isinstance(part, Unread)] == [True]
    for cut in range(100, len(data), 400):
        path.write_bytes(data[:cut])
        with pytest.raises(DocumentError, match="book"):
            list(read_parts(path))
