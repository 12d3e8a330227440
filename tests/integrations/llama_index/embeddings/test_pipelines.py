"""ABCEmbeddings in LlamaIndex: events, progress, caches, pipelines, and a process without a network."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import ImageDocument, ImageNode, MediaResource, Node, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.abc import ABCEmbeddings
from pydantic import PrivateAttr

import abc_rag
from abc_rag.errors import ImageFetchError, ImageFormatError, InputError

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
LEFT = "what is on the left?"
PICTURES = [str(PIG), str(ROSE), str(CRAB)]
CALLS: list[Callable[[ABCEmbeddings], Any]] = [
    lambda m: m.get_text_embedding_batch(["a", "b", "c"]),
    lambda m: m.get_image_embedding_batch(PICTURES),
    lambda m: m.get_instructed_image_embedding_batch(PICTURES, LEFT),
    lambda m: asyncio.run(m.aget_text_embedding_batch(["a", "b", "c"])),
    lambda m: asyncio.run(m.aget_image_embedding_batch(PICTURES)),
    lambda m: asyncio.run(m.aget_instructed_image_embedding_batch(PICTURES, LEFT)),
]
CHUNKS = [
    [["a", "b"], ["c"]],
    [PICTURES[:2], PICTURES[2:]],
    [[f"{path} ({LEFT})" for path in PICTURES[:2]], [f"{path} ({LEFT})" for path in PICTURES[2:]]],
]


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu", embed_batch_size=2)


def close(one: object, other: object) -> bool:
    return np.allclose(np.asarray(one), np.asarray(other), atol=1e-5)


# --- Events, progress, caches -----------------------------------------------------------------------------


class Noted(BaseEventHandler):
    _events: list[Any] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Noted"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, (EmbeddingStartEvent, EmbeddingEndEvent)):
            self._events.append(event)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    root, handler = get_dispatcher(), Noted()
    root.add_event_handler(handler)
    yield handler._events
    root.event_handlers.remove(handler)


@pytest.mark.parametrize(("call", "chunks"), list(zip(CALLS, CHUNKS * 2, strict=True)))
def test_pictures_send_the_events_that_texts_do(
    embed_model: ABCEmbeddings, events: list[Any], call: Callable[[ABCEmbeddings], Any], chunks: list[list[str]]
) -> None:
    found = call(embed_model)
    starts = [event for event in events if isinstance(event, EmbeddingStartEvent)]
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert [start.model_dict for start in starts] == [embed_model.to_payload()] * 2
    ends.sort(key=lambda end: chunks.index(end.chunks))  # batches that are awaited together end in any order
    assert [end.chunks for end in ends] == chunks
    assert close([row for end in ends for row in end.embeddings], found)


def test_callbacks_are_called_for_instructed_pictures_too() -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    model = ABCEmbeddings(model="abc-mini", device="cpu", callback_manager=CallbackManager([handler]))
    model.get_image_embedding(str(PIG))
    model.get_instructed_image_embedding(str(PIG), LEFT)
    asyncio.run(model.aget_instructed_image_embedding(str(PIG), LEFT))
    assert len(handler.get_event_pairs(CBEventType.EMBEDDING)) == 3


@pytest.mark.parametrize("call", CALLS)
def test_progress_is_shown_where_asked(
    call: Callable[[ABCEmbeddings], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    call(ABCEmbeddings(model="abc-mini", device="cpu"))
    assert capsys.readouterr().err == ""
    call(ABCEmbeddings(model="abc-mini", device="cpu", show_progress=True))
    assert "Generating" in capsys.readouterr().err


def test_the_cache_never_mixes_up_a_picture_and_a_text(embed_model: ABCEmbeddings) -> None:
    cache = SimpleKVStore()
    model = ABCEmbeddings(model="abc-mini", device="cpu", embeddings_cache=cache)
    name = str(PIG)
    picture, under = model.get_image_embedding(name), model.get_instructed_image_embedding(name, LEFT)
    assert cache.get_all(collection="embeddings") == {}
    texts = model.get_text_embedding_batch([name, f"{name} ({LEFT})"])
    assert set(cache.get_all(collection="embeddings")) == {name, f"{name} ({LEFT})"}
    assert close(texts, embed_model.get_text_embedding_batch([name, f"{name} ({LEFT})"]))
    assert close(model.get_image_embedding(name), picture)
    assert close(model.get_instructed_image_embedding(name, LEFT), under)
    assert not close(texts[0], picture)
    assert close(model.get_text_embedding(name), texts[0])


# --- Pipelines --------------------------------------------------------------------------------------------


def picture_nodes() -> list[Any]:
    data = ROSE.read_bytes()
    return [
        ImageNode(image_path=str(PIG), metadata={"file_name": "a cow.jpg"}),
        ImageNode(image=base64.encodebytes(data).decode(), text="a rose in a garden"),
        ImageDocument(image_path=str(CRAB), text="a crab"),
        Node(image_resource=MediaResource(data=data)),
        TextNode(text="Pigs roll in mud."),
    ]


def check_vectors(nodes: Sequence[Any], embed_model: ABCEmbeddings) -> None:
    pictures = embed_model.get_image_embedding_batch([str(PIG), str(ROSE), str(CRAB), str(ROSE)])
    texts = embed_model.get_text_embedding_batch(["Pigs roll in mud.", "a rose in a garden", "a crab"])
    assert close([node.embedding for node in nodes], [*pictures, texts[0]])
    assert nodes[0].text_embedding is None
    assert close([nodes[1].text_embedding, nodes[2].text_embedding], texts[1:])


def test_a_pipeline_embeds_pictures_and_not_their_metadata(embed_model: ABCEmbeddings) -> None:
    check_vectors(IngestionPipeline(transformations=[embed_model]).run(nodes=picture_nodes()), embed_model)


async def test_an_awaited_pipeline_does_too(embed_model: ABCEmbeddings) -> None:
    check_vectors(await IngestionPipeline(transformations=[embed_model]).arun(nodes=picture_nodes()), embed_model)


def test_the_pipelines_cache_needs_something_to_tell_pictures_by(embed_model: ABCEmbeddings) -> None:
    # LlamaIndex's, not ours: this is what the docstring warns of, and the two remedies that it names.
    bare, named, off = (IngestionPipeline(transformations=[embed_model]) for _ in range(3))
    off.disable_cache = True
    for pipeline, metadata, told_apart in (
        (bare, [{}, {}], False),
        (named, [{"n": 1}, {"n": 2}], True),
        (off, [{}, {}], True),
    ):
        first = pipeline.run(nodes=[ImageNode(image_path=str(PIG), metadata=metadata[0])])
        second = pipeline.run(nodes=[ImageNode(image_path=str(ROSE), metadata=metadata[1])])
        assert close(first[0].embedding, second[0].embedding) is not told_apart


@pytest.mark.parametrize("awaited", [False, True])
def test_a_bad_picture_names_its_node(embed_model: ABCEmbeddings, awaited: bool) -> None:
    good = base64.b64encode(PIG.read_bytes()).decode()
    bad = base64.b64encode(b"no picture").decode()
    nodes = [ImageNode(image=good), ImageNode(id_="the-bad-one", image=bad)]
    with pytest.raises(ImageFormatError, match="the-bad-one"):
        asyncio.run(embed_model.acall(nodes)) if awaited else embed_model(nodes)
    with pytest.raises(InputError, match="'broken': its image is not base64"):
        embed_model([ImageNode(id_="broken", image="###")])


def test_a_pictures_url_is_for_the_limits_to_judge(embed_model: ABCEmbeddings) -> None:
    # LlamaIndex's own `resolve_image` would fetch it, from anywhere.
    with pytest.raises(ImageFetchError, match="allow_urls"):
        embed_model([ImageNode(image_url="http://127.0.0.1/a.png")])


# --- A process without a network --------------------------------------------------------------------------

OFFLINE = """
import sys
def refuse(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        raise RuntimeError("the network was asked for: " + event)
sys.addaudithook(refuse)
from llama_index.core import Document, Settings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
import llama_index.core, llama_index.vector_stores.chroma, llama_index.vector_stores
from llama_index.embeddings.abc import ABCEmbeddings
from llama_index.retrievers.abc import InstructionRetriever
from llama_index.vector_stores.abc import ABCMultiModalIndex
from abc_rag import ChromaStore
embed_model = ABCEmbeddings(model="abc-mini", device="cpu")
with ChromaStore(sys.argv[1], fingerprint=embed_model.embedder.fingerprint) as store:
    documents = [Document(text="Pigs roll in mud. They like it.")]
    ABCMultiModalIndex.from_documents(documents, embed_model=embed_model, store=store)
    engine = RetrieverQueryEngine.from_args(InstructionRetriever(embed_model, store), llm=MockLLM())
    print(engine.query("what does a pig do?"))
"""


def test_nothing_is_downloaded_by_importing_or_using_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NLTK", "TIKTOKEN", "LLAMA"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env=kept | {"HOME": str(home)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Pigs roll in mud" in done.stdout
