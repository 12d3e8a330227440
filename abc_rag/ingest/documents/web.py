"""Web pages, by trafilatura: the article without what surrounds it, read as HTML."""

from __future__ import annotations

from collections.abc import Iterator

from abc_rag.ingest.documents.html import markup_parts, markup_text
from abc_rag.ingest.documents.options import DocumentOptions
from abc_rag.ingest.documents.parts import Part
from abc_rag.ingest.documents.reader import Reader

__all__ = ["WebReader"]


class WebReader(Reader):
    """HTML that was fetched from its URL; nothing is fetched here."""

    name = "web page"
    modules = ("trafilatura", "lxml")
    extra = "web"

    def recognises(self, head: bytes, tail: bytes, suffix: str) -> bool:
        """Never: it is its URL that makes HTML a web page. Files are read whole."""
        return False

    def parts(self, data: bytes, options: DocumentOptions, start: int) -> Iterator[Part | int]:
        """See `Reader.parts`."""
        import trafilatura

        text = markup_text(data)
        article = trafilatura.extract(
            text, output_format="html", include_images=True, include_tables=True, include_comments=False
        )
        # What has no article, such as a list of links, is read whole.
        yield from markup_parts(article or text, options)
