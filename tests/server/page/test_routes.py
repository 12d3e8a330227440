"""The page's files as they are served: which there are, their headers, and that nothing else is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from server_helpers import Running, serving

import abc_rag
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import Keys, ServerSettings

FILES = Path(abc_rag.__file__).parent / "server" / "page" / "files"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that takes keys."""
    place = tmp_path_factory.mktemp("keyed")
    keys = Keys(place / "keys.json")
    keys.add("reader")
    with serving(FakeEmbedder(), ServerSettings(folder=place / "abc-server"), keys=keys) as running:
        yield running


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements() -> list[tuple[str, dict[str, str | None]]]:
    reader = Elements()
    reader.feed((FILES / "index.html").read_text(encoding="utf-8"))
    return reader.found


def test_every_file_is_served_without_a_key_under_a_strict_policy(keyed: Running) -> None:
    for path, file in (("/", FILES / "index.html"), *((f"/page/{one.name}", one) for one in FILES.iterdir())):
        answer = keyed.client.get(path)
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert answer.headers["content-type"].partition(";")[0] == KINDS[file.suffix]
        policy = {one.split()[0]: one.split()[1:] for one in answer.headers["content-security-policy"].split("; ")}
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
        assert policy["require-trusted-types-for"] == ["'script'"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name", ["none.js", "..%2froutes.py", "%2e%2e/routes.py", "%2fetc%2fpasswd", "files/index.html", "index.html%00"]
)
def test_nothing_else_is_served(keyed: Running, name: str) -> None:
    assert keyed.client.get(f"/page/{name}").status_code in (401, 404)


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    for tag, attributes in elements():
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)


def test_all_that_the_files_name_is_among_them() -> None:
    named = {
        value for _, attributes in elements() for value in attributes.values() if value and value.startswith("page/")
    }
    assert {name.removeprefix("page/") for name in named} <= {one.name for one in FILES.iterdir()}
    used = {name.removeprefix("page/") for name in named}
    for script in FILES.glob("*.js"):
        imported = re.findall(r'from "\./([\w.]+)"', script.read_text(encoding="utf-8"))
        assert {*imported} <= {one.name for one in FILES.glob("*.js")}
        used |= {*imported}
    assert used | {"index.html"} == {one.name for one in FILES.iterdir()}


def test_text_becomes_no_html_and_nothing_comes_from_elsewhere() -> None:
    for file in FILES.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search("https?://|innerHTML|outerHTML|insertAdjacent|document.write|srcdoc|\\beval\\b", text), (
            file
        )
        assert len(text.splitlines()) < 300


def test_ids_that_scripts_ask_for_are_in_the_page() -> None:
    ids = [attributes["id"] for _, attributes in elements() if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for script in FILES.glob("*.js"):
        asked = set(re.findall(r'(?:\$|stamp)\("([\w-]+)"\)', script.read_text(encoding="utf-8")))
        assert asked <= set(ids), (script.name, asked - set(ids))
