"""What a search of a collection takes and tells besides a question: records' pictures, instructions, facets, pages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pdf_helpers import manual
from server_helpers import Running, b64, png, serving

from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import Keys, ServerSettings
from abc_rag.server.stores import chroma

FACET = "what is on the left?"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Three pictures with a facet, a passage, a document."""
    place = tmp_path_factory.mktemp("shelf")
    settings = ServerSettings(folder=place / "abc-server")
    with serving(FakeEmbedder(), settings, stores=chroma(place), generator=FakeGenerator()) as running:
        running.post("/v1/collections", {"name": "shelf"})
        items: list[dict[str, Any]] = [
            {"image": {"data": b64(png(color))}, "id": color, "caption": color} for color in ("red", "blue", "green")
        ]
        path = "/v1/collections/shelf/items"
        jobs = [running.post(path, {"items": [*items, {"text": "a rose", "id": "rose"}], "facets": [FACET]}).json()]
        jobs.append(running.client.post(path, files=[("files", ("manual.pdf", manual()))]).json())
        for job in jobs:
            while running.client.get(f"/v1/collections/shelf/jobs/{job['id']}").json()["state"] != "done":
                time.sleep(0.02)
        yield running


def hits(running: Running, **asked: Any) -> Any:
    return running.post("/v1/collections/shelf/search", asked).raise_for_status().json()["hits"]


def test_a_records_picture_is_asked_about_as_if_it_were_sent(shelf: Running) -> None:
    for question in (None, "what colour is it?"):
        by_id = hits(shelf, record="red", question=question, k=9)
        assert by_id == hits(shelf, image={"data": b64(png("red"))}, question=question, k=9)
    assert hits(shelf, record="red", k=1)[0]["id"] == "red"
    body = {"question": "what is a rose?", "record": "red"}
    assert shelf.post("/v1/collections/shelf/answer", body).raise_for_status().json()["hits"]


def test_pictures_are_looked_at_under_the_callers_instruction(shelf: Running) -> None:
    found = hits(shelf, question="something red", instruction=FACET, rerank=True, modality="image", trace=True)
    assert {hit["trace"]["instruction"] for hit in found} == {FACET}
    alike = hits(shelf, record="blue", instruction=FACET, rerank=True, modality="image", trace=True)
    assert (alike[0]["id"], alike[0]["trace"]["second"]) == ("blue", pytest.approx(1.0, abs=1e-5))


def test_pictures_are_found_that_are_like_one_in_some_respects(shelf: Running) -> None:
    like = hits(shelf, record="red", same=[FACET], k=9)
    assert (like[0]["id"], like[0]["score"]) == ("red", pytest.approx(1.0, abs=1e-5))
    unlike = hits(shelf, record="red", different=[FACET], k=9)
    assert [hit["id"] for hit in unlike] == [hit["id"] for hit in reversed(like)]
    assert {hit["modality"] for hit in unlike} == {"image"}


def test_a_facet_map_is_made_for_who_may_write(shelf: Running, tmp_path: Path) -> None:
    asked = {"question": "which picture has something red on the left?", "facet_map": True}
    assert hits(shelf, **asked)
    keys = Keys(tmp_path / "keys.json")
    reads, writes = ({"Authorization": "Bearer " + keys.add(scope, scope=scope)[1]} for scope in ("read", "write"))
    settings = ServerSettings(folder=tmp_path / "abc-server")
    with serving(FakeEmbedder(), settings, keys=keys, stores=chroma(tmp_path), generator=FakeGenerator()) as running:
        running.post("/v1/collections", {"name": "own"}, headers=writes)
        for route in ("search", "answer"):
            path = f"/v1/collections/own/{route}"
            assert running.post(path, asked, headers=reads).status_code == 403
            assert running.post(path, asked, headers=writes).status_code == 200
            assert running.post(path, {**asked, "facet_map": "auto"}, headers=reads).status_code == 200


def test_facets_are_told_where_asked(shelf: Running) -> None:
    told = {hit["id"]: hit["facets"] for hit in hits(shelf, question="red", k=9, facets=True)}
    assert (told["red"], told["rose"]) == ([FACET], [])
    assert "facets" not in hits(shelf, question="red", k=1)[0]


def test_what_cannot_be_asked_is_refused(shelf: Running) -> None:
    path = "/v1/collections/shelf/search"
    for wrong, status in (
        ({"record": "red", "image": {"data": b64(png())}}, 400),
        ({"question": "red", "instruction": "  "}, 400),
        ({"instruction": FACET}, 400),
        ({"question": "red", "same": [FACET]}, 400),
        ({"record": "red", "same": [" "]}, 400),
        ({"record": "red", "same": [FACET], "different": [FACET]}, 400),
        ({"record": "none"}, 404),
        ({"record": "rose"}, 404),
    ):
        assert shelf.post(path, wrong).status_code == status, wrong


def test_the_page_of_a_passage_is_a_record_with_its_size(shelf: Running) -> None:
    (passage,) = hits(shelf, question="Press the red button", modality="text", k=1)
    page = shelf.client.get("/v1/collections/shelf/page/record", params={"id": passage["id"]}).json()
    assert (page["page"], page["box"], page["modality"]) == (passage["page"], [0.0, 0.0, 400.0, 600.0], "image")
    left, top, right, bottom = passage["box"]
    assert 0 < left < right < 400
    assert 0 < top < bottom < 600
    shown = [
        shelf.client.get(f"/v1/collections/shelf/{what}", params={"id": id_}).content
        for what, id_ in (("page", passage["id"]), ("picture", page["id"]))
    ]
    assert shown[0] == shown[1]
    assert shelf.client.get("/v1/collections/shelf/page/record?id=rose").status_code == 404


def test_a_client_learns_what_it_may(shelf: Running, tmp_path: Path) -> None:
    told = {"scope": "admin", "collections": True, "generates": True, "explains": False}
    assert shelf.client.get("/v1/access").json() == told
    keys = Keys(tmp_path / "keys.json")
    bearer = {"Authorization": "Bearer " + keys.add("reader", scope="read")[1]}
    with serving(FakeEmbedder(), ServerSettings(), keys=keys) as running:
        assert running.client.get("/v1/access").status_code == 401
        told = {"scope": "read", "collections": False, "generates": False, "explains": False}
        assert running.client.get("/v1/access", headers=bearer).json() == told
        assert json.loads(running.client.get("/openapi.json", headers=bearer).text)["paths"]["/v1/access"]
