"""Collections over HTTP: filled by jobs, searched, and shown by record alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pdf_helpers import manual
from server_helpers import Running, b64, png, serving
from store_helpers import reduced

import abc_rag
from abc_rag import ChromaStore, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import Keys, ServerSettings
from abc_rag.server.stores import chroma

Bearer = dict[str, str]


def finished(client: httpx.Client, job: Any, headers: Bearer | None = None) -> Any:
    """The job once it is done; there is nothing to wait for but asking."""
    path = f"/v1/collections/{job['collection']}/jobs/{job['id']}"
    while job["state"] != "done":
        time.sleep(0.02)
        job = client.get(path, headers=headers).raise_for_status().json()
    return job


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("library")
    settings = ServerSettings(folder=place / "abc-server", max_jobs=2)
    with serving(FakeEmbedder(), settings, stores=chroma(place)) as running:
        yield running


@pytest.fixture
def photos(library: Running, request: pytest.FixtureRequest) -> str:
    """A new collection's name."""
    name = "c" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    assert library.post("/v1/collections", {"name": name}).status_code == 201
    return name


def test_a_collection_is_made_once_listed_and_deleted(library: Running, photos: str) -> None:
    assert library.post("/v1/collections", {"name": photos}).json()["error"]["code"] == "exists"
    assert photos in [one["name"] for one in library.client.get("/v1/collections").json()["data"]]
    job = library.post(f"/v1/collections/{photos}/items", {"items": [{"text": "a rose"}]}).json()
    finished(library.client, job)
    assert library.client.delete(f"/v1/collections/{photos}").status_code == 204
    assert library.client.get(f"/v1/collections/{photos}").status_code == 404
    # One of the same name has nothing of it.
    assert library.post("/v1/collections", {"name": photos}).status_code == 201
    assert library.client.get(f"/v1/collections/{photos}").json()["count"] == 0


def test_json_items_are_stored_and_the_bad_ones_named(library: Running, photos: str) -> None:
    items = [
        {"text": "the rose has thorns", "metadata": {"year": 2020}},
        {"image": {"data": b64(png("red"))}, "caption": "all red", "id": "red", "metadata": {"year": 2021}},
        {"image": {"data": b64(b"\x89PNG\r\n\x1a\n broken")}},
    ]
    answer = library.post(f"/v1/collections/{photos}/items", {"items": items, "facets": ["which colour?"]})
    assert answer.status_code == 202
    assert answer.headers["location"].endswith(answer.json()["id"])
    job = finished(library.client, answer.json())
    assert (job["total"], job["settled"], job["failed"]) == (3, 3, 1)
    (error,) = job["errors"]
    assert (error["item"], error["code"]) == (2, "ImageFormatError")
    records = library.client.get(f"/v1/collections/{photos}/records").json()
    assert {one["modality"] for one in records["data"]} == {"text", "image"}
    found = library.post(f"/v1/collections/{photos}/search", {"question": "rose thorns", "k": 1, "trace": True}).json()
    assert found["hits"][0]["text"] == "the rose has thorns"
    assert found["hits"][0]["trace"]["first"] > 0.5
    only = library.post(
        f"/v1/collections/{photos}/search", {"question": "rose thorns", "where": {"year": {"$gte": 2021}}}
    ).json()
    assert [hit["id"] for hit in only["hits"]] == ["red"]
    same = library.post(f"/v1/collections/{photos}/search", {"image": {"data": b64(png("red"))}, "k": 1}).json()
    assert same["hits"][0]["id"] == "red"


def test_files_are_stored_and_shown_by_record_and_no_path_is_told(
    library: Running, photos: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = [
        ("files", ("../../sneaky.png", png("blue"), "image/png")),
        ("files", ("C:\\notes\\notes.md", b"A pig rolls in mud.\n\nA rose has thorns.", "text/markdown")),
        ("files", ("manual.pdf", manual(), "application/pdf")),
        ("files", ("empty.png", b"", "image/png")),
        ("files", ("what.bin", b"\x00\x01\x02", "application/octet-stream")),
    ]
    path = f"/v1/collections/{photos}/items"
    answer = library.client.post(path, files=files, data={"metadata": json.dumps({"album": "mud"})})
    job = finished(library.client, answer.raise_for_status().json())
    assert [error["item"] for error in job["errors"]] == [3, 4]
    records = library.client.get(f"/v1/collections/{photos}/records?limit=100").json()["data"]
    by_name = {one["name"]: one for one in records}
    assert {"sneaky.png", "notes.md", "manual.pdf"} <= set(by_name)
    assert by_name["sneaky.png"]["metadata"] == {"album": "mud", "name": "sneaky.png"}
    told = library.client.get(f"/v1/collections/{photos}/records?limit=100").text
    told += json.dumps(job) + library.post(f"/v1/collections/{photos}/search", {"question": "mud", "trace": True}).text
    assert str(library.app.state.service.settings.folder.parent) not in told
    shown = library.client.get(
        f"/v1/collections/{photos}/picture", params={"id": by_name["sneaky.png"]["id"], "max_side": 32}
    )
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    passage = next(one for one in records if one["name"] == "manual.pdf" and one["modality"] == "text")
    assert passage["page"] == 1
    page = library.client.get(f"/v1/collections/{photos}/page", params={"id": passage["id"]})
    assert page.headers["content-type"] == "image/png"
    none = library.client.get(f"/v1/collections/{photos}/picture", params={"id": "/etc/passwd"})
    assert none.status_code == 404


def test_sending_again_stores_nothing_twice(library: Running, photos: str) -> None:
    for _ in range(2):
        files = [("files", ("red.png", png("red"), "image/png")), ("files", ("a.txt", b"a rose", "text/plain"))]
        answer = library.client.post(f"/v1/collections/{photos}/items", files=files)
        assert finished(library.client, answer.json())["failed"] == 0
    assert library.client.get(f"/v1/collections/{photos}").json()["count"] == 2


def test_the_description_is_complete(library: Running) -> None:
    text = library.client.get("/openapi.json").text
    told = json.loads(text)
    schemas = told["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in re.findall(r'"\$ref":"([^"]+)"', text)} <= set(schemas)
    assert {"ItemsRequest", "NewItem", "Picture", "SearchRequest", "AnswerRequest"} <= set(schemas)
    assert set(told["paths"]["/v1/collections/{name}/items"]["post"]["requestBody"]["content"]) == {
        "application/json",
        "multipart/form-data",
    }


def test_records_are_deleted(library: Running, photos: str) -> None:
    items = {"items": [{"text": "a rose", "id": "rose"}, {"text": "a pig", "id": "pig"}]}
    finished(library.client, library.post(f"/v1/collections/{photos}/items", items).json())
    deleted = library.client.request("DELETE", f"/v1/collections/{photos}/records", json={"ids": ["rose", "none"]})
    assert deleted.json() == {"deleted": 1}
    assert library.client.get(f"/v1/collections/{photos}/record?id=pig").json()["text"] == "a pig"


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    ours = {"Authorization": "Bearer " + keys.add("ours", scope="write", tenant="us")[1]}
    reads = {"Authorization": "Bearer " + keys.add("reads", scope="read", tenant="us")[1]}
    theirs = {"Authorization": "Bearer " + keys.add("theirs", scope="admin", tenant="them")[1]}
    settings = ServerSettings(folder=tmp_path / "abc-server")
    with serving(FakeEmbedder(), settings, keys=keys, stores=chroma(tmp_path)) as running:
        assert running.post("/v1/collections", {"name": "photos"}, headers=ours).status_code == 201
        items = {"items": [{"text": "a rose", "id": "rose"}]}
        job = running.post("/v1/collections/photos/items", items, headers=ours).json()
        finished(running.client, job, ours)
        assert running.client.get("/v1/collections/photos", headers=reads).json()["count"] == 1
        assert running.post("/v1/collections/photos/items", items, headers=reads).status_code == 403
        for method, path, body in (
            ("GET", "/v1/collections/photos", None),
            ("POST", "/v1/collections/photos/items", items),
            ("POST", "/v1/collections/photos/search", {"question": "rose"}),
            ("GET", f"/v1/collections/photos/jobs/{job['id']}", None),
            ("GET", "/v1/collections/photos/record?id=rose", None),
            ("DELETE", "/v1/collections/photos", None),
        ):
            assert running.client.request(method, path, json=body, headers=theirs).status_code == 404, path
        # Nor is it told which pictures others have sent.
        data = png("red")
        sha256 = hashlib.sha256(data).hexdigest()
        assert running.client.put(f"/v1/blobs/{sha256}", content=data, headers=ours).status_code == 201
        assert running.client.head(f"/v1/blobs/{sha256}", headers=reads).status_code == 200
        assert running.client.head(f"/v1/blobs/{sha256}", headers=theirs).status_code == 404
        # The same name is another collection.
        assert running.post("/v1/collections", {"name": "photos"}, headers=theirs).status_code == 201
        hidden = running.client.get(f"/v1/collections/photos/jobs/{job['id']}", headers=theirs)
        assert hidden.status_code == 404
        assert running.client.get("/v1/collections/photos", headers=theirs).json()["count"] == 0


def test_collections_made_without_the_server_are_there(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    with ChromaStore(tmp_path, collection="holidays", fingerprint=embedder.fingerprint) as store:
        store.add([abc_rag.Record("rose", "text", text="a rose")], embedder.embed([Text("a rose")]))
    from abc_rag.store.chroma.journal import collections_in

    settings = ServerSettings(folder=tmp_path / "abc-server")
    names = collections_in(str(tmp_path))
    assert names == ["holidays"]
    with serving(embedder, settings, stores=chroma(tmp_path), existing=lambda: names) as running:
        found = running.post("/v1/collections/holidays/search", {"question": "a rose"}).json()
    assert found["hits"][0]["id"] == "rose"


def test_collections_that_were_reduced(tmp_path: Path) -> None:
    embedder, other = FakeEmbedder(), FakeEmbedder(model="other")
    words = [f"passage {n} of {n * n}" for n in range(30)]
    for name, made in (("holidays", embedder), ("others", other)):
        with ChromaStore(tmp_path / "whole", collection=name, fingerprint=made.fingerprint) as store:
            store.add([abc_rag.Record(text, "text", text=text) for text in words], made.embed(map(Text, words)))
            reduced(store, tmp_path / "short", 8, name)
    settings = ServerSettings(folder=tmp_path / "short" / "abc-server")
    served, names = chroma(tmp_path / "short"), ["holidays", "others"]
    with serving(embedder, settings, stores=served, existing=lambda: names) as running:
        items: list[dict[str, Any]] = [{"text": "a tram"}, {"image": {"data": b64(png("red"))}, "id": "red"}]
        body = {"items": items, "facets": ["which colour?"]}
        answer = running.post("/v1/collections/holidays/items", body).raise_for_status()
        assert finished(running.client, answer.json())["failed"] == 0
        for asked in (
            {"question": "a tram"}, {"question": words[7]}, {"image": {"data": b64(png("red"))}},
        ):  # fmt: skip
            found = running.post("/v1/collections/holidays/search", {**asked, "k": 1, "keywords": False}).json()
            assert found["hits"][0]["score"] == pytest.approx(1.0, abs=1e-5)
            assert "question" not in asked or found["hits"][0]["text"] == asked["question"]
        refused = running.post("/v1/collections/others/search", {"question": "a tram"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "FingerprintMismatchError")
    with ChromaStore(tmp_path / "short", collection="holidays") as store:
        assert (store.dim, store.count()) == (8, 32)


def test_a_killed_server_goes_on_with_every_item_once(tmp_path: Path) -> None:
    worker = Path(__file__).parents[1] / "server_worker.py"
    root = str(Path(abc_rag.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, str(worker), str(tmp_path), "40"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            while client.get("/ready").status_code != 200:
                time.sleep(0.05)
            assert client.post("/v1/collections", json={"name": "photos"}).status_code == 201
            files = [("files", (f"{n}.png", png(size=(8, 8 + n)), "image/png")) for n in range(60)]
            job = client.post("/v1/collections/photos/items", files=files).json()
            path = f"/v1/collections/photos/jobs/{job['id']}"
            while client.get(path).json()["settled"] < 32:
                time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with serving(FakeEmbedder(), ServerSettings(folder=tmp_path / "abc-server"), stores=chroma(tmp_path)) as running:
        done = finished(running.client, job)
        assert (done["total"], done["settled"], done["failed"]) == (60, 60, 0)
        records = running.client.get("/v1/collections/photos/records?limit=200").json()["data"]
        assert sorted(one["name"] for one in records) == sorted(f"{n}.png" for n in range(60))
    assert list((tmp_path / "abc-server" / "uploads").iterdir()) == []
