"""ABCVectorStore: LangChain's standard suites, and what other multimodal stores get wrong."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from langchain_abc import ABCEmbeddings, ABCVectorStore
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.load import dumpd
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from store_helpers import reduced

from abc_rag import URL, ChromaStore, DataURI, Embedder, Record
from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError, PartialIndexError, StoreError
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene
from abc_rag.search.rewriting import LLMRewriter
from abc_rag.store import open_store
from abc_rag.types import Input, Vectors


class FakedEmbeddings(ABCEmbeddings):
    """ABCEmbeddings over abc_rag's public fake in place of a model."""

    model: str = "fake"

    def _load(self) -> Embedder:
        return FakeEmbedder(dim=32, model=self.model)


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[VectorStore]:  # type: ignore[override]
        with ABCVectorStore(self.get_embeddings()) as store:
            yield store


class TestStandardWithAnEmbedder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:  # type: ignore[override]
        with ABCVectorStore(FakedEmbeddings(), path=tmp_path) as store:
            yield store


class TestStandardOnLance(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:  # type: ignore[override]
        with ABCVectorStore(self.get_embeddings(), path=f"lance://{tmp_path}") as store:
            yield store


@pytest.fixture
def store() -> Iterator[ABCVectorStore]:
    with ABCVectorStore(FakedEmbeddings()) as made:
        yield made


@pytest.fixture(scope="module")
def mini() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, str]:
    made = {
        "dog": Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), "blue"),
        "car": Scene((Placed("car", "big", "left"), Placed("tree", "small", "right")), "yellow"),
        "crab": Scene((Placed("crab", "big", "top"), Placed("guitar", "big", "bottom")), "white"),
    }
    for name, scene in made.items():
        render(scene).save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in made}


def square(folder: Path, colour: str, suffix: str = "png") -> str:
    path = folder / f"{colour}.{suffix}"
    PIL.Image.new("RGB", (40, 30), colour).save(path)
    return str(path)


# --- Texts and ids ----------------------------------------------------------------------------------------


def test_the_same_document_twice_is_one_and_other_metadata_make_another(store: ABCVectorStore) -> None:
    once = store.add_documents([Document("a rose", metadata={"page": 1})])
    again = store.add_documents([Document("a rose", metadata={"page": 1}), Document("a rose", metadata={"page": 2})])
    assert again[0] == once[0] != again[1]
    assert sorted(d.metadata["page"] for d in store.similarity_search("a rose", k=9)) == [1, 2]
    # Nor does the order of keys make another, nor nested ones.
    first, second = (
        store.add_texts(["x"], [{"a": {"b": [1], "c": None}, "d": 1}]),
        store.add_texts(["x"], [{"d": 1, "a": {"c": None, "b": [1]}}]),
    )
    assert first == second


def test_ids_are_kept_and_mixed_with_made_ones(store: ABCVectorStore) -> None:
    ids = store.add_documents([Document("a", id="mine"), Document("b")])
    assert ids[0] == "mine"
    assert [d.page_content for d in store.get_by_ids(ids)] == ["a", "b"]
    assert store.add_texts(["c"], ids=["mine"]) == ["mine"]
    assert [d.page_content for d in store.get_by_ids(["mine"])] == ["c"]


def test_get_by_ids_in_the_order_asked_without_the_missing_and_without_metadata(store: ABCVectorStore) -> None:
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    assert [d.id for d in store.get_by_ids(["3", "none", "1"])] == ["3", "1"]
    assert store.get_by_ids(["1"]) == [Document(id="1", page_content="a", metadata={})]


def test_delete_some_and_everything(store: ABCVectorStore) -> None:
    store.add_texts(["a", "b", "c"], ids=["1", "2", "3"])
    assert store.delete([]) is True
    assert store.delete(["2"]) is True
    assert {d.id for d in store.similarity_search("a", k=9)} == {"1", "3"}
    assert store.delete() is True
    assert store.similarity_search("a", k=9) == []


def test_more_texts_than_chroma_takes_at_once() -> None:
    with ABCVectorStore(DeterministicFakeEmbedding(size=2)) as store:
        assert len(set(store.add_texts([str(i) for i in range(5462)]))) == 5462
        assert store.store.count() == 5462


class Counting(FakeEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def _embed(self, inputs: Any, *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.sizes.append(len(inputs))
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


class CountedEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return Counting()

    @property
    def sizes(self) -> list[int]:
        embedder = self.embedder
        assert isinstance(embedder, Counting)
        return embedder.sizes


def test_what_is_stored_is_not_embedded_again_and_much_comes_in_parts() -> None:
    embeddings = CountedEmbeddings()
    with ABCVectorStore(embeddings) as store:
        texts = [f"text {i}" for i in range(300)]
        store.add_texts(texts)
        assert embeddings.sizes == [256, 44]
        store.add_texts([*texts, "new"])
        assert embeddings.sizes == [256, 44, 1]
        # An id of the caller's own says nothing about the text.
        store.add_texts(["a", "b"], ids=["1", "2"])
        store.add_texts(["a", "c"], ids=["1", "2"])
        assert embeddings.sizes == [256, 44, 1, 2, 2]
        assert [d.page_content for d in store.get_by_ids(["1", "2"])] == ["a", "c"]
        store.add_texts(["d", "e", "f"], batch_size=2)
        assert embeddings.sizes[-2:] == [2, 1]


async def test_langchain_s_indexing_works(store: ABCVectorStore) -> None:
    records = InMemoryRecordManager("test")
    records.create_schema()
    documents = [Document(text, metadata={"source": f"{text}.md"}) for text in ("a", "b")]
    settings: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(documents, records, store, **settings)["num_added"] == 2
    assert index(documents, records, store, **settings)["num_skipped"] == 2
    done = await aindex(documents[1:], records, store, **settings)
    assert (done["num_skipped"], done["num_deleted"]) == (1, 1)
    assert [d.page_content for d in store.similarity_search("a", k=9)] == ["b"]


def test_a_text_never_takes_a_picture_s_place(store: ABCVectorStore, tmp_path: Path) -> None:
    [id_] = store.add_images([square(tmp_path, "red")], captions=["a red square"])
    with pytest.raises(InputError, match=f"id '{id_}' is that of a stored picture"):
        store.add_texts(["x"], ids=[id_])
    # What comes out of a search cannot go in as a text by mistake.
    [document] = store.get_by_ids([id_])
    with pytest.raises(InputError, match=r"document 0 .*is a picture from a store.*add_images"):
        store.add_texts([document.page_content], [document.metadata])
    assert store.add_documents([document]) == [id_]
    assert store.get_by_ids([id_]) == [document]


# --- Documents out of a store, stored again -----------------------------------------------------------------


def by_id(store: ABCVectorStore) -> dict[str, Record]:
    return {record.id: record for record in store.store.records()}


async def test_what_was_found_is_stored_again_as_it_was(store: ABCVectorStore, tmp_path: Path) -> None:
    metadata = {"score": 5, "modality": "tale", "page": 1, "tags": ["a"]}
    store.add_texts(["a rose has thorns"], [metadata])
    red, blue = square(tmp_path, "red"), square(tmp_path, "blue")
    store.add_images([red, blue], [{"source": "my own"}, {}], captions=["a red square", ""])
    found = store.as_instruction_retriever(k=9, trace=True).invoke("a rose")
    assert {document.metadata.get("abc:score", document.metadata["score"]) for document in found}.isdisjoint({5})
    for documents in (found, store.similarity_search("a rose", k=9)):
        with ABCVectorStore(FakedEmbeddings()) as other:
            other.add_documents(documents)
            assert by_id(other) == by_id(store)
    with ABCVectorStore(FakedEmbeddings()) as other:
        await other.aadd_documents(found)
        assert by_id(other) == by_id(store)
    with ABCVectorStore.from_documents(found, FakedEmbeddings()) as other:
        assert other.store.count() == 3
    # Also where somebody made plain documents of them on the way.
    plain = [Document(d.page_content, id=d.id, metadata=dict(d.metadata)) for d in found]
    with ABCVectorStore(FakedEmbeddings()) as other:
        other.add_documents([document for document in plain if document.metadata["modality"] == "tale"])
        assert other.store.count() == 1


def test_documents_that_stand_for_pictures(store: ABCVectorStore, tmp_path: Path) -> None:
    red, blue = square(tmp_path, "red"), square(tmp_path, "blue")
    documents = [
        Document(str(red), metadata={"modality": "image", "year": 2024}),
        Document("a text"),
        Document("a blue square", id="blue", metadata={"modality": "image", "source": str(blue)}),
        Document(str(tmp_path / "gone.png"), metadata={"modality": "image"}),
    ]
    with pytest.raises(PartialIndexError) as raised:
        store.add_documents(documents)
    [(place, reason)] = raised.value.failed
    assert (place, "gone.png" in str(reason)) == (3, True)
    ids = raised.value.ids
    assert ids[2:] == ["blue", None]
    one, text, two = store.get_by_ids([id_ for id_ in ids if id_ is not None])
    assert (one.page_content, one.metadata["modality"], one.metadata["year"]) == (str(red), "image", 2024)
    assert text.page_content == "a text"
    assert (two.page_content, two.metadata["source"]) == ("a blue square", str(blue))
    records = InMemoryRecordManager("pictures")
    records.create_schema()
    settings: dict[str, Any] = {"key_encoder": "sha256"}
    assert index(documents[:3], records, store, **settings)["num_added"] == 3
    assert index(documents[:3], records, store, **settings)["num_skipped"] == 3


def test_a_document_is_the_same_whatever_its_score(store: ABCVectorStore) -> None:
    store.add_texts(["a rose"], [{"page": 1}])
    retriever = store.as_instruction_retriever(trace=True)
    [one], [two] = retriever.invoke("a rose"), retriever.invoke("roses are red")
    assert one.metadata["score"] != two.metadata["score"]
    assert one == two == store.get_by_ids([str(one.id)])[0]
    assert one in [two]
    assert one != Document("a rose", id=one.id, metadata={"page": 2})
    assert one == Document("a rose", id=one.id, metadata={"page": 1, "modality": "text"}) or "modality" in one.metadata
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert dumpd(one)["id"] == dumpd(Document("a rose"))["id"]


def test_what_is_shown_can_be_filtered(store: ABCVectorStore, tmp_path: Path) -> None:
    red = square(tmp_path, "red")
    store.add_images([red], [{"page": 1}])
    store.add_texts(["a", "b"], [{"source": "book.txt", "page": 1}, {"page": 2}])
    for filter_, wanted in (
        ({"modality": "image"}, {str(red)}),
        ({"modality": {"$ne": "image"}}, {"a", "b"}),
        ({"modality": {"$in": ["image", "text"]}}, {str(red), "a", "b"}),
        ({"source": str(red)}, {str(red)}),
        ({"source": "book.txt"}, {"a"}),
        ({"source": {"$nin": ["book.txt", str(red)]}}, {"b"}),
        ({"source_type": "path"}, {str(red)}),
        ({"mime_type": "image/png", "page": 1}, {str(red)}),
        ({"$or": [{"modality": "image"}, {"page": 2}]}, {str(red), "b"}),
        ({"$and": [{"modality": "text"}, {"page": 1}]}, {"a"}),
    ):
        found = store.similarity_search("x", k=9, filter=filter_)
        assert {document.page_content for document in found} == wanted, filter_
        retrieved = store.as_instruction_retriever(k=9, filter=filter_).invoke("x")
        assert {document.page_content for document in retrieved} == wanted


def test_a_damaged_record_costs_only_itself(store: ABCVectorStore, caplog: pytest.LogCaptureFixture) -> None:
    store.add_texts(["a", "b"])
    [record, *_] = store.store.records()
    for damage in ("{", "[]", '{"x": {"abc:date": "never"}}', "[" * 100_000):
        broken = replace(record, id="broken", metadata={"langchain:metadata": damage})
        store.store.add([broken], [store.store.vectors([record.id])[record.id]])
        assert {d.page_content for d in store.similarity_search("a", k=9)} == {"a", "b"}
        assert {d.page_content for d in store.max_marginal_relevance_search("a", k=9)} == {"a", "b"}
        assert {d.page_content for d in store.as_instruction_retriever(k=9).invoke("a")} == {"a", "b"}
        assert store.get_by_ids(["broken"]) == []
        assert "record 'broken' is damaged and left out" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_stores_and_retrievers_travel_as_their_settings(how: Callable[[Any], Any], tmp_path: Path) -> None:
    with ABCVectorStore(FakedEmbeddings(), path=tmp_path) as store:
        store.add_texts(["a rose"])
        with how(store) as copied:
            assert [d.page_content for d in copied.similarity_search("a rose")] == ["a rose"]
        retriever = store.as_instruction_retriever(k=3, rewriter=LLMRewriter(complete, timeout_s=5.0))
        travelled = how(retriever)
        assert (travelled.k, travelled.vectorstore.roots) == (3, ())
        assert [d.page_content for d in travelled.invoke("a rose")] == ["a rose"]


def complete(prompt: str) -> str:
    return "no"


def test_a_temporary_store_is_copied_and_not_pickled() -> None:
    with ABCVectorStore(FakedEmbeddings()) as store:
        store.add_texts(["a rose"])
        for how in (copy.copy, copy.deepcopy):
            copied = how(store)
            assert len(copied.similarity_search("a rose")) == 1
            copied.close()
            assert len(store.similarity_search("a rose")) == 1
        with pytest.raises(StoreError, match=r"in a temporary directory.*path="):
            pickle.dumps(store)


@pytest.mark.parametrize("many", [iter, tuple, np.array, lambda paths: (path for path in paths)])
async def test_pictures_come_in_any_iterable(many: Callable[[Any], Any], store: ABCVectorStore, tmp_path: Path) -> None:
    paths = [str(square(tmp_path, colour)) for colour in ("red", "blue")]
    assert len(store.add_images(many(paths))) == 2
    assert len(await store.aadd_images(many(paths))) == 2
    embeddings = store.embeddings
    assert isinstance(embeddings, ABCEmbeddings)
    assert np.shape(embeddings.embed_images(many(paths))) == (2, 32)
    assert np.shape(embeddings.embed_image(uris=many(paths))) == (2, 32)
    for single in (paths[0], Path(paths[0]), b"x", URL("https://x.org"), PIL.Image.new("RGB", (5, 5))):
        with pytest.raises(InputError, match=r"pass \[picture\]"):
            store.add_images(single)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"pass \[picture\]"):
            embeddings.embed_images(single)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add_texts("text"), r"pass \[text\]"),
        (lambda s: s.add_texts([1]), "text 0 must be a str, not int"),
        (lambda s: s.add_texts(["a", "b"], [{}]), "metadatas must be a list with one for each of the 2, not 1"),
        (lambda s: s.add_texts(["a", "b"], ids=["1"]), "ids must be a list with one for each of the 2, not 1"),
        (lambda s: s.add_texts(["a"], ids="1"), "ids must be a list"),
        (lambda s: s.add_texts(["a", "\ud800"]), "document 1: its text is not valid Unicode"),
        (lambda s: s.add_texts(["a"], ["metadata"]), "document 0: metadata must be a dict, not str"),
        (lambda s: s.add_texts(["a"], batch_size=0), "batch_size must be a positive int, not 0"),
        (lambda s: s.similarity_search("  "), "the question is empty"),
        (lambda s: s.similarity_search(["a"]), "the question must be a str, not list"),
        (lambda s: s.similarity_search("a", k=0), "k must be a positive int, not 0"),
        (lambda s: s.similarity_search_by_vector([1.0] * 32, k=0), "k must be a positive int, not 0"),
        (lambda s: s.max_marginal_relevance_search("a", k=0), "k must be a positive int, not 0"),
        (lambda s: s.max_marginal_relevance_search("a", lambda_mult=2), r"lambda_mult must be in \[0, 1\], not 2"),
        (lambda s: s.similarity_search("a", modality="video"), "modality must be"),
        (lambda s: s.similarity_search("a", filter=["x"]), "where must be a dict"),
        (lambda s: s.delete("1"), "ids must be a list"),
        (lambda s: s.add_images("a.png"), r"pass \[picture\]"),
        (lambda s: s.add_images(["a.png"], captions=[]), "captions must be a list with one for each of the 1"),
    ],
)
def test_bad_input_is_named(call: Callable[[ABCVectorStore], object], message: str, store: ABCVectorStore) -> None:
    store.add_texts(["something"])
    with pytest.raises(InputError, match=message):
        call(store)
    assert store.store.count() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.similarity_search("a", fetch_k=3),
        lambda s: s.similarity_search_by_vector([1.0] * 32, where={}),
        lambda s: s.max_marginal_relevance_search("a", lambda_=0.5),
        lambda s: s.add_texts(["a"], batches=3),
        lambda s: s.delete(["a"], where={}),
    ],
)
def test_an_unknown_keyword_is_refused(call: Callable[[ABCVectorStore], object], store: ABCVectorStore) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(store)


async def test_nothing_in_nothing_out(store: ABCVectorStore) -> None:
    assert store.add_texts([]) == store.add_documents([]) == store.add_images([]) == []
    assert await store.aadd_texts([]) == await store.aadd_documents([]) == await store.aadd_images([]) == []
    assert store.similarity_search("a") == store.max_marginal_relevance_search("a") == store.get_by_ids([]) == []
    assert store.similarity_search_by_image(b"picture") == store.as_retriever().invoke("a") == []
    assert store.add_texts([""], ids=["empty"]) == ["empty"]
    assert [d.page_content for d in store.similarity_search("a", k=1000)] == [""]


# --- Metadata ---------------------------------------------------------------------------------------------

RICH: dict[str, Any] = {
    "text": "words",
    "page": 3,
    "weight": 0.1,
    "yes": True,
    "none": None,
    "list": [1, "two", None, [3.5]],
    "tuple": (1, (2, [3])),
    "nested": {"a": {"b": [True, {"c": date(2024, 2, 29)}]}},
    "date": date(2024, 2, 29),
    "datetime": datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=timezone.utc),
    "time": time(12, 30),
    "large": 2**70,
    "": "no name",
    "empty": {},
    "unicode": "Füße 🦊",
}


def test_all_metadata_comes_back_as_it_was(store: ABCVectorStore, tmp_path: Path) -> None:
    store.add_documents([Document("rich", metadata=RICH), Document("plain", metadata={"page": 4}), Document("none")])
    found = {d.page_content: d.metadata for d in store.similarity_search("rich", k=9)}
    assert found == {"rich": RICH, "plain": {"page": 4}, "none": {}}
    assert type(found["rich"]["tuple"]) is tuple
    assert type(found["rich"]["date"]) is date
    assert type(found["rich"]["yes"]) is bool
    [id_] = store.add_images([square(tmp_path, "red")], [RICH])
    assert store.get_by_ids([id_])[0].metadata.items() >= RICH.items()


def test_plain_values_and_dates_can_be_filtered_by(store: ABCVectorStore) -> None:
    store.add_texts(["rich", "other"], [RICH, {"page": 4, "source": "b.md"}])
    for where in ({"page": {"$lt": 4}}, {"text": "words"}, {"yes": True}, {"date": "2024-02-29"}):
        assert [d.page_content for d in store.similarity_search("x", filter=where)] == ["rich"], where
    assert [d.page_content for d in store.similarity_search("x", filter={"source": "b.md"})] == ["other"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"bad": {1, 2}}, "metadata key 'bad': a value of type set cannot be stored"),
        ({"bad": b"x"}, "metadata key 'bad': a value of type bytes cannot be stored"),
        ({"bad": Path("x")}, "metadata key 'bad': a value of type .*Path cannot be stored"),
        ({"bad": pd.NaT}, "metadata key 'bad': NaT cannot be stored"),
        ({"bad": {"deep": [pd.NaT]}}, r"metadata key 'bad'\['deep'\]\[0\]: NaT cannot be stored"),
        ({"bad": float("nan")}, "metadata key 'bad': nan cannot be stored"),
        ({"bad": [{"deep": object()}]}, r"metadata key 'bad'\[0\]\['deep'\]: a value of type object cannot be stored"),
        ({"bad": "\ud800"}, "metadata key 'bad' is not valid Unicode"),
        ({3: "x"}, "metadata key 3: keys must be str, not int"),
        ({"bad": {3: "x"}}, r"metadata key 'bad'\[3\]: keys must be str"),
        ({"abc:bad": "x"}, "metadata key 'abc:bad': keys starting with .* are reserved"),
        ({"langchain:metadata": "{}"}, "metadata key 'langchain:metadata': .* reserved"),
        ({"bad": {"abc:date": "x"}}, r"metadata key 'bad'\['abc:date'\]: .* reserved"),
    ],
)
async def test_metadata_that_would_not_come_back_are_refused_before_anything_is_stored(
    metadata: dict[Any, Any], message: str, store: ABCVectorStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"document 1 \(id 'second'\): " + message):
        store.add_texts(["a", "b"], [{"fine": 1}, metadata], ids=["first", "second"])
    with pytest.raises(InputError, match="document 1: " + message):
        await store.aadd_texts(["a", "b"], [{"fine": 1}, metadata])
    with pytest.raises(InputError, match="picture 1: " + message):
        store.add_images([square(tmp_path, "red"), square(tmp_path, "blue")], [{"fine": 1}, metadata])
    assert store.store.count() == 0


def test_metadata_within_itself_are_refused(store: ABCVectorStore) -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(InputError, match="nested more than 50 deep"):
        store.add_texts(["a"], [{"ring": ring}])


def test_a_text_s_source_is_the_record_s_too(store: ABCVectorStore) -> None:
    [id_] = store.add_texts(["a"], [{"source": "a.md"}])
    assert store.store.get([id_])[0].source == "a.md"
    assert store.get_by_ids([id_])[0].metadata == {"source": "a.md"}
    [id_] = store.add_texts(["a"], [{"source": ["a.md", 3]}])
    assert store.get_by_ids([id_])[0].metadata == {"source": ["a.md", 3]}


def test_a_user_s_own_keys_are_not_clobbered(store: ABCVectorStore, tmp_path: Path) -> None:
    path = square(tmp_path, "red")
    [id_] = store.add_images([path], [{"source": "flickr", "modality": "photo"}])
    metadata = store.get_by_ids([id_])[0].metadata
    assert metadata["source"] == "flickr"
    assert metadata["modality"] == "photo"
    assert metadata["abc:source"] == path
    assert metadata["abc:modality"] == "image"


# --- Pictures ---------------------------------------------------------------------------------------------


def test_texts_and_pictures_in_one_collection(mini: ABCEmbeddings, scenes: dict[str, str]) -> None:
    with ABCVectorStore(mini) as store:
        store.add_images(list(scenes.values()), metadatas=[{"name": name} for name in scenes], captions=["", "a", ""])
        store.add_texts(["a guide to the guitar", "everything about trees"])
        question = "a big dog to the left of a small pizza on a blue background"
        assert store.similarity_search(question, k=1)[0].metadata["name"] == "dog"
        assert {d.metadata.get("name") for d in store.similarity_search(question, k=9)} == {*scenes, None}
        assert store.similarity_search("a guitar", k=1, modality="text")[0].page_content == "a guide to the guitar"
        assert store.similarity_search_by_image(scenes["crab"], k=1)[0].metadata["name"] == "crab"
        # The instruction decides what of the picture counts.
        plant = store.similarity_search_by_image(scenes["car"], 1, instruction="which plant is it?", modality="text")
        assert plant[0].page_content == "everything about trees"
        below = store.similarity_search_by_image(
            scenes["crab"], 1, instruction="what is at the bottom?", modality="text"
        )
        assert below[0].page_content == "a guide to the guitar"


def test_a_picture_s_document_is_a_caption_or_a_source_never_its_bytes(store: ABCVectorStore, tmp_path: Path) -> None:
    paths = [square(tmp_path, "red"), square(tmp_path, "blue", "jpg")]
    ids = store.add_images(paths, captions=["a red square", ""], metadatas=[{"n": 1}, {"n": 2}])
    red, blue = store.get_by_ids(ids)
    assert red.page_content == "a red square"
    assert blue.page_content == paths[1]
    assert {key: blue.metadata[key] for key in ("source", "source_type", "modality", "mime_type", "n")} == {
        "source": paths[1],
        "source_type": "path",
        "modality": "image",
        "mime_type": "image/jpeg",
        "n": 2,
    }
    assert len(blue.metadata["sha256"]) == 64
    # Without a caption it is found all the same.
    assert {d.id for d in store.similarity_search("anything", k=2)} == set(ids)


@pytest.mark.parametrize("is_async", [False, True])
async def test_pictures_from_every_source(is_async: bool, store: ABCVectorStore, tmp_path: Path) -> None:
    import base64

    path = Path(square(tmp_path, "red"))
    data = Path(square(tmp_path, "blue")).read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(Path(square(tmp_path, "green")).read_bytes()).decode()
    images = [path, data, DataURI(uri), PIL.Image.new("RGB", (9, 9), "white")]
    ids = await store.aadd_images(images) if is_async else store.add_images(images)
    found = store.get_by_ids(ids)
    assert [d.metadata.get("source") for d in found] == [str(path), None, None, None]
    assert [d.page_content for d in found] == [str(path), "", "", ""]
    for image, id_ in zip(images, ids, strict=True):
        assert store.similarity_search_by_image(image, k=1)[0].id == id_
    kept = store.get_by_ids(store.add_images(images, ids=["1", "2", "3", "4"], keep=True))
    assert all(Path(d.metadata["source"]).is_file() for d in kept)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_bad_picture_costs_the_others_nothing(is_async: bool, store: ABCVectorStore, tmp_path: Path) -> None:
    good = [Path(square(tmp_path, "red")).read_bytes() + bytes([i // 256, i % 256]) for i in range(70)]
    images = [*good[:2], str(tmp_path / "gone.png"), *good[2:69], URL("https://example.com/a.png"), good[69]]
    names = [f"{i}" for i in range(len(images))]
    given: dict[str, Any] = {"ids": names, "captions": names, "metadatas": [{"n": n} for n in names]}
    with pytest.raises(PartialIndexError) as raised:
        await store.aadd_images(images, **given) if is_async else store.add_images(images, **given)
    assert [position for position, _ in raised.value.failed] == [2, 70]
    assert "gone.png" in str(raised.value.failed[0][1])
    assert "allow_urls" in str(raised.value.failed[1][1])
    stored = [name for name in names if name not in ("2", "70")]
    assert [id_ for id_ in raised.value.ids if id_ is not None] == stored
    assert [(d.id, d.page_content, d.metadata["n"]) for d in store.get_by_ids(names)] == [(n, n, n) for n in stored]


def test_facets_find_pictures_and_decide_variety(store: ABCVectorStore, tmp_path: Path) -> None:
    red, blue = square(tmp_path, "red"), square(tmp_path, "blue")
    ids = store.add_images([red, blue], facets=["which colour"])
    [asked] = store.embeddings.embed_image(uris=[red], instruction="which colour")  # type: ignore[attr-defined]
    assert store.similarity_search_by_vector_with_score(asked, k=1)[0][1] == pytest.approx(1, abs=1e-5)
    assert store.max_marginal_relevance_search_by_vector(asked, k=1)[0].id == ids[0]
    assert set(store._vectors(store.store.search(asked, 2))) == set(ids)
    assert np.allclose(store._vectors(store.store.search(asked, 1))[ids[0]], asked, atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.add_images([b"x"]),
        lambda store: store.similarity_search_by_image(b"x"),
        lambda store: store.max_marginal_relevance_search_by_image(b"x"),
        lambda store: store.as_instruction_retriever(),
    ],
)
def test_embeddings_that_embed_no_pictures_say_so(call: Callable[[ABCVectorStore], object]) -> None:
    with (
        ABCVectorStore(DeterministicFakeEmbedding(size=4)) as store,
        pytest.raises(ValueError, match="DeterministicFakeEmbedding embeds no pictures; use ABCEmbeddings"),
    ):
        call(store)


def test_a_picture_that_is_asked_with_must_be_one(mini: ABCEmbeddings) -> None:
    with ABCVectorStore(mini) as store:
        with pytest.raises(ImageError, match="URL"):
            store.similarity_search_by_image("https://example.com/a.png")
        with pytest.raises(InputError, match="not int"):
            store.similarity_search_by_image(3)  # type: ignore[arg-type]


# --- Scores and variety -----------------------------------------------------------------------------------


async def test_scores_are_relevance_scores_and_are_not_distorted(store: ABCVectorStore) -> None:
    texts = ["a red rose", "a rose", "the car"]
    store.add_texts(texts)
    vectors = dict(zip(texts, store.embeddings.embed_documents(texts), strict=True))
    asked = np.array(store.embeddings.embed_query("a red rose"))
    scored = store.similarity_search_with_score("a red rose", k=3)
    assert [d.page_content for d, _ in scored] == texts
    for document, score in scored:
        assert score == pytest.approx((1 + asked @ np.array(vectors[document.page_content])) / 2, abs=1e-5)
    assert store.similarity_search_with_relevance_scores("a red rose", k=3) == scored
    assert await store.asimilarity_search_with_relevance_scores("a red rose", k=3) == scored
    assert store.similarity_search_by_vector_with_score(asked.tolist(), k=3) == scored
    # The nearest is at most 1 and an opposite at least 0, where others warn of scores below.
    assert scored[0][1] == pytest.approx(1, abs=1e-5)
    [(_, lowest)] = store.similarity_search_by_vector_with_score((-asked).tolist(), filter=None, k=3)[-1:]
    assert 0 <= lowest < 0.01
    least = (scored[0][1] + scored[1][1]) / 2
    assert store.similarity_search_with_relevance_scores("a red rose", score_threshold=least) == scored[:1]


class Planar(DeterministicFakeEmbedding):
    """Texts that are angles, in degrees, as vectors of the plane."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(np.cos(np.radians(float(t)))), float(np.sin(np.radians(float(t))))] for t in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.fixture
def angles() -> Iterator[ABCVectorStore]:
    with ABCVectorStore(Planar(size=2)) as made:
        made.add_texts(["10", "11", "12", "-60", "170"])
        yield made


async def test_mmr_in_the_order_of_choice_and_not_of_similarity(angles: ABCVectorStore) -> None:
    def contents(documents: list[Document]) -> list[str]:
        return [d.page_content for d in documents]

    assert contents(angles.similarity_search("0", k=4)) == ["10", "11", "12", "-60"]
    # The second is far from the first; the third is nearer to the question than the second.
    assert contents(angles.max_marginal_relevance_search("0", k=3, fetch_k=4)) == ["10", "-60", "11"]
    assert contents(await angles.amax_marginal_relevance_search("0", k=3, fetch_k=4)) == ["10", "-60", "11"]
    assert contents(angles.max_marginal_relevance_search_by_vector([1.0, 0.0], k=3, fetch_k=4)) == ["10", "-60", "11"]
    assert contents(angles.max_marginal_relevance_search("0", k=3, lambda_mult=1)) == ["10", "11", "12"]
    assert contents(angles.max_marginal_relevance_search("0", k=2, fetch_k=9, lambda_mult=0)) == ["10", "170"]
    # Fewer than k are never chosen from, and more than there are is no error.
    assert len(angles.max_marginal_relevance_search("0", k=4, fetch_k=1)) == 4
    assert len(angles.max_marginal_relevance_search("0", k=100, fetch_k=1)) == 5


def test_mmr_by_image_and_with_a_filter(store: ABCVectorStore, tmp_path: Path) -> None:
    paths = [square(tmp_path, colour) for colour in ("red", "blue", "green")]
    ids = store.add_images(paths, [{"n": n} for n in range(3)])
    store.add_texts(["a text"], [{"n": 0}])
    assert store.max_marginal_relevance_search_by_image(paths[1], k=1)[0].id == ids[1]
    found = store.max_marginal_relevance_search_by_image(paths[1], filter={"n": {"$lt": 2}}, modality="image")
    assert [d.id for d in found] == [ids[1], ids[0]]
    found = store.max_marginal_relevance_search("x", filter={"n": 0}, modality="text")
    assert [d.page_content for d in found] == ["a text"]


async def test_every_kind_of_retriever(angles: ABCVectorStore) -> None:
    for kind, settings, wanted in (
        ("similarity", {"k": 2}, ["10", "11"]),
        ("mmr", {"k": 2, "fetch_k": 4}, ["10", "-60"]),
        ("similarity_score_threshold", {"score_threshold": 0.98, "k": 9}, ["10", "11", "12"]),
    ):
        retriever = angles.as_retriever(search_type=kind, search_kwargs=settings)
        assert [d.page_content for d in retriever.invoke("0")] == wanted
        assert [d.page_content for d in await retriever.ainvoke("0")] == wanted
        assert retriever.tags == ["ABCVectorStore", "Planar"]
    assert [d.page_content for d in angles.search("0", "mmr", k=2, fetch_k=4)] == ["10", "-60"]


# --- Async ------------------------------------------------------------------------------------------------


class Refusing(ThreadPoolExecutor):
    """A shared pool that nothing may use."""

    def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        raise AssertionError("the loop's shared pool was used")


class Watched(DeterministicFakeEmbedding):
    """Embeddings without async twins of their own, which note where they are called."""

    threads: list[str] = []  # noqa: RUF012

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.threads.append(threading.current_thread().name)
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self.threads.append(threading.current_thread().name)
        return super().embed_query(text)


def test_every_async_twin_is_overridden() -> None:
    # These build only on others of this list.
    composed = {"asearch", "asimilarity_search_with_relevance_scores", "aadd_documents", "afrom_documents"}
    twins = {
        name for name, _ in inspect.getmembers(VectorStore, inspect.iscoroutinefunction) if not name.startswith("_")
    }
    inherited = {name for name in twins if getattr(ABCVectorStore, name) == getattr(VectorStore, name)}
    inherited |= {
        name
        for name in ("afrom_texts", "afrom_documents")
        if getattr(ABCVectorStore, name).__func__ is getattr(VectorStore, name).__func__
    }
    assert inherited <= composed
    assert composed <= {*twins, "afrom_documents"}


async def test_async_uses_neither_the_loop_s_thread_nor_its_pool(tmp_path: Path) -> None:
    asyncio.get_running_loop().set_default_executor(Refusing())
    embeddings = Watched(size=4)
    store = await ABCVectorStore.afrom_texts(["a", "b"], embeddings, [{"n": 1}, {"n": 2}], ids=["1", "2"])
    await store.aadd_texts(["c"])
    await store.aadd_documents([Document("d")])
    vector = embeddings.embed_query("a")
    del embeddings.threads[-1]
    assert len(await store.asimilarity_search("a", k=1, filter={"n": 1})) == 1
    assert len(await store.asimilarity_search_with_score("a")) == 4
    assert len(await store.asimilarity_search_with_relevance_scores("a")) == 4
    assert len(await store.asimilarity_search_by_vector(vector)) == 4
    assert len(await store.asimilarity_search_by_vector_with_score(vector)) == 4
    assert len(await store.amax_marginal_relevance_search("a")) == 4
    assert len(await store.amax_marginal_relevance_search_by_vector(vector)) == 4
    assert len(await store.asearch("a", "mmr")) == 4
    assert [d.id for d in await store.aget_by_ids(["2", "1"])] == ["2", "1"]
    assert await store.adelete() is True
    assert len(embeddings.threads) == 8
    assert {name.rpartition("_")[0] for name in embeddings.threads} == {"langchain-abc-store"}
    assert len(set(embeddings.threads)) == 1
    store.close()

    faked = await ABCVectorStore.afrom_documents([Document("a", id="1")], FakedEmbeddings())
    [id_] = await faked.aadd_images([square(tmp_path, "red")])
    assert [d.id for d in await faked.asimilarity_search("a", k=1)] == ["1"]
    for found in (
        await faked.asimilarity_search_by_image(square(tmp_path, "red"), 1),
        await faked.amax_marginal_relevance_search_by_image(square(tmp_path, "red"), 1),
        [d for d, _ in await faked.asimilarity_search_by_image_with_score(square(tmp_path, "red"), 1)],
    ):
        assert [d.id for d in found] == [id_]
    faked.close()


class Native(DeterministicFakeEmbedding):
    """Embeddings with async twins of their own, such as those of a service."""

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(f"{text}, asked asynchronously")

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents([f"{text}, stored asynchronously" for text in texts])


async def test_embeddings_own_async_twins_are_used() -> None:
    embeddings = Native(size=8)
    with ABCVectorStore(embeddings) as store:
        await store.aadd_texts(["a"], ids=["1"])
        wanted = np.array(embeddings.embed_query("a, stored asynchronously"))
        assert np.allclose(store.store.vectors(["1"])["1"], wanted / np.linalg.norm(wanted), atol=1e-5)
        asked = np.array(embeddings.embed_query("a, asked asynchronously"))
        cosine = asked @ wanted / np.linalg.norm(asked) / np.linalg.norm(wanted)
        assert (await store.asimilarity_search_with_score("a"))[0][1] == pytest.approx((1 + cosine) / 2, abs=1e-5)


class Gated(FakeEmbedder):
    """Says when it has begun, and waits to be let on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.on = threading.Semaphore(0)
        self.sizes: list[int] = []

    def _embed(self, inputs: list[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:  # type: ignore[override]
        self.sizes.append(len(inputs))
        self.begun.release()
        self.on.acquire()
        return super()._embed(inputs, batch_size=batch_size, progress=progress)


class GatedEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return Gated()


@pytest.mark.parametrize("kind", ["texts", "images"])
async def test_adding_much_can_be_cancelled_between_parts(kind: str, tmp_path: Path) -> None:
    embeddings = GatedEmbeddings()
    gate = embeddings.embedder
    assert isinstance(gate, Gated)
    picture = Path(square(tmp_path, "red")).read_bytes()
    with ABCVectorStore(embeddings) as store:
        if kind == "texts":
            adding = asyncio.ensure_future(store.aadd_texts([str(i) for i in range(600)]))
        else:
            adding = asyncio.ensure_future(store.aadd_images([picture + bytes([i]) for i in range(200)]))
        await asyncio.to_thread(gate.begun.acquire)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        gate.on.release(100)
        # Whatever had been waiting in line would come before this.
        await store.aget_by_ids(["x"])
        await embeddings.aembed_query("x")
        assert gate.sizes == [256 if kind == "texts" else 64, 1]


# --- Which store ------------------------------------------------------------------------------------------


class Unloadable(FakeEmbedder):
    @property
    def fingerprint(self) -> Any:
        raise AssertionError("the model was loaded")


class UnloadableEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return Unloadable()


def test_making_one_loads_no_model_and_touches_no_disk(tmp_path: Path) -> None:
    ABCVectorStore(UnloadableEmbeddings(), path=tmp_path / "new").close()
    assert not (tmp_path / "new").exists()


async def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    with ABCVectorStore(FakedEmbeddings(model="one"), path=tmp_path) as store:
        store.add_texts(["a"])
    with ABCVectorStore(FakedEmbeddings(model="one"), path=tmp_path) as store:
        assert len(store.similarity_search("a")) == 1
    others = (FakedEmbeddings(model="two"), DeterministicFakeEmbedding(size=32))
    for other in others:
        with ABCVectorStore(other, path=tmp_path) as store:
            for call in (lambda: store.add_texts(["b"]), lambda: store.similarity_search("a"), lambda: store.delete()):
                with pytest.raises(FingerprintMismatchError, match=r"one@.* cannot be compared with"):
                    call()
            with pytest.raises(FingerprintMismatchError):
                await store.asimilarity_search("a")
    with ABCVectorStore(FakedEmbeddings(model="one"), path=tmp_path) as store:
        assert store.store.count() == 1


def test_another_resolution_is_another_model(tmp_path: Path, mini: ABCEmbeddings) -> None:
    with ABCVectorStore(mini, path=tmp_path) as store:
        store.add_texts(["a dog"])
    again = ABCEmbeddings.model_validate_json(mini.model_dump_json())
    with ABCVectorStore(again, path=tmp_path) as store:
        assert len(store.similarity_search("a dog")) == 1
    finer = mini.model_copy(update={"max_tokens": 16})
    with ABCVectorStore(finer, path=tmp_path) as store, pytest.raises(FingerprintMismatchError):
        store.similarity_search("a dog")


def test_a_store_that_was_opened_elsewhere(tmp_path: Path) -> None:
    embeddings = FakedEmbeddings()
    fingerprint = embeddings.embedder.fingerprint
    with ChromaStore(tmp_path, fingerprint=fingerprint) as opened:
        store = ABCVectorStore(embeddings, store=opened)
        store.add_texts(["a"])
        assert store.store is opened
        store.close()
        assert opened.count() == 1  # whoever opened it closes it
        with pytest.raises(FingerprintMismatchError, match="do not say of what model"):
            ABCVectorStore(DeterministicFakeEmbedding(size=32), store=opened).similarity_search("a")
        with pytest.raises(FingerprintMismatchError, match="another@"):
            ABCVectorStore(FakedEmbeddings(model="another"), store=opened).similarity_search("a")
    with (
        ChromaStore(tmp_path, collection="unbound") as unbound,
        pytest.raises(InputError, match=r"bound to no model.*fingerprint=embeddings.embedder.fingerprint"),
    ):
        ABCVectorStore(embeddings, store=unbound).add_texts(["a"])


async def test_a_reduced_store_takes_and_finds_what_is_projected(tmp_path: Path) -> None:
    embeddings = FakedEmbeddings()
    with ABCVectorStore(embeddings, path=tmp_path / "whole") as whole:
        whole.add_texts([f"passage {n} of {n * n}" for n in range(40)])
        short = reduced(whole.store, tmp_path / "short", 8)
    PIL.Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    with ABCVectorStore(embeddings, path=short) as store:
        assert len(store.embeddings.embed_query("a")) == 32
        await store.aadd_documents([Document("a tram in the rain")])
        store.add_images([tmp_path / "red.png"], facets=["which colour?"])
        assert (store.store.dim, store.store.count()) == (8, 42)
        for query in ("passage 7 of 49", "a tram in the rain"):
            ((document, score),) = await store.asimilarity_search_with_score(query, k=1)
            assert (document.page_content, score) == (query, pytest.approx(1.0, abs=1e-5))
            for found in (
                store.similarity_search_by_vector(embeddings.embed_query(query), k=1),
                store.max_marginal_relevance_search(query, k=1),
                store.as_instruction_retriever(k=1, keywords=False).invoke(query),
            ):
                assert [one.page_content for one in found] == [query]
        (picture,) = store.similarity_search_by_image(tmp_path / "red.png", k=1)
        assert picture.metadata["modality"] == "image"
    with open_store(short) as opened:
        assert len(ABCVectorStore(embeddings, store=opened).similarity_search("a tram", k=3)) == 3
        for other in (FakedEmbeddings(model="other"), DeterministicFakeEmbedding(size=32)):
            for settings in ({"store": opened}, {"path": short}):
                with (
                    ABCVectorStore(other, **settings) as store,
                    pytest.raises(FingerprintMismatchError, match=r"fake@.* cannot be compared with"),
                ):
                    store.similarity_search("a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "url": "http://localhost:1"}, "at most one of path"),
        ({"path": "a", "headers": {"a": "b"}}, "headers are for a server"),
    ],
)
def test_contradictory_places_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ABCVectorStore(FakedEmbeddings(), **settings)
    with pytest.raises(InputError, match="embedding must be LangChain embeddings"):
        ABCVectorStore("abc-mini")  # type: ignore[arg-type]


def joined(name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join()


def test_a_temporary_store_goes_with_its_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = ABCVectorStore(FakedEmbeddings())
    assert list(tmp_path.iterdir()) == []
    store.add_texts(["a"])
    assert len(list(tmp_path.iterdir())) == 1
    del store
    gc.collect()
    joined("langchain-abc-close")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_store_goes_with_its_process(tmp_path: Path) -> None:
    program = """
from langchain_abc import ABCVectorStore
from langchain_core.embeddings import DeterministicFakeEmbedding
store = ABCVectorStore.from_texts(["a"], DeterministicFakeEmbedding(size=4))
ring = [store]
ring.append(ring)
import os, tempfile
print(len(os.listdir(tempfile.gettempdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_gone_gives_its_place_back(tmp_path: Path) -> None:
    store = ABCVectorStore(FakedEmbeddings(), path=tmp_path)
    store.add_texts(["a"])
    assert '"pid"' in (tmp_path / "abc-writer.json").read_text()
    del store
    gc.collect()
    joined("langchain-abc-close")
    assert '"pid"' not in (tmp_path / "abc-writer.json").read_text()


def test_a_closed_store_says_so(store: ABCVectorStore) -> None:
    store.add_texts(["a"])
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.similarity_search("a")


def test_what_the_command_line_stored_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from abc_rag.ingest.paths import index_paths

    (tmp_path / "notes.md").write_text("A rose has thorns.")
    embeddings = FakedEmbeddings()
    with ChromaStore(tmp_path / "store", fingerprint=embeddings.embedder.fingerprint) as opened:
        index_paths([tmp_path / "notes.md", square(tmp_path, "red")], embeddings.embedder, opened)
        caplog.set_level(logging.WARNING)
        found = ABCVectorStore(embeddings, store=opened).similarity_search("a rose has thorns", k=2)
    assert found[0].page_content == "A rose has thorns."
    assert found[0].metadata["source"] == str(tmp_path / "notes.md")
    assert found[1].metadata["source"] == str(tmp_path / "red.png")
    assert not caplog.records


# --- Folders, other people's names, and places in errors ----------------------------------------------------


async def test_folders_are_indexed(store: ABCVectorStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    square(tmp_path / "in", "red")
    square(tmp_path / "in" / "deep", "blue")
    (tmp_path / "in" / "words.txt").write_text("some words")
    report = store.index_paths([tmp_path / "in"], exclude=["deep"])
    assert (report.added, report.failed) == (2, [])
    assert (await store.aindex_paths([tmp_path / "in"])).added == 1
    (tmp_path / "in" / "words.txt").unlink()
    assert store.index_paths([tmp_path / "in"], prune=True).removed == 1
    with (
        ABCVectorStore(DeterministicFakeEmbedding(size=8)) as plain,
        pytest.raises(InputError, match="embeds no pictures"),
    ):
        plain.index_paths([tmp_path / "in"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("persist_directory", "'persist_directory'; here it is called 'path'"),
        ("collection_name", "'collection_name'; here it is called 'collection'"),
        ("embedding_function", "'embedding_function'; here it is called 'embedding'"),
        ("folder", "'folder'$"),
    ],
)
def test_names_of_other_stores_are_answered_with_ours(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword {meant}"):
        ABCVectorStore(FakedEmbeddings(), **{name: "x"})
    with pytest.raises(TypeError, match=f"unexpected keyword {meant}"):
        ABCVectorStore.from_texts(["a"], FakedEmbeddings(), **{name: "x"})


async def test_an_error_about_one_text_names_its_place_in_the_call() -> None:
    class Choosy(FakeEmbedder):
        def _embed(self, inputs: Any, *, batch_size: BatchSize, progress: bool) -> Vectors:
            for position, one in enumerate(inputs):
                if one.text == "bad":
                    raise InputError("too bad").at(position)
            return super()._embed(inputs, batch_size=batch_size, progress=progress)

    class ChoosyEmbeddings(FakedEmbeddings):
        def _load(self) -> Embedder:
            return Choosy(dim=32, model=self.model)

    with ABCVectorStore(ChoosyEmbeddings()) as store:
        store.add_texts([f"text {n}" for n in range(5)])
        texts = [*(f"text {n}" for n in range(9)), "bad"]
        for ids in (None, [f"id-{n}" for n in range(10)]):
            with pytest.raises(InputError, match=r"^document 9 \(id '(text-|id-9).*'\): too bad"):
                store.add_texts(texts, ids=ids, batch_size=2)
            with pytest.raises(InputError, match=r"^document 9 \(id '(text-|id-9).*'\): too bad"):
                await store.aadd_texts(texts, ids=ids, batch_size=2)


# -- words beside vectors ------------------------------------------------------------------------

PARTS = ["an engine", "the MX-4471-B bolt", "a diesel engine", "the oil filter", "a filter for oil"]


def contents(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


async def test_words_are_searched_for_where_they_are_asked_for(store: ABCVectorStore) -> None:
    store.add_texts(PARTS)
    plain = contents(store.similarity_search("MX-4471-B", k=5))
    assert contents(store.similarity_search("MX-4471-B", k=5, keywords="auto"))[0] == PARTS[1]
    assert contents(store.similarity_search("MX-4471-B", k=5, keywords=False)) == plain
    assert contents(store.similarity_search('"oil filter"', k=5, keywords=True)) == [PARTS[3]]
    assert set(contents(store.similarity_search("engine -diesel -bolt", k=5, keywords="auto"))) == {
        PARTS[0],
        PARTS[3],
        PARTS[4],
    }
    for question in ("MX-4471-B", '"oil filter"', "engine -diesel"):
        scored = store.similarity_search_with_score(question, k=3, keywords=True)
        assert await store.asimilarity_search_with_score(question, k=3, keywords=True) == scored
        assert await store.asimilarity_search(question, k=3, keywords=True) == [document for document, _ in scored]
    retriever = store.as_retriever(search_kwargs={"k": 1, "keywords": True})
    assert contents(retriever.invoke("diesel")) == [PARTS[2]]


async def test_a_retriever_finds_by_words_unless_told_not_to(store: ABCVectorStore) -> None:
    store.add_texts(PARTS)
    retriever = store.as_instruction_retriever(k=5, trace=True)
    found = retriever.invoke("MX-4471-B")
    assert (found[0].page_content, found[0].metadata["rank_by_words"]) == (PARTS[1], 1)
    assert found[1].metadata["rank_by_words"] is None
    assert contents(await retriever.ainvoke("MX-4471-B")) == contents(found)
    assert len(retriever.invoke("engine -diesel")) == 4
    assert len(retriever.invoke("engine -diesel", keywords=False)) == 5
