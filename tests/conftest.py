from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FIXTURE, MakeStore
from object_store import s3
from pdf_helpers import manual
from safetensors.torch import load_file

from abc_rag import ChromaStore, load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.ingest import index_paths
from abc_rag.store import LanceStore, Store

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A state folder of the tests' own: the user's registry of indexed folders is neither read nor written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABC_RAG_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def cases() -> list[dict[str, Any]]:
    return json.loads((FIXTURE / "cases.json").read_text())["single"]


@pytest.fixture(scope="session")
def goldens() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "goldens_pillow12.safetensors")


@pytest.fixture(scope="session")
def tiny() -> Embedder:
    """The fixture's checkpoint: random weights, figures by the original research code."""
    return load_embedder(FIXTURE, device="cpu")


@pytest.fixture(scope="session")
def mini() -> Embedder:
    return load_embedder("abc-mini", device="cpu")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Chroma server on loopback."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).parent / "chroma"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), "run", "--path", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/heartbeat").close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((folder / "log").read_text())
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """``s3://bucket`` of an object store on loopback."""
    with s3() as place:
        yield place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out, over shards, what is tried with many values or much: a single collection refuses and filters alike."""
    params = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
    much = ("test_six_thousand_at_once", "test_sixteen_threads")
    items[:] = [
        item
        for item, chosen in zip(items, params, strict=True)
        if chosen.get("make") != "shards" or (len(chosen) == 1 and not item.name.startswith(much))
    ]


@pytest.fixture(params=["embedded", "server", "shards", "lance"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """Opens the same, at first empty, store again and again."""
    made: list[Store] = []
    opener: Callable[..., Store] = ChromaStore
    place: dict[str, object]
    if request.param == "lance":
        opener, place = LanceStore, {"place": tmp_path / "store"}
    elif request.param == "embedded":
        place = {"path": tmp_path / "store"}
    else:
        place = {"url": request.getfixturevalue("server_url"), "collection": f"c-{uuid.uuid4().hex}"}
        place["keywords"] = tmp_path / "keywords"
        if request.param == "shards":
            place["shards"] = 3

    def make(**arguments: object) -> Store:
        made.append(opener(**{**place, **arguments}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def manual_store(tmp_path: Path) -> Iterator[ChromaStore]:
    """A store with a PDF of two pages, ``manual.pdf`` beside it: two pages, a figure and two passages."""
    file = tmp_path / "manual.pdf"
    file.write_bytes(manual())
    embedder = FakeEmbedder()
    with ChromaStore(tmp_path / "manual-store", fingerprint=embedder.fingerprint) as store:
        index_paths([file], embedder, store)
        yield store
