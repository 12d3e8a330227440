"""A store that somebody else can write to: its records must not decide what is read, fetched and passed on."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import pytest
from langchain_abc import ABCEmbeddings, ABCVectorStore, to_content_blocks
from llama_index.core.schema import ImageDocument, ImageNode, IndexNode, MediaResource, Node, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.abc import ABCEmbeddings as LlamaEmbeddings
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.vector_stores.abc import ABCMultiModalIndex
from llama_index.vector_stores.abc import ABCVectorStore as LlamaStore

import abc_rag
from abc_rag import ChromaStore, Embedder, Hit, Retriever
from abc_rag.ingest import index_images, index_paths
from abc_rag.search import Pictures, Shown, render_html

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
LEFT = "which picture has a pig on the left?"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(PIG, folder / "pig.jpg")
    (folder / "diary.txt").write_text("dear diary")
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture that was never indexed."""
    path = tmp_path / "private" / "secret.jpg"
    path.parent.mkdir()
    shutil.copy(CRAB, path)
    return path


@pytest.fixture
def place(tmp_path: Path, photos: Path, mini: Embedder) -> Path:
    """Where a store is, of a picture and a text."""
    with ChromaStore(tmp_path / "store", fingerprint=mini.fingerprint) as opened:
        index_paths([photos], mini, opened)
    return tmp_path / "store"


def forge(place: Path, mini: Embedder, id_: str = "forged", **metadata: Any) -> None:
    """Write to the collection as any client of Chroma can."""
    client = chromadb.PersistentClient(str(place), chromadb.Settings(anonymized_telemetry=False))
    client.get_collection("abc", embedding_function=None).upsert(
        ids=[id_],
        embeddings=mini.embed_images([PIG]),
        metadatas=[{"abc:modality": "image", **metadata}],
        documents=["a forged caption"],
    )
    client.close()


@pytest.fixture
def store(place: Path, mini: Embedder) -> Iterator[ChromaStore]:
    with ChromaStore(place, fingerprint=mini.fingerprint) as opened:
        yield opened


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


FORGERIES = {
    "a picture elsewhere, with its hash": lambda s: {"abc:source": str(s), "abc:sha256": sha256(s)},
    "a picture elsewhere, without": lambda s: {"abc:source": str(s)},
    "by way of an indexed folder": lambda s: {
        "abc:source": f"{s.parent.parent}/photos/../private/secret.jpg",
        "abc:sha256": sha256(s),
    },
    "a kept one with an absolute path": lambda s: {
        "abc:source": str(s),
        "abc:source_type": "kept",
        "abc:sha256": sha256(s),
    },
    "a kept one with dots": lambda s: {
        "abc:source": "../../../private/secret.jpg",
        "abc:source_type": "kept",
        "abc:sha256": sha256(s),
    },
    "a file that is no picture": lambda s: {"abc:source": "/etc/passwd"},
    "a text beside indexed pictures": lambda s: {"abc:source": f"{s.parent.parent}/photos/diary.txt"},
    "a device": lambda s: {"abc:source": "/dev/zero", "abc:sha256": 64 * "0"},
    "an address": lambda s: {
        "abc:source": "http://169.254.169.254/latest/meta-data",
        "abc:source_type": "url",
        "abc:sha256": 64 * "0",
    },
    "a file's address": lambda s: {"abc:source": f"file://{s}", "abc:source_type": "url", "abc:sha256": sha256(s)},
    "a number": lambda s: {"abc:source": 5, "abc:sha256": sha256(s)},
    "a number as its hash": lambda s: {"abc:source": str(s), "abc:sha256": 5},
}


@pytest.fixture(params=FORGERIES)
def forged(request: pytest.FixtureRequest, place: Path, mini: Embedder, secret: Path) -> None:
    forge(place, mini, **FORGERIES[request.param](secret))


def shown_in(text: str) -> list[bytes]:
    """Every picture within a page, decoded."""
    return [base64.b64decode(part.partition('"')[0]) for part in text.split("base64,")[1:]]


def test_a_second_look_and_a_page_open_nothing_else(forged: None, store: ChromaStore, mini: Embedder) -> None:
    retriever = Retriever(mini, store)
    answer = retriever.search(LEFT, k=9, rerank=True, modality="image", trace=True)
    hits: dict[str, Hit] = {hit.id: hit for hit in answer}
    own = next(hit for id_, hit in hits.items() if id_ != "forged")
    assert own.trace is not None
    assert own.trace.second is not None
    if "forged" in hits:  # a record that is damaged may be left out instead
        trace = hits["forged"].trace
        assert trace is not None
        assert (trace.second, bool(trace.note)) == (None, True)
    for pictures in (retriever.pictures, None):
        page = render_html([Shown(answer)], title="t", pictures=pictures)
        assert len(shown_in(page)) == 1
        if "forged" in hits and isinstance(hits["forged"].record.source, str):
            assert "no preview" in page


def test_a_chat_model_is_shown_nothing_else_by_langchain(forged: None, store: ChromaStore) -> None:
    vectors = ABCVectorStore(ABCEmbeddings(model="abc-mini"), store=store)
    documents = vectors.similarity_search("a pig", k=9, modality="image")
    documents += vectors.as_instruction_retriever(k=9, modality="image").invoke(LEFT)
    blocks = to_content_blocks(documents)
    sent = [base64.b64decode(block["base64"]) for block in blocks if block["type"] == "image"]
    assert sent == [PIG.read_bytes()] * 2


def test_llama_index_is_handed_nothing_that_it_would_open(forged: None, store: ChromaStore) -> None:
    model = LlamaEmbeddings(model="abc-mini")
    view = LlamaStore(store, modality="image")
    query = VectorStoreQuery(query_embedding=model.get_text_embedding("a pig"), similarity_top_k=9)
    retrieved = InstructionRetriever(model, store, modality="image", similarity_top_k=9).retrieve(LEFT)
    nodes = [*(view.query(query).nodes or ()), *(one.node for one in retrieved), *view.get_nodes()]
    check(nodes, {PIG.read_bytes()})
    assert sum(isinstance(node, ImageNode) for node in nodes) == 3


def check(nodes: list[Any], allowed: set[bytes]) -> None:
    """No node has a path, an address or bytes of anything but ``allowed``."""
    for node in nodes:
        for one in (node, getattr(node, "obj", None)):
            if isinstance(one, ImageNode):
                assert one.image_url is None
                assert one.image is None or base64.b64decode(one.image) in allowed
                assert one.image_path is None or Path(one.image_path).read_bytes() in allowed
            elif isinstance(one, Node):
                for name in ("image_resource", "audio_resource", "video_resource", "text_resource"):
                    resource = getattr(one, name)
                    if resource is None:
                        continue
                    assert resource.url is None
                    assert resource.data is None or base64.b64decode(resource.data) in allowed
                    assert resource.path is None or resource.path.read_bytes() in allowed


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize(
    "make",
    [
        lambda s: ImageNode(image_path=str(s), image=base64.b64encode(CRAB.read_bytes()).decode()),
        lambda s: ImageNode(image_url="http://169.254.169.254/", text="words"),
        lambda s: ImageNode(image_url=f"file://{s}", text="words"),
        lambda s: Node(image_resource=MediaResource(path=s), text_resource=MediaResource(path=s, text="words")),
        lambda s: Node(audio_resource=MediaResource(path=s), video_resource=MediaResource(url=f"file://{s}")),
        lambda s: ImageDocument(image_path=str(s), text="words"),
        lambda s: IndexNode(text="words", index_id="x", obj=ImageNode(image_path=str(s))),
    ],
)
def test_what_a_node_was_is_not_believed_either(
    place: Path, mini: Embedder, secret: Path, photos: Path, make: Any, modality: str
) -> None:
    node = make(secret)
    content = node.to_dict() | {"id_": "forged"}
    forge(
        place,
        mini,
        **{
            "abc:modality": modality,
            "abc:source": str(photos / "pig.jpg"),
            "abc:sha256": sha256(PIG),
            "_node_content": json.dumps(content, default=str),
            "_node_type": node.class_name(),
            "_node_id": "forged",
            "_node_has_picture": True,
        },
    )
    model = LlamaEmbeddings(model="abc-mini")
    with ChromaStore(place, fingerprint=mini.fingerprint) as store:
        nodes = [*LlamaStore(store).get_nodes()]
        for view in (LlamaStore(store), LlamaStore(store, modality="text"), LlamaStore(store, modality="image")):
            query = VectorStoreQuery(query_embedding=model.get_text_embedding("a pig"), similarity_top_k=9)
            nodes += view.query(query).nodes or ()
        nodes += [one.node for one in InstructionRetriever(model, store, similarity_top_k=9).retrieve(LEFT)]
    assert "forged" in {node.node_id for node in nodes}
    check(nodes, {PIG.read_bytes()})


@pytest.mark.parametrize(
    "damage",
    [
        {"_node_content": "{"},
        {"_node_content": "[" * 100_000},
        {"_node_content": "[]"},
        {"_node_content": "null"},
        {"_node_content": 5},
        {"_node_content": "{}", "_node_type": "Unheard of"},
        {"_node_content": "{}", "_node_type": 5},
        {"_node_content": '{"id_": 5, "relationships": 3}', "_node_type": "TextNode"},
    ],
)
def test_a_damaged_node_costs_only_itself(
    place: Path, mini: Embedder, damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    forge(place, mini, **{"_node_type": "ImageNode", "_node_id": "forged"} | damage)
    model = LlamaEmbeddings(model="abc-mini")
    with ChromaStore(place, fingerprint=mini.fingerprint) as store:
        found = InstructionRetriever(model, store, similarity_top_k=9).retrieve("a pig")
        assert len(found) == 2
        assert {type(one.node) for one in found} == {ImageNode, TextNode}
        query = VectorStoreQuery(query_embedding=model.get_text_embedding("a pig"), similarity_top_k=9)
        result = LlamaStore(store).query(query)
        assert len(result.nodes or ()) == len(result.ids or ()) == len(result.similarities or ()) == 2
        assert len(LlamaStore(store).get_nodes()) == 2
    assert "record 'forged' is damaged and left out" in caplog.text


def test_what_is_indexed_here_needs_no_further_step(tmp_path: Path, mini: Embedder, secret: Path) -> None:
    embeddings = ABCEmbeddings(model="abc-mini")
    with ABCVectorStore(embeddings, path=tmp_path / "by-langchain") as vectors:
        vectors.add_images([PIG, str(ROSE)])
        assert sum(block["type"] == "image" for block in to_content_blocks(vectors.similarity_search("a pig"))) == 2
    with ABCVectorStore(embeddings, path=tmp_path / "by-langchain") as vectors:
        (document,) = vectors.as_instruction_retriever(k=1, trace=True, rerank=True).invoke("a pig")
        assert document.metadata["second"] is not None
    model = LlamaEmbeddings(model="abc-mini")
    with ChromaStore(tmp_path / "by-llama-index", fingerprint=mini.fingerprint) as opened:
        ABCMultiModalIndex([ImageNode(image_path=str(PIG))], embed_model=model, store=opened)
        (found,) = InstructionRetriever(model, opened).retrieve("a pig")
        assert isinstance(found.node, ImageNode)
    with ChromaStore(tmp_path / "kept", fingerprint=mini.fingerprint) as opened:
        index_images([secret], mini, opened, keep=True)
    secret.unlink()
    (tmp_path / "kept").rename(tmp_path / "moved")
    with ChromaStore(tmp_path / "moved", fingerprint=mini.fingerprint) as opened:
        (hit,) = Retriever(mini, opened).search("a crab", rerank=True, trace=True)
        assert hit.trace is not None
        assert hit.trace.second is not None
        assert Pictures().read(hit.record) == CRAB.read_bytes()


def test_pictures_that_were_indexed_elsewhere_are_opened_where_the_caller_says(
    place: Path, mini: Embedder, secret: Path
) -> None:
    forge(place, mini, "theirs", **{"abc:source": str(secret), "abc:sha256": sha256(secret)})
    arguments: dict[str, Any] = {"rerank": True, "modality": "image", "trace": True}
    with ChromaStore(place, fingerprint=mini.fingerprint) as store:
        for roots, seen in (([], 1), ([secret.parent], 2), ([secret], 2), ([secret.parent / "no"], 1)):
            answer = Retriever(mini, store, roots=roots).search(LEFT, **arguments)
            assert sum(hit.trace is not None and hit.trace.second is not None for hit in answer) == seen
            vectors = ABCVectorStore(ABCEmbeddings(model="abc-mini"), store=store)
            documents = vectors.similarity_search("a pig", modality="image")
            blocks = to_content_blocks(documents, roots=roots)
            assert sum(block["type"] == "image" for block in blocks) == seen
            model = LlamaEmbeddings(model="abc-mini")
            found = InstructionRetriever(model, store, modality="image", roots=roots).retrieve("a pig")
            assert sum(isinstance(one.node, ImageNode) for one in found) == seen
