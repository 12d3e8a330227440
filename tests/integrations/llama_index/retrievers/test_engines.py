"""InstructionRetriever within LlamaIndex: query engines with pictures, query transforms, and queries with vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ImageBlock, MessageRole, TextBlock
from llama_index.core.indices.query.query_transform.base import (
    BaseQueryTransform,
    HyDEQueryTransform,
    IdentityQueryTransform,
)
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import TransformRetriever
from llama_index.core.schema import ImageNode, QueryBundle, TextNode
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.vector_stores.abc import ABCMultiModalIndex, ABCVectorStore
from pydantic import PrivateAttr

import abc_rag
from abc_rag import ChromaStore
from abc_rag.errors import InputError
from abc_rag.search.rewriting.rewriter import AsAsked

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg"))
LEFT = "what is on the left?"


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture
def store(tmp_path: Path, embed_model: ABCEmbeddings) -> Iterator[ChromaStore]:
    nodes = [
        ImageNode(id_="pig", image_path=str(PIG), text="a pig", metadata={"year": 2020}),
        ImageNode(id_="rose", image_path=str(ROSE)),
        TextNode(id_="mud", text="A pig rolls in mud to stay cool."),
    ]
    with ChromaStore(tmp_path / "store", fingerprint=embed_model.embedder.fingerprint) as opened:
        ABCMultiModalIndex(nodes, embed_model=embed_model, store=opened)
        yield opened


class Sees(MockLLM):
    """A chat model that notes what it is shown."""

    _seen: list[ChatMessage] = PrivateAttr(default_factory=list)
    _prompts: list[str] = PrivateAttr(default_factory=list)

    def chat(self, messages: Sequence[ChatMessage], **_: Any) -> ChatResponse:
        self._seen.extend(messages)
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content="a pig"))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self.chat(messages, **kwargs)

    def shown(self) -> tuple[set[bytes], str]:
        blocks = [block for message in self._seen for block in message.blocks]
        pictures = {block.resolve_image().read() for block in blocks if isinstance(block, ImageBlock)}
        return pictures, "\n".join(block.text for block in blocks if isinstance(block, TextBlock))


# --- Query engines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_chat_model_is_shown_the_pictures(
    embed_model: ABCEmbeddings, store: ChromaStore, awaited: bool
) -> None:
    llm = Sees(is_chat_model=True)
    engine = RetrieverQueryEngine.from_args(
        InstructionRetriever(embed_model, store, trace=True), llm=llm, multimodal=True
    )
    question = QueryBundle("which animal is in the picture?", image_path=str(PIG))
    response = await engine.aquery(question) if awaited else engine.query(question)
    assert str(response) == "a pig"
    assert {one.node.node_id for one in response.source_nodes} == {"pig", "rose", "mud"}
    pictures, text = llm.shown()
    assert pictures == {PIG.read_bytes(), ROSE.read_bytes()}
    assert "A pig rolls in mud" in text
    assert "year: 2020" in text
    assert "which animal is in the picture?" in text
    assert "abc_trace" not in text


def test_a_deleted_picture_does_not_fail_the_answer(
    embed_model: ABCEmbeddings, store: ChromaStore, tmp_path: Path
) -> None:
    path = tmp_path / "soon-gone.jpg"
    path.write_bytes(PIG.read_bytes())
    index = ABCMultiModalIndex(embed_model=embed_model, store=store)
    index.insert_nodes([ImageNode(id_="gone", image_path=str(path), text="a pig that was here")])
    path.unlink()
    llm = Sees(is_chat_model=True)
    retriever = InstructionRetriever(embed_model, store, similarity_top_k=9)
    response = RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=True).query("a pig that was here")
    assert "gone" in {one.node.node_id for one in response.source_nodes}
    pictures, text = llm.shown()
    assert pictures == {PIG.read_bytes(), ROSE.read_bytes()}
    assert "a pig that was here" in text


def test_an_engine_without_pictures_gets_the_texts(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    engine = RetrieverQueryEngine.from_args(InstructionRetriever(embed_model, store), llm=MockLLM())
    assert "A pig rolls in mud" in str(engine.query("what does the pig do?"))


def test_an_engine_over_nothing_says_so(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    with ChromaStore(tmp_path / "empty") as empty:
        engine = RetrieverQueryEngine.from_args(
            InstructionRetriever(embed_model, empty), llm=Sees(is_chat_model=True), multimodal=True
        )
        assert str(engine.query("a pig")) == "Empty Response"


# --- Query transforms -------------------------------------------------------------------------------------


def expected(embed_model: ABCEmbeddings, store: ChromaStore, row: Any) -> list[tuple[str, float]]:
    best: dict[str, float] = {}
    for hit in store.search(row, k=20):
        best.setdefault(hit.id.partition(":")[2], hit.score)
    return list(best.items())


def check(found: list[Any], wanted: list[tuple[str, float]]) -> None:
    assert [one.node.node_id for one in found] == [name for name, _ in wanted]
    assert np.allclose([one.score for one in found], [score for _, score in wanted], atol=1e-5)


def plain(embed_model: ABCEmbeddings, store: ChromaStore) -> InstructionRetriever:
    return InstructionRetriever(embed_model, store, rewriter=AsAsked(), rerank=False, similarity_top_k=9)


class Asks(BaseQueryTransform):
    """Asks something else, of the same picture."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def _run(self, query_bundle: QueryBundle, metadata: dict[str, Any]) -> QueryBundle:
        return replace(query_bundle, query_str=LEFT)


@pytest.mark.parametrize("awaited", [False, True])
async def test_the_picture_survives_a_transform(embed_model: ABCEmbeddings, store: ChromaStore, awaited: bool) -> None:
    for transform, instruction in ((IdentityQueryTransform(), "the animal"), (Asks(), LEFT)):
        retriever = TransformRetriever(plain(embed_model, store), transform)
        query = QueryBundle("the animal", image_path=str(PIG))
        found = await retriever.aretrieve(query) if awaited else retriever.retrieve(query)
        check(found, expected(embed_model, store, embed_model.get_instructed_image_embedding(str(PIG), instruction)))


def test_a_plain_question_through_a_transform_is_that_question(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    retriever = TransformRetriever(plain(embed_model, store), IdentityQueryTransform())
    check(retriever.retrieve("a rose"), expected(embed_model, store, embed_model.get_query_embedding("a rose")))


@pytest.mark.parametrize("include_original", [True, False])
def test_made_up_answers_count(embed_model: ABCEmbeddings, store: ChromaStore, include_original: bool) -> None:
    hyde = HyDEQueryTransform(llm=MockLLM(), include_original=include_original)
    bundle = hyde.run(QueryBundle("a rose"))
    strings = bundle.embedding_strs
    assert len(strings) == 1 + include_original
    mean = np.mean(embed_model.get_text_embedding_batch(strings), axis=0)
    check(TransformRetriever(plain(embed_model, store), hyde).retrieve("a rose"), expected(embed_model, store, mean))


def test_made_up_answers_count_beside_a_picture(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    for strings in (["a red flower"], ["a red flower", "the animal"]):
        bundle = QueryBundle("the animal", image_path=str(PIG), custom_embedding_strs=strings)
        rows = [
            embed_model.get_instructed_image_embedding(str(PIG), "the animal"),
            embed_model.get_text_embedding("a red flower"),
        ]
        check(plain(embed_model, store).retrieve(bundle), expected(embed_model, store, np.mean(rows, axis=0)))
    only = QueryBundle("", custom_embedding_strs=["a red flower"])
    check(plain(embed_model, store).retrieve(only), expected(embed_model, store, rows[1]))


# --- Queries that bring their vector ----------------------------------------------------------------------


def test_a_vector_that_is_set_is_searched_for(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    row = embed_model.get_image_embedding(str(ROSE))
    for bundle in (
        QueryBundle("a pig", embedding=row),
        QueryBundle("", embedding=row),
        QueryBundle("a pig", image_path=str(PIG), embedding=row),
    ):
        check(plain(embed_model, store).retrieve(bundle), expected(embed_model, store, row))
        assert bundle.embedding is row


def test_a_query_is_left_as_it_was(embed_model: ABCEmbeddings, store: ChromaStore) -> None:
    # LlamaIndex's own retrievers leave their vector in it, for the next one to trip over.
    bundle = QueryBundle(LEFT, image_path=str(PIG))
    plain(embed_model, store).retrieve(bundle)
    assert bundle == QueryBundle(LEFT, image_path=str(PIG))


@pytest.mark.parametrize(
    ("row", "message"), [([1.0, 0.0], r"has shape \(2,\)"), ("zero", "is zero or holds"), ("nan", "is zero or holds")]
)
def test_a_vector_of_another_model_is_refused(
    embed_model: ABCEmbeddings, store: ChromaStore, row: Any, message: str
) -> None:
    if isinstance(row, str):
        row = [float("nan") if row == "nan" else 0.0] * embed_model.embedder.dim
    with pytest.raises(InputError, match=message):
        plain(embed_model, store).retrieve(QueryBundle("a pig", embedding=row))


def test_after_mmr_a_hit_still_has_its_better_score(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    def row(*values: float) -> list[float]:
        return [*values, *[0.0] * (embed_model.embedder.dim - len(values))]

    nodes = [
        TextNode(id_="top", text="top", embedding=row(1.0)),
        ImageNode(id_="x", image_path=str(PIG), text="x", embedding=row(0.95, 0.31), text_embedding=row(0.3, 0, 0.95)),
    ]
    with ChromaStore(tmp_path / "mmr") as store:
        ABCVectorStore(store).add(nodes)
        # The caption differs more from what was chosen first, so it is chosen before the nearer picture.
        found = InstructionRetriever(embed_model, store, mmr=0.1).retrieve(QueryBundle("", embedding=row(1.0)))
    assert [one.node.node_id for one in found] == ["top", "x"]
    assert found[1].score == pytest.approx((1 + 0.95 / np.hypot(0.95, 0.31)) / 2, abs=1e-4)
