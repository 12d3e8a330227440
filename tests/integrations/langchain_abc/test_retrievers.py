"""InstructionRetriever and chat_model_rewriter: questions, pictures and both, through LangChain's runnables."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from langchain_abc import ABCEmbeddings, ABCVectorStore, InstructionRetriever, chat_model_rewriter
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import Field, ValidationError

from abc_rag import URL, DataURI, Embedder
from abc_rag.answering.fake import FakeGenerator
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import FingerprintMismatchError, ImageError, InputError
from abc_rag.images.read import describe_source
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene
from abc_rag.search.rewriting.llm import LLMRewriter
from abc_rag.search.rewriting.rewriter import AsAsked, Rewrite, Rewriter

TEXTS = ["all about dogs", "all about pizzas", "all about cars", "all about trees", "all about crabs"]


@pytest.fixture(scope="module")
def mini() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scenes")
    made = {
        "dog": Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), "blue"),
        "car": Scene((Placed("car", "big", "left"), Placed("tree", "small", "right")), "yellow"),
        "crab": Scene((Placed("crab", "big", "top"), Placed("guitar", "big", "bottom")), "white"),
    }
    for name, scene in made.items():
        render(scene).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in made}


@pytest.fixture(scope="module")
def store(mini: ABCEmbeddings, scenes: dict[str, Path]) -> Iterator[ABCVectorStore]:
    with ABCVectorStore(mini) as made:
        made.add_texts(TEXTS, [{"n": n} for n in range(len(TEXTS))])
        made.add_images(list(scenes.values()), [{"name": name} for name in scenes])
        yield made


@pytest.fixture
def retriever(store: ABCVectorStore) -> InstructionRetriever:
    return store.as_instruction_retriever(k=1)


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _over(self, store: ABCVectorStore) -> None:
        self.store = store

    @property
    def retriever_constructor(self) -> type[InstructionRetriever]:
        return InstructionRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": self.store}

    @property
    def retriever_query_example(self) -> str:
        return "a dog"


# --- Questions --------------------------------------------------------------------------------------------


def first(documents: Sequence[Any]) -> str:
    return str(documents[0].metadata.get("name") or documents[0].page_content)


async def test_a_question_a_picture_and_both(retriever: InstructionRetriever, scenes: dict[str, Path]) -> None:
    asked: list[tuple[Any, dict[str, Any], str]] = [
        ("a dog", {"modality": "text"}, "all about dogs"),
        ("a picture of a crab", {}, "crab"),
        ({"question": "a picture of a crab"}, {}, "crab"),
        ({"question": None, "image": str(scenes["car"])}, {}, "car"),
        ({"image": scenes["car"]}, {}, "car"),
        ({"image": scenes["car"], "question": "what is on the left?"}, {"modality": "text"}, "all about cars"),
        ({"image": scenes["car"], "question": "what is on the right?"}, {"modality": "text"}, "all about trees"),
        ({"image": scenes["dog"].read_bytes(), "question": "what is on the left?"}, {"filter": {"n": {"$gte": 0}}},
         "all about dogs"),
        ({"image": PIL.Image.open(scenes["dog"]), "question": "what is on the right?"}, {"modality": "text"},
         "all about pizzas"),
    ]  # fmt: skip
    for question, settings, wanted in asked:
        assert first(retriever.invoke(question, **settings)) == wanted
        assert first(await retriever.ainvoke(question, **settings)) == wanted
    assert [first(found) for found in retriever.batch(["a picture of a crab", {"image": scenes["car"]}])] == [  # type: ignore[list-item]
        "crab",
        "car",
    ]
    assert [first(found) for found in await retriever.abatch(["a picture of a crab"])] == ["crab"]


async def test_settings_of_the_object_and_of_one_call(store: ABCVectorStore) -> None:
    retriever = store.as_instruction_retriever(k=2, modality="text", filter={"n": {"$lt": 3}})
    assert len(retriever.invoke("a tree")) == 2
    assert "all about trees" not in {first([d]) for d in retriever.invoke("a tree", k=9)}
    assert {first([d]) for d in await retriever.ainvoke("a tree", k=9)} == set(TEXTS[:3])
    assert first(await retriever.ainvoke("a tree", k=1, filter=None)) == "all about trees"
    assert len(retriever.invoke("a tree", k=100, modality=None, filter=None)) == 8
    assert retriever.invoke("a tree", min_score=1.0) == []
    assert len({d.id for d in retriever.invoke("a tree", k=5, filter=None, mmr=0.3)}) == 5
    assert retriever.tags == ["ABCVectorStore", "ABCEmbeddings"]


async def test_pictures_like_one_in_some_respects(store: ABCVectorStore, scenes: dict[str, Path]) -> None:
    left = "what is on the left?"
    retriever = store.as_instruction_retriever(k=3, same=[left], facet_map=False)
    (same, *others) = retriever.invoke({"image": scenes["car"]})
    assert (same.metadata["name"], len(others)) == ("car", 2)
    assert same.metadata["score"] == pytest.approx(1.0, abs=1e-4)
    # Of one call: neither this picture nor another one is like it on the left and unlike it there.
    unlike = await retriever.ainvoke({"image": scenes["car"]}, same=[], different=[left])
    assert [found.metadata["name"] for found in unlike] == [found.metadata["name"] for found in (*others[::-1], same)]
    with pytest.raises(InputError, match=r"pass image=\.\.\., and no question"):
        retriever.invoke("a dog")


async def test_documents_tell_where_they_are_from_and_how_they_scored(
    store: ABCVectorStore, scenes: dict[str, Path]
) -> None:
    retriever = store.as_instruction_retriever(k=8)
    for document in retriever.invoke("a dog"):
        assert 0 <= document.metadata["score"] <= 1
        assert document.metadata["modality"] in ("text", "image")
        assert "first" not in document.metadata
    question = {"question": "pictures with a blue background"}
    [document] = await retriever.ainvoke(question, k=1, trace=True, rerank=True, modality="image")
    metadata = document.metadata
    assert metadata["source"] == str(scenes["dog"])
    assert metadata["mime_type"] == "image/png"
    assert metadata["name"] == "dog"
    assert "background" in metadata["instruction"]
    assert 0 <= metadata["first"] <= 1
    assert 0 <= metadata["second"] <= 1
    assert metadata["facet"] is None


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("", "the question is empty"),
        ("  \n", "the question is empty"),
        ({"question": " ", "image": b"x"}, r"the question is empty; .*\{'image': ...\}"),
        ({}, "nothing to search for"),
        ({"question": None}, "nothing to search for"),
        ({"query": "a dog"}, r"unknown keys \['query'\]"),
        ({"question": "a dog", "k": 3}, r"unknown keys \['k'\] in a question; pass settings with the call"),
        ({"input": "a dog", "chat_history": []}, r"itemgetter\('...'\) \| retriever"),
        ([AIMessage("hello")], "none of the messages is a HumanMessage"),
        ([HumanMessage("")], "nothing to search for"),
        (["a dog"], "not list"),
        ([("human", "a", "dog")], "not list"),
        ([("martian", "a dog")], "the messages cannot be read: .*'martian'.*; pass LangChain messages"),
        ([("human", 3)], "the messages cannot be read: .*; pass LangChain messages"),
        ({"question": 3}, "the question must be a str, not int"),
        ({"image": 3}, "must be a path, .* not int"),
        (3, "a question is a str or .* not int"),
        (None, "not NoneType"),
        (b"bytes", r"not bytes; a picture alone is \{'image': ...\}"),
    ],
)
async def test_bad_questions_are_named(question: Any, message: str, retriever: InstructionRetriever) -> None:
    with pytest.raises(InputError, match=message):
        retriever.invoke(question)
    with pytest.raises(InputError, match=message):
        await retriever.ainvoke(question)


def seen(path: Path, question: str, **block: str) -> HumanMessage:
    """A message with a picture, as chat models are given them."""
    data = base64.b64encode(path.read_bytes()).decode()
    picture = {"type": "image", "base64": data, "mime_type": "image/png"} if not block else block
    return HumanMessage([picture, {"type": "text", "text": question}])


async def test_a_chat_is_asked_about(retriever: InstructionRetriever, scenes: dict[str, Path]) -> None:
    on_left, on_right = "what is on the left?", "and on the right?"
    begun = [seen(scenes["car"], on_left), AIMessage("A car."), HumanMessage(on_right)]
    uri = "data:image/png;base64," + base64.b64encode(scenes["car"].read_bytes()).decode()
    older = seen(scenes["car"], on_left, type="image_url", image_url={"url": uri})  # type: ignore[arg-type]
    for question, wanted in (
        ([HumanMessage("all about dogs")], "all about dogs"),
        (HumanMessage("all about dogs"), "all about dogs"),
        (ChatPromptValue(messages=[SystemMessage("be kind"), HumanMessage("all about dogs")]), "all about dogs"),
        (begun[:1], "all about cars"),
        ([older], "all about cars"),
        (begun, "all about trees"),
        ([*begun, AIMessage("A tree."), HumanMessage("all about dogs")], "all about dogs"),
        ({"question": "all about dogs", "chat_history": []}, "all about dogs"),
        ({"question": "all about dogs", "chat_history": begun, "user": 3}, "all about dogs"),
        ({"question": on_right, "chat_history": begun[:2]}, "all about trees"),
        ({"question": on_right, "chat_history": begun[:2], "image": scenes["dog"]}, "all about pizzas"),
        ({"question": begun}, "all about trees"),
        ({"messages": begun}, "all about trees"),
        ([*begun[:2], ("human", on_right)], "all about trees"),
        ([*begun[:2], {"role": "user", "content": "what is on the right?"}], "all about trees"),
        ({"question": on_right, "chat_history": [{"role": "user", "content": older.content}]}, "all about trees"),
        ({"question": on_right, "chat_history": [("human", older.content), ("ai", "A car.")]}, "all about trees"),
        ({"messages": [{"role": "user", "content": "all about dogs"}]}, "all about dogs"),
    ):
        assert first(retriever.invoke(question, modality="text")) == wanted  # type: ignore[arg-type]
        assert first(await retriever.ainvoke(question, modality="text")) == wanted  # type: ignore[arg-type]
    assert first(retriever.invoke({"image": scenes["car"], "chat_history": begun})) == "car"


async def test_a_chain_carries_more_than_the_question(retriever: InstructionRetriever) -> None:
    asked = {"question": "all about dogs", "chat_history": [HumanMessage("hello")], "user": {"name": "Ada"}}
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(documents=retriever)
    for answer in (chain.invoke(asked), await chain.ainvoke(asked)):
        assert answer.keys() == {*asked, "documents"}
        assert first(answer["documents"]) == "all about dogs"


async def test_a_chain_keeps_a_chat(retriever: InstructionRetriever, scenes: dict[str, Path]) -> None:
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(documents=retriever.bind(modality="text"))
    history: list[BaseMessage] = []
    for message, wanted in (
        (seen(scenes["car"], "what is on the left?"), "all about cars"),
        (HumanMessage("and on the right?"), "all about trees"),
        (HumanMessage("what is on the left?"), "all about cars"),
        (seen(scenes["dog"], "and here?"), "all about dogs"),
        (HumanMessage("what is on the right?"), "all about pizzas"),
        (HumanMessage("all about crabs"), "all about crabs"),
    ):
        asked = {"question": [message], "chat_history": history}
        answer = first(chain.invoke(asked)["documents"])
        assert answer == first((await chain.ainvoke(asked))["documents"]) == wanted
        history += [message, AIMessage(answer)]


async def test_pictures_that_cannot_be_used_are_named(retriever: InstructionRetriever) -> None:
    for image, message in (
        ("gone.png", r"gone\.png"),
        (b"no picture", "bytes"),
        (URL("https://example.com/a.png"), "allow_urls"),
        (DataURI("data:image/png;base64,!"), "data URI"),
        ("https://example.com/a.png", "URL"),
    ):
        with pytest.raises(ImageError, match=message):
            retriever.invoke({"image": image})  # type: ignore[arg-type]
        with pytest.raises(ImageError, match=message):
            await retriever.ainvoke({"image": image, "question": "the dog"})  # type: ignore[arg-type]


def test_bad_settings_are_named(store: ABCVectorStore) -> None:
    for settings in ({"k": 0}, {"mmr": 1.5}, {"min_score": -1}, {"candidates": 0}, {"modality": "film"}, {"kk": 3}):
        with pytest.raises(ValidationError, match=next(iter(settings))):
            store.as_instruction_retriever(**settings)
    retriever = store.as_instruction_retriever()
    with pytest.raises(TypeError, match="unexpected keyword 'top_k'; a call takes k, "):
        retriever.invoke("a dog", top_k=3)
    with pytest.raises(InputError, match="k must be a positive int, not 0"):
        retriever.invoke("a dog", k=0)
    with pytest.raises(ValidationError, match="give rewriter or llm, not both"):
        store.as_instruction_retriever(rewriter=AsAsked(), llm=Chatty())


class FakedEmbeddings(ABCEmbeddings):
    model: str = "fake"

    def _load(self) -> Embedder:
        return FakeEmbedder(model=self.model)


async def test_an_empty_store_and_a_store_of_another_model(tmp_path: Path) -> None:
    with ABCVectorStore(FakedEmbeddings(), path=tmp_path) as empty:
        assert empty.as_instruction_retriever().invoke("a dog") == []
        assert await empty.as_instruction_retriever(rerank=True, mmr=0.5).ainvoke({"image": b"x"}) == []
        empty.add_texts(["a"])
    with ABCVectorStore(FakedEmbeddings(model="other"), path=tmp_path) as other:
        with pytest.raises(FingerprintMismatchError):
            other.as_instruction_retriever().invoke("a dog")
        with pytest.raises(FingerprintMismatchError):
            await other.as_instruction_retriever().ainvoke("a dog")


@pytest.mark.parametrize("fault", ["deleted", "replaced"])
def test_a_picture_that_has_vanished_is_still_found(
    fault: str, mini: ABCEmbeddings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{colour}.png" for colour in ("blue", "red")]
    for path in paths:
        render(Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), path.stem)).save(path)
    with ABCVectorStore(mini) as store:
        ids = store.add_images(paths)
        if fault == "deleted":
            paths[0].unlink()
        else:
            paths[0].write_bytes(paths[1].read_bytes())
        retriever = store.as_instruction_retriever(rerank=True, trace=True)
        found = {d.id: d for d in retriever.invoke("pictures with a blue background")}
    assert set(found) == set(ids)
    assert found[ids[0]].metadata["source"] == str(paths[0])
    assert found[ids[0]].metadata["second"] is None
    assert "blue.png" in found[ids[0]].metadata["note"]
    assert found[ids[1]].metadata["second"] is not None
    assert "blue.png" in caplog.text


# --- Callbacks and chains ---------------------------------------------------------------------------------


class Told(BaseCallbackHandler):
    raise_error = True

    def __init__(self) -> None:
        self.queries: list[Any] = []
        self.found: list[int] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.queries.append(query[:100])  # as handlers do that expect a str

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.found.append(len(documents))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


class Recording(BaseTracer):
    def __init__(self) -> None:
        super().__init__(_schema_format="original+chat")
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


async def test_callbacks_and_traces_get_text_and_no_picture(
    retriever: InstructionRetriever, scenes: dict[str, Path]
) -> None:
    told, traced = Told(), Recording()
    data = scenes["dog"].read_bytes()
    config: Any = {"callbacks": [told, traced]}
    retriever.invoke("a dog", config)
    retriever.invoke({"question": "what is on the left?", "image": data}, config)
    await retriever.ainvoke({"image": scenes["dog"]}, config)
    with pytest.raises(ImageError):
        await retriever.ainvoke({"question": "the dog", "image": "gone.png"}, config)
    assert told.queries == [
        "a dog",
        f"what is on the left? [picture: {describe_source(data)}]",
        f"[picture: {scenes['dog']}]"[:100],
        "the dog [picture: gone.png]",
    ]
    assert told.found == [1, 1, 1]
    [error] = told.errors
    assert isinstance(error, ImageError)
    assert [run.run_type for run in traced.runs] == ["retriever"] * 4
    assert traced.runs[1].inputs["query"].startswith("what is on the left?")
    assert traced.runs[0].extra["metadata"]["ls_vector_store_provider"] == "ABCVectorStore"
    assert traced.runs[0].extra["metadata"]["ls_embedding_provider"] == "ABCEmbeddings"


async def test_in_a_chain_and_with_events(retriever: InstructionRetriever, scenes: dict[str, Path]) -> None:
    asked = {"question": "what is on the left?", "image": str(scenes["car"])}
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(documents=retriever.bind(modality="text"))
    assert first(chain.invoke(asked)["documents"]) == "all about cars"
    assert first((await chain.ainvoke(asked))["documents"]) == "all about cars"
    events = [event async for event in chain.astream_events(asked, version="v2")]
    assert {"on_retriever_start", "on_retriever_end"} <= {event["event"] for event in events}
    assert retriever.get_input_schema().model_json_schema()["anyOf"][0] == {"type": "string"}


# --- Rewriting --------------------------------------------------------------------------------------------


class Chatty(BaseChatModel):
    """A chat model that says what it is told to, and records what it was asked."""

    answer: str = '{"instruction": "the animal", "target": "a crab", "wants": "image"}'
    fault: Exception | None = None
    asked: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "chatty"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.asked.append(messages)
        if self.fault is not None:
            raise self.fault
        return ChatResult(generations=[ChatGeneration(message=self._message(kwargs))])

    def _message(self, kwargs: dict[str, Any]) -> AIMessage:
        return AIMessage(self.answer)


class Structured(Chatty):
    """One that calls tools."""

    calls: list[dict[str, Any]] = Field(default_factory=list)
    bound: list[Any] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        self.bound.append(tools)
        return self.bind(tools=tools)  # type: ignore[return-value]

    def _message(self, kwargs: dict[str, Any]) -> AIMessage:
        assert kwargs["tools"]
        calls = [{"name": "Rewrite", "args": call, "id": "1", "type": "tool_call"} for call in self.calls]
        return AIMessage("some text that is no answer", tool_calls=calls)


CRAB = Rewrite("the animal", "a crab", "image")


def test_a_chat_model_without_tools_answers_in_text() -> None:
    model = Chatty()
    rewriter = chat_model_rewriter(model)
    assert isinstance(rewriter, LLMRewriter)
    assert rewriter.rewrite("who pinches?", has_image=False) == CRAB
    assert "who pinches?" in str(model.asked[0][0].content)
    # Text around it, and content in parts, as some models give it.
    model.answer = f"Sure: {model.answer}"
    assert rewriter.rewrite("who else?", has_image=False) == CRAB


def test_a_chat_model_with_tools_answers_in_structure() -> None:
    model = Structured(calls=[{"instruction": "the animal", "target": "a crab", "wants": "image"}])
    rewriter = chat_model_rewriter(model)
    assert rewriter.rewrite("who pinches?", has_image=False) == CRAB
    assert model.bound[0][0]["title"] == "Rewrite"


@pytest.mark.parametrize(
    "model",
    [
        Chatty(fault=ConnectionError("down")),
        Chatty(answer="I would rather not."),
        Structured(calls=[]),
        Structured(calls=[{"instruction": "x"}]),
        Structured(fault=ConnectionError("down")),
    ],
)
async def test_where_a_chat_model_fails_the_rules_answer(
    model: Chatty, store: ABCVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    by_rules = store.as_instruction_retriever(k=3).invoke("could you show me a picture of a crab?")
    by_model = store.as_instruction_retriever(k=3, llm=model)
    assert by_model.invoke("could you show me a picture of a crab?") == by_rules
    assert await by_model.ainvoke("could you show me a picture of a crab?") == by_rules
    assert first(by_rules) == "crab"
    assert len(model.asked) == 2
    assert caplog.text.count("by rules") == 2


def test_what_is_no_chat_model_is_refused() -> None:
    with pytest.raises(InputError, match="must be a LangChain chat model, not str"):
        chat_model_rewriter("gpt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="timeout_s"):
        chat_model_rewriter(Chatty(), timeout_s=0)


async def test_the_chat_model_decides_what_is_searched(store: ABCVectorStore) -> None:
    model = Chatty()
    retriever = store.as_instruction_retriever(k=1, llm=model, trace=True, rerank=True)
    assert first(retriever.invoke("who pinches?")) == "crab"
    [document] = await retriever.ainvoke("who pinches?")
    assert document.metadata["name"] == "crab"
    assert document.metadata["instruction"] == "the animal"
    assert len(model.asked) == 1  # remembered


class Held(Rewriter):
    """Waits, as for a chat model."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.on = threading.Semaphore(0)
        self.threads: list[str] = []

    def _rewrite(self, question: str, has_image: bool) -> Rewrite:
        self.threads.append(threading.current_thread().name)
        self.begun.release()
        self.on.acquire()
        return CRAB


class Refusing(ThreadPoolExecutor):
    """A shared pool that nothing may use."""

    def submit(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        raise AssertionError("the loop's shared pool was used")


async def test_the_store_answers_others_while_a_chat_model_thinks(store: ABCVectorStore) -> None:
    asyncio.get_running_loop().set_default_executor(Refusing())
    rewriter = Held()
    slow = store.as_instruction_retriever(k=1, rewriter=rewriter)
    asked = [asyncio.ensure_future(slow.ainvoke(question)) for question in ("who?", "what?")]
    while not rewriter.begun.acquire(blocking=False):
        await asyncio.sleep(0)
    while not rewriter.begun.acquire(blocking=False):  # two at once
        await asyncio.sleep(0)
    try:
        other = store.as_instruction_retriever(k=1).ainvoke("a picture of a dog")
        assert first(await asyncio.wait_for(other, timeout=60)) == "dog"
        assert len(await store.asimilarity_search("a dog", k=1)) == 1
    finally:
        rewriter.on.release(9)
    assert [first(found) for found in await asyncio.gather(*asked)] == ["crab", "crab"]
    assert {name.rpartition("_")[0] for name in rewriter.threads} == {"langchain-abc-rewrite"}


async def test_a_generator_reads_the_chat_before_a_question_and_judges(
    store: ABCVectorStore, scenes: dict[str, Path]
) -> None:
    fake = FakeGenerator()
    judging = store.as_instruction_retriever(k=2, generator=fake, rerank="judge", modality="text")
    question = HumanMessage("what about dogs?")
    history = [seen(scenes["dog"], "what is on the left?"), AIMessage("A dog [1].")]
    found = judging.invoke({"question": [*history, question]})
    assert found[0].page_content == "all about dogs"
    assert found[0].metadata["confidence"] > found[1].metadata["confidence"]
    lines = fake.asked[0][-1].parts[0].text.splitlines()
    said = ['user: picture "what is on the left?"', 'assistant: "A dog."', 'question: picture "what about dogs?"']
    assert lines == said
    # The same turns in a chain's own key, and in an event loop; what was rewritten is remembered.
    again = await judging.ainvoke({"question": "what about dogs?", "chat_history": history}, min_confidence=0.5)
    assert [one.page_content for one in again] == ["all about dogs"]
    assert sum(turns[-1].parts[0].text.startswith("user:") for turns in fake.asked) == 1
