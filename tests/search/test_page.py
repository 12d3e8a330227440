"""The HTML page: everything from outside is escaped, and nothing outside is loaded."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from abc_rag import URL, ChromaStore, Hit, Record
from abc_rag.errors import InputError
from abc_rag.search.answer import Answer
from abc_rag.search.evidence import Evidence
from abc_rag.search.page import Shown, render_html, write_html
from abc_rag.search.pictures import Pictures
from abc_rag.search.rewriting.rewriter import Rewrite

EVIL = "<script>alert('x')</script> \"quoted\" & <img src=http://evil.example/x.png onerror=y>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting; gathers tags, attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute of <{tag}> is given twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(path: Path, size: tuple[int, int] = (900, 300)) -> str:
    PIL.Image.new("RGB", size, "red").save(path)
    return str(path)


def hit(modality: str = "text", score: float = 0.75, **fields: str) -> Hit:
    path = Path(fields.get("source", ""))
    if modality == "image" and path.is_file():
        fields["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    elif modality == "image":
        fields["sha256"] = 64 * "0"
    return Hit(Record("the-id", modality, **fields), score)  # type: ignore[arg-type]


def shown(*hits: Hit, question: str | None = "what?", instruction: str | None = None, image: object = None) -> Shown:
    return Shown(Answer(question, instruction, list(hits)), image)  # type: ignore[arg-type]


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / '<b onclick="z">'
    folder.mkdir()
    name = '"><script>n.png'
    path = picture(folder / name)
    page = Page(
        render_html(
            [
                shown(
                    hit("image", source=path, text=EVIL),
                    hit("text", source=f"/notes/{name}.txt", text=EVIL),
                    question=EVIL,
                    instruction=EVIL,
                    image=path,
                ),
                shown(hit("image", source=f"/gone/{name}")),
                shown(Hit(Record(EVIL, "text", text="no source"), 0.5)),
            ],
            title=EVIL,
            subtitle=EVIL,
            lead=EVIL,
            pictures=Pictures(roots=[tmp_path, "/gone"]),
        )
    )
    assert {tag for tag, _ in page.tags} == {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "p", "section"),
        *("div", "img", "h2", "code", "ol", "li", "span", "a"),
    }
    assert page.text.count(EVIL) == 8  # title twice, subtitle, lead, instruction, two passages, an id
    assert {a["alt"] for a in page.all("img")} == {path}
    assert page.text.count(name) == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_outside_the_page_is_needed(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    page = Page(
        render_html([shown(hit("image", source=path), image=path)], title="t", pictures=Pictures(roots=[tmp_path]))
    )
    images = page.all("img")
    assert len(images) == 2
    for image in images:
        head, _, data = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        with PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as small:
            assert small.format == "JPEG"
            assert small.size == (440, 147)
            assert all(abs(a - b) < 5 for a, b in zip(small.getpixel((200, 70)), (255, 0, 0), strict=True))  # type: ignore[arg-type]
    for tag, attributes in page.tags:
        assert tag == "a" or "href" not in attributes
        assert "srcset" not in attributes
        assert tag in ("img",) or "src" not in attributes
    plain = render_html([shown(hit(text="words"))], title="t")
    assert "http" not in plain
    assert "@import" not in plain
    assert "url(" not in plain
    assert plain.startswith("<!doctype html>")
    assert {"charset": "utf-8"} in Page(plain).all("meta")


def test_a_small_picture_is_not_enlarged(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (20, 10))
    made = render_html([shown(hit("image", source=path))], title="t", pictures=Pictures(roots=[tmp_path]))
    (image,) = Page(made).all("img")
    with PIL.Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))) as small:
        assert small.size == (20, 10)


def test_a_picture_that_is_gone_or_broken_is_noted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    sections = [
        shown(hit("image", source=str(tmp_path / "gone.png"))),
        shown(hit("image", source=str(broken)), image=str(tmp_path / "gone too.png")),
    ]
    page = Page(render_html(sections, title="t", pictures=Pictures(roots=[tmp_path])))
    assert page.all("img") == []
    assert page.text.count("no preview") == 3
    assert page.text.count("No such file") == 2
    assert "is not of a format that is read" in page.text
    assert "gone.png" in page.text


def test_a_picture_that_was_not_indexed_here_is_not_shown(tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret.png")
    for made in (
        render_html([shown(hit("image", source=secret))], title="t"),
        render_html([shown(hit("image", source=secret))], title="t", pictures=Pictures(roots=[tmp_path / "public"])),
    ):
        page = Page(made)
        assert page.all("img") == []
        assert "not in a folder that was indexed" in page.text
    unknown = replace(hit("image", source=secret).record, sha256="")
    page = Page(render_html([shown(Hit(unknown, 0.5))], title="t", pictures=Pictures(roots=[tmp_path])))
    assert "stored without a hash" in page.text
    damaged = replace(unknown, source=5)  # type: ignore[arg-type]
    assert "damaged record" in Page(render_html([shown(Hit(damaged, 0.5))], title="t")).text


@pytest.mark.parametrize("source", ["https://example.org/a.png", "HTTP://example.org/a.png"])
def test_a_picture_on_the_web_is_not_fetched(source: str) -> None:
    # Sockets are blocked here: fetching would fail loudly.
    page = Page(render_html([shown(hit("image", source=source, source_type="url"), image=URL(source))], title="t"))
    assert page.text.count("the picture is on the web") == 2
    assert page.all("img") == []
    assert "abc_rag" not in page.text


def test_ranks_scores_and_bars() -> None:
    hits = [hit(text="a", score=0.9), hit(text="b", score=0.7), hit(text="c", score=0.4)]
    page = Page(render_html([shown(*hits), shown(), shown(hit(score=0.0))], title="t"))
    for said in ("1. score 0.900", "2. score 0.700", "3. score 0.400", "nothing found"):
        assert said in page.text
    bars = [a["style"] for a in page.all("div") if a.get("class") == "bar"]
    assert bars == ["width:80%", "width:40%", "width:0%", "width:0%"]  # cosines of 0.8, 0.4, -0.2; and -1
    assert [a.get("class") for a in page.all("li")] == ["best", None, None, None, "best"]
    assert page.text.count("best answer") == 2


def test_what_was_asked_is_said() -> None:
    assert "instruction:" not in Page(render_html([shown()], title="t")).text
    assert "instruction: on the left?" in Page(render_html([shown(instruction="on the left?")], title="t")).text
    assert "(picture alone)" in Page(render_html([shown(question=None), shown()], title="t")).text


def test_what_the_heading_says_is_not_said_again() -> None:
    page = Page(render_html([shown(question="what?")], title="what?"))
    assert (len(page.all("h1")), page.all("h2")) == (1, [])
    assert Page(render_html([shown(question=None)], title="like a.png")).all("h2") == []
    assert len(Page(render_html([shown(), shown(question="why?")], title="demo")).all("h2")) == 2


def test_names_tell_files_apart_and_lead_to_them(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "2024", tmp_path / "b" / "2024", tmp_path / "c #1"]
    for folder in folders:
        folder.mkdir(parents=True)
    paths = [picture(folder / "IMG_0001.jpg") for folder in folders[:2]] + [picture(folders[2] / "other.png")]
    hits = [hit("image", source=path) for path in [*paths, paths[0]]]
    web = [
        hit(source="https://example.org/?a=1&b=2", source_type="url", text="w"),
        hit(source="javascript:alert(1)", source_type="url", text="j"),
    ]
    page = Page(render_html([shown(*hits, *web)], title="t", pictures=Pictures(roots=[tmp_path])))
    for name in ("a/2024/IMG_0001.jpg", "b/2024/IMG_0001.jpg", "image \u00b7 other.png"):
        assert name in page.text
    assert [a["href"] for a in page.all("a")] == [
        *(Path(path).as_uri() for path in [*paths, paths[0]]),
        "https://example.org/?a=1&b=2",
    ]


def test_passages_of_markdown_files_are_rendered_and_others_are_not() -> None:
    for source, bold in (("/notes/a.md", 1), ("/notes/a.txt", 0), ("", 0)):
        page = Page(render_html([shown(hit(source=source, text="a **pig**"))], title="t"))
        assert len(page.all("strong")) == bold
        assert ("a pig" in page.text) == bool(bold)


def test_any_source_of_a_picture_can_be_shown(tmp_path: Path) -> None:
    path = Path(picture(tmp_path / "a.png"))
    with PIL.Image.open(path) as opened:
        opened.load()
        sources = [path, str(path), path.read_bytes(), opened]
        page = Page(render_html([shown(image=source) for source in sources], title="t"))
        assert opened.size == (900, 300)  # the caller's own picture is not made small
    assert len({a["src"] for a in page.all("img")}) == 1
    assert len(page.all("img")) == 4


def opened(image: dict[str, str | None]) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(base64.b64decode(str(image["src"]).partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_hit_of_a_document_is_shown_on_its_page(manual_store: ChromaStore) -> None:
    parts = sorted(manual_store.records(), key=lambda record: record.metadata["order"])
    page, figure, passage = parts[2:]
    path = Path(page.document)
    section = shown(*(Hit(one, 0.5) for one in (page, figure, passage)))
    found = Page(render_html([section], title="t", pictures=Pictures(manual_store)))
    assert {a["href"] for a in found.all("a")} == {f"{path.as_uri()}#page=2"}
    assert len(found.all("a")) == 6  # of each picture, and of each name
    assert found.text.count("manual.pdf, p. ii") == 3
    assert [image["alt"] for image in found.all("img")] == [f"{path}, p. ii"] * 3
    plain, around_figure, around_passage = map(opened, found.all("img"))
    assert plain.shape == around_figure.shape == around_passage.shape == (917, 612, 3)  # 110 dots an inch
    scale = 917 / 600
    for picture, one in ((around_figure, figure), (around_passage, passage)):
        changed = np.argwhere(np.abs(picture - plain).max(axis=2) > 60)
        left, top, right, bottom = one.box or ()
        wanted = (top * scale, left * scale, bottom * scale, right * scale)
        assert np.abs(np.array([*changed.min(axis=0), *changed.max(axis=0)]) - wanted).max() < 8  # JPEG's blocks


def test_without_a_picture_of_its_page_a_hit_shows_itself(manual_store: ChromaStore) -> None:
    store = manual_store
    parts = sorted(store.records(), key=lambda record: record.metadata["order"])
    store.delete([parts[2].id])
    section = shown(*(Hit(one, 0.5) for one in parts[3:]))
    for pictures in (Pictures(store), Pictures()):
        page = Page(render_html([section], title="t", pictures=pictures))
        assert [image["alt"] for image in page.all("img")] == [parts[3].source]  # the figure
        assert "Rinse the filter." in page.text
    pictures = Pictures(store)
    store.close()
    assert len(Page(render_html([section], title="t", pictures=pictures)).all("img")) == 1


@pytest.mark.parametrize(
    ("document", "address"),
    [
        ("/x/a.PDF", "file:///x/a.PDF#page=3"),
        ("/x/a#1.pdf", "file:///x/a%231.pdf#page=3"),
        ("/x/a.pptx", "file:///x/a.pptx"),
        ("https://example.org/a.pdf#top", "https://example.org/a.pdf#page=3"),
        ("javascript:alert(1)", None),
        ("a.pdf", None),
    ],
)
def test_links_open_a_document_at_the_page(document: str, address: str | None) -> None:
    record = Record("id", "text", "words", "", {"document": document, "page": 3, "page_label": "<i>"})
    page = Page(render_html([shown(Hit(record, 0.5))], title="t"))
    assert [a["href"] for a in page.all("a")] == ([] if address is None else [address])
    assert ", p. <i>" in page.text


# --- Writing ----------------------------------------------------------------------------------------------


def test_a_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = render_html([shown(hit(text="gr\u00fc\u00dfe \u732b"))], title="t")
    written = write_html(tmp_path / "new" / "folder" / "page.html", page)
    assert written.is_absolute()
    assert written.read_text(encoding="utf-8") == page
    monkeypatch.chdir(tmp_path)
    assert write_html("relative.html", page) == (tmp_path / "relative.html").resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert write_html("~/home.html", page) == (tmp_path / "home.html").resolve()
    write_html("relative.html", "shorter")
    assert Path("relative.html").read_text() == "shorter"


def test_a_name_that_is_no_unicode_does_not_cost_the_page(tmp_path: Path) -> None:
    page = render_html([shown(hit("image", source=os.fsdecode(b"/x/caf\xe9.png")), question="caf\udce9")], title="t")
    written = write_html(tmp_path / "page.html", page)
    assert "caf?.png" in Page(written.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    "where", ["", "file/page.html", "file/new/page.html", "n" * 300 + ".html", "~nobody-of-this-name/\0.html"]
)
def test_a_place_that_cannot_be_written_is_named(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written \(.+\); choose another path"):
        write_html(where, "page")
    assert (tmp_path / "file").read_text() == "in the way"


def test_all_bars_of_a_page_have_one_scale() -> None:
    # After MMR the hit with the highest score need not be the first one.
    first = shown(hit(score=0.7, text="first"), hit(score=0.9, text="second"))
    page = Page(render_html([first, shown(hit(score=0.6))], title="t"))
    bars = [bar["style"] for bar in page.all("div") if bar.get("class") == "bar"]
    assert bars == ["width:40%", "width:80%", "width:20%"]


def test_what_was_searched_for_is_shown_where_it_is_not_the_question() -> None:
    rewrite = Rewrite("what is on the left?", "a dog on the left", "image")
    question = "show me a dog on the left"
    answer = Answer(question, rewrite.instruction, [hit()], rewrite)
    text = Page(render_html([Shown(answer)], title="t")).text
    assert "searched for: a dog on the left" in text
    assert "instruction: what is on the left?" in text
    same = Answer("a dog", None, [hit()], Rewrite("Describe the picture.", "a dog", "any"))
    assert "searched for" not in Page(render_html([Shown(same)], title="t")).text


def test_evidence_lies_under_a_toggle(tmp_path: Path) -> None:
    file = picture(tmp_path / "red.png")
    hit = Hit(Record("one", "image", source=file, sha256=hashlib.sha256(Path(file).read_bytes()).hexdigest()), 0.7)
    drawn = np.array([[0.0, 1.0]], dtype=np.float32)
    maps = [Evidence(drawn, 0.6, 0.1, 8, EVIL, file), Evidence(np.zeros((1, 2), np.float32), 0.1, 0.2, 2, None, file)]
    for one, told in zip(maps, ("where the answer lies", "no evidence"), strict=True):
        shown = Page(render_html([Shown(Answer("a", None, [hit]), evidence={"one": one})], title="page"))
        assert len(shown.all("details")) == 1
        assert len(shown.all("img")) == 1  # the picture itself is in no folder that was indexed
        assert told in shown.text
        assert one.reason in shown.text
        assert f"{one.passes} passes" in shown.text
    assert Page(render_html([Shown(Answer("a", None, [hit]))], title="page")).all("details") == []
