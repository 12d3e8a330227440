"""Pictures of slides: LibreOffice where it is installed, and a program in its place that does what is asked here."""

from __future__ import annotations

import io
import logging
import os
import sys
import zipfile
from pathlib import Path

import pptx
import pytest
from document_helpers import ReadParts
from pdf_helpers import PDFPage, pdf

from abc_rag.errors import InputError
from abc_rag.ingest.documents import DocumentLimits, DocumentOptions, PagePicture, Unread, office
from abc_rag.ingest.documents.pptx import PPTXReader
from abc_rag.ingest.documents.records import reading_of

POSIX = pytest.mark.skipif(os.name != "posix", reason="the program in LibreOffice's place is a script")


def deck(path: Path, slides: int = 2) -> Path:
    made = pptx.Presentation()
    for number in range(slides):
        made.slides.add_slide(made.slide_layouts[5]).shapes.title.text = f"Slide {number + 1}"
    made.save(str(path))
    return path


def program(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in LibreOffice's place, the only one that is found."""
    folder.mkdir(exist_ok=True)
    script = folder / "soffice"
    script.write_text(f"#!{sys.executable} -I\nimport os, sys, time\nfrom pathlib import Path\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def pages(parts: list[object]) -> list[int | None]:
    return [part.page for part in parts if isinstance(part, PagePicture)]


@POSIX
def test_slides_become_pictures(tmp_path: Path, read_parts: ReadParts, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.pdf").write_bytes(pdf([PDFPage([(50, 500, 10, f"slide {n}")]) for n in range(2)]))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    program(
        tmp_path / "bin",
        f"""
assert "http_proxy" not in os.environ and os.environ["HOME"] == os.getcwd()
out = Path(sys.argv[sys.argv.index("--outdir") + 1])
assert "DisableMacrosExecution" in (out.parent / "profile/user/registrymodifications.xcu").read_text()
out.mkdir()
(out / (Path(sys.argv[-1]).stem + ".pdf")).write_bytes(Path({str(tmp_path / "made.pdf")!r}).read_bytes())
""",
        monkeypatch,
    )
    parts = read_parts(deck(tmp_path / "deck"))
    assert pages(parts) == [1, 2]
    assert [part.page for part in parts] == [1, 2, 1, 2]
    assert pages(read_parts(tmp_path / "deck", office=False)) == []
    assert reading_of(PPTXReader(), DocumentOptions()).endswith(" printed")
    assert not reading_of(PPTXReader(), DocumentOptions(page_pictures=False)).endswith(" printed")


@POSIX
def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pipe ends when the last process that holds it has ended.
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    program(
        tmp_path / "bin",
        f"""
if not os.fork():
    os.setpgid(0, os.getpgid(0))
opened = os.open({str(fifo)!r}, os.O_WRONLY)
os.write(opened, b"x")
time.sleep(600)
""",
        monkeypatch,
    )
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(InputError, match="print_timeout_s=1"):
        office.printed(deck(tmp_path / "deck").read_bytes(), ".pptx", DocumentLimits(print_timeout_s=1.0))
    os.set_blocking(reading, True)
    while os.read(reading, 10):  # until nobody is left who could write
        pass
    for one in (reads, writes, reading):
        os.close(one)


@POSIX
def test_what_is_not_printed_is_still_read(
    tmp_path: Path, read_parts: ReadParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "sys.exit(1)", monkeypatch)
    unread, *parts = read_parts(deck(tmp_path / "deck"))
    assert isinstance(unread, Unread)
    assert unread.reason == "no pictures of its pages: is not printed by LibreOffice; open it there and save it anew"
    assert len(parts) == 2


def test_without_it_that_is_said_once(
    tmp_path: Path, read_parts: ReadParts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    office._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert pages(read_parts(deck(tmp_path / "deck"))) == pages(read_parts(tmp_path / "deck")) == []
    assert len(caplog.records) == 1
    assert "LibreOffice is not installed" in caplog.text


def test_links_to_elsewhere_are_taken_out(tmp_path: Path) -> None:
    made = pptx.Presentation(str(deck(tmp_path / "deck")))
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/image"
    made.slides[0].part.relate_to("file:///etc/passwd", kind, is_external=True)
    made.save(str(tmp_path / "deck"))
    cleaned = office.without_links((tmp_path / "deck").read_bytes())
    with zipfile.ZipFile(io.BytesIO(cleaned)) as packed:
        assert not any(b"/etc/passwd" in packed.read(name) for name in packed.namelist())
    assert len(pptx.Presentation(io.BytesIO(cleaned)).slides) == 2


@pytest.mark.skipif(office.office_program() is None, reason="LibreOffice is not installed")
def test_libreoffice_prints_every_slide(tmp_path: Path, read_parts: ReadParts) -> None:
    made = pptx.Presentation(str(deck(tmp_path / "deck", 3)))
    made.slides[1]._element.set("show", "0")  # a hidden one
    made.save(str(tmp_path / "deck"))
    assert pages(read_parts(tmp_path / "deck")) == [1, 2, 3]
