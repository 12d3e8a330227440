"""The store, against a real embedded Chroma and a real Chroma server on loopback."""

import socket
import urllib.request
import uuid
from pathlib import Path

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from store_helpers import NO_TELEMETRY, ONE, Elsewhere, finish, texts, unit, vectors

from abc_rag.errors import InputError, StoreError
from abc_rag.store.chroma.rows import batches
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Record


def test_where_the_store_is_must_be_said_once(tmp_path: Path) -> None:
    for arguments in (
        {},
        {"path": tmp_path, "url": "http://localhost:1"},
        {"path": ""},
        {"path": tmp_path, "headers": {"a": "b"}},
        {"path": tmp_path, "collection": "a"},
        {"path": tmp_path, "collection": "no spaces"},
        {"url": "localhost:8000"},
        {"url": "http://localhost:8000/api"},
        {"url": "http://localhost:port"},
        {"url": "http://me:secret@localhost:8000"},
    ):
        with pytest.raises(InputError) as caught:
            ChromaStore(**arguments)
        assert "secret" not in str(caught.value)


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(StoreError, match=r"file.*another") as caught:
            ChromaStore(path)
        assert isinstance(caught.value.__cause__, OSError)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "chroma.sqlite3").write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"damaged.*index again") as caught:
        ChromaStore(damaged)
    assert caught.value.__cause__ is not None


def test_an_unreachable_server_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StoreError, match="chroma run") as caught:
            ChromaStore(url=url)
    assert url in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_collection_made_otherwise(tmp_path: Path) -> None:
    with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
        client.create_collection("squared", embedding_function=None)
        client.create_collection("older", embedding_function=None, metadata={"hnsw:space": "cosine", "note": "mine"})
        other = client.create_collection("other", metadata={"hnsw:space": "cosine"})
        other.add(ids=["p", "t"], embeddings=np.eye(2), uris=["a.png", "b.png"], documents=["", "words"])
    with pytest.raises(StoreError, match=r"'l2'.*cosine"):
        ChromaStore(tmp_path, collection="squared")
    with ChromaStore(tmp_path, collection="older", fingerprint=ONE) as store:
        store.add(texts(2), [unit(1, 0), unit(0, 1)])
    with ChromaStore(tmp_path, collection="older", fingerprint=ONE) as store:
        assert [hit.score for hit in store.search([5.0, 0.0])] == pytest.approx([1.0, 0.5], abs=1e-6)
    with ChromaStore(tmp_path, collection="other") as store:
        assert list(store.records()) == [Record("p", "image", "", "a.png"), Record("t", "text", "words", "b.png")]


def test_plain_chroma_can_read_it(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add([Record("a", "image", "a caption", "a.png", {"page": 1})], [[1.0, 0.0]])
    with chromadb.PersistentClient(str(tmp_path), settings=Settings(**NO_TELEMETRY)) as client:
        row = client.get_collection("abc").get(include=["documents", "uris", "metadatas"])
    assert (row["documents"], row["uris"]) == (["a caption"], ["a.png"])
    assert row["metadatas"] == [{"page": 1, "abc:modality": "image", "abc:source": "a.png"}]


def test_a_collection_deleted_behind_the_back_is_made_anew(server_url: str) -> None:
    name = f"c-{uuid.uuid4().hex}"
    with ChromaStore(url=server_url, collection=name, fingerprint=ONE) as store:
        store.add(texts(3), vectors(3))
        address = f"{server_url}/api/v2/tenants/default_tenant/databases/default_database/collections/{name}"
        urllib.request.urlopen(urllib.request.Request(address, method="DELETE")).close()
        assert store.count() == 0
        store.add(texts(1), vectors(1, dim=3))
        assert (store.count(), store.dim, store.fingerprint) == (1, 3, str(ONE))


# -- smaller things ------------------------------------------------------------------------------


def test_batches_keep_to_number_and_bytes() -> None:
    def cut(sizes: list[int], most: int, most_bytes: int) -> list[list[int]]:
        return [sizes[part] for part in batches(sizes, most, most_bytes)]

    assert cut([], 3, 10) == []
    assert cut([1] * 7, 3, 100) == [[1] * 3, [1] * 3, [1]]
    assert cut([4, 4, 4, 2, 4], 100, 10) == [[4, 4], [4, 2, 4]]
    assert cut([50, 1, 50, 50], 100, 10) == [[50], [1], [50], [50]]
    assert cut([10, 10], 100, 10) == [[10], [10]]


def test_importing_it_is_light_and_using_it_is_quiet(tmp_path: Path, elsewhere: Elsewhere) -> None:
    code = (
        "import logging; logging.basicConfig(level=logging.WARNING)\n"
        "assert not {'chromadb', 'torch', 'PIL', 'httpx'} & set(sys.modules)\n"
        "with ChromaStore(sys.argv[1]) as store: put(store, 0, 5); store.search(np.ones(8)); store.delete(['i0'])\n"
    )
    assert finish(elsewhere(code, tmp_path)) == ""
