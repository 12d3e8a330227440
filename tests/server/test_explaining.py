"""Where in a picture the answer lies, over HTTP: as the retriever says it, by record alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from server_helpers import Running, b64, png, serving

from abc_rag import load_embedder
from abc_rag.cli.demo import demo_folder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.server import ServerSettings
from abc_rag.server.stores import chroma

PATH = "/v1/collections/farm/explain"


def filled(running: Running) -> None:
    """A picture of a pig above a car, and a passage."""
    running.post("/v1/collections", {"name": "farm"})
    with demo_folder() as folder:
        pig = b64((folder / "pig-car.jpg").read_bytes())
    items = [{"image": {"data": pig}, "id": "pig"}, {"text": "a rose", "id": "rose"}]
    job = running.post("/v1/collections/farm/items", {"items": items}).json()
    while running.client.get(f"/v1/collections/farm/jobs/{job['id']}").json()["state"] != "done":
        time.sleep(0.02)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("farm")
    settings = ServerSettings(folder=place / "abc-server")
    embedder: Embedder = load_embedder("abc-mini", device="cpu", image_limits=settings.image_limits)
    with serving(embedder, settings, stores=chroma(place)) as running:
        filled(running)
        yield running


def test_a_map_lies_where_the_answer_is(farm: Running) -> None:
    assert farm.client.get("/v1/access").json()["explains"] is True
    middles = {}
    for answer in ("a pig", "a car"):
        body = {"id": "pig", "question": "what is in the picture?", "instruction": "what is in it?", "answer": answer}
        told = farm.post(PATH, body).raise_for_status().json()
        assert (told["evidence"], told["reason"], told["instruction"]) == (True, "", "what is in it?")
        assert told["passes"] <= 32
        shares = np.asarray(told["map"])
        assert shares.sum() == pytest.approx(1.0, abs=1e-3)
        middles[answer] = float(shares.sum(axis=1) @ np.arange(len(shares))) / len(shares)
    # The pig is above the car.
    assert middles["a pig"] < middles["a car"] - 0.1


def test_what_has_no_map_is_refused(farm: Running) -> None:
    for wrong, status in (
        ({"id": "rose", "question": "a rose"}, 400),
        ({"id": "none", "question": "a rose"}, 404),
        ({"id": "pig"}, 400),
        ({"id": "pig", "question": "a pig", "passes": 3}, 400),
        ({"id": "pig", "question": "a pig", "record": "rose"}, 404),
    ):
        assert farm.post(PATH, wrong).status_code == status, wrong


def test_a_lost_picture_tells_no_path(farm: Running) -> None:
    items = {"items": [{"image": {"data": b64(png("blue"))}, "id": "blue"}]}
    job = farm.post("/v1/collections/farm/items", items).json()
    while farm.client.get(f"/v1/collections/farm/jobs/{job['id']}").json()["state"] != "done":
        time.sleep(0.02)
    place = farm.app.state.service.settings.folder.parent
    before = farm.client.get("/v1/collections/farm/picture?id=blue").content
    (kept,) = [
        one for one in place.rglob("*") if one.is_file() and one.read_bytes() == before and "blobs" not in str(one)
    ]
    kept.unlink()
    answer = farm.post(PATH, {"id": "blue", "question": "something blue"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "picture_gone")
    assert str(place) not in answer.text


def test_a_model_that_cannot_says_so(tmp_path: Path) -> None:
    settings = ServerSettings(folder=tmp_path / "abc-server")
    with serving(FakeEmbedder(), settings, stores=chroma(tmp_path)) as running:
        filled(running)
        assert running.client.get("/v1/access").json()["explains"] is False
        answer = running.post(PATH, {"id": "pig", "question": "a pig"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "InputError")
