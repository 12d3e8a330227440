"""Web pages from a server on loopback: the article, its pictures, and nothing unless it is allowed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ingest_helpers import Counting, counts, picture
from pdf_helpers import manual

from abc_rag import URL, ChromaStore
from abc_rag.errors import DocumentError
from abc_rag.images.fetch import fetch_page
from abc_rag.ingest.documents import DocumentLimits, DocumentOptions, Figure, Passage, read, read_document, resolve
from abc_rag.ingest.paths import index_paths

pytest.importorskip("trafilatura", reason="the extra web is not installed")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1", "::1"])

ARTICLE = """<html><head><title>News</title></head><body><nav><a href="/">Home</a> <a href="/menu">Menu</a></nav>
<main><article>
<h1>The new pump</h1><p>The pump was shown today in the hall of the factory, where many people saw it
for the first time.</p>
<p>It moves forty litres of water each minute, which is more than the old one did, says the engineer.</p>
<p><img src="red.png" alt="a pump"><img src="http://10.0.0.1/x.png"><img src="file:///etc/passwd"></p>
<h2>Price</h2><p>It costs four hundred, and a filter with the number MX-4471-B is sold with it
from May.</p>
</article></main><footer>Imprint and cookies</footer></body></html>"""
ALLOWED = DocumentOptions(allow_web=True)


class Site(ThreadingHTTPServer):
    """Answers paths with bytes, or with a redirect to a str; notes what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes | str] = {}
        self.asked: list[str] = []

    def url(self, path: str) -> URL:
        return URL(f"http://127.0.0.1:{self.server_address[1]}{path}")


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path)
        self.send_response(404 if page is None else 302 if isinstance(page, str) else 200)
        if isinstance(page, str):
            self.send_header("Location", page)
        body = page if isinstance(page, bytes) else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for module in (read, resolve):
        allowed = functools.partial(fetch_page, _address_allowed=lambda address: address == "127.0.0.1")
        monkeypatch.setattr(module, "fetch_page", allowed)
    red = picture(tmp_path / "red.png", "red", (40, 30)).read_bytes()
    with Site() as server:
        server.pages = {"/a/page": ARTICLE.encode(), "/a/red.png": red, "/short": "/a/page", "/manual": manual()}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_article_and_its_pictures(site: Site, store: ChromaStore) -> None:
    # Pictures are relative to where the page was found after the redirect.
    report = index_paths([site.url("/short")], Counting(), store, documents=ALLOWED)
    assert counts(report) == (3, 0, 0, 0)
    texts = {record.text: record.metadata["heading"] for record in store.records()}
    assert {text.split("\n")[0]: heading for text, heading in texts.items()} == {
        "The new pump": ["The new pump"],
        "a pump": ["The new pump"],
        "Price": ["The new pump", "Price"],
    }
    assert not any("Menu" in text or "cookies" in text for text in texts)
    assert {record.document for record in store.records()} == {site.url("/short").url}
    assert set(site.asked) == {"/short", "/a/page", "/a/red.png"}
    assert counts(index_paths([site.url("/short")], Counting(), store, documents=ALLOWED)) == (0, 3, 0, 0)
    site.pages["/a/page"] = ARTICLE.replace("four hundred", "five hundred").encode()
    embedder = Counting()
    assert counts(index_paths([site.url("/short")], embedder, store, documents=ALLOWED)) == (1, 2, 3, 0)
    assert embedder.embedded == 1


def test_other_documents_are_read_as_such(site: Site) -> None:
    parts = list(read_document(site.url("/manual"), options=ALLOWED))
    assert [part.page for part in parts if isinstance(part, Passage)] == [1, 2]
    assert [part.caption for part in parts if type(part) is Figure] == ["Figure 1: The filter."]


def test_nothing_is_fetched_unless_it_is_allowed(site: Site, store: ChromaStore) -> None:
    report = index_paths([site.url("/a/page")], Counting(), store)
    assert [reason for _, reason in report.failed] == [
        "fetching web pages is off; pass --allow-web or DocumentOptions(allow_web=True) to allow it"
    ]
    assert site.asked == []


def test_what_is_not_public_or_too_large_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DocumentError, match=r"more than|exceed DocumentLimits.max_bytes=100"):
        list(
            read_document(
                site.url("/a/page"), options=DocumentOptions(allow_web=True, limits=DocumentLimits(max_bytes=100))
            )
        )
    with pytest.raises(DocumentError, match="status 404 instead of a document"):
        list(read_document(site.url("/nothing"), options=ALLOWED))
    monkeypatch.undo()
    with pytest.raises(DocumentError, match="is not a public address"):
        list(read_document(site.url("/a/page"), options=ALLOWED))
    with pytest.raises(DocumentError, match="only http and https"):
        list(read_document(URL("file:///etc/passwd"), options=ALLOWED))
