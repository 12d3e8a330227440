"""One browser and one server for the tests of the page. ``ABC_RAG_SCREENSHOTS=FOLDER`` keeps the pictures they take."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pdf_helpers import manual
from server_helpers import Running, serving

from abc_rag import load_embedder
from abc_rag.answering.fake import FakeGenerator
from abc_rag.answering.generator import GenerationRequest, Outcome
from abc_rag.cli.demo import demo_folder
from abc_rag.server import ServerSettings
from abc_rag.server.stores import chroma

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FACET = "what is on the left?"
EVIL = "<img src=x onerror=\"document.title='owned'\">"
PICTURES = (
    *("pig-car", "rose-fox", "burger-rabbit", "crab-elephant", "frog-cow", "cake-bicycle", "dress-train"),
    *("lemon-helicopter", "camera-tractor", "panda-drum"),
)


class Pausing(FakeGenerator):
    """Answers in words; after the first of them, when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def _stream(self, request: GenerationRequest) -> Iterator[str | Outcome]:
        for number, piece in enumerate(super()._stream(request)):
            if number == 1 and request.schema is None:  # what it rewrites and judges has a schema
                self.go.wait(60)
            yield piece


def finished(client: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    """A job that has ended; there is nothing to wait for but asking."""
    while job["state"] != "done":
        time.sleep(0.05)
        job = client.get(f"/v1/collections/{job['collection']}/jobs/{job['id']}").raise_for_status().json()
    return job


def filled(client: httpx.Client) -> None:
    """Make the collection of the tests: pictures with a facet, passages, a manual, and what would like to be HTML."""
    client.post("/v1/collections", json={"name": "farm"}).raise_for_status()
    path = "/v1/collections/farm/items"
    with demo_folder() as folder:
        files = [("files", (f"{name}.jpg", (folder / f"{name}.jpg").read_bytes())) for name in PICTURES]
        passages = json.loads((folder / "passages.json").read_text(encoding="utf-8"))
    form = {"facets": json.dumps([FACET]), "metadata": json.dumps({"album": "demo", "year": 2024})}
    shown = {thing.replace("_", " ") for name in PICTURES for thing in name.split("-")}
    items = [{"text": one["text"], "metadata": {"about": one["about"]}} for one in passages if one["about"] in shown]
    items.append({"text": f"a trap {EVIL}", "metadata": {EVIL: EVIL}})
    jobs = [
        client.post(path, files=files, data=form),
        client.post(path, json={"items": items}),
        client.post(path, files=[("files", ("manual.pdf", manual()))]),
    ]
    assert [finished(client, job.raise_for_status().json())["failed"] for job in jobs] == [0, 0, 0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install it with: apt-get install chromium")
    api = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright here; install it with: pip install playwright"
    )
    with api.sync_playwright() as playwright:
        # A container has neither user namespaces nor a large /dev/shm.
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def generator() -> Pausing:
    return Pausing()


@pytest.fixture(scope="module")
def farm(browser: Browser, generator: Pausing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """abc-mini, served, with its collection."""
    place = tmp_path_factory.mktemp("farm")
    settings = ServerSettings(folder=place / "abc-server")
    embedder = load_embedder("abc-mini", device="cpu", image_limits=settings.image_limits)
    with serving(embedder, settings, stores=chroma(place), generator=generator) as running:
        filled(running.client)
        yield running


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = os.environ.get("ABC_RAG_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the page of a server. What the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(running: Running, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def heard(kind: str, text: str) -> None:
            # The console also tells of refused requests, which some tests want.
            if kind in ("error", "warning") and "the server responded with a status of 4" not in text:
                complaints.append(text)

        page.on("console", lambda line: heard(line.type, line.text))
        page.goto(running.url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
