"""How documents are read, and what one may cost."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from abc_rag.errors import InputError, MissingExtraError

__all__ = ["DEFAULT_OPTIONS", "DocumentLimits", "DocumentOptions", "Splitter"]

_OCR_MODULES = ("onnxruntime", "rapidocr")
Splitter = Callable[[str], Sequence[str]]
"""Cuts a text into passages: LangChain's ``splitter.split_text`` and LlamaIndex's ``splitter.split_text`` are such."""


@dataclass(frozen=True)
class DocumentLimits:
    """What a document may cost. It is read in a process of its own, which ends where a limit is exceeded.

    Attributes:
        max_bytes: Maximum size of the file in bytes.
        max_pages: Pages, slides or sheets after which the rest is left out and reported.
        max_pixels: Maximum of width times height of a page picture or a figure. A larger page is drawn smaller; a
            larger embedded picture is left out and reported.
        max_memory: Maximum of memory in bytes that the process may take beyond its start, where the system can limit
            that (Linux does).
        max_unpacked: Maximum of bytes that the members of a packed document (DOCX, PPTX, XLSX, EPUB) have unpacked.
        max_parts: Maximum number of parts of a document; the rest is left out and reported.
        max_together: Maximum number of documents that one process reads, one after the other; with 1, each has a
            process of its own, whose start takes about a third of a second of a core.
        max_depth: Maximum nesting of outlines, elements and messages within messages.
        page_timeout_s: Maximum seconds for one page; of a document without pages, for its next part.
        ocr_timeout_s: The same where pages are read from their pictures (``DocumentOptions.ocr``).
        timeout_s: Maximum seconds for a whole document, without the time that its user takes between parts.
        print_timeout_s: Maximum seconds that LibreOffice may take to print a document.
        url_timeout_s: Maximum seconds that a web page, or a picture of it, may take to be fetched.

    Raises:
        InputError: A limit makes no sense.
    """

    max_bytes: int = 512 * 2**20
    max_pages: int = 10_000
    max_pixels: int = 25_000_000
    max_memory: int = 2 * 2**30
    max_unpacked: int = 512 * 2**20
    max_parts: int = 500_000
    max_together: int = 64
    max_depth: int = 50
    page_timeout_s: float = 30.0
    ocr_timeout_s: float = 180.0
    timeout_s: float = 3600.0
    print_timeout_s: float = 120.0
    url_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Checks every limit."""
        for name, value in self.__dict__.items():
            kinds: tuple[type, ...] = (int, float) if name.endswith("_s") else (int,)
            if type(value) not in kinds or not 0 < value < math.inf:
                raise InputError(f"DocumentLimits.{name} must be a positive {kinds[-1].__name__}, not {value!r}")


@dataclass(frozen=True)
class DocumentOptions:
    """How documents are read.

    Attributes:
        dpi: Resolution of page pictures and figures, in pixels per inch, from 20 to 600. A4 has 909 x 1286 pixels at
            the default, 1.2 million, about what the published model looks at.
        page_pictures: Whether each page becomes a picture.
        office: Whether PPTX and DOCX files get page pictures from LibreOffice, where it is installed.
        figures: Whether pictures within documents become records of their own.
        ocr: Whether pages without text, figures, and picture files are read from their pictures. Needs the extra
            ``ocr``.
        max_chars: Maximum characters of a passage, where ``splitter`` is not given. 1,000 are about 250 tokens: one
            vector still says what is in it.
        splitter: Cuts the text under one heading of a page into passages.
        allow_web: Whether a `abc_rag.URL` is fetched as a document, and the pictures of its article with it; only ever
            from public addresses.
        password: Opens encrypted documents.
        limits: What a document may cost.

    Raises:
        InputError: A value makes no sense.
        MissingExtraError: ``ocr`` is asked for, and its libraries are not installed.
    """

    dpi: int = 110
    page_pictures: bool = True
    office: bool = True
    figures: bool = True
    ocr: bool = False
    max_chars: int = 1000
    splitter: Splitter | None = None
    allow_web: bool = False
    password: str | None = field(default=None, repr=False)
    limits: DocumentLimits = field(default_factory=DocumentLimits)

    def __post_init__(self) -> None:
        """Checks the values."""
        if type(self.dpi) is not int or not 20 <= self.dpi <= 600:
            raise InputError(f"DocumentOptions.dpi must be an int from 20 to 600, not {self.dpi!r}")
        if type(self.max_chars) is not int or self.max_chars < 20:
            raise InputError(f"DocumentOptions.max_chars must be an int of at least 20, not {self.max_chars!r}")
        missing = [name for name in _OCR_MODULES if self.ocr and importlib.util.find_spec(name) is None]
        if missing:
            install = "pip install 'abc-rag[ocr]'"
            raise MissingExtraError(f"DocumentOptions(ocr=True) needs {missing[0]}, which is not installed: {install}")
        if self.splitter is not None and not callable(self.splitter):
            raise InputError(
                "DocumentOptions.splitter must be a function from a str to a list of str, such as the method "
                f"split_text of a splitter, not {type(self.splitter).__name__}"
            )


DEFAULT_OPTIONS = DocumentOptions()
