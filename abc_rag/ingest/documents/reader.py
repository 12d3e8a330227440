"""The seam between a kind of document and everything else: a reader turns bytes into parts."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part

__all__ = ["HEAD_BYTES", "TAIL_BYTES", "Reader"]

HEAD_BYTES = 4096
"""First bytes of a file by which readers recognise it."""
TAIL_BYTES = 1 << 18
"""Last bytes of a file by which readers recognise it; packed documents list their members there."""


class Reader(ABC):
    """Reads one kind of document. A new kind is one file with one such class, and its line in ``readers.py``.

    `parts` runs in a process of its own (`abc_rag.ingest.documents.worker`) with limits on time and memory, gets the
    bytes of the file and nothing else, and opens nothing. It follows no link and no external entity.

    Attributes:
        name: What such a document is called, such as ``"PDF"``.
        version: Raised when the same file gives other parts than before, so that it is read again.
        modules: The libraries that it imports; empty where the standard library does.
        extra: The extra that installs them.
        printed_as: The suffix under which LibreOffice prints such documents; empty where it does not.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    modules: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "documents"
    printed_as: ClassVar[str] = ""

    @abstractmethod
    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """Whether a file is of this kind: by its content, and by its name only where that does not tell, as of texts.

        Args:
            head: Its first `HEAD_BYTES`.
            tail: Its last `TAIL_BYTES`.
            suffix: The end of its name from the last dot, in small letters; may be empty.
        """

    @abstractmethod
    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """The parts of a document, in reading order.

        Args:
            data: The file.
            options: How it is read; ``options.limits`` are for this function to keep.
            start: The page to begin with, from 1, as an earlier one ended the process. Readers without pages get 1.

        Yields:
            Parts; and before each page its number, so that whoever waits knows which page takes too long. For files
            beside and within the document, `abc_rag.ingest.documents.parts.Linked` and ``Attached``.

        Raises:
            InputError: The document cannot be read; the message says why, without its name, and ends with the remedy.
        """

    def missing(self) -> str | None:
        """The first library that is not installed; None if all are."""
        return next((name for name in self.modules if importlib.util.find_spec(name) is None), None)
