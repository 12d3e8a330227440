"""InstructionRetriever: questions, pictures and both, over stores that LlamaIndex, the command line or both filled."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage, CompletionResponse, ImageBlock, MockLLM, TextBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import ImageDocument, ImageNode, IndexNode, MetadataMode, QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc import InstructionRetriever, llm_rewriter
from llama_index.vector_stores.abc import ABCMultiModalIndex, ABCVectorStore
from pdf_helpers import manual
from pydantic import PrivateAttr
from store_helpers import reduced

import abc_rag
from abc_rag import ChromaStore, Record
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, ImageFetchError, InputError
from abc_rag.ingest.paths import index_paths
from abc_rag.search import projected
from abc_rag.search.rewriting.llm import LLMRewriter
from abc_rag.search.rewriting.rewriter import AsAsked, Rewrite, Rewriter
from abc_rag.store import open_store

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
LEFT = "what is on the left?"


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture
def store(tmp_path: Path, embed_model: ABCEmbeddings) -> Iterator[ChromaStore]:
    with ChromaStore(tmp_path / "store", fingerprint=embed_model.embedder.fingerprint) as opened:
        yield opened


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, embed_model: ABCEmbeddings) -> Iterator[ChromaStore]:
    nodes: list[Any] = [
        ImageNode(id_="pig", image_path=str(PIG), text="my uncle at the county fair", metadata={"year": 2020}),
        ImageNode(id_="rose", image_path=str(ROSE), metadata={"year": 2021}),
        ImageDocument(id_="crab", image_path=str(CRAB), text="a postcard"),
        TextNode(id_="mud", text="A pig rolls in mud to stay cool.", metadata={"year": 2021}),
        TextNode(id_="thorns", text="A rose has thorns.", metadata={"year": 2022}),
        TextNode(id_="uncle", text="The uncle is a brother of a parent."),
    ]
    for node in nodes:
        node.excluded_embed_metadata_keys = ["year"]  # LlamaIndex would embed it as part of the text
    with ChromaStore(tmp_path_factory.mktemp("filled"), fingerprint=embed_model.embedder.fingerprint) as opened:
        ABCMultiModalIndex(nodes, embed_model=embed_model, store=opened)
        yield opened


ALL = {"pig", "rose", "crab", "mud", "thorns", "uncle"}


def ids(found: list[Any]) -> list[str]:
    return [one.node.node_id for one in found]


class Means(Rewriter):
    """Says what every question means."""

    def __init__(self, instruction: str, target: str, wants: str) -> None:
        self.rewritten = Rewrite(instruction, target, wants)  # type: ignore[arg-type]

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        return self.rewritten


# --- Asking -----------------------------------------------------------------------------------------------


def test_a_question_a_picture_and_both(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    settings: dict[str, Any] = {"rewriter": AsAsked(), "rerank": False, "keywords": False, "similarity_top_k": 9}
    retriever = InstructionRetriever(embed_model, filled, **settings)
    embedder = embed_model.embedder
    for query, vector in (
        ("a rose", embedder.embed_texts(["a rose"])[0]),
        (QueryBundle(LEFT, image_path=str(PIG)), embedder.embed_images([PIG], instruction=LEFT)[0]),
        (QueryBundle("", image_path=str(PIG)), embedder.embed_images([PIG])[0]),
        (QueryBundle("  ", image_path=str(PIG)), embedder.embed_images([PIG])[0]),
    ):
        best: dict[str, float] = {}
        for hit in filled.search(vector, k=20):
            best.setdefault(hit.id.partition(":")[2], hit.score)
        found = retriever.retrieve(query)
        assert ids(found) == list(best)
        assert [one.score for one in found] == pytest.approx(list(best.values()))
    passages = InstructionRetriever(embed_model, filled, modality="text", similarity_top_k=1)
    assert ids(passages.retrieve(QueryBundle("which animal is it?", image_path=str(PIG)))) == ["mud"]


def test_a_captioned_picture_is_one_hit_and_takes_no_others_place(
    embed_model: ABCEmbeddings, filled: ChromaStore
) -> None:
    for k in range(1, 8):
        retriever = InstructionRetriever(embed_model, filled, rewriter=AsAsked(), similarity_top_k=k)
        found = retriever.retrieve("my uncle at the county fair")
        assert len(found) == len(set(ids(found))) == min(k, len(ALL))
        assert ids(found)[0] == "pig"
        assert found[0].score == pytest.approx(1.0, abs=1e-4)  # the caption's, not the picture's


def test_nodes_come_back_as_what_they_were(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    found = InstructionRetriever(embed_model, filled, rewriter=AsAsked(), similarity_top_k=9).retrieve("a pig")
    nodes: dict[str, Any] = {one.node.node_id: one.node for one in found}
    kinds = {"pig": ImageNode, "rose": ImageNode, "crab": ImageDocument}
    assert {name: type(node) for name, node in nodes.items()} == dict.fromkeys(ALL, TextNode) | kinds
    assert (nodes["pig"].image_path, nodes["pig"].text) == (str(PIG), "my uncle at the county fair")
    assert nodes["pig"].metadata == {"year": 2020}
    assert (nodes["crab"].image_path, nodes["crab"].text) == (str(CRAB), "a postcard")


def test_pictures_are_found_by_their_captions_where_pictures_are_wanted(
    embed_model: ABCEmbeddings, filled: ChromaStore
) -> None:
    wanted = Means("look at the whole picture", "my uncle at the county fair", "image")
    for retriever in (
        InstructionRetriever(embed_model, filled, rewriter=wanted, similarity_top_k=9),
        InstructionRetriever(embed_model, filled, rewriter=AsAsked(), modality="image", similarity_top_k=9),
    ):
        found = retriever.retrieve("my uncle at the county fair")
        assert found[0].node.node_id == "pig"
        assert found[0].score == pytest.approx(1.0, abs=1e-4)
        assert set(ids(found)) == {"pig", "rose", "crab"}
    texts = InstructionRetriever(embed_model, filled, rewriter=AsAsked(), modality="text", similarity_top_k=9)
    assert set(ids(texts.retrieve("my uncle"))) == {"mud", "thorns", "uncle"}


def test_where_there_is_none_of_what_is_wanted_the_rest_is_searched(
    embed_model: ABCEmbeddings, store: ChromaStore
) -> None:
    ABCMultiModalIndex([TextNode(id_="only", text="mud")], embed_model=embed_model, store=store)
    wanted = Means("look at the whole picture", "a pig", "image")
    assert ids(InstructionRetriever(embed_model, store, rewriter=wanted).retrieve("a pig")) == ["only"]
    assert InstructionRetriever(embed_model, store, modality="image").retrieve("a pig") == []
    index_paths([PIG], embed_model.embedder, store)
    # There are pictures now, none of them good enough: that is an answer.
    strict = InstructionRetriever(embed_model, store, rewriter=wanted, min_score=0.999)
    assert strict.retrieve("a pig") == []


def test_the_second_look(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    means = Means(LEFT, "a pig", "image")
    settings: dict[str, Any] = {"rewriter": means, "similarity_top_k": 3, "trace": True}
    looked = InstructionRetriever(embed_model, filled, **settings).retrieve("q")
    traces = {one.node.node_id: one.metadata["abc_trace"] for one in looked}
    embedder = embed_model.embedder
    for name, path in (("pig", PIG), ("rose", ROSE)):
        under = embedder.embed_images([path], instruction=LEFT)[0] @ embedder.embed_texts(["a pig"])[0]
        assert traces[name]["second"] == pytest.approx((1 + under) / 2, abs=1e-4)
        assert traces[name]["instruction"] == LEFT
    plain = InstructionRetriever(embed_model, filled, rerank=False, **settings).retrieve("q")
    assert all(one.metadata["abc_trace"]["second"] is None for one in plain)
    whole = Means("Describe the picture.", "a pig", "any")
    always = InstructionRetriever(embed_model, filled, **settings | {"rewriter": whole, "rerank": True}).retrieve("q")
    assert any(one.metadata["abc_trace"]["second"] is not None for one in always)


def test_a_trace_is_hidden_from_models_and_absent_unasked(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    found = InstructionRetriever(embed_model, filled, trace=True).retrieve("a rose")
    for one in found:
        ranks = {"rank_by_vectors", "rank_by_words", "judged"}
        assert set(one.metadata["abc_trace"]) == {"instruction", "first", "second", "facet", "note"} | ranks
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert "abc_trace" not in one.node.get_content(mode)
            assert "abc_trace" not in one.node.get_metadata_str(mode)
    for one in InstructionRetriever(embed_model, filled).retrieve("a rose"):
        assert "abc_trace" not in one.metadata


def test_filters_thresholds_and_mmr(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    since = MetadataFilters(filters=[MetadataFilter(key="year", value=2021, operator=FilterOperator.GTE)])
    assert set(ids(InstructionRetriever(embed_model, filled, filters=since).retrieve("a rose"))) == {
        "rose", "mud", "thorns"
    }  # fmt: skip
    narrow = InstructionRetriever(embed_model, filled, filters=since, where={"year": {"$lt": 2022}})
    assert set(ids(narrow.retrieve("a rose"))) == {"rose", "mud"}
    sure = InstructionRetriever(embed_model, filled, rewriter=AsAsked(), min_score=0.99)
    assert ids(sure.retrieve("A rose has thorns.")) == ["thorns"]
    diverse = InstructionRetriever(embed_model, filled, rewriter=AsAsked(), mmr=0.0, similarity_top_k=6)
    assert set(ids(diverse.retrieve("A rose has thorns."))) == ALL
    assert ids(diverse.retrieve("a rose")) != ids(
        InstructionRetriever(embed_model, filled, rewriter=AsAsked(), similarity_top_k=6).retrieve("a rose")
    )


def test_index_nodes_lead_on(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    index = ABCMultiModalIndex([IndexNode(text="mud", index_id="there")], embed_model=embed_model, store=store)
    assert index is not None
    retriever = InstructionRetriever(embed_model, store)
    retriever.object_map = {"there": TextNode(id_="within", text="what is within")}
    assert ids(retriever.retrieve("mud")) == ["within"]


# --- What LlamaIndex did not store ------------------------------------------------------------------------


def test_what_the_command_line_indexed_is_found(embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path) -> None:
    (tmp_path / "pigs.txt").write_text("A pig rolls in mud.")
    index_paths([PIG, tmp_path / "pigs.txt"], embed_model.embedder, store)
    ABCMultiModalIndex([ImageNode(id_="rose", image_path=str(ROSE))], embed_model=embed_model, store=store)
    found: list[Any] = InstructionRetriever(embed_model, store).retrieve(QueryBundle("", image_path=str(PIG)))
    assert len(found) == 3
    assert (type(found[0].node), found[0].node.image_path, found[0].node.image_mimetype) == (
        ImageNode,
        str(PIG),
        "image/jpeg",
    )
    assert found[0].metadata["source"] == str(PIG)
    passage = next(one for one in found if type(one.node) is TextNode)
    assert (passage.text, passage.metadata["source"]) == ("A pig rolls in mud.", str(tmp_path / "pigs.txt"))


# --- Bad input and faults ---------------------------------------------------------------------------------


def test_bad_questions_are_refused(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    retriever = InstructionRetriever(embed_model, filled)
    for empty in ("", " ", QueryBundle(""), QueryBundle("", image_path="")):
        with pytest.raises(InputError, match="nothing to search for"):
            retriever.retrieve(empty)
    with pytest.raises(ImageFetchError, match=r"gone\.png"):
        retriever.retrieve(QueryBundle(LEFT, image_path="gone.png"))


def test_bad_settings_are_refused(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    for settings, message in (
        ({"similarity_top_k": 0}, "similarity_top_k must be"),
        ({"rewriter": AsAsked(), "llm": MockLLM()}, "not both"),
        ({"llm": "gpt"}, "must be a LlamaIndex LLM, not str"),
        ({"filters": MetadataFilters(filters=[MetadataFilter(key="a", value="b", operator=FilterOperator.TEXT_MATCH)])},
         "'text_match' on 'a' is not supported"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            InstructionRetriever(embed_model, filled, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be an ABCEmbeddings, not MockEmbedding"):
        InstructionRetriever(MockEmbedding(embed_dim=3), filled)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mmr must be"):
        InstructionRetriever(embed_model, filled, mmr=2).retrieve("a rose")


def test_an_empty_store_gives_nothing(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    retriever = InstructionRetriever(embed_model, store)
    assert retriever.retrieve("show me a photo of a rose") == []
    assert retriever.retrieve(QueryBundle("", image_path=str(PIG))) == []


def test_another_models_store_is_refused(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    fake = FakeEmbedder(dim=embed_model.embedder.dim)
    with ChromaStore(tmp_path, fingerprint=fake.fingerprint) as store:
        index_paths([PIG], fake, store)
    with ChromaStore(tmp_path) as store, pytest.raises(FingerprintMismatchError, match="fake"):
        InstructionRetriever(embed_model, store).retrieve("a pig")


def test_over_a_reduced_store_questions_and_new_nodes_are_projected(
    embed_model: ABCEmbeddings, filled: ChromaStore, tmp_path: Path
) -> None:
    place = reduced(filled, tmp_path / "short", 5)
    with open_store(place) as short:
        index = ABCMultiModalIndex(embed_model=embed_model, store=short)
        index.insert_nodes([TextNode(id_="tram", text="A tram waits in the rain."), ImageNode(image_path=str(PIG))])
        assert short.dim == 5
        settings: dict[str, Any] = {"rewriter": AsAsked(), "rerank": False, "keywords": False, "similarity_top_k": 1}
        retriever = InstructionRetriever(embed_model, short, **settings)
        vector = embed_model.get_query_embedding("A tram waits in the rain.")
        for found in (
            retriever.retrieve("A tram waits in the rain."),
            retriever.retrieve(QueryBundle("", embedding=vector)),
            index.as_retriever(similarity_top_k=1, image_similarity_top_k=1).retrieve("A tram waits in the rain."),
        ):
            assert (ids(found)[0], found[0].score) == ("tram", pytest.approx(1.0, abs=1e-4))
        query = QueryBundle(LEFT, image_path=str(PIG))
        (seen,) = retriever.retrieve(query)
        own = projected(embed_model.embedder, short)
        assert seen.score == pytest.approx(short.search(own.embed_images([PIG], instruction=LEFT)[0], 1)[0].score)
    fake = FakeEmbedder(dim=embed_model.embedder.dim)
    with ChromaStore(tmp_path / "other", fingerprint=fake.fingerprint) as other:
        other.add([Record("a", "text", "a b"), Record("b", "text", "c d")], fake.embed_texts(["a b", "c d"]))
        place = reduced(other, tmp_path / "other-short", 2)
    with open_store(place) as short:
        with pytest.raises(FingerprintMismatchError, match=r"fake@.* cannot be compared with"):
            InstructionRetriever(embed_model, short)
        with pytest.raises(FingerprintMismatchError, match=r"fake@.* cannot be compared with"):
            ABCMultiModalIndex(embed_model=embed_model, store=short).insert_nodes([TextNode(text="a")])


@pytest.mark.parametrize("fault", ["deleted", "replaced"])
def test_a_picture_that_has_gone_or_changed_keeps_its_place(
    embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "photo.jpg"
    shutil.copy(PIG, path)
    nodes = [ImageNode(id_="pig", image_path=str(path), text="a pig"), ImageNode(id_="rose", image_path=str(ROSE))]
    ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
    path.unlink() if fault == "deleted" else shutil.copy(CRAB, path)
    retriever = InstructionRetriever(embed_model, store, rewriter=Means(LEFT, "a pig", "image"), trace=True)
    found = {one.node.node_id: one for one in retriever.retrieve("q")}
    assert found["pig"].score == pytest.approx(1.0, abs=1e-4)
    assert found["rose"].metadata["abc_trace"]["second"] is not None
    node = found["pig"].node
    assert type(node) is TextNode
    assert (node.text, node.metadata["missing_picture"]) == ("a pig", str(path))
    said = {"deleted": "No such file", "replaced": "another picture than the one that was indexed"}[fault]
    assert said in node.metadata["missing_picture_reason"]
    assert node.get_content_blocks(MetadataMode.LLM)
    assert said not in node.get_content(MetadataMode.LLM)


def test_a_picture_stored_without_a_source_does_not_pretend(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    record = abc_rag.Record("image-x", "image", text="caption")
    store.add([record], [embed_model.get_image_embedding(str(PIG))])
    node = InstructionRetriever(embed_model, store).retrieve(QueryBundle("", image_path=str(PIG)))[0].node
    assert (type(node), node.get_content(), node.metadata["missing_picture"]) == (
        TextNode,
        "caption",
        "stored without a source",
    )


def test_relative_paths_are_found_from_elsewhere(
    embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DEMO)
    nodes = [ImageNode(id_="n", image_path=PIG.name), ImageDocument(id_="d", image_path=PIG.name)]
    ABCMultiModalIndex(nodes, embed_model=embed_model, store=store)
    monkeypatch.chdir(tmp_path)
    for found in InstructionRetriever(embed_model, store).retrieve(QueryBundle("", image_path=str(PIG))):
        assert found.node.image_path == str(PIG)  # type: ignore[attr-defined]
        assert found.node.get_content_blocks(MetadataMode.LLM)


def test_base64_comes_back_as_a_file_that_a_model_can_be_shown(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    node = ImageNode(image=base64.b64encode(PIG.read_bytes()).decode(), text="a pig")
    ABCMultiModalIndex([node], embed_model=embed_model, store=store)
    back: Any = InstructionRetriever(embed_model, store).retrieve("a pig")[0].node
    assert Path(back.image_path).read_bytes() == PIG.read_bytes()


# --- With a language model --------------------------------------------------------------------------------


class Completes(MockLLM):
    """Answers every prompt alike, or fails."""

    _answer: str | None = PrivateAttr(default=None)
    _asked: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def with_answer(cls, answer: str | None) -> Completes:
        llm = cls()
        llm._answer = answer
        return llm

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        self._asked.append(prompt)
        if self._answer is None:
            raise RuntimeError("no such model")
        return CompletionResponse(text=self._answer)


def test_a_language_model_rewrites(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    answer = {"instruction": LEFT, "target": "a pig", "wants": "image"}
    llm = Completes.with_answer("Sure! " + json.dumps(answer))
    found = InstructionRetriever(embed_model, filled, llm=llm, trace=True).retrieve("the animal to the left")
    traces = {one.node.node_id: one.metadata["abc_trace"] for one in found}
    assert traces["rose"]["instruction"] == LEFT
    assert set(traces) == {"pig", "rose", "crab"}
    assert "the animal to the left" in llm._asked[0]
    assert isinstance(llm_rewriter(llm, timeout_s=1.0, cache_size=0), LLMRewriter)


def test_where_the_language_model_fails_the_rules_rewrite(
    embed_model: ABCEmbeddings, filled: ChromaStore, caplog: pytest.LogCaptureFixture
) -> None:
    for answer in (None, "I cannot."):
        llm, question = Completes.with_answer(answer), "show me a rose"
        found = InstructionRetriever(embed_model, filled, llm=llm).retrieve(question)
        assert ids(found) == ids(InstructionRetriever(embed_model, filled).retrieve(question))
        assert len(llm._asked) == 1
        assert "by rules" in caplog.text
        caplog.clear()


def test_pictures_like_one_in_some_respects(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    asked = QueryBundle("", image_path=str(PIG))
    like = InstructionRetriever(embed_model, filled, same=[LEFT], facet_map=False).retrieve(asked)
    # The captions of pictures are not looked at.
    assert (ids(like)[0], set(ids(like))) == ("pig", {"pig", "rose", "crab"})
    assert like[0].score == pytest.approx(1.0, abs=1e-4)
    unlike = pickle.loads(pickle.dumps(InstructionRetriever(embed_model, filled, different=[LEFT])))
    assert ids(unlike.retrieve(asked)) == ids(like)[::-1]
    with pytest.raises(InputError, match=r"pass image=\.\.\., and no question"):
        unlike.retrieve(QueryBundle("a pig", image_path=str(PIG)))


# --- Copies and pickles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda retriever: pickle.loads(pickle.dumps(retriever))])
def test_retrievers_travel_as_their_settings(how: Any, embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    settings: dict[str, Any] = {"similarity_top_k": 2, "modality": "image", "rewriter": Means(LEFT, "a pig", "any")}
    retriever = InstructionRetriever(embed_model, filled, trace=True, roots=[DEMO], **settings)
    travelled = how(retriever)
    found, same = retriever.retrieve("q"), travelled.retrieve("q")
    assert ids(same) == ids(found)
    assert [one.metadata for one in same] == [one.metadata for one in found]
    assert asyncio.run(travelled.aretrieve("q")) == same
    assert how(InstructionRetriever(embed_model, filled, llm=MockLLM())).similarity_top_k == 4


# --- Awaiting ---------------------------------------------------------------------------------------------


async def test_awaited_searches_give_the_same(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    retriever = InstructionRetriever(embed_model, filled)
    queries: list[Any] = ["a rose", QueryBundle(LEFT, image_path=str(PIG)), QueryBundle("", image_path=str(CRAB))]
    for found, query in zip(await asyncio.gather(*map(retriever.aretrieve, queries)), queries, strict=True):
        plain = retriever.retrieve(query)
        assert ids(found) == ids(plain)
        assert np.allclose([one.score for one in found], [one.score for one in plain], atol=1e-6)


class Waits(Rewriter):
    """Waits until it may go on; notes what was asked, and where."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Semaphore(0), threading.Event()
        self.asked: list[str] = []
        self.threads: set[str] = set()

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        self.asked.append(question)
        self.threads.add(threading.current_thread().name.partition("_")[0])
        self.entered.release()
        assert self.go_on.wait(20), "nobody let the search go on: the event loop was blocked"
        return Rewrite(question, question, "any")


async def test_a_search_blocks_nobody_and_a_cancelled_one_never_runs(
    embed_model: ABCEmbeddings, filled: ChromaStore
) -> None:
    waits, busy = Waits(), threading.Event()
    loop = asyncio.get_running_loop()
    shared = [loop.run_in_executor(None, busy.wait, 60) for _ in range(64)]
    retriever = InstructionRetriever(embed_model, filled, rewriter=waits)
    searches = [asyncio.create_task(retriever.aretrieve(f"search {n}")) for n in range(4)]
    for _ in searches:
        while not waits.entered.acquire(blocking=False):
            await asyncio.sleep(0)
    queued = asyncio.create_task(retriever.aretrieve("cancelled"))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    waits.go_on.set()
    assert all(await asyncio.gather(*searches))
    assert await retriever.aretrieve("last")
    busy.set()
    await asyncio.gather(*shared)
    assert sorted(waits.asked) == ["last", *(f"search {n}" for n in range(4))]
    assert waits.threads == {"llama-index-abc-search"}


def test_keywords(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    view = ABCVectorStore(store)
    texts = ["the manual of a pump", "the MX-4471-B bolt", "a rose", "a fox"]
    nodes = [TextNode(id_=text.split()[-1], text=text) for text in texts]
    for node, row in zip(nodes, embed_model.get_text_embedding_batch(texts), strict=True):
        node.embedding = row
    view.add(nodes)
    choices: list[Any] = ["auto", True]
    for keywords in choices:
        found = InstructionRetriever(embed_model, store, keywords=keywords).retrieve("MX-4471-B")
        assert (found[0].node.node_id, len(found)) == ("bolt", 4)
    without = InstructionRetriever(embed_model, store, keywords=True).retrieve("the manual -pump -bolt")
    assert {one.node.node_id for one in without} == {"rose", "fox"}
    assert len(InstructionRetriever(embed_model, store, keywords=False).retrieve("the manual -pump -bolt")) == 4


def test_a_generator_reads_the_turns_before_and_judges(embed_model: ABCEmbeddings, filled: ChromaStore) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=8_000)
    memory.put(ChatMessage(role="user", blocks=[ImageBlock(path=ROSE), TextBlock(text="what is this?")]))
    memory.put(ChatMessage(role="assistant", content="A rose [1]."))
    memory.put(ChatMessage(role="user", content="has it thorns?"))  # as an engine does before it asks
    fake = FakeGenerator()
    retriever = InstructionRetriever(
        embed_model, filled, generator=fake, memory=memory, rerank="judge", min_confidence=0.2, modality="text"
    )
    (best, *_) = retriever.retrieve("has it thorns?")
    assert "thorn" in best.text
    asked = fake.asked[0][-1].parts[0].text
    assert asked.splitlines() == [
        'user: picture "what is this?"', 'assistant: "A rose."', 'question: picture "has it thorns?"',
    ]  # fmt: skip
    assert retriever.retrieve("bicycles") == []


# --- Documents --------------------------------------------------------------------------------------------


def test_hits_of_documents_have_their_place_and_their_page(
    embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path
) -> None:
    path = tmp_path / "manual.pdf"
    path.write_bytes(manual())
    index_paths([path], embed_model.embedder, store)
    retriever = InstructionRetriever(embed_model, store, similarity_top_k=2, where={"page": 2}, with_pages=True)
    found = retriever.retrieve('"Rinse the filter"')
    passage, page, *others = (one.node for one in found)
    told = {key: passage.metadata[key] for key in ("file_path", "file_name", "page_label", "page", "document")}
    assert told == {
        "file_path": str(path),
        "file_name": "manual.pdf",
        "page_label": "ii",
        "page": 2,
        "document": str(path),
    }
    assert len(passage.metadata["box"]) == 4
    assert passage.get_content(MetadataMode.EMBED) == passage.get_content(MetadataMode.NONE)
    assert passage.get_content(MetadataMode.LLM).startswith("file_name: manual.pdf\npage_label: ii\nheading: ")
    assert "sha256" not in passage.get_content(MetadataMode.LLM)
    assert isinstance(page, ImageNode)
    assert (page.metadata["part"], page.metadata["page"]) == ("page", 2)
    assert base64.b64decode(str(page.image)).startswith(b"\x89PNG")
    assert found[1].score == found[0].score
    assert [one.metadata["part"] for one in others] == []  # both passages and figures of it are on that one page
    plain = copy.copy(InstructionRetriever(embed_model, store, similarity_top_k=2, where={"page": 2}))
    assert next(one.node.metadata["part"] for one in plain.retrieve('"Rinse the filter"')) == "passage"
