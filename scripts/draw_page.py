"""Draw ``docs/images/page.webp``: the server's page, asked about one of the demo's pictures, by headless Chromium.

python scripts/draw_page.py     # needs Playwright and the system's Chromium
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

import PIL.Image

from abc_rag import ChromaStore, load_embedder
from abc_rag.cli.demo import demo_folder, index_demo
from abc_rag.server import BackgroundServer, ServerSettings, chroma

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "page.webp"
WIDTH, HEIGHT = 1180, 880
SHOWN, INSTRUCTION = "pig-car.jpg", "what is on the right?"


def draw(url: str, browser: str) -> bytes:
    """A PNG file of the page, as far as a reader of the guide needs it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = launched.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        page.goto(url)
        page.get_by_role("searchbox").fill("a pig to the left of a car")
        page.keyboard.press("Enter")
        page.get_by_role("button", name=SHOWN).click()
        page.get_by_label("Instruction: what to look at").fill(INSTRUCTION)
        page.get_by_label("among").select_option("passages")
        page.get_by_role("button", name="Compare").click()
        page.locator("#columns").wait_for()
        page.wait_for_load_state("networkidle")
        shot = page.screenshot()
        launched.close()
    return shot


def main() -> None:
    """Serve the demo, and draw."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium here: docs/images/page.webp is as it was (Debian: apt-get install chromium)")
    embedder = load_embedder("abc-mini", device="cpu")
    with tempfile.TemporaryDirectory() as scratch, demo_folder() as folder:
        store = ChromaStore(Path(scratch), collection="demo", fingerprint=embedder.fingerprint)
        index_demo(folder, embedder, store)
        store.close()
        settings = ServerSettings(port=0, folder=Path(scratch, "abc-server"))
        with BackgroundServer(embedder, settings, stores=chroma(Path(scratch)), existing=lambda: ["demo"]) as server:
            shot = draw(server.url, browser)
    with PIL.Image.open(io.BytesIO(shot)) as picture:
        picture.save(PICTURE, quality=82, method=6)


if __name__ == "__main__":
    main()
