"""Documents in a process of their own: limits, crashes, and files that were made to do harm."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pdf_helpers import PDFPage, encrypted, manual, pdf

from abc_rag.errors import DocumentError
from abc_rag.ingest.documents import (
    DocumentLimits,
    DocumentOptions,
    DocumentProcess,
    Part,
    Passage,
    Unread,
    read_document,
)
from abc_rag.ingest.documents.pdf import PDFReader

KILLS = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


def book(pages: int) -> bytes:
    # Large enough that a pipe does not hold the rest of it.
    return pdf([PDFPage([(50, 550 - 12 * n, 10, f"page {page} line {n}") for n in range(40)]) for page in range(pages)])


def outcome(process: DocumentProcess, data: bytes, options: DocumentOptions) -> tuple[list[Part], str]:
    """What a document gives, and its error."""
    parts: list[Part] = []
    try:
        for part in process.parts(data, PDFReader(), options, "a.pdf"):
            parts.append(part)
    except DocumentError as error:
        return parts, str(error)
    return parts, ""


def numbers(parts: list[object]) -> set[int | None]:
    return {part.page for part in parts if isinstance(part, Passage)}


def test_a_document_is_read_as_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    parts = list(read_document(path))
    assert {part.document for part in parts} == {str(path)}
    assert [part.text for part in parts if isinstance(part, Passage)] == [
        "Starting\n\nPress the red button to start the pump.",
        "Cleaning\n\nRinse the filter.\n\nFigure 1: The filter.",
    ]


def test_an_encrypted_document_needs_its_password(tmp_path: Path) -> None:
    path = tmp_path / "locked.pdf"
    path.write_bytes(encrypted("letmein"))
    with pytest.raises(DocumentError, match=r"locked.pdf: is encrypted; pass DocumentOptions\(password=\.\.\.\)"):
        list(read_document(path))
    with pytest.raises(DocumentError, match="this is not its password"):
        list(read_document(path, options=DocumentOptions(password="wrong")))
    parts = list(read_document(path, options=DocumentOptions(password="letmein")))
    assert [part.text for part in parts if isinstance(part, Passage)] == ["secret"]
    assert "letmein" not in repr(DocumentOptions(password="letmein"))


@KILLS
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_page_that_ends_or_stops_the_process_costs_that_page(how: signal.Signals) -> None:
    options = DocumentOptions(limits=DocumentLimits(page_timeout_s=5.0))
    with DocumentProcess() as process:
        stream = process.parts(book(30), PDFReader(), options, "book.pdf")
        parts = [next(stream)]
        assert process._child is not None
        os.kill(process._child.pid, how)
        parts += stream
    (bad,) = [part for part in parts if isinstance(part, Unread)]
    assert bad.page is not None
    assert ("page_timeout_s" if how == signal.SIGSTOP else "ends the process that reads it") in bad.reason
    assert numbers(parts) | {bad.page} == set(range(1, 31))


def test_one_process_reads_many_documents_and_one_that_fails_costs_the_others_nothing() -> None:
    with DocumentProcess() as process:
        for data, fails in ((manual(), False), (b"%PDF-1.7", True), (manual(), False)):
            stream = process.parts(data, PDFReader(), DocumentOptions(), "a.pdf")
            if fails:
                with pytest.raises(DocumentError, match=r"a\.pdf: is damaged"):
                    list(stream)
            else:
                assert len(list(stream)) == 8


def test_memory_is_limited() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits it")
    options = DocumentOptions(dpi=600, limits=DocumentLimits(max_memory=16 * 2**20))
    with DocumentProcess() as process:
        parts, error = outcome(process, manual(), options)
    assert parts or error
    assert all(isinstance(part, Unread) for part in parts)
    assert "memory" in error or "ends the process" in error or not error


def test_too_many_parts_and_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    parts = list(read_document(path, options=DocumentOptions(limits=DocumentLimits(max_parts=3))))
    assert isinstance(parts[-1], Unread)
    assert "max_parts=3" in parts[-1].reason
    with pytest.raises(DocumentError, match="max_bytes=10"):
        list(read_document(path, options=DocumentOptions(limits=DocumentLimits(max_bytes=10))))
    path.write_text("just words")
    with pytest.raises(DocumentError, match="no document of a kind that is read; these are: PDF, DOCX, PPTX"):
        list(read_document(path))


def test_damaged_files_hang_nothing_and_say_what_is_wrong() -> None:
    generator = random.Random(1)
    sound = manual()
    with DocumentProcess() as process:
        for _ in range(40):
            data = bytearray(sound)
            if generator.random() < 0.4:
                del data[generator.randrange(len(data)) :]
            else:
                for _ in range(generator.choice([1, 4, 30])):
                    data[generator.randrange(len(data))] = generator.randrange(256)
            parts, error = outcome(process, bytes(data), DocumentOptions(dpi=50))
            assert {part.document for part in parts} <= {"a.pdf"}
            assert error.startswith("a.pdf: ") or not error


@pytest.mark.parametrize(
    "action",
    [
        "open('/etc/passwd')",
        "open('made', 'w')",
        "import os; os.listdir('/etc')",
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')",
        "import os; os.remove('made')",
        "import os; os.fork()",
    ],
)
def test_the_process_opens_nothing(action: str, tmp_path: Path) -> None:
    program = f"""
from abc_rag.ingest.documents import worker
worker._guard()
import wave  # modules are still found
try:
    {action}
except PermissionError:
    print("refused")
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def pids(process: DocumentProcess, *documents: bytes, limits: DocumentLimits) -> list[int | None]:
    """Read documents; which process was left for the next one after each."""
    left = []
    for data in documents:
        outcome(process, data, DocumentOptions(dpi=30, limits=limits))
        left.append(None if process._child is None else process._child.pid)
    return left


def test_a_process_goes_on_only_after_what_left_it_in_order() -> None:
    limits = DocumentLimits()
    with DocumentProcess() as process:
        # Read whole; refused by its reader; read whole.
        first, second, third = pids(process, manual(), b"%PDF-1.7", manual(), limits=limits)
        assert first is not None
        assert first == second == third
        # More pages than allowed.
        assert pids(process, book(3), manual(), limits=DocumentLimits(max_pages=2))[0] is None
        # Each its own.
        alone = DocumentLimits(max_together=1)
        one, two = pids(process, manual(), manual(), limits=alone)
        assert one != two


def test_limits_are_those_of_each_document() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux limits memory")
    drawn = DocumentOptions(dpi=300)
    with DocumentProcess() as process:
        (first,) = pids(process, manual(), limits=DocumentLimits(max_memory=2**30))
        parts, error = outcome(process, manual(), replace(drawn, limits=DocumentLimits(max_memory=2**20)))
        assert all(isinstance(part, Unread) for part in parts)
        assert parts or "memory" in error or "ends the process" in error
        assert process._child is None or process._child.pid != first
        parts, error = outcome(process, manual(), drawn)
        assert (len(parts), error) == (8, "")
