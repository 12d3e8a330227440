"""The review page in a real browser: buttons, keys, saving, and that its own policy lets its script run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from abc_rag.evaluation.authoring.build import build_ctrlbench, write_ctrlbench
from abc_rag.evaluation.authoring.chat import Describer
from abc_rag.evaluation.authoring.review import ReviewServer, write_review_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
EVIL = "<img src=x onerror=\"document.title='owned'\">"


class Browser:
    """Chromium's DevTools protocol over pipes."""

    def __init__(self, folder: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        self._in, self._out, self._rest, self._number = ours_in, ours_out, b"", 0
        self.said: list[str] = []

        def place() -> None:  # DevTools reads from 3 and writes to 4
            os.dup2(theirs_in, 100)
            os.dup2(theirs_out, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--window-size=1280,900", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags, "--remote-debugging-pipe", "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session: str | None = None
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                return heard["result"]

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], 30)[0], "the browser says nothing"
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(line)
        if heard.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.said.append(json.dumps(heard["params"]))
        assert heard.get("method") != "Page.javascriptDialogOpening", "the page asks whether to leave it"
        return heard

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        # In the page's world but past its policy, as DevTools are; the page's own script is not.
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str) -> None:
        deadline = time.monotonic() + 120
        while not self.run(script):
            assert time.monotonic() < deadline, (script, self.run("document.body.innerText"), self.said)
            time.sleep(0.02)

    def key(self, key: str, *, shift: bool = False) -> None:
        given: dict[str, Any] = {"key": key, "modifiers": 8 if shift else 0}
        if len(key) == 1:
            given["text"] = key
        self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, label: str, within: str = "document") -> None:
        self.run(f"[...{within}.querySelectorAll('button')].find(b => b.innerText.startsWith({label!r})).click()")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.closing(Browser(tmp_path_factory.mktemp("browser"))) as opened:
        yield opened


class Writer(Describer):
    """Writes three pairs, other ones for each picture."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def name(self) -> str:
        return "writer"

    def describe(self, image: bytes, mime_type: str, prompt: str, schema: Mapping[str, Any]) -> str:
        self._count += 1
        phrases = [f"{word} {self._count}" for word in ("left thing", "sky", EVIL)]
        pairs = [{"instruction": f"{n}. what?", "phrase": phrase} for n, phrase in enumerate(phrases)]
        return json.dumps({"pairs": pairs})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(grid).resize((160, 120)).save(tmp_path / "photos" / f"{seed}.png")
    build_ctrlbench(tmp_path / "photos", tmp_path / "out", Writer(), pairs=3, concurrency=1)
    return tmp_path / "out"


SAVED = "!unsaved.length && document.getElementById('status').textContent === 'saved'"
CLASSES = "[...document.querySelectorAll('li')].map(li => li.className.trim())"
PLACE = "document.getElementById('place').textContent"
HINT = "document.getElementById('hint').innerText"
SHOWN = "document.getElementById('picture').complete && document.getElementById('picture').naturalWidth"


def counts(browser: Browser) -> str:
    return str(browser.run("document.getElementById('counts').textContent"))


def test_a_review_from_the_first_key_to_the_end(browser: Browser, out: Path) -> None:
    browser.said.clear()
    with ReviewServer(out) as server:
        browser.open(server.url)
        browser.until(f"{SHOWN} === 160")
        assert browser.run(CLASSES) == ["selected", "", ""]
        assert browser.run("document.querySelectorAll('li')[2].innerText").count(EVIL) == 1
        browser.key("a")
        assert browser.run(CLASSES) == ["accept", "selected", ""]
        browser.key("ArrowDown")
        browser.key("r")
        assert browser.run(CLASSES) == ["accept", "selected", "reject"]
        browser.key("u")  # nothing to undo here
        browser.key("k")
        browser.key("u")
        assert browser.run(CLASSES) == ["selected", "", "reject"]
        browser.click("Accept", "document.querySelectorAll('li')[1]")
        browser.key("a")
        browser.until(f"{PLACE} === '2 of 3'")  # the first is done
        assert counts(browser) == "3 of 9 pairs decided: 2 accepted, 1 rejected"

        browser.key("e")
        assert browser.run("document.activeElement.name") == "phrase"
        browser.run("document.activeElement.value = '  '")
        browser.key("Enter")
        assert "must not be empty" in browser.run(HINT)
        browser.run("document.activeElement.value = 'the SKY 2!'")
        browser.key("Enter")
        assert "Another pair has this phrase" in browser.run(HINT)
        browser.run("document.activeElement.value = 'a'")
        for letter in " rae":  # letters in a field are no commands
            browser.key(letter)
        browser.key("Enter")
        assert browser.run(CLASSES) == ["accept", "selected", ""]
        assert browser.run("document.querySelector('.phrase').textContent") == "a rae"
        browser.key("e")
        browser.key("Escape")
        assert browser.run("document.querySelectorAll('input').length") == 0
        browser.key("A", shift=True)
        browser.until(f"{PLACE} === '3 of 3'")
        browser.until(SAVED)

        browser.open(server.url + "?again")  # as after closing the page
        browser.until(f"{PLACE} === '3 of 3'")
        assert counts(browser) == "6 of 9 pairs decided: 5 accepted, 1 rejected"
        browser.until(f"{SHOWN} === 160")
        browser.key("ArrowLeft")
        assert browser.run(CLASSES) == ["accept selected", "accept", "accept"]
        browser.click("Next undecided")
        browser.click("Accept the undecided")
        assert browser.run(HINT) == "All pairs are decided: press Finish."
        assert counts(browser) == "9 of 9 pairs decided: 8 accepted, 1 rejected"
        browser.until(SAVED)
        browser.click("Finish")
        server.wait()
        browser.until("document.body.innerText.includes('You can close this page')")
    assert browser.run("document.title") == "Review of pairs"
    assert browser.said == []
    report = write_ctrlbench(out)
    assert report.review == {"accepted": 8, "rejected": 1, "undecided": 0, "edited": 1}
    assert report.pairs_per_picture == {2: 1, 3: 2}


def test_decisions_that_could_not_be_saved_are_kept_and_sent_again(browser: Browser, out: Path) -> None:
    with ReviewServer(out) as server:
        browser.open(server.url)
        port, token = server.port, server.token
    browser.key("a")
    browser.key("r")
    browser.until("document.getElementById('status').textContent.startsWith('2 not saved: abc-rag does not answer')")
    with ReviewServer(out, port=port) as server:
        server.token = token
        browser.click("Save again")
        browser.until(SAVED)
    assert write_ctrlbench(out).review == {"accepted": 1, "rejected": 1, "undecided": 7, "edited": 0}


def test_the_page_without_a_server(browser: Browser, out: Path, tmp_path: Path) -> None:
    browser.said.clear()
    (tmp_path / "photos" / "1.png").unlink()
    page = write_review_page(out)
    browser.open(page.as_uri())
    browser.until(f"{SHOWN} === 160")
    browser.key("A", shift=True)
    assert browser.run("document.getElementById('missing').hidden") is False
    browser.key("r")
    browser.open(page.as_uri() + "?again")
    assert counts(browser) == "4 of 9 pairs decided: 3 accepted, 1 rejected"
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    browser.click("Download decisions")
    deadline = time.monotonic() + 120
    while not (downloads / "review.jsonl").exists():
        browser.run("0")
        assert time.monotonic() < deadline, browser.said
        time.sleep(0.02)
    shutil.copy(downloads / "review.jsonl", out)
    assert write_ctrlbench(out).review == {"accepted": 3, "rejected": 1, "undecided": 5, "edited": 0}
    assert browser.said == []
