"""What the page does, in a real browser, over a running server. The answers are those of the API itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import pytest
from server_helpers import Running, png, serving

from abc_rag.cli.demo import demo_folder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import Keys, ServerSettings
from abc_rag.server.stores import chroma

if TYPE_CHECKING:
    from playwright.sync_api import Page

Visit = Callable[..., "Page"]
FACET = "what is on the left?"
EVIL = "<img src=x onerror=\"document.title='owned'\">"


def photo(name: str) -> bytes:
    with demo_folder() as folder:
        return (folder / f"{name}.jpg").read_bytes()


def searched(page: Page, act: Callable[[], object], *, where: str = "/search") -> Any:
    """Do something that searches. Returns what was asked, once the results and their pictures are there."""
    with page.expect_request(lambda request: request.url.endswith(where)) as asked:
        act()
    answer = asked.value.response()
    assert answer is not None
    answer.finished()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    pictures_there(page)
    return asked.value.post_data_json


def pictures_there(page: Page) -> None:
    page.wait_for_function(
        "() => [...document.images].every((i) => !i.checkVisibility() || (i.complete && i.src !== ''))"
    )


def ask(page: Page, question: str) -> Any:
    page.get_by_role("searchbox").fill(question)
    return searched(page, lambda: page.keyboard.press("Enter"))


def ids(page: Page) -> list[str]:
    """The records of the cards, in order."""
    found: list[str] = page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.record)")
    return found


def hits(farm: Running, **asked: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.post("/v1/collections/farm/search", asked).raise_for_status().json()["hits"]
    return found


def record_of(farm: Running, name: str) -> str:
    records = farm.client.get("/v1/collections/farm/records?limit=200").json()["data"]
    return next(one["id"] for one in records if one["name"] == name)


def test_a_question_finds_cards_with_scores_and_thumbnails(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    ask(page, "a pig to the left of a car")
    found = hits(farm, question="a pig to the left of a car", k=24)
    assert ids(page) == [hit["id"] for hit in found]
    first = page.locator(".card").first
    assert f"{found[0]['score']:.3f}" in first.inner_text()
    assert page.locator(".card img").count() == sum(hit["modality"] == "image" for hit in found)
    assert page.get_by_role("img", name="pig-car.jpg").evaluate("image => image.naturalWidth") > 100
    page.screenshot(path=screenshots / "search.png")
    # What is data stays text, in passages, in metadata and in chips.
    trap = page.locator(".card", has_text="a trap")
    assert EVIL in trap.inner_text()
    assert page.title() == "abc-rag"
    assert page.locator("img[src=x]").count() == 0


def test_a_picture_is_chosen_dropped_or_pasted(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    data = photo("rose-fox")
    give = """([data, way]) => {
        const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], `${way}.jpg`, { type: "image/jpeg" }));
        const told = { bubbles: true, cancelable: true };
        const tell = (event) => document.body.dispatchEvent(event);
        if (way === "paste") tell(new ClipboardEvent("paste", { ...told, clipboardData: files }));
        else for (const name of ["dragover", "drop"]) tell(new DragEvent(name, { ...told, dataTransfer: files }));
    }"""
    file: Any = {"name": "choose.jpg", "mimeType": "image/jpeg", "buffer": data}
    encoded = base64.b64encode(data).decode()
    ways: dict[str, Callable[[], object]] = {
        "choose": lambda: page.locator("#file").set_input_files(file),
        "drop": lambda: page.evaluate(give, [encoded, "drop"]),
        "paste": lambda: page.evaluate(give, [encoded, "paste"]),
    }
    for way, act in ways.items():
        asked = searched(page, act)
        assert base64.b64decode(asked["image"]["data"]) == data
        assert page.locator("#attached-name").inner_text() == f"{way}.jpg"
        first = page.locator(".card").first
        assert "rose-fox.jpg" in first.inner_text()
        assert "1.000" in first.inner_text()
        page.get_by_role("button", name="Remove", exact=True).click()
        assert not page.locator("#attached").is_visible()


def test_what_is_no_picture_is_refused_in_words(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    file: Any = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.locator("#file").set_input_files(file)
    assert "PNG" in page.get_by_role("alert").filter(has_text="format").inner_text()
    file = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
    page.locator("#file").set_input_files(file)
    page.get_by_role("alert").filter(has_text="That is no picture").wait_for()


def test_asking_about_a_picture_shows_what_moved(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    ask(page, "a pig to the left of a car")
    page.get_by_role("button", name="pig-car.jpg").click()
    page.get_by_label("Instruction: what to look at").fill(FACET)
    page.get_by_label("among").select_option("passages")
    page.get_by_role("button", name="Compare").click()
    page.locator("#columns").wait_for()
    pig = record_of(farm, "pig-car.jpg")
    plain = [hit["id"] for hit in hits(farm, record=pig, k=51, modality="text")]
    asked = hits(farm, record=pig, k=51, modality="text", question=FACET, instruction=FACET)
    assert page.locator("#asked .line").first.inner_text().split("\n")[1] == asked[0]["text"]
    wanted = []
    for rank, hit in enumerate(asked[:10]):
        move = plain.index(hit["id"]) - rank
        wanted.append("=" if move == 0 else f"▲ {move}" if move > 0 else f"▼ {-move}")
    assert page.locator("#asked .move").all_inner_texts() == wanted
    assert len(set(wanted)) > 1
    assert page.locator("#plain .line").count() == 10
    page.locator("#asking").scroll_into_view_if_needed()
    pictures_there(page)
    page.screenshot(path=screenshots / "ask.png")


def test_evidence_is_drawn_over_the_picture(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    button = page.get_by_role("button", name="Show the evidence")
    # An instruction that tells the answer itself leaves nothing for the picture to say.
    ask(page, "a pig to the left of a car")
    page.get_by_role("button", name="pig-car.jpg").click()
    button.click()
    page.locator("#look-note", has_text="No evidence").wait_for()
    page.keyboard.press("Escape")
    ask(page, "a pig on the left")
    page.get_by_role("button", name="pig-car.jpg").click()
    with page.expect_response("**/explain") as asked:
        button.click()
    told = asked.value.json()
    drawn = page.locator("#look-evidence")
    drawn.wait_for()
    assert told["evidence"] is True
    assert "Mostly at the top" in page.locator("#look-note").inner_text()
    # The place that counts most is drawn with the most orange.
    rows, columns = len(told["map"]), len(told["map"][0])
    reds = drawn.evaluate(
        "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, at) => at % 4 === 0)"
    )
    shares = [share for row in told["map"] for share in row]
    assert len(reds) == rows * columns
    assert shares[reds.index(max(reds))] == max(shares)
    over, under = drawn.bounding_box(), page.locator("#look-image").bounding_box()
    assert over == under
    page.screenshot(path=screenshots / "evidence.png")
    button.click()
    assert not drawn.is_visible()


def test_similar_in_some_respect(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    ask(page, "a pig to the left of a car")
    field = page.get_by_label("Similar to pig-car.jpg in what respect")
    field.fill("what is on the right?")
    body = searched(page, lambda: field.press("Enter"))
    pig = record_of(farm, "pig-car.jpg")
    asked = {"record": pig, "instruction": "what is on the right?", "rerank": True, "modality": "image", "k": 24}
    assert body == asked | {"facets": True}
    assert ids(page) == [hit["id"] for hit in hits(farm, **asked)]
    assert page.locator("#under").is_visible()
    plain = searched(page, lambda: page.get_by_role("button", name="Remove the instruction").click())
    assert "instruction" not in plain


def test_a_region_is_cropped_and_searched_with(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    ask(page, "a pig to the left of a car")
    page.get_by_role("button", name="pig-car.jpg").click()
    page.get_by_role("button", name="Search with a region").click()
    page.locator("#crop[open]").wait_for()
    pictures_there(page)
    frame = page.locator("#crop-frame").bounding_box()
    assert frame is not None
    # Drawn with a pointer, then set to the percent by keys.
    page.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + 0.1 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.7 * frame["width"], frame["y"] + 0.5 * frame["height"], steps=3)
    page.mouse.up()
    drawn = [int(page.get_by_label(name, exact=True).input_value()) for name in ("Left", "Top", "Width", "Height")]
    assert drawn == pytest.approx([20, 10, 50, 40], abs=1)
    for name, value in (("Left", 10), ("Top", 5), ("Width", 50), ("Height", 50)):
        page.get_by_label(name, exact=True).fill(str(value))
    page.screenshot(path=screenshots / "crop.png")
    body = searched(page, lambda: page.get_by_role("button", name="Search with this region").click())
    with PIL.Image.open(io.BytesIO(photo("pig-car"))) as whole:
        w, h = whole.size
        left, top = round(0.1 * w), round(0.05 * h)
        wanted = whole.convert("RGB").crop((left, top, left + round(0.5 * w), top + round(0.5 * h)))
    with PIL.Image.open(io.BytesIO(base64.b64decode(body["image"]["data"]))) as sent:
        assert sent.size == wanted.size
        # Two decoders of JPEG differ by little.
        pairs = zip(sent.convert("RGB").tobytes(), wanted.tobytes(), strict=True)
        assert max(abs(one - other) for one, other in pairs) < 12
    assert page.locator("#attached-name").inner_text() == "pig-car.jpg (region)"
    assert not page.locator("dialog[open]").count()


def test_facets_are_chips(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    ask(page, "a pig")
    chip = page.locator("#facet-chips").get_by_role("button")
    assert chip.inner_text().startswith(FACET)
    body = searched(page, chip.click)
    assert (body["instruction"], body["rerank"], body["question"]) == (FACET, True, "a pig")
    found = hits(farm, question="a pig", instruction=FACET, rerank=True, k=24)
    assert ids(page) == [hit["id"] for hit in found]
    assert chip.get_attribute("aria-pressed") == "true"
    assert "instruction" not in searched(page, chip.click)


def test_filters_hold_until_they_are_removed(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    ask(page, "a pig rolls in mud")
    body = searched(page, page.get_by_role("button", name="about: pig", exact=True).first.click)
    assert body["where"] == {"about": {"$eq": "pig"}}
    assert page.locator(".card").count() == 1
    assert "where" not in searched(page, page.get_by_role("button", name="Remove the filter: about is pig").click)
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Field").fill("year")
    page.locator("#where-how").select_option("at least")
    page.get_by_label("Value").fill("2024")
    body = searched(page, page.get_by_role("button", name="Add filter").click)
    assert body["where"] == {"year": {"$gte": 2024}}
    assert page.locator(".card").count() == page.locator(".card img").count() == 10
    body = searched(page, page.get_by_role("radio", name="Passages").check)
    assert (body["modality"], page.locator(".card").count()) == ("text", 0)
    assert page.locator("#empty").is_visible()


def test_the_page_of_a_passage_has_its_box(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    ask(page, "Press the red button")
    page.get_by_role("button", name="Press the red button").first.click()
    box = page.locator("#look-box")
    box.wait_for()
    pictures_there(page)
    page.screenshot(path=screenshots / "page.png")
    (hit,) = hits(farm, question="Press the red button", modality="text", k=1)
    drawn, shown = box.bounding_box(), page.locator("#look-image").bounding_box()
    assert drawn is not None
    assert shown is not None
    scale = shown["width"] / 400  # the page is 400 x 600 points
    left, top, right, bottom = (side * scale for side in hit["box"])
    told = [drawn["x"] - shown["x"], drawn["y"] - shown["y"], drawn["width"], drawn["height"]]
    assert told == pytest.approx([left, top, right - left, bottom - top], abs=1)
    # A figure is shown by itself, and on its page.
    page.keyboard.press("Escape")
    ask(page, "The filter")
    page.get_by_role("button", name="Figure 1: The filter.", exact=True).click()
    page.get_by_role("button", name="Page ii").click()
    box.wait_for()


def test_an_answer_is_written_and_its_citations_lead_to_sources(
    farm: Running, visit: Visit, screenshots: Path, generator: Any
) -> None:
    page = visit(farm)
    page.get_by_role("searchbox").fill("why does a pig roll in mud?")
    generator.go.clear()
    try:
        page.get_by_role("button", name="Answer", exact=True).click()
        page.locator("#answer-text", has_text="The").wait_for()
        assert page.locator("#answer-text a").count() == 0  # it is still being written
    finally:
        generator.go.set()
    link = page.locator("#answer-text").get_by_role("link")
    link.wait_for()
    assert page.locator("#answer-text").inner_text().startswith("The pig cannot sweat")
    number = link.inner_text()
    link.click()
    source = page.locator(f"#source-{number}")
    assert "The pig cannot sweat" in source.inner_text()
    assert source.locator(".open").evaluate("one => one === document.activeElement")
    assert "cited" in (source.get_attribute("class") or "")
    pictures_there(page)
    page.screenshot(path=screenshots / "answer.png")


def test_files_are_added_and_the_bad_ones_named(farm: Running, visit: Visit, screenshots: Path) -> None:
    page = visit(farm)
    page.get_by_role("button", name="Add…").click()
    page.get_by_label("Into").select_option("a new collection…")
    page.get_by_label("Name of the new collection").fill("mine")
    files: list[Any] = [
        {"name": f"{EVIL}.txt", "mimeType": "text/plain", "buffer": f"A rose {EVIL} has thorns.".encode()},
        {"name": "red.png", "mimeType": "image/png", "buffer": png()},
        {"name": f"{EVIL}.png", "mimeType": "image/png", "buffer": b"no picture"},
    ]
    page.locator("#upload-files").set_input_files(files)
    assert page.locator("#upload-list li").all_inner_texts() == [one["name"] for one in files]
    page.get_by_label("Facets: also").fill("which colour?")
    page.locator("#upload").get_by_role("button", name="Add", exact=True).click()
    page.locator("#upload-status", has_text="2 of 3 files stored, 1 failed.").wait_for()
    assert page.locator("#upload-errors li").count() == 1
    assert page.locator("#upload-stored").evaluate("one => one.value / one.max") == 1
    page.screenshot(path=screenshots / "upload.png")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('#count').textContent === '2 records'")
    ask(page, "a rose with thorns")
    assert EVIL in page.locator(".card").first.inner_text()
    assert "which colour?" in page.locator("#facet-chips").inner_text()
    assert page.title() == "abc-rag"
    farm.client.delete("/v1/collections/mine").raise_for_status()


def test_it_is_used_by_keys_alone(farm: Running, visit: Visit) -> None:
    page = visit(farm)
    page.keyboard.press("/")
    page.keyboard.type("a pig/a car")
    searched(page, lambda: page.keyboard.press("Enter"))
    assert page.get_by_role("searchbox").input_value() == "a pig/a car"

    def focused() -> str:
        found: str = page.evaluate("() => document.activeElement.closest('.card')?.id ?? document.activeElement.id")
        return found

    for _ in range(20):  # past the buttons beside the box
        page.keyboard.press("Tab")
        if focused() == "source-1":
            break
    columns = page.locator("#grid").evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length")
    walked = []
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp", "End", "Home"):
        page.keyboard.press(key)
        walked.append(focused())
    last = page.locator(".card").count()
    places = [2, 2 + columns, 1 + columns, 1, 1, last, 1]
    assert walked == [f"source-{place}" for place in places]
    ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    assert page.locator("#look[open]").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert focused() == "source-1"


def test_a_key_is_asked_for_and_stays_in_the_tab(
    farm: Running, visit: Visit, tmp_path: Path, screenshots: Path
) -> None:
    keys = Keys(tmp_path / "keys.json")
    known, writer = keys.add("writer", scope="write")
    other = keys.add("other writer", scope="write")[1]
    reader = keys.add("reader", scope="read")[1]
    bearer = {"Authorization": f"Bearer {writer}"}
    settings = ServerSettings(folder=tmp_path / "abc-server")
    with serving(FakeEmbedder(), settings, keys=keys, stores=chroma(tmp_path)) as running:
        running.client.headers.update(bearer)
        running.post("/v1/collections", {"name": "photos"})
        files = [("files", ("red.png", png(), "image/png"))]
        job = running.client.post("/v1/collections/photos/items", files=files).json()
        while running.client.get(f"/v1/collections/photos/jobs/{job['id']}").json()["state"] != "done":
            pass
        page = visit(running)
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.get_by_label("Key", exact=True).fill("abc-wrong-key")
        page.screenshot(path=screenshots / "key.png")
        page.get_by_role("button", name="Use key").click()
        page.locator("#lock-why", has_text="There is no such API key").wait_for()
        page.get_by_label("Key", exact=True).fill(reader)
        page.get_by_role("button", name="Use key").click()
        page.locator("#count", has_text="1 record").wait_for()
        ask(page, "something red")
        assert page.get_by_role("img", name="red.png").evaluate("image => image.naturalWidth") == 84
        # A reader adds nothing, and this server does not generate.
        assert not page.get_by_role("button", name="Add…").is_visible()
        assert not page.get_by_role("button", name="Answer", exact=True).is_visible()
        kept = page.evaluate(
            "() => JSON.stringify([Object.values(sessionStorage), {...localStorage}, document.cookie])"
        )
        assert json.loads(kept) == [[reader], {}, ""]
        assert urls
        assert not [url for url in urls if reader in url or "Bearer" in url]
        page.get_by_role("button", name="API key…").click()
        page.get_by_role("button", name="Forget key").click()
        page.locator("#lock-why", has_text="This server asks for an API key").wait_for()
        page.get_by_label("Key", exact=True).fill(writer)
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("button", name="Add…").click()
        page.locator("#upload-files").set_input_files(
            {"name": "blue.png", "mimeType": "image/png", "buffer": png("blue")}
        )
        # Its key is removed while files are being chosen: what is sent asks for another one, and goes on with that.
        keys.remove(known.id)
        page.locator("#upload").get_by_role("button", name="Add", exact=True).click()
        page.locator("#lock-why", has_text="There is no such API key").wait_for()
        page.screenshot(path=screenshots / "upload-key.png")
        page.get_by_label("Key", exact=True).fill(other)
        page.get_by_role("button", name="Use key").click()
        page.locator("#upload-status", has_text="1 of 1 file stored.").wait_for()
        page.locator("#count", has_text="2 records").wait_for()
        page.close()  # before its server: it is still asking


@pytest.fixture(params=["light", "dark", "narrow"])
def look(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def shown(look: str) -> dict[str, Any]:
    return {"dark": look == "dark", **({"width": 390, "height": 844} if look == "narrow" else {})}


# Previews with part of a line at their end.
CUT = """() => [...document.querySelectorAll('.preview')].filter((one) => {
    const { bottom } = one.getBoundingClientRect();
    const text = document.createRange();
    text.selectNodeContents(one);
    return [...text.getClientRects()].some((line) => line.top < bottom - 1 && line.bottom > bottom + 1);
}).map((one) => one.textContent)"""
# Chips that are wider than what they stand in.
OUT = """() => [...document.querySelectorAll('.chips button')].filter((one) =>
    one.getBoundingClientRect().right > one.closest('ul').getBoundingClientRect().right + 1
).map((one) => one.textContent)"""


def check(page: Page, view: str, look: str, screenshots: Path) -> None:
    """Nothing for axe to complain of, nothing wider than the window or its place, and no line cut in two."""
    # Narrow ones have the colours and the labels of the others, and dark ones the labels.
    options: Any = {"resultTypes": ["violations"]} | ({"runOnly": ["color-contrast"]} if look == "dark" else {})
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python here").Axe()
    pictures_there(page)
    page.screenshot(path=screenshots / f"{view}-{look}.png")
    told = [] if look == "narrow" else axe.run(page, options=options).response["violations"]
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in told] == [], view
    wide = "() => [document.documentElement, ...document.querySelectorAll('dialog[open]')]"
    assert page.evaluate(f"{wide}.every((one) => one.scrollWidth <= one.clientWidth)"), view
    assert (page.evaluate(CUT), page.evaluate(OUT)) == ([], []), view


def test_every_view_is_accessible(farm: Running, visit: Visit, screenshots: Path, look: str) -> None:
    page = visit(farm, **shown(look))
    page.get_by_text("Filters", exact=True).click()
    ask(page, "Press the red button")
    check(page, "search", look, screenshots)
    page.get_by_role("button", name="Press the red button").first.click()
    page.locator("#look-box").wait_for()
    check(page, "page", look, screenshots)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="pig-car.jpg").click()
    page.get_by_label("Instruction: what to look at").fill(FACET)
    page.get_by_role("button", name="Compare").click()
    page.locator("#columns").wait_for()
    page.locator("#asking").scroll_into_view_if_needed()
    check(page, "ask", look, screenshots)
    page.get_by_role("button", name="Search with a region").click()
    page.locator("#crop[open]").wait_for()
    check(page, "crop", look, screenshots)
    searched(page, page.get_by_role("button", name="Search with this region").click)
    check(page, "region", look, screenshots)
    page.get_by_role("searchbox").fill("why does a pig roll in mud?")
    page.get_by_role("button", name="Answer", exact=True).click()
    page.locator("#answer-text a").wait_for()
    check(page, "answer", look, screenshots)
    page.get_by_role("button", name="Add…").click()
    check(page, "upload", look, screenshots)


def test_evidence_and_the_key_dialog_are_accessible(
    farm: Running, visit: Visit, screenshots: Path, look: str, tmp_path: Path
) -> None:
    page = visit(farm, **shown(look))
    ask(page, "a pig on the left")
    page.get_by_role("button", name="pig-car.jpg").click()
    page.get_by_role("button", name="Show the evidence").click()
    page.locator("#look-evidence").wait_for()
    check(page, "evidence", look, screenshots)
    keys = Keys(tmp_path / "keys.json")
    keys.add("reader", scope="read")
    with serving(FakeEmbedder(), ServerSettings(folder=tmp_path / "abc-server"), keys=keys) as running:
        page = visit(running, **shown(look))
        page.locator("#lock-key:focus").wait_for()
        check(page, "key", look, screenshots)
        page.close()  # before its server: it is still asking
