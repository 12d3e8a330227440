"""E-mail: headers, texts, pictures, attached documents one level deep; malformed ones, and circles."""

from __future__ import annotations

import random
from email.message import EmailMessage
from pathlib import Path

import pytest
from document_helpers import ReadParts
from ingest_helpers import Index, counts, picture
from pdf_helpers import manual

from abc_rag.ingest.documents import DocumentOptions, Figure, PagePicture, Passage, Unread
from abc_rag.ingest.documents.mail import MailReader


def message(subject: str = "The pump") -> EmailMessage:
    made = EmailMessage()
    made["Subject"], made["From"], made["To"] = subject, "Ann <ann@example.org>", "bob@example.org"
    made["Date"], made["MIME-Version"] = "Mon, 01 Jan 2024 10:00:00 +0000", "1.0"
    return made


def written(tmp_path: Path, made: EmailMessage, name: str = "mail") -> Path:
    path = tmp_path / name
    path.write_bytes(made.as_bytes())
    return path


def told(path: Path, read_parts: ReadParts) -> list[tuple[object, ...]]:
    return [(part.heading, part.text) for part in read_parts(path) if isinstance(part, Passage)]


HEADERS = "Subject: The pump\nFrom: Ann <ann@example.org>\nTo: bob@example.org\nDate: Mon, 01 Jan 2024 10:00:00 +0000"


def test_a_plain_text(tmp_path: Path, read_parts: ReadParts) -> None:
    made = message()
    made.set_content("It leaks.\n\nGrüße, Ann\n", charset="latin-1")
    assert told(written(tmp_path, made), read_parts) == [(("The pump",), f"{HEADERS}\n\nIt leaks.\n\nGrüße, Ann")]


def test_html_with_an_inline_picture_attached_pictures_and_documents(tmp_path: Path, read_parts: ReadParts) -> None:
    red, blue = (picture(tmp_path / f"{name}.png", name).read_bytes() for name in ("red", "blue"))
    made = message()
    made.set_content("It leaks.")
    made.add_alternative(
        "<h1>Leak</h1><p>It leaks.<img src='cid:one@x' alt='here'><img src='http://127.0.0.1:9/x.png'>", "html"
    )
    made.get_payload()[1].add_related(red, "image", "png", cid="<one@x>")
    made.add_attachment(blue, "image", "png", filename="seal.png")
    made.add_attachment(manual(), "application", "octet-stream", filename="manual.pdf")
    made.add_attachment("a,b\n1,2\n", subtype="csv", filename="rows.csv")
    made.add_attachment(b"BEGIN", "text", "calendar", filename="invite.ics")  # of no kind that is read
    parts = list(read_parts(written(tmp_path, made)))
    assert [(part.caption, part.data) for part in parts if type(part) is Figure][:2] == [
        ("here", red),
        ("seal.png", blue),
    ]
    assert [(part.page, part.label) for part in parts if isinstance(part, PagePicture)] == [
        (1, "manual.pdf i"),
        (2, "manual.pdf ii"),
    ]
    assert [(part.heading, part.text) for part in parts if isinstance(part, Passage)] == [
        (("The pump",), HEADERS),
        (("The pump", "Leak"), "Leak\n\nIt leaks."),
        (("The pump", "manual.pdf", "Starting"), "Starting\n\nPress the red button to start the pump."),
        (("The pump", "manual.pdf", "Cleaning"), "Cleaning\n\nRinse the filter.\n\nFigure 1: The filter."),
        (("The pump", "rows.csv"), "a: 1 | b: 2"),
    ]


def test_a_message_within_a_message_and_no_deeper(tmp_path: Path, read_parts: ReadParts) -> None:
    made = message("0")
    made.set_content("words 0")
    for depth in range(1, 4):
        inner, made = made, message(str(depth))
        made.set_content(f"words {depth}")
        made.add_attachment(inner)
    parts = list(read_parts(written(tmp_path, made)))
    texts = "".join(part.text for part in parts if isinstance(part, Passage))
    assert [f"words {depth}" in texts for depth in range(4)] == [False, False, True, True]
    (left,) = [part for part in parts if isinstance(part, Unread)]
    assert "1.eml" in left.reason or "2.eml" in left.reason


def test_an_attached_document_that_cannot_be_read_costs_itself(folder: Path, index: Index) -> None:
    made = message()
    made.set_content("words")
    made.add_attachment(b"%PDF-1.7", "application", "pdf", filename="bad.pdf")
    made.add_attachment("a,b\n1,2\n", subtype="csv", filename="rows.csv")
    written(folder, made, "a.eml")
    report, _ = index()
    assert counts(report)[0] == 2
    ((_, reason),) = report.failed
    assert reason == "bad.pdf: is damaged and cannot be opened as PDF; save it anew"


@pytest.mark.parametrize(
    ("head", "suffix", "known"),
    [
        (b"From: a\nDate: b\n\n", ".eml", True),
        (b"From: a\nDate: b\n\n", "", False),
        (b"Received: by x\n with y\nFrom: a\r\nSubject: b\n\n", "", True),
        (b"From: here to there\n\nMessage-ID: x\n", ".eml", False),
        (b"just words", ".eml", False),
        (b"", ".eml", False),
    ],
)
def test_messages_are_told_by_their_headers(head: bytes, suffix: str, known: bool) -> None:
    assert MailReader().recognises(head, head, suffix) is known


def test_malformed_messages_and_circles_end() -> None:
    generator = random.Random(2)
    made = message()
    made.set_content("words")
    made.add_attachment(b"x", "image", "png", filename="a.png")
    sound = made.as_bytes()
    # Each part says that the next one is within it, and all have the same boundary.
    circle = b'From: a\nMessage-ID: b\nContent-Type: multipart/mixed; boundary="x"\n\n'
    circle += b'--x\nContent-Type: multipart/mixed; boundary="x"\n\n' * 400
    deep = b"From: a\nMessage-ID: b\n" + b"Content-Type: message/rfc822\n\nFrom: a\n" * 100 + b"\nwords"
    for data in [circle, deep, *(bytes(damaged(sound, generator)) for _ in range(60))]:
        list(MailReader().parts(data, DocumentOptions(), 1))


def damaged(data: bytes, generator: random.Random) -> bytearray:
    found = bytearray(data)
    for _ in range(generator.choice([1, 5, 40])):
        found[generator.randrange(len(found))] = generator.randrange(256)
    return found
