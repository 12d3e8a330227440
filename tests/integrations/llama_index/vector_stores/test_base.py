"""ABCVectorStore: one Chroma collection as LlamaIndex's stores of texts and of pictures; nodes come back whole."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.vector_stores.abc import ABCVectorStore

import abc_rag
from abc_rag import ChromaStore, ImageLimits
from abc_rag.errors import ImageError, InputError
from abc_rag.images.open import content_hash
from abc_rag.ingest.paths import index_paths

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
BASE64 = base64.b64encode(ROSE.read_bytes()).decode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChromaStore]:
    with ChromaStore(tmp_path / "store") as opened:
        yield opened


def vector(*values: float) -> list[float]:
    return [*values, *[0.0] * (4 - len(values))]


def asked(*values: float, k: int = 10, **further: Any) -> VectorStoreQuery:
    return VectorStoreQuery(query_embedding=vector(*values), similarity_top_k=k, **further)


def found(view: ABCVectorStore, query: VectorStoreQuery, **kwargs: Any) -> list[str]:
    return view.query(query, **kwargs).ids or []


# --- Nodes and back ---------------------------------------------------------------------------------------

RELATED = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="the-document", metadata={"a": 1})}
RICH = {"page": 3, "score": 0.5, "author": "Ada", "draft": True, "tags": ["a", "b"], "nested": {"x": None}, "no": None}
PICTURED: list[Any] = [
    ImageNode(id_="n", image_path=str(PIG), embedding=vector(1)),
    ImageNode(id_="n", image_path=str(PIG), text="a pig", metadata=RICH, relationships=RELATED, embedding=vector(1)),
    ImageDocument(id_="n", image_path=str(PIG), text="a pig", metadata=RICH, embedding=vector(1)),
    Node(
        id_="n",
        image_resource=MediaResource(path=PIG, mimetype="image/jpeg"),
        text_resource=MediaResource(text="a pig", mimetype="text/x-caption"),
        metadata=RICH,
        embedding=vector(1),
    ),
]
WORDED: list[Any] = [
    TextNode(
        id_="n", text="Pigs roll in mud.", metadata=RICH, relationships=RELATED, start_char_idx=3, embedding=vector(1)
    ),
    TextNode(id_="n", text="", metadata={"only": "metadata"}, embedding=vector(1)),
    Document(id_="n", text="A document.", metadata=RICH, embedding=vector(1)),
    Node(id_="n", text_resource=MediaResource(text="A node."), embedding=vector(1)),
    IndexNode(id_="n", text="An index node.", index_id="elsewhere", embedding=vector(1)),
]


def same(one: Any, other: Any) -> bool:
    # A node that was searched for holds its picture.
    bare = {"embedding", "text_embedding", "image"}
    return type(one) is type(other) and one.model_dump(exclude=bare) == other.model_dump(exclude=bare)


@pytest.mark.parametrize("node", PICTURED)
def test_a_picture_comes_back_whole(store: ChromaStore, node: Any) -> None:
    for modality in ("image", None):
        view = ABCVectorStore(store, modality=modality)  # type: ignore[arg-type]
        assert view.add([node]) == ["n"]
        result = view.query(asked(1))
        shown: Any = result.nodes[0]  # type: ignore[index]
        assert same(shown, node)
        data = shown.image if isinstance(shown, ImageNode) else shown.image_resource.data
        assert base64.b64decode(data) == PIG.read_bytes()
        assert result.similarities == [1.0]
        assert same(view.get_nodes(["n"])[0], node)
    assert list(store.ids()) == ["image:n"]


@pytest.mark.parametrize("node", WORDED + PICTURED[1:2])
def test_a_text_comes_back_whole(store: ChromaStore, node: Any) -> None:
    view = ABCVectorStore(store, modality="text")
    view.add([node])
    assert same(view.get_nodes()[0], node)
    assert list(store.ids()) == ["text:n"]


def test_nodes_of_ones_own_come_back_as_what_llama_index_knows(store: ChromaStore) -> None:
    class Photo(ImageNode):
        """A node of somebody's own."""

        @classmethod
        def class_name(cls) -> str:
            return "Photo"

    ABCVectorStore(store).add([Photo(image_path=str(PIG), text="a pig", embedding=vector(1))])
    node = ABCVectorStore(store).get_nodes()[0]
    assert type(node) is ImageNode
    assert (node.image_path, node.text) == (str(PIG), "a pig")


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(id_="n", image=BASE64, text="a rose", embedding=vector(1), text_embedding=vector(0, 1)),
        ImageDocument(id_="n", image=BASE64, text="a rose", embedding=vector(1)),
        Node(id_="n", image_resource=MediaResource(data=ROSE.read_bytes()), embedding=vector(1)),
    ],
)
def test_base64_is_kept_beside_the_database(tmp_path: Path, node: Any) -> None:
    with ChromaStore(tmp_path / "store") as store:
        ABCVectorStore(store).add([node])
        for record in store.records():
            assert max(len(str(value)) for value in record.metadata.values()) < 2000
            assert record.sha256 == content_hash(ROSE)
            assert record.mime_type == "image/jpeg"
            assert content_hash(record.source) == record.sha256
    (tmp_path / "store").rename(tmp_path / "moved")
    with ChromaStore(tmp_path / "moved") as store:
        for modality in {record.modality for record in store.records()}:
            back: Any = ABCVectorStore(store, modality=modality).get_nodes()[0]
            assert type(back) is type(node)
            path = back.image_path if isinstance(back, ImageNode) else back.image_resource.path
            assert Path(path).is_relative_to(tmp_path / "moved")
            assert Path(path).read_bytes() == ROSE.read_bytes()
            assert back.get_content() == node.get_content()


def test_a_picture_can_be_looked_at_again(store: ChromaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO)
    node = ImageNode(image_path="pig-car.jpg", embedding=vector(1))
    ABCVectorStore(store, modality="image").add([node])
    record = next(store.records())
    assert (record.source, record.sha256, record.mime_type) == (str(PIG), content_hash(PIG), "image/jpeg")
    assert record.picture == PIG


def test_a_picture_that_is_elsewhere_keeps_its_vector(store: ChromaStore) -> None:
    ABCVectorStore(store).add([ImageNode(image_path="/no/such.png", embedding=vector(1))])
    record = next(store.records())
    assert (record.source, record.sha256) == ("/no/such.png", "")


def test_bad_nodes_are_named_and_nothing_is_stored(store: ChromaStore) -> None:
    view = ABCVectorStore(store)
    good = TextNode(text="fine", embedding=vector(1))
    for bad, message in (
        (TextNode(id_="bare", text="x"), "'bare' has no embedding"),
        (ImageNode(id_="torn", image=base64.b64encode(b"x").decode(), embedding=vector(1)), "'torn'.*not of a format"),
        (ImageNode(id_="odd", image="###", embedding=vector(1)), "'odd': its image is not base64"),
        (TextNode(id_="nan", text="x", embedding=vector(float("nan"))), "'text:nan'.*NaN"),
        (TextNode(id_="own", text="x", metadata={"abc:x": 1}, embedding=vector(1)), "'text:own'.*reserved"),
    ):
        with pytest.raises(InputError, match=message):
            view.add([good, bad])
    with pytest.raises(InputError, match="'n' has no picture"):
        ABCVectorStore(store, modality="image").add([WORDED[0]])
    strict = ABCVectorStore(store, image_limits=ImageLimits(max_bytes=10))
    with pytest.raises(InputError, match="max_bytes"):
        strict.add([ImageNode(image=BASE64, embedding=vector(1))])
    assert store.count() == 0
    assert view.add([]) == []


# --- Two views of one collection --------------------------------------------------------------------------


@pytest.fixture
def views(store: ChromaStore) -> tuple[ABCVectorStore, ABCVectorStore, ABCVectorStore]:
    texts, pictures, both = (ABCVectorStore(store, modality=m) for m in ("text", "image", None))  # type: ignore[arg-type]
    captioned = ImageNode(id_="captioned", image_path=str(PIG), text="a pig", relationships=RELATED)
    texts.add([captioned.model_copy(update={"embedding": vector(1)})])
    pictures.add([captioned.model_copy(update={"embedding": vector(0, 1)})])
    pictures.add([ImageNode(id_="bare", image_path=str(ROSE), metadata={"page": 7}, embedding=vector(0, 1, 0.5))])
    texts.add([TextNode(id_="text", text="words", metadata={"page": 3}, embedding=vector(1, 0, 0.5))])
    return texts, pictures, both


Views = tuple[ABCVectorStore, ABCVectorStore, ABCVectorStore]


def test_a_captioned_picture_keeps_both_vectors(views: Views, store: ChromaStore) -> None:
    texts, pictures, both = views
    assert store.count() == 4
    assert found(texts, asked(1)) == ["captioned", "text"]
    assert found(pictures, asked(0, 1)) == ["captioned", "bare"]
    assert texts.query(asked(1)).similarities[0] == pytest.approx(1.0)  # type: ignore[index]
    assert pictures.query(asked(0, 1)).similarities[0] == pytest.approx(1.0)  # type: ignore[index]
    assert pictures.query(asked(1)).similarities[0] == pytest.approx(0.5)  # type: ignore[index]
    # Once, with its better score, and without taking another's place.
    assert sorted(found(both, asked(1, 1, k=3))) == ["bare", "captioned", "text"]
    assert both.query(asked(1)).similarities[0] == pytest.approx(1.0)  # type: ignore[index]


def test_adding_again_replaces(views: Views, store: ChromaStore) -> None:
    texts, *_ = views
    texts.add([TextNode(id_="text", text="other words", embedding=vector(0, 0, 1))])
    assert store.count() == 4
    assert texts.get_nodes(["text"])[0].get_content() == "other words"
    assert texts.get_nodes(["text"])[0].metadata == {}
    assert found(texts, asked(0, 0, 1, k=1)) == ["text"]


def test_lookups(views: Views) -> None:
    texts, pictures, both = views
    assert [node.node_id for node in both.get_nodes(["bare", "nowhere", "captioned"])] == ["bare", "captioned"]
    assert {node.node_id for node in both.get_nodes()} == {"captioned", "bare", "text"}
    assert [node.node_id for node in texts.get_nodes(["bare", "text"])] == ["text"]
    three = MetadataFilters(filters=[MetadataFilter(key="page", value=3)])
    assert [node.node_id for node in both.get_nodes(filters=three)] == ["text"]
    assert both.get_nodes(["bare"], three) == []
    assert both.get_nodes([]) == []
    assert pictures.client is both.client


def test_deleting(views: Views, store: ChromaStore) -> None:
    texts, pictures, both = views
    texts.delete("the-document")
    assert set(store.ids()) == {"image:captioned", "image:bare", "text:text"}
    pictures.delete("the-document")
    pictures.delete("no-such-document")
    assert set(store.ids()) == {"image:bare", "text:text"}
    with pytest.raises(InputError, match="clear"):
        both.delete_nodes()
    both.delete_nodes([])
    both.delete_nodes(["bare"], MetadataFilters(filters=[MetadataFilter(key="page", value=3)]))
    assert store.count() == 2
    both.delete_nodes(filters=MetadataFilters(filters=[MetadataFilter(key="page", value=3)]))
    assert set(store.ids()) == {"image:bare"}
    texts.clear()
    assert store.count() == 1
    pictures.clear()
    assert store.count() == 0


async def test_awaited_twins_work_in_a_thread_of_their_own(views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, both = views
    threads: list[str] = []
    search, records = ChromaStore.search, ChromaStore.records

    def note(*arguments: Any, **keywords: Any) -> Any:
        threads.append(threading.current_thread().name.partition("_")[0])
        return search(*arguments, **keywords)

    monkeypatch.setattr(ChromaStore, "search", note)
    assert (await both.aquery(asked(1))).ids == found(both, asked(1))
    assert threads[0] == "llama-index-abc-store"
    assert records is ChromaStore.records
    node = TextNode(id_="late", text="late", relationships=RELATED, embedding=vector(0, 0, 0, 1))
    assert await both.async_add([node]) == ["late"]
    assert len(await both.aget_nodes(["late"])) == 1
    await both.adelete("the-document")
    assert {n.node_id for n in await both.aget_nodes()} == {"bare", "text"}
    await both.adelete_nodes(["bare"])
    await both.aclear()
    assert await both.aget_nodes() == []
    results = await asyncio.gather(*(both.aquery(asked(1)) for _ in range(4)))
    assert [result.ids for result in results] == [[]] * 4


# --- Queries ----------------------------------------------------------------------------------------------


def test_an_empty_store_gives_nothing(store: ChromaStore) -> None:
    view = ABCVectorStore(store)
    assert view.query(asked(1)).ids == []
    assert view.query(asked(1, mode=VectorStoreQueryMode.MMR)).nodes == []
    assert view.get_nodes() == []
    view.delete("x")
    view.clear()


def test_what_is_not_supported_is_refused(views: Views) -> None:
    *_, both = views
    with pytest.raises(InputError, match="no embedding"):
        both.query(VectorStoreQuery(query_str="words"))
    with pytest.raises(InputError, match="'svm' is not supported; use one of 'default', 'mmr', 'text_search'"):
        both.query(asked(1, mode=VectorStoreQueryMode.SVM))
    for mode in (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.HYBRID):
        with pytest.raises(InputError, match="needs the question's words: set query_str"):
            both.query(asked(1, mode=mode))
    with pytest.raises(InputError, match="alpha is not used"):
        both.query(asked(1, mode=VectorStoreQueryMode.HYBRID, query_str="words", alpha=0.5))
    with pytest.raises(InputError, match="unknown query options"):
        both.query(asked(1), alpha=0.5)
    with pytest.raises(InputError, match="mmr_threshold must be"):
        both.query(asked(1, mode=VectorStoreQueryMode.MMR), mmr_threshold=2)


def test_mmr_prefers_what_is_different(store: ChromaStore) -> None:
    view = ABCVectorStore(store)
    rows = {"a": vector(1, 0.1), "b": vector(0.2, 1), "a2": vector(1, 0.1001)}
    view.add([TextNode(id_=name, text=name, embedding=row) for name, row in rows.items()])
    query = asked(1, 0.3, k=2, mode=VectorStoreQueryMode.MMR)
    assert sorted(found(view, asked(1, 0.3, k=2))) == ["a", "a2"]
    assert set(found(view, query)) in ({"a", "b"}, {"a2", "b"})
    assert sorted(found(view, query, mmr_threshold=1)) == ["a", "a2"]
    # Compared with all that were chosen, not only with the last: the twin stays out.
    assert set(found(view, query.__class__(**{**query.__dict__, "similarity_top_k": 3}))) == set(rows)


def test_queries_can_be_narrowed(views: Views) -> None:
    *_, both = views
    assert found(both, asked(1, node_ids=["bare", "text"])) == ["text", "bare"]
    assert found(both, asked(1, doc_ids=["the-document"])) == ["captioned"]
    assert found(both, asked(1, node_ids=[])) == found(both, asked(1))
    assert found(both, asked(1, k=99)) == found(both, asked(1))
    assert found(both, asked(1), where={"page": {"$gt": 3}}) == ["bare"]
    seven = MetadataFilters(filters=[MetadataFilter(key="page", value=7)])
    assert found(both, asked(1, filters=seven), where={"page": {"$lt": 7}}) == []


# --- What others stored, and pipelines --------------------------------------------------------------------


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


def test_what_the_command_line_indexed_is_seen(store: ChromaStore, embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    (tmp_path / "pigs.txt").write_text("Pigs roll in mud.")
    index_paths([PIG, tmp_path / "pigs.txt"], embed_model.embedder, store)
    picture, text = sorted(ABCVectorStore(store).get_nodes(), key=lambda node: type(node).__name__)
    assert (type(picture), type(text)) == (ImageNode, TextNode)
    assert picture.image_path == picture.metadata["source"] == str(PIG)  # type: ignore[attr-defined]
    assert picture.image_mimetype == "image/jpeg"  # type: ignore[attr-defined]
    assert (text.get_content(), text.metadata["source"]) == ("Pigs roll in mud.", str(tmp_path / "pigs.txt"))
    assert len(ABCVectorStore(store, modality="text").get_nodes([text.node_id, picture.node_id])) == 1
    ABCVectorStore(store).delete_nodes([picture.node_id])
    assert list(store.ids()) == [text.node_id]


def test_a_pipeline_fills_one_view_of_both(store: ChromaStore, embed_model: ABCEmbeddings) -> None:
    view = ABCVectorStore(store)
    nodes = [ImageNode(id_="p", image_path=str(PIG), text="a rose"), TextNode(id_="t", text="mud")]
    IngestionPipeline(transformations=[embed_model], vector_store=view).run(nodes=nodes)
    assert set(store.ids()) == {"image:p", "text:p", "text:t"}
    vectors = store.vectors(["image:p", "text:p"])
    assert np.allclose(vectors["image:p"], embed_model.get_image_embedding(str(PIG)), atol=1e-5)
    assert np.allclose(vectors["text:p"], embed_model.get_text_embedding("a rose"), atol=1e-5)


def test_a_file_that_goes_between_is_an_image_error_of_the_model(
    embed_model: ABCEmbeddings, store: ChromaStore
) -> None:
    pipeline = IngestionPipeline(transformations=[embed_model], vector_store=ABCVectorStore(store))
    with pytest.raises(ImageError, match=r"gone\.png"):
        pipeline.run(nodes=[ImageNode(image_path="gone.png"), TextNode(text="mud")])
    assert store.count() == 0


@pytest.mark.parametrize("mode", [VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SEMANTIC_HYBRID])
def test_words_and_vectors_in_one_search(store: ChromaStore, mode: VectorStoreQueryMode) -> None:
    view = ABCVectorStore(store)
    texts = {"near": "an engine", "named": "the MX-4471-B bolt", "far": "a diesel engine"}
    rows = [vector(1), vector(0.9, 1), vector(0.5, 2)]
    view.add(
        [TextNode(id_=id_, text=text, embedding=row) for (id_, text), row in zip(texts.items(), rows, strict=True)]
    )
    pig = ImageNode(id_="pig", image_path=str(PIG), text="a pig", embedding=vector(0, 0, 1))
    view.add([pig])
    assert found(view, asked(1, k=2, mode=mode, query_str="MX-4471-B")) == ["named", "near"]
    assert found(view, asked(1, k=2, mode=mode, query_str="engine -diesel")) == ["near", "named"]
    assert found(view, asked(1, k=1, mode=mode, query_str="MX-4471-B", hybrid_top_k=2)) == ["named", "near"]
    only = MetadataFilters(filters=[MetadataFilter(key="page", value=3)])
    assert found(view, asked(1, mode=mode, query_str="MX-4471-B", filters=only)) == []
    words = VectorStoreQuery(query_str="diesel engine", similarity_top_k=9, mode=VectorStoreQueryMode.TEXT_SEARCH)
    result = view.query(words)
    assert result.ids == ["far", "near"]
    assert 1 > (result.similarities or [])[0] > (result.similarities or [])[1] > 0
    assert found(ABCVectorStore(store, modality="image"), words) == []
    assert view.query(replace(words, query_str="pig")).ids == ["pig"]
