"""The process in which documents are read, so that a hang or a crash costs one page."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from typing_extensions import Self

from abc_rag.embedding.engine.child import Child
from abc_rag.embedding.engine.watchdog import Watchdog
from abc_rag.errors import DocumentError
from abc_rag.ingest.documents.options import DocumentLimits, DocumentOptions
from abc_rag.ingest.documents.parts import Part, Unread, part_of_json
from abc_rag.ingest.documents.reader import Reader

__all__ = ["DocumentProcess"]

_WORKER = "abc_rag.ingest.documents.worker"
_START_S = 60.0
# After so many pages that ended a process the rest of a document is left out.
_MOST_ENDS = 10
_MOST_MESSAGE = 256 * 2**20


class DocumentProcess:
    """Reads documents, one after the other, in a child process that is started when it is needed.

    Starting one takes as long as reading a few pages, so it is kept for further documents, at most
    ``DocumentLimits.max_together``, and only if nothing went wrong: one whose document had an unread page, met a limit,
    failed in an unexpected way or left much memory behind is ended. Limits are set anew for each document.

    Use it as a context manager, or call `close`.
    """

    def __init__(self) -> None:
        self._watchdog = Watchdog()
        self._child: Child | None = None
        self._documents = 0
        self._reads_pictures = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Idempotent; the next document starts another one."""
        self._end()
        self._watchdog.close()

    def parts(self, data: bytes, reader: Reader, options: DocumentOptions, name: str) -> Generator[Part, None, None]:
        """The parts of a document, as they are read.

        Args:
            data: The file.
            reader: What reads it.
            options: How.
            name: For messages, and the parts' ``document``.

        Yields:
            Parts; an `Unread` for each page that could not be read.

        Raises:
            DocumentError: It cannot be read, or exceeds a limit; what was yielded before is sound.
        """
        # What reads pictures is loaded at the start, before files are refused.
        if self._child is not None and (
            self._documents >= options.limits.max_together or options.ocr > self._reads_pictures
        ):
            self._end()
        self._reads_pictures = options.ocr if self._child is None else self._reads_pictures
        reading = _Reading(self, data, reader, options, name)
        try:
            yield from reading
        finally:
            self._documents += 1
            if not reading.left_in_order:
                self._end()

    def _taken(self) -> Child:
        if self._child is None:
            self._child, self._documents = Child(_WORKER), 0
        return self._child

    def _end(self) -> int:
        child, self._child = self._child, None
        return 0 if child is None else child.end()


class _Reading:
    """One document."""

    def __init__(
        self, process: DocumentProcess, data: bytes, reader: Reader, options: DocumentOptions, name: str
    ) -> None:
        self._process = process
        self._data = data
        self._reader = reader
        self._limits: DocumentLimits = options.limits
        self._name = name
        self._page_limit = "ocr_timeout_s" if options.ocr else "page_timeout_s"
        self._told = dataclasses.asdict(dataclasses.replace(options, splitter=None))
        self._page: int | None = None
        self._spent = self._spent_on_page = 0.0
        self._why = ""
        self._unread = False
        # Whether the process may read another document: this one was read whole, without an unread page or a limit
        # that it met, or its reader refused it. One that was left in the middle of its answers is of no use either.
        self.left_in_order = False

    def __iter__(self) -> Iterator[Part]:
        start, ends, count = 1, 0, 0
        while True:
            self._page = None
            try:
                for part in self._answers(start):
                    count += 1
                    if count > self._limits.max_parts:
                        limit = f"DocumentLimits.max_parts={self._limits.max_parts:,}"
                        reason = f"has more parts than {limit}; the rest is left out; raise it"
                        yield Unread(document=self._name, page=self._page, reason=reason)
                        return
                    yield part
                return
            except DocumentError:
                raise
            except (EOFError, OSError, ValueError):
                status = self._process._end()
            why = self._why or f"ends the process that reads it (exit status {status}); save the document anew"
            if self._page is None or self._spent >= self._limits.timeout_s:
                raise DocumentError(self._name, why)
            yield Unread(document=self._name, page=self._page, label=str(self._page), reason=why)
            start, ends = self._page + 1, ends + 1
            if ends == _MOST_ENDS:
                raise DocumentError(self._name, f"{ends} of its pages end the process that reads them; save it anew")

    def _answers(self, start: int) -> Iterator[Part]:
        """Raises EOFError, OSError or ValueError if the process is of no use any more; `_why` may say more."""
        child = self._process._taken()
        self._why, self._spent_on_page = "", 0.0
        header = {"reader": self._reader.name, "options": self._told, "start": start}
        with self._process._watchdog.limit(_START_S, child.kill):
            child.send(header, self._data)
        while True:
            answer, data = self._received(child)
            if "end" in answer:
                self.left_in_order = answer.get("again") is True and not self._unread
                return
            if "page" in answer and len(answer) == 1:
                self._page, self._spent_on_page = int(answer["page"]), 0.0
            elif "refused" in answer or "error" in answer:
                self.left_in_order = "refused" in answer
                raise DocumentError(self._name, str(answer.get("refused", answer.get("error"))))
            elif "memory" in answer:
                limit = f"DocumentLimits.max_memory={self._limits.max_memory:,}"
                self._why = f"needs more memory than {limit} bytes; raise it, or leave the document out"
                raise EOFError
            else:
                if self._page is None:  # without pages, each part has its own time
                    self._spent_on_page = 0.0
                part = part_of_json(answer, bytes(data), self._name)
                self._unread |= isinstance(part, Unread)
                yield part

    def _received(self, child: Child) -> tuple[dict[str, Any], bytearray]:
        limits = self._limits
        for_page: float = getattr(limits, self._page_limit)
        left = min(for_page - self._spent_on_page, limits.timeout_s - self._spent)
        # The first answer takes the time that a new process needs to start.
        grace = 0.0 if child.started else _START_S
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            child.kill()

        began = time.monotonic()
        try:
            with self._process._watchdog.limit(max(left, 0.0) + grace, end):
                return child.receive(_MOST_MESSAGE)
        except (EOFError, OSError):
            if overdue.is_set():
                told = min((for_page, self._page_limit), (limits.timeout_s - self._spent, "timeout_s"))[1]
                seconds = getattr(limits, told)
                self._why = f"takes more than {seconds:g} s; raise DocumentLimits.{told}, or leave the document out"
            raise
        finally:
            took = time.monotonic() - began
            if child.started:
                self._spent += took
                self._spent_on_page += took
            child.started = True
