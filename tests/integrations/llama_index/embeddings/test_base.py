"""ABCEmbeddings in LlamaIndex: every call, one pass a batch, an event loop that never waits, pictures in pipelines."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from embedders import Held
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.embeddings.abc import ABCEmbeddings
from pydantic import ValidationError

import abc_rag
from abc_rag import URL, ABCCheckpoint, DataURI, Embedder, EngineSettings, Fingerprint, ImageLimits, Input
from abc_rag.embedding.embedder import BatchSize
from abc_rag.errors import ImageError, ImageFetchError, ImageFormatError, InputError
from abc_rag.types import Vectors

DEMO = Path(abc_rag.__file__).parent / "models" / "bundled" / "demo"
PIG, ROSE, CRAB = (DEMO / name for name in ("pig-car.jpg", "rose-fox.jpg", "crab-elephant.jpg"))
LEFT = "what is on the left?"
PATIENCE = 20


@pytest.fixture(scope="module")
def embed_model() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu", embed_batch_size=2)


class Watched(Embedder):
    """Passes everything on; notes what is asked and in which thread, and can be made to wait."""

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.calls: list[list[Input]] = []
        self.threads: list[threading.Thread] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def dim(self) -> int:
        return self.inner.dim

    @property
    def fingerprint(self) -> Fingerprint:
        return self.inner.fingerprint

    def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
        self.calls.append(list(inputs))
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.go_on.wait(PATIENCE), "nobody let the model go on: the event loop was blocked"
        return self.inner.embed(inputs, batch_size=batch_size, progress=progress)


@pytest.fixture
def watched(embed_model: ABCEmbeddings) -> Iterator[tuple[ABCEmbeddings, Watched]]:
    model = ABCEmbeddings(model="abc-mini", device="cpu", embed_batch_size=2)
    watch = Watched(embed_model.embedder)
    model._embedder = watch
    yield model, watch
    watch.go_on.set()


def close(one: object, other: object) -> bool:
    return np.allclose(np.asarray(one), np.asarray(other), atol=1e-5)


# --- Vectors ----------------------------------------------------------------------------------------------


def test_every_call_gives_the_embedders_vectors(embed_model: ABCEmbeddings) -> None:
    embedder = embed_model.embedder
    texts = ["a dog", "a pig", "a rose"]
    assert isinstance(embed_model, MultiModalEmbedding)
    assert close(embed_model.get_text_embedding_batch(texts), embedder.embed_texts(texts))
    assert close([embed_model.get_text_embedding(text) for text in texts], embedder.embed_texts(texts))
    assert close(embed_model.get_query_embedding("a dog"), embedder.embed_texts(["a dog"])[0])
    pictures = [str(PIG), str(ROSE), str(CRAB)]
    assert close(embed_model.get_image_embedding_batch(pictures), embedder.embed_images(pictures))
    assert close(embed_model.get_image_embedding(pictures[1]), embedder.embed_images(pictures)[1])
    under = embedder.embed_images(pictures, instruction=LEFT)
    assert close(embed_model.get_instructed_image_embedding_batch(pictures, LEFT), under)
    assert close(embed_model.get_instructed_image_embedding(pictures[0], LEFT), under[0])
    assert not close(under, embedder.embed_images(pictures))


def test_an_instruction_steers_the_vector(embed_model: ABCEmbeddings) -> None:
    pig, car = (np.array(row) for row in embed_model.get_text_embedding_batch(["a pig", "a car"]))
    left = np.array(embed_model.get_instructed_image_embedding(str(PIG), LEFT))
    right = np.array(embed_model.get_instructed_image_embedding(str(PIG), "what is on the right?"))
    assert left @ pig > left @ car
    assert right @ car > right @ pig


def test_a_picture_may_come_in_many_ways(embed_model: ABCEmbeddings) -> None:
    data = PIG.read_bytes()
    half_read = io.BytesIO(data)
    half_read.read(100)
    uri = DataURI("data:image/jpeg;base64," + base64.b64encode(data).decode())
    ways: list[Any] = [str(PIG), PIG, io.BytesIO(data), half_read, data, uri, PIL.Image.open(PIG)]
    vectors = embed_model.get_image_embedding_batch(ways)
    assert close(vectors, [vectors[0]] * len(ways))
    assert close(
        embed_model.get_instructed_image_embedding_batch(ways, LEFT),
        [embed_model.get_instructed_image_embedding(str(PIG), LEFT)] * len(ways),
    )


def test_nothing_gives_nothing(embed_model: ABCEmbeddings) -> None:
    assert embed_model.get_text_embedding_batch([]) == []
    assert embed_model.get_image_embedding_batch([]) == []
    assert embed_model.get_instructed_image_embedding_batch([], LEFT) == []
    assert list(embed_model([])) == []


async def test_nothing_gives_nothing_when_awaited(embed_model: ABCEmbeddings) -> None:
    assert await embed_model.aget_text_embedding_batch([]) == []
    assert await embed_model.aget_image_embedding_batch([], show_progress=True) == []
    assert await embed_model.aget_instructed_image_embedding_batch([], LEFT) == []
    assert list(await embed_model.acall([])) == []


PICTURES = [str(PIG), str(ROSE), str(CRAB)]
BATCHES: list[Callable[[ABCEmbeddings], Any]] = [
    lambda m: m.get_text_embedding_batch(["a", "b", "c"]),
    lambda m: m.get_image_embedding_batch(PICTURES),
    lambda m: m.get_instructed_image_embedding_batch(PICTURES, LEFT),
    lambda m: asyncio.run(m.aget_text_embedding_batch(["a", "b", "c"])),
    lambda m: asyncio.run(m.aget_image_embedding_batch(PICTURES)),
    lambda m: asyncio.run(m.aget_instructed_image_embedding_batch(PICTURES, LEFT)),
]


@pytest.mark.parametrize("call", BATCHES)
def test_one_pass_a_batch(watched: tuple[ABCEmbeddings, Watched], call: Callable[[ABCEmbeddings], Any]) -> None:
    model, watch = watched
    assert len(call(model)) == 3
    assert sorted(len(inputs) for inputs in watch.calls) == [1, 2]


# --- Bad pictures -----------------------------------------------------------------------------------------


def test_a_bad_picture_in_a_batch_is_named(embed_model: ABCEmbeddings, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    with pytest.raises(ImageFetchError, match=r"gone\.png"):
        embed_model.get_image_embedding_batch([str(PIG), str(gone)])
    good = io.BytesIO(PIG.read_bytes())
    with pytest.raises(ImageFormatError, match="picture 2 of 2"):
        embed_model.get_image_embedding_batch([good, io.BytesIO(b"no picture")])
    with pytest.raises(ImageFormatError, match="picture 1 of 2"):
        embed_model.get_instructed_image_embedding_batch([io.BytesIO(b"no picture"), good], LEFT)
    assert len(embed_model.get_image_embedding_batch([good])) == 1  # the good ones still are


async def test_a_bad_picture_is_named_when_awaited(embed_model: ABCEmbeddings) -> None:
    with pytest.raises(ImageFormatError, match="picture 2 of 2"):
        await embed_model.aget_image_embedding_batch([io.BytesIO(PIG.read_bytes()), io.BytesIO(b"no picture")])


def test_strings_are_paths_and_urls_are_not_fetched_unasked(embed_model: ABCEmbeddings) -> None:
    with pytest.raises(ImageError, match="URL"):
        embed_model.get_image_embedding("https://example.com/a.png")
    with pytest.raises(ImageFetchError, match="allow_urls"):
        embed_model.get_image_embedding(URL("https://example.com/a.png"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not int"):
        embed_model.get_image_embedding(7)  # type: ignore[arg-type]


def test_limits_hold() -> None:
    strict = ABCEmbeddings(model="abc-mini", device="cpu", image_limits=ImageLimits(max_bytes=100))
    with pytest.raises(ImageError, match="max_bytes"):
        strict.get_image_embedding(str(PIG))


# --- Awaiting ---------------------------------------------------------------------------------------------

AWAITED: list[tuple[Callable[[ABCEmbeddings], Any], Callable[[ABCEmbeddings], Any]]] = [
    (lambda m: m.aget_query_embedding("a dog"), lambda m: m.get_query_embedding("a dog")),
    (lambda m: m.aget_text_embedding("a dog"), lambda m: m.get_text_embedding("a dog")),
    (
        lambda m: m.aget_text_embedding_batch(["a dog", "a pig"]),
        lambda m: m.get_text_embedding_batch(["a dog", "a pig"]),
    ),
    (lambda m: m.aget_image_embedding(str(PIG)), lambda m: m.get_image_embedding(str(PIG))),
    (lambda m: m.aget_image_embedding_batch(PICTURES[:2]), lambda m: m.get_image_embedding_batch(PICTURES[:2])),
    (
        lambda m: m.aget_instructed_image_embedding(str(PIG), LEFT),
        lambda m: m.get_instructed_image_embedding(str(PIG), LEFT),
    ),
    (
        lambda m: m.aget_instructed_image_embedding_batch(PICTURES[:2], LEFT),
        lambda m: m.get_instructed_image_embedding_batch(PICTURES[:2], LEFT),
    ),
]


@pytest.mark.parametrize(("awaited", "plain"), AWAITED)
async def test_awaited_calls_block_neither_the_loop_nor_its_threads(
    watched: tuple[ABCEmbeddings, Watched], awaited: Callable[[Any], Any], plain: Callable[[Any], Any]
) -> None:
    model, watch = watched
    busy = threading.Event()
    loop = asyncio.get_running_loop()
    shared = [loop.run_in_executor(None, busy.wait, PATIENCE) for _ in range(64)]
    watch.go_on.clear()
    task = asyncio.create_task(awaited(model))
    # The loop turns although the model waits, and although every shared thread is taken.
    while not watch.entered.is_set():
        await asyncio.sleep(0)
    watch.go_on.set()
    found = await task
    busy.set()
    await asyncio.gather(*shared)
    assert threading.current_thread() not in watch.threads
    assert close(found, plain(model))


@pytest.fixture
def held() -> Iterator[tuple[ABCEmbeddings, Held]]:
    """A model that is held back after each batch."""
    model = ABCEmbeddings(model="abc-mini", device="cpu")
    hold = Held(model.embedder)
    yield model, hold
    hold.on.release(10_000)


async def test_calls_awaited_at_the_same_time_are_computed_together(held: tuple[ABCEmbeddings, Held]) -> None:
    model, hold = held
    await model.aget_query_embedding("first")
    queries = [f"a dog and {i} cats" for i in range(20)]
    texts = [asyncio.create_task(model.aget_query_embedding(query)) for query in queries]
    pictures = [asyncio.create_task(model.aget_image_embedding(path)) for path in PICTURES]
    await asyncio.sleep(0)
    hold.on.release(1000)
    found, seen = await asyncio.gather(*texts), await asyncio.gather(*pictures)
    assert sum(hold.batches) == 1 + 20 + 3
    assert len(hold.batches) < 20
    assert close(found, model.get_text_embedding_batch(queries))
    assert close(seen, model.get_image_embedding_batch(PICTURES))


async def test_a_call_cancelled_in_the_queue_never_runs(held: tuple[ABCEmbeddings, Held]) -> None:
    model, hold = held
    await model.aget_text_embedding("first")
    second = asyncio.create_task(model.aget_image_embedding_batch(PICTURES))
    third = asyncio.create_task(model.aget_text_embedding("third"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    hold.on.release(1000)
    await third
    assert hold.batches == [1, 1]


# --- Settings ---------------------------------------------------------------------------------------------

SETTINGS: list[dict[str, Any]] = [
    {"model": "abc-mini"},
    {
        "model": "abc-mini",
        "device": "cpu",
        "dtype": "float32",
        "min_tokens": 4,
        "max_tokens": 16,
        "attention": "eager",
        "weights": "int8",
        "embed_batch_size": 7,
        "show_progress": True,
        "image_limits": ImageLimits(max_bytes=10**6, allow_urls=True, formats=frozenset({"PNG", "JPEG"})),
        "engine": EngineSettings(workers=3, max_wait_ms=2.5, cache_folder="cache"),
    },
    {
        "model": ABCCheckpoint(
            "Qwen/some-base", Path("weights/pretrain"), Path("/weights/instruct"), base_revision="main"
        )
    },
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_settings_can_be_written_down_and_read_back(settings: dict[str, Any]) -> None:
    model = ABCEmbeddings(**settings)
    written = model.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert written["class_name"] == ABCEmbeddings.class_name() == "ABCEmbeddings"
    for again in (ABCEmbeddings.from_dict(written), ABCEmbeddings.from_json(model.to_json())):
        assert again.to_dict() == written
        assert again.image_limits == model.image_limits
        assert again.engine == model.engine
        assert again.embed_batch_size == model.embed_batch_size
    pickled = pickle.loads(pickle.dumps(model))
    assert pickled.to_dict() == written


def test_a_path_stays_a_path_when_written_down() -> None:
    written = ABCEmbeddings(**SETTINGS[2]).to_dict()["model"]
    # Without a mark the second would be read back as a hub id.
    assert (written["base"], written["pretrain"], written["instruct"]) == (
        "Qwen/some-base",
        "./weights/pretrain",
        "/weights/instruct",
    )


def test_the_default_model_is_settled_when_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABC_RAG_MODEL", "abc-mini")
    written = ABCEmbeddings().to_dict()
    monkeypatch.delenv("ABC_RAG_MODEL")
    assert ABCEmbeddings.from_dict(written).model == "abc-mini"
    assert ABCEmbeddings().model == "abc"


def test_caches_and_callbacks_are_not_written_down() -> None:
    model = ABCEmbeddings(model="abc-mini", embeddings_cache=SimpleKVStore(), callback_manager=CallbackManager([]))
    assert not {"embeddings_cache", "callback_manager", "rate_limiter"} & set(model.to_dict())


def test_copies_share_the_weights_and_pickles_do_not_warn(
    embed_model: ABCEmbeddings, caplog: pytest.LogCaptureFixture
) -> None:
    embed_model.get_text_embedding("a dog")
    assert copy.deepcopy(embed_model).embedder is embed_model.embedder
    with caplog.at_level(logging.WARNING):
        again = pickle.loads(pickle.dumps(embed_model))
    assert not caplog.records
    assert close(again.get_text_embedding("a dog"), embed_model.get_text_embedding("a dog"))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        ABCEmbeddings(modle="abc-mini")  # type: ignore[call-arg]
    with pytest.raises((ValidationError, InputError), match="no-such-folder"):
        ABCEmbeddings(model="./no-such-folder")
    with pytest.raises(ValidationError, match="write model='abc-mini'"):
        ABCEmbeddings(model_name="abc-mini")
    assert ABCEmbeddings(model="abc-mini").to_payload()["model_name"] == "abc-mini"


def test_nothing_is_loaded_until_a_vector_is_asked_for() -> None:
    ABCEmbeddings(model=ABCCheckpoint(Path("/no"), Path("/such"), Path("/weights")))
    assert ABCEmbeddings(model="abc").embedder is not None


def test_the_cache_spares_the_model(watched: tuple[ABCEmbeddings, Watched]) -> None:
    model, watch = watched
    model.embeddings_cache = SimpleKVStore()
    model.get_text_embedding_batch(["a", "b"])
    model.get_text_embedding_batch(["b", "a"])
    assert len(watch.calls) == 1


def test_what_is_missing_is_embedded_and_the_rest_kept(watched: tuple[ABCEmbeddings, Watched]) -> None:
    model, watch = watched
    done = ImageNode(image_path=str(PIG), text="a pig", embedding=[1.0], text_embedding=[2.0])
    half = ImageNode(image_path=str(PIG), text="a pig", embedding=[1.0])
    model.embed_missing([done, half, TextNode(text="x", embedding=[3.0])])
    assert (done.embedding, done.text_embedding, half.embedding) == ([1.0], [2.0], [1.0])
    assert half.text_embedding == model.get_text_embedding("a pig")
    assert [item.text for item in watch.calls[0]] == ["a pig"]  # type: ignore[union-attr]


async def test_an_error_about_one_text_names_its_place_or_its_node() -> None:
    model = ABCEmbeddings(model="abc-mini", embed_batch_size=4)
    texts = [*(f"text {n}" for n in range(9)), "word " * 5000]
    with pytest.raises(InputError, match=r"^input 9: an input of .* tokens is longer"):
        model.get_text_embedding_batch(texts)
    with pytest.raises(InputError, match=r"^input 9: an input of .* tokens is longer"):
        await model.aget_text_embedding_batch(texts)
    nodes = [TextNode(id_=f"node-{n}", text=text) for n, text in enumerate(texts)]
    with pytest.raises(InputError, match=r"^node 'node-9': an input of .* tokens is longer"):
        model(nodes)
    with pytest.raises(InputError, match=r"^node 'node-9': an input of .* tokens is longer"):
        await model.acall(nodes)
    failed = model.embed_each([*nodes, TextNode(id_="fine", text="fine")])
    assert list(failed) == [9]
    assert str(failed[9]).startswith("node 'node-9': an input of")
