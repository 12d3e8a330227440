"""Messages that ask for an answer: what a retriever of abc-rag's own asks, word for word."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest
from chat_helpers import seen
from langchain_abc import ABCEmbeddings, ABCVectorStore, ChatABC, answering_messages, cited_documents
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from abc_rag import Embedder, Image, Text
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageError, InputError
from abc_rag.models.tasks import Source, answering
from abc_rag.types import Message


class FakedEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return FakeEmbedder(model=self.model)


def test_a_chat_model_is_asked_what_a_retriever_asks(tmp_path: Path) -> None:
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    PIL.Image.new("RGB", (40, 30), "red").save(red)
    PIL.Image.new("RGB", (30, 30), "blue").save(blue)
    with ABCVectorStore(FakedEmbeddings()) as store:
        ids = [*store.add_images([red], captions=["a red square"]), *store.add_texts(["Pigs eat apples [3]."])]
        documents = store.get_by_ids(ids)
    fake = FakeGenerator()
    model = ChatABC(generator=fake)
    history = [HumanMessage("what is this?"), AIMessage("A pig [2].")]
    messages = answering_messages("what do pigs eat?", documents, image=blue, history=history)
    assert [type(one) for one in messages] == [SystemMessage, HumanMessage, AIMessage, HumanMessage]
    answer = model.invoke(messages)
    turns = [Message("user", [Text("what is this?")]), Message("assistant", [Text("A pig [2].")])]
    sources = [Source(red, "a red square"), Source(text="Pigs eat apples [3].")]
    expected = answering("what do pigs eat?", sources, image=blue, history=turns)
    assert seen(fake.asked[0]) == seen(expected)
    assert answer.text == "Pigs eat apples (3) [2]."
    assert cited_documents(answer.text, documents) == [documents[1]]


def test_a_picture_that_is_gone_keeps_its_number(tmp_path: Path) -> None:
    red = tmp_path / "red.png"
    PIL.Image.new("RGB", (40, 30), "red").save(red)
    with ABCVectorStore(FakedEmbeddings()) as store:
        (gone,) = store.get_by_ids(store.add_images([red]))
    red.unlink()
    _, asked = answering_messages("what is here?", [gone, Document("A pig.")])
    assert isinstance(asked.text, str)
    assert asked.text.startswith('question: "what is here?"\n[1] "(This picture cannot be shown: ')
    assert '\n[2] "A pig."\nquestion: "what is here?"' in asked.text


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    for documents in ([], Document("x"), "x"):
        with pytest.raises(InputError, match="list of LangChain documents, at least one"):
            answering_messages("x", documents)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        answering_messages("x", [Document("x")], image=Image(tmp_path / "none.png").source)
