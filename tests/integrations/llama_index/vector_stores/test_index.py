"""Multi-modal indexes: LlamaIndex's own over two Chroma stores, and ours over one. No picture is lost."""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pandas as pd
import pytest
from llama_index.core import StorageContext, load_index_from_storage
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.vector_stores.abc import ABCMultiModalIndex, ABCVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

import abc_rag
from abc_rag import ChromaStore, Fingerprint, ImageLimits
from abc_rag.errors import FingerprintMismatchError, ImageFetchError, InputError, PartialIndexError
from abc_rag.store import Store, open_store

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
SOURCE = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="album")}


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture
def store(tmp_path: Path, embed_model: ABCEmbeddings) -> Iterator[ChromaStore]:
    with ChromaStore(tmp_path / "store", fingerprint=embed_model.embedder.fingerprint) as opened:
        yield opened


def mixed() -> list[Any]:
    return [
        ImageNode(id_="bare", image_path=str(PIG)),
        ImageNode(id_="captioned", image_path=str(ROSE), text="a trip to the sea", relationships=SOURCE),
        TextNode(id_="text", text="Pigs roll in mud.", relationships=SOURCE),
    ]


def scores(nodes: list[Any]) -> dict[str, float]:
    best: dict[str, float] = {}
    for found in nodes:
        best[found.node.node_id] = max(found.score, best.get(found.node.node_id, -1.0))
    return best


# --- LlamaIndex's own index, over two stores of LlamaIndex's own -------------------------------------------


def two_chroma_stores(folder: Path) -> tuple[chromadb.ClientAPI, StorageContext]:
    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    texts, pictures = (
        ChromaVectorStore(client.get_or_create_collection(name, metadata={"hnsw:space": "cosine"}))
        for name in ("texts", "pictures")
    )
    return client, StorageContext.from_defaults(vector_store=texts, image_store=pictures)


def test_llama_indexs_own_classes_with_two_collections(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    client, context = two_chroma_stores(tmp_path / "chroma")
    both: Any = {"embed_model": embed_model, "image_embed_model": embed_model}
    index = MultiModalVectorStoreIndex(nodes=[], storage_context=context, **both)
    index.insert_nodes(mixed())  # what is given at construction loses its bare pictures
    context.persist(tmp_path / "index")
    client.close()

    client, context = two_chroma_stores(tmp_path / "chroma")
    reloaded = StorageContext.from_defaults(
        persist_dir=str(tmp_path / "index"),
        vector_store=context.vector_stores["default"],
        image_store=context.vector_stores["image"],
    )
    index = load_index_from_storage(reloaded, **both)  # type: ignore[assignment]
    assert type(index) is MultiModalVectorStoreIndex
    retriever = index.as_retriever(similarity_top_k=5, image_similarity_top_k=5)
    assert set(scores(retriever.retrieve("a pig"))) == {"bare", "captioned", "text"}
    texts, pictures = (client.get_collection(name).get(include=["embeddings"]) for name in ("texts", "pictures"))
    assert (set(texts["ids"]), set(pictures["ids"])) == ({"captioned", "text"}, {"bare", "captioned"})
    rows = dict(zip(pictures["ids"], pictures["embeddings"], strict=True))
    assert np.allclose(rows["captioned"], embed_model.get_image_embedding(str(ROSE)), atol=1e-5)
    found = retriever.image_to_image_retrieve(str(PIG))
    assert (found[0].node.node_id, found[0].node.image_path) == ("bare", str(PIG))  # type: ignore[attr-defined]
    client.close()


# --- LlamaIndex's own index, over two views of one store --------------------------------------------------


def two_views(store: Store, **kwargs: Any) -> StorageContext:
    return StorageContext.from_defaults(
        vector_store=ABCVectorStore(store, modality="text"),
        image_store=ABCVectorStore(store, modality="image"),
        **kwargs,
    )


@pytest.mark.parametrize("kind", ["", "lance://"])
def test_llama_indexs_own_index_over_one_collection(embed_model: ABCEmbeddings, tmp_path: Path, kind: str) -> None:
    both: Any = {"embed_model": embed_model, "image_embed_model": embed_model}
    with open_store(f"{kind}{tmp_path / 'store'}") as store:
        context = two_views(store)
        MultiModalVectorStoreIndex(nodes=[], storage_context=context, **both).insert_nodes(mixed())
        assert set(store.ids()) == {"image:bare", "image:captioned", "text:captioned", "text:text"}
        context.persist(tmp_path / "index")
    with open_store(tmp_path / "store") as store:
        vectors = store.vectors(["image:captioned", "text:captioned"])
        assert np.allclose(vectors["image:captioned"], embed_model.get_image_embedding(str(ROSE)), atol=1e-5)
        assert np.allclose(vectors["text:captioned"], embed_model.get_text_embedding("a trip to the sea"), atol=1e-5)
        index: Any = load_index_from_storage(two_views(store, persist_dir=str(tmp_path / "index")), **both)
        retriever = index.as_retriever(similarity_top_k=5, image_similarity_top_k=5)
        found = retriever.retrieve("a trip to the sea")
        assert scores(found)["captioned"] == pytest.approx(1.0, abs=1e-4)
        assert {type(one.node) for one in found if one.node.node_id == "captioned"} == {ImageNode}
        assert retriever.image_to_image_retrieve(str(PIG))[0].node.node_id == "bare"
        index.delete_ref_doc("album")
        assert set(store.ids()) == {"image:bare"}


# --- Ours -------------------------------------------------------------------------------------------------


def test_pictures_given_at_construction_stay(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    assert set(store.ids()) == {"image:bare", "image:captioned", "text:captioned", "text:text"}


def test_nodes_of_every_kind_are_stored(
    embed_model: ABCEmbeddings, store: ChromaStore, caplog: pytest.LogCaptureFixture
) -> None:
    data = CRAB.read_bytes()
    nodes = [
        ImageDocument(id_="document", image_path=str(PIG), text="a pig"),
        Node(id_="resource", image_resource=MediaResource(data=data)),
        ImageNode(id_="base64", image=base64.b64encode(data).decode()),
        Document(id_="words", text="A passage."),
        TextNode(id_="empty", text=""),
    ]
    index = ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
    assert set(store.ids()) == {
        "image:document", "text:document", "image:resource", "image:base64", "text:words"
    }  # fmt: skip
    assert "1 nodes without text, metadata or picture are left out" in caplog.text
    found = index.as_retriever(image_similarity_top_k=2).image_to_image_retrieve(str(CRAB))
    assert {one.node.node_id for one in found} == {"resource", "base64"}
    assert all(node.embedding is None for node in nodes)  # the caller's nodes are left alone


async def test_awaited_insertion_gives_the_same(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex(embed_model=embed_model, store=store)
    await index.ainsert_nodes(mixed())
    vectors = store.vectors(store.ids())
    assert set(vectors) == {"image:bare", "image:captioned", "text:captioned", "text:text"}
    assert np.allclose(vectors["image:bare"], embed_model.get_image_embedding(str(PIG)), atol=1e-5)
    assert np.allclose(vectors["text:captioned"], embed_model.get_text_embedding("a trip to the sea"), atol=1e-5)
    found = await index.as_retriever().aretrieve("Pigs roll in mud.")
    assert found[0].node.node_id == "text"


def test_texts_are_found_after_pictures_were_inserted_alone(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex([mixed()[2]], embed_model=embed_model, store=store)
    index.insert_nodes([mixed()[0]])
    assert set(scores(index.as_retriever().retrieve("mud"))) == {"text", "bare"}


@pytest.mark.parametrize("kind", ["", "lance://"])
def test_the_store_alone_is_the_index(embed_model: ABCEmbeddings, tmp_path: Path, kind: str) -> None:
    with open_store(f"{kind}{tmp_path / 'store'}") as store:
        ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    with open_store(tmp_path / "store") as store:
        index = ABCMultiModalIndex(embed_model=embed_model, store=store)
        retriever = index.as_retriever(similarity_top_k=5, image_similarity_top_k=5)
        assert set(scores(retriever.retrieve("a pig"))) == {"bare", "captioned", "text"}
        assert ABCMultiModalIndex(embed_model=embed_model, store=store).as_retriever().retrieve("a pig")


def test_documents_with_pictures_become_nodes_with_pictures(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    documents = [ImageDocument(image_path=str(PIG)), Document(text="Pigs roll in mud.")]
    index: Any = ABCMultiModalIndex.from_documents(documents, embed_model=embed_model, store=store)
    assert sorted(record.modality for record in store.records()) == ["image", "text"]
    assert index.image_vector_store.get_nodes()[0].image_path == str(PIG)
    index.delete_ref_doc(documents[0].doc_id)
    assert [record.modality for record in store.records()] == ["text"]


def test_vectors_that_are_there_are_kept(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    rose = embed_model.get_image_embedding(str(ROSE))
    node = ImageNode(id_="n", image_path=str(PIG), text="a pig", embedding=rose)
    ABCMultiModalIndex([node], embed_model=embed_model, store=store)
    vectors = store.vectors(["image:n", "text:n"])
    assert np.allclose(vectors["image:n"], rose, atol=1e-5)
    # LlamaIndex would take the picture's vector for the caption's.
    assert np.allclose(vectors["text:n"], embed_model.get_text_embedding("a pig"), atol=1e-5)


def test_vectors_are_right_in_any_two_stores(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    client, context = two_chroma_stores(tmp_path)
    ABCMultiModalIndex(mixed(), embed_model=embed_model, storage_context=context)
    texts, pictures = (client.get_collection(name).get(include=["embeddings"]) for name in ("texts", "pictures"))
    captions = dict(zip(texts["ids"], texts["embeddings"], strict=True))
    assert set(pictures["ids"]) == {"bare", "captioned"}
    assert np.allclose(captions["captioned"], embed_model.get_text_embedding("a trip to the sea"), atol=1e-5)
    client.close()


def test_deleting_takes_the_picture_too(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    index.delete_nodes(["captioned"])
    assert set(store.ids()) == {"image:bare", "text:text"}


async def test_awaited_deletion_takes_the_picture_too(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    await index.adelete_ref_doc("album")
    assert set(store.ids()) == {"image:bare"}
    await index.adelete_nodes(["bare"])
    assert store.count() == 0


def test_the_document_store_is_filled_where_wanted(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store, store_nodes_override=True)
    assert set(index.docstore.docs) == {"bare", "captioned", "text"}
    found = index.as_retriever(image_similarity_top_k=5).retrieve("a pig")
    assert set(scores(found)) == {"bare", "captioned", "text"}


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_bad_picture_costs_nothing_but_itself(
    embed_model: ABCEmbeddings, store: ChromaStore, awaited: bool
) -> None:
    nodes = [*mixed(), ImageNode(id_="bad", image=base64.b64encode(b"x").decode(), text="no"), *mixed()]
    nodes[4:] = [node.model_copy(update={"id_": f"{node.node_id}-2"}) for node in mixed()]
    nodes.append(ImageNode(id_="gone", image_path="/no/such.png"))
    index = ABCMultiModalIndex(embed_model=embed_model, store=store)
    with pytest.raises(PartialIndexError, match=r"'bad'.*'gone'") as caught:
        await index.ainsert_nodes(nodes) if awaited else index.insert_nodes(nodes)
    assert caught.value.ids == ["bare", "captioned", "text", None, "bare-2", "captioned-2", "text-2", None]
    assert [position for position, _ in caught.value.failed] == [3, 7]
    assert isinstance(caught.value.failed[1][1], ImageFetchError)
    assert store.count() == 8


def test_another_models_store_is_refused(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    with ChromaStore(tmp_path, fingerprint=Fingerprint("other", "1", 1, 1)) as store:
        index = ABCMultiModalIndex(embed_model=embed_model, store=store)
        with pytest.raises(FingerprintMismatchError, match="other@1"):
            index.insert_nodes(mixed())
        assert store.count() == 0


def test_settings_that_mean_nothing_are_refused(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    with pytest.raises(InputError, match="is_image_to_text"):
        ABCMultiModalIndex(embed_model=embed_model, store=store, is_image_to_text=True)
    with pytest.raises(InputError, match="must be an ABCEmbeddings, not MockEmbedding"):
        ABCMultiModalIndex(embed_model=MockEmbedding(embed_dim=3), store=store)  # type: ignore[arg-type]


def test_urls_are_for_the_models_limits_to_judge(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    with pytest.raises(PartialIndexError, match="allow_urls"):
        ABCMultiModalIndex([ImageNode(image_url="http://127.0.0.1/x.png")], embed_model=embed_model, store=store)


# --- Persisting, documents twice, bad nodes among good ones -------------------------------------------------


def views_of(store: ChromaStore) -> dict[str, Any]:
    return {
        "vector_store": ABCVectorStore(store, modality="text"),
        "image_store": ABCVectorStore(store, modality="image"),
    }


def test_a_persisted_index_is_loaded_as_this_class(
    embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path
) -> None:
    index = ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    index.storage_context.persist(tmp_path / "persisted")
    views = views_of(store)
    for further in ({}, {"image_embed_model": embed_model}):
        context = StorageContext.from_defaults(persist_dir=str(tmp_path / "persisted"), **views)
        loaded = load_index_from_storage(context, embed_model=embed_model, **further)
        assert type(loaded) is ABCMultiModalIndex
        assert loaded.index_id == index.index_id
        assert {one.node.node_id for one in loaded.as_retriever().retrieve("words")} == {"bare", "captioned", "text"}
        loaded.insert_nodes([TextNode(id_="more", text="more")])
        loaded.delete_nodes(["more"])
    assert store.count() == 4


def test_documents_take_the_place_of_what_is_stored_of_them(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    def documents(text: str) -> list[Any]:
        return [
            Document(id_="book.txt", text=text),
            ImageDocument(id_="pig.jpg", image_path=str(PIG), text="a pig"),
            Document(id_="other.txt", text="another text"),
        ]

    settings: dict[str, Any] = {"embed_model": embed_model, "store": store}
    ABCMultiModalIndex([TextNode(id_="kept", text="a node of its own")], **settings)
    ABCMultiModalIndex.from_documents(documents("the first edition"), **settings)
    before = store.count()
    for text in ("the first edition", "the second edition"):
        ABCMultiModalIndex.from_documents(documents(text), **settings)
        assert store.count() == before
        assert {record.text for record in store.records()} == {text, "a pig", "another text", "a node of its own"}
    views = views_of(store)
    context = StorageContext.from_defaults(**views)  # type: ignore[arg-type]
    ABCMultiModalIndex.from_documents(documents("third"), embed_model=embed_model, storage_context=context)
    assert store.count() == before
    # Nodes whose ids last replace themselves, and are not taken for older ones.
    splitter = SentenceSplitter(
        chunk_size=64, chunk_overlap=0, id_func=lambda number, document: f"{document.node_id}-{number}"
    )
    for _ in range(2):
        ABCMultiModalIndex.from_documents(documents("third"), transformations=[splitter], **settings)
        assert store.count() == before


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), pd.NaT, 2**70, object(), {"deep": [object()]}, b"\xff"])
async def test_metadata_that_cannot_be_stored_costs_its_node_alone(
    embed_model: ABCEmbeddings, store: ChromaStore, value: Any, awaited: bool
) -> None:
    bad = [
        TextNode(id_="bad-text", text="bad", metadata={"price": value}),
        ImageNode(id_="bad-picture", image_path=str(PIG), metadata={"price": value}),
    ]
    index = ABCMultiModalIndex(embed_model=embed_model, store=store)
    nodes = [*mixed(), *bad, TextNode(id_="last", text="last")]
    with pytest.raises(PartialIndexError, match=r"bad-text.*bad-picture") as raised:
        await index.ainsert_nodes(nodes) if awaited else index.insert_nodes(nodes)
    assert [position for position, _ in raised.value.failed] == [3, 4]
    assert {node.node_id for node in ABCVectorStore(store).get_nodes()} == {"bare", "captioned", "text", "last"}


def test_numbers_of_numpy_and_dates_are_taken(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    metadata = {"price": np.int64(3), "share": np.float32(0.5), "sold": np.bool_(True), "day": date(2024, 1, 31)}
    ABCMultiModalIndex([TextNode(id_="n", text="words", metadata=metadata)], embed_model=embed_model, store=store)
    [node] = ABCVectorStore(store).get_nodes()
    assert node.metadata == {"price": 3, "share": 0.5, "sold": True, "day": date(2024, 1, 31)}
    for where in ({"price": {"$gt": 2}}, {"day": {"$lt": "2024-02-01"}}, {"sold": True}):
        assert len(store.search(embed_model.get_text_embedding("x"), where=where)) == 1


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))])
def test_views_travel_as_their_settings(
    how: Any, embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path
) -> None:
    ABCMultiModalIndex(mixed(), embed_model=embed_model, store=store)
    view = ABCVectorStore(store, modality="image", roots=[tmp_path], image_limits=ImageLimits(max_bytes=10**7))
    travelled = how(view)
    assert (travelled.modality, travelled._roots, travelled._pictures.limits.max_bytes) == ("image", (tmp_path,), 10**7)
    assert {node.node_id for node in travelled.get_nodes()} == {"bare", "captioned"}
