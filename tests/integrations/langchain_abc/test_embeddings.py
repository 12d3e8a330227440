"""ABCEmbeddings in LangChain: its standard suites, langchain_chroma, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from embedders import Held
from langchain_abc import ABCEmbeddings, ABCVectorStore, InstructionRetriever
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from abc_rag import ABCCheckpoint, Embedder, EngineSettings, ImageLimits
from abc_rag.embedding.embedder import BatchSize
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageError, InputError
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene
from abc_rag.types import Input, Vectors


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[ABCEmbeddings]:
        return ABCEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, str]:
        return {"model": "abc-mini", "device": "cpu"}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[ABCEmbeddings]:
        return ABCEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, str]:
        return {"model": "abc-mini", "device": "cpu"}


@pytest.fixture(scope="module")
def embeddings() -> ABCEmbeddings:
    return ABCEmbeddings(model="abc-mini", device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    scenes = {
        "dog": Scene((Placed("dog", "big", "left"), Placed("pizza", "small", "right")), "blue"),
        "car": Scene((Placed("car", "big", "left"), Placed("tree", "small", "right")), "yellow"),
        "crab": Scene((Placed("crab", "big", "top"), Placed("guitar", "big", "bottom")), "white"),
    }
    paths = {}
    for name, scene in scenes.items():
        paths[name] = str(tmp_path / f"{name}.png")
        render(scene).save(paths[name])
    return paths


def test_an_instruction_steers_the_vector(embeddings: ABCEmbeddings, pictures: dict[str, str]) -> None:
    dog, pizza = (np.array(v) for v in embeddings.embed_documents(["a dog", "a pizza"]))
    left = np.array(embeddings.embed_image(uris=[pictures["dog"]], instruction="what is on the left?")[0])
    right = np.array(embeddings.embed_image(uris=[pictures["dog"]], instruction="what is on the right?")[0])
    assert left @ dog > left @ pizza
    assert right @ pizza > right @ dog


def test_langchain_chroma_finds_texts_and_pictures(
    embeddings: ABCEmbeddings, pictures: dict[str, str], tmp_path: Path
) -> None:
    from langchain_chroma import Chroma

    store = Chroma(
        "pictures",
        embedding_function=embeddings,
        persist_directory=str(tmp_path / "store"),
        collection_metadata={"hnsw:space": "cosine"},
    )
    store.add_images(uris=list(pictures.values()), metadatas=[{"name": n} for n in pictures])
    found = store.similarity_search("a big dog to the left of a small pizza on a blue background", k=1)
    assert found[0].metadata["name"] == "dog"
    by_image = store.similarity_search_by_image(pictures["crab"], k=1)
    assert by_image[0].metadata["name"] == "crab"

    texts = Chroma("texts", embedding_function=embeddings, persist_directory=str(tmp_path / "store"))
    texts.add_texts(["a guide to the guitar", "everything about trees", "the story of the car"])
    assert texts.similarity_search("a guitar", k=1)[0].page_content == "a guide to the guitar"
    question = embeddings.embed_image(uris=[pictures["car"]], instruction="which plant is in the picture?")[0]
    assert texts.similarity_search_by_vector(question, k=1)[0].page_content == "everything about trees"


async def test_async_gives_the_same(embeddings: ABCEmbeddings, pictures: dict[str, str]) -> None:
    texts = [f"a dog and {i} cats" for i in range(300)]
    paths = list(pictures.values())
    documents, query, images, each = await asyncio.gather(
        embeddings.aembed_documents(texts),
        embeddings.aembed_query("a dog"),
        embeddings.aembed_image(uris=paths, instruction="the animal"),
        embeddings.aembed_images(paths, instruction=["the animal", "the plant", ""]),
    )
    assert np.allclose(documents, embeddings.embed_documents(texts), atol=1e-5)
    assert np.allclose(query, embeddings.embed_query("a dog"), atol=1e-5)
    assert np.allclose(images, embeddings.embed_image(uris=paths, instruction="the animal"), atol=1e-5)
    assert np.allclose(each, embeddings.embed_images(paths, instruction=["the animal", "the plant", ""]), atol=1e-5)
    assert await embeddings.aembed_documents([]) == await embeddings.aembed_images([]) == []


# --- Awaiting -----------------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[tuple[ABCEmbeddings, Held]]:
    """Embeddings whose model is held back after each batch."""
    embeddings = ABCEmbeddings(model="abc-mini", device="cpu")
    hold = Held(embeddings.embedder)
    yield embeddings, hold
    hold.on.release(10_000)


LONG = [f"number {i} " + "of many long texts that fill a batch sooner " * 2 for i in range(600)]


async def test_what_is_awaited_at_the_same_time_is_computed_together(
    held: tuple[ABCEmbeddings, Held], pictures: dict[str, str]
) -> None:
    embeddings, hold = held
    await embeddings.aembed_query("first")
    # Only a loop that is not blocked by the model gets here.
    queries = [f"a dog and {i} cats" for i in range(20)]
    texts = [asyncio.ensure_future(embeddings.aembed_query(query)) for query in queries]
    seen = [asyncio.ensure_future(embeddings.aembed_image(uris=[path])) for path in pictures.values()]
    await asyncio.sleep(0)
    hold.on.release(1000)
    found, images = await asyncio.gather(*texts), await asyncio.gather(*seen)
    assert sum(hold.batches) == 1 + 20 + 3
    assert len(hold.batches) < 20
    assert np.allclose(found, embeddings.embed_documents(queries), atol=1e-5)
    assert np.allclose([rows[0] for rows in images], embeddings.embed_images(list(pictures.values())), atol=1e-5)


async def test_work_that_is_cancelled_in_line_never_starts(held: tuple[ABCEmbeddings, Held]) -> None:
    embeddings, hold = held
    await embeddings.aembed_query("first")
    second = asyncio.ensure_future(embeddings.aembed_query("second"))
    third = asyncio.ensure_future(embeddings.aembed_query("third"))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    hold.on.release(1000)
    assert len(await third) == embeddings.embedder.dim
    assert sum(hold.batches) == 2


async def test_long_lists_let_others_in_between(held: tuple[ABCEmbeddings, Held]) -> None:
    embeddings, hold = held
    long = asyncio.ensure_future(embeddings.aembed_documents(LONG))
    await asyncio.to_thread(hold.begun.acquire)
    between = asyncio.ensure_future(embeddings.aembed_query("between"))
    await asyncio.sleep(0)
    hold.on.release(4)
    await between
    assert not long.done()
    hold.on.release(1000)
    assert np.allclose(await long, embeddings.embed_documents(LONG), atol=1e-5)


async def test_long_lists_can_be_cancelled_in_between(held: tuple[ABCEmbeddings, Held]) -> None:
    embeddings, hold = held
    long = asyncio.ensure_future(embeddings.aembed_documents(LONG))
    await asyncio.to_thread(hold.begun.acquire)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    hold.on.release(1000)
    await embeddings.aembed_query("next")
    assert sum(hold.batches) < 300


async def test_what_leaves_the_thread_arrives() -> None:
    class Stopping(FakeEmbedder):
        def _embed(self, inputs: Sequence[Input], *, batch_size: BatchSize, progress: bool) -> Vectors:
            raise StopIteration

    class StoppingEmbeddings(ABCEmbeddings):
        def _load(self) -> Embedder:
            return Stopping()

    # No future can hold this one: without help the loop would wait for ever.
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(StoppingEmbeddings().aembed_query("a"), timeout=60)


async def test_a_bad_input_is_named_by_its_place_also_in_a_long_list(embeddings: ABCEmbeddings) -> None:
    texts: list[Any] = ["a dog"] * 300
    texts[270] = 5
    with pytest.raises(InputError, match=r"input 270: Text\.text must be a str, not int"):
        await embeddings.aembed_documents(texts)
    texts[270] = "word " * 3000
    with pytest.raises(InputError, match=r"input 270: .*2048"):
        await embeddings.aembed_documents(texts)
    with pytest.raises(ImageError, match=r"^gone\.png: "):
        await embeddings.aembed_image(uris=["gone.png"])
    with pytest.raises(InputError, match=r"pass \[text\]"):
        await embeddings.aembed_documents("a dog")  # type: ignore[arg-type]


async def test_async_does_without_the_shared_pool_also_while_the_model_loads() -> None:
    embeddings = ABCEmbeddings(model="abc-mini", device="cpu")
    release = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, release.wait) for _ in range(64)]
    try:
        vector = await asyncio.wait_for(embeddings.aembed_query("a dog"), timeout=60)
    finally:
        release.set()
        await asyncio.gather(*busy)
    assert len(vector) == embeddings.embedder.dim


def test_pil_images_bytes_and_paths_give_one_vector(embeddings: ABCEmbeddings, pictures: dict[str, str]) -> None:
    path = Path(pictures["dog"])
    vectors = embeddings.embed_image(uris=[str(path), path, path.read_bytes(), PIL.Image.open(path)])
    assert np.allclose(vectors, vectors[0], atol=1e-6)


def test_a_url_like_string_is_a_path(embeddings: ABCEmbeddings) -> None:
    with pytest.raises(ImageError, match="URL"):
        embeddings.embed_image(uris=["https://example.com/a.png"])


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="modle"):
        ABCEmbeddings(modle="abc-mini")  # type: ignore[call-arg]
    with pytest.raises((ValidationError, InputError), match="no-such-folder"):
        ABCEmbeddings(model="./no-such-folder")


# --- Pictures ---------------------------------------------------------------------------------------------


def test_other_packages_find_the_call_that_they_look_for(embeddings: ABCEmbeddings, pictures: dict[str, str]) -> None:
    for method in (ABCEmbeddings.embed_image, ABCEmbeddings.aembed_image):
        uris, instruction = list(inspect.signature(method).parameters.values())[1:]
        assert (uris.name, uris.kind, uris.default) == ("uris", uris.POSITIONAL_OR_KEYWORD, uris.empty)
        assert (instruction.name, instruction.kind, instruction.default) == ("instruction", uris.KEYWORD_ONLY, None)
    [vector] = embeddings.embed_image(uris=[pictures["dog"]])
    assert type(vector) is list
    assert type(vector[0]) is float


def test_one_instruction_for_all_pictures_or_one_for_each(embeddings: ABCEmbeddings, pictures: dict[str, str]) -> None:
    dog, car = pictures["dog"], pictures["car"]
    alone = [embeddings.embed_image(uris=[p], instruction=i)[0] for p, i in ((dog, "the food"), (car, "the plant"))]
    assert np.allclose(embeddings.embed_images([dog, car], instruction=["the food", "the plant"]), alone, atol=1e-5)
    same = embeddings.embed_images([dog, dog], instruction="the food")
    assert np.allclose(same, alone[0], atol=1e-5)
    assert not np.allclose(embeddings.embed_images([dog]), embeddings.embed_images([dog], instruction=""), atol=1e-3)
    assert embeddings.embed_images([]) == embeddings.embed_images([], instruction=[]) == []
    with pytest.raises(InputError, match="1 instructions for 2 pictures"):
        embeddings.embed_images([dog, car], instruction=["the food"])
    with pytest.raises(InputError, match=r"pass \[picture\]"):
        embeddings.embed_images(dog)
    with pytest.raises(InputError, match="instruction must be a str, not int"):
        embeddings.embed_images([dog], instruction=[3])  # type: ignore[list-item]


# --- Settings ---------------------------------------------------------------------------------------------

LIMITS = ImageLimits(max_bytes=10_000, formats=frozenset({"PNG", "JPEG"}), allow_urls=True, url_timeout_s=2.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "abc-mini", "device": "cpu", "max_tokens": 16, "batch_size": 7, "image_limits": LIMITS},
        {"model": ABCCheckpoint("base/id", "/somewhere/else", "id/instruct", base_revision="main"), "dtype": "float32"},
        {"model": "abc-mini", "weights": "int8"},
        {
            "model": "abc-mini",
            "engine": EngineSettings(workers=3, max_wait_ms=2.5, cache_folder="cache", compile=True),
        },
        {},
    ],
)
def test_settings_can_be_written_down_and_read_back(settings: dict[str, Any]) -> None:
    made = ABCEmbeddings(**settings)
    for again in (
        ABCEmbeddings.model_validate(made.model_dump()),
        ABCEmbeddings.model_validate_json(made.model_dump_json()),
        ABCEmbeddings(**made.model_dump()),
        pickle.loads(pickle.dumps(made)),
        copy.deepcopy(made),
        copy.copy(made),
        made.model_copy(),
    ):
        assert again == made
        assert again.image_limits == settings.get("image_limits")
        assert again.engine == settings.get("engine")
        assert type(again.model) is type(made.model)
    assert made != ABCEmbeddings(**settings, min_tokens=3)


def test_a_path_does_not_become_a_name_on_its_way_through_json(tmp_path: Path) -> None:
    made = ABCEmbeddings(model=ABCCheckpoint(Path("base"), tmp_path, "hub/id"))
    again = ABCEmbeddings.model_validate_json(made.model_dump_json()).model
    assert again == ABCCheckpoint("./base", str(tmp_path), "hub/id")
    assert ABCEmbeddings.model_validate(made.model_dump()) == made


def test_what_is_read_back_is_checked() -> None:
    with pytest.raises(ValidationError, match="max_bytes must be an int of at least 1"):
        ABCEmbeddings.model_validate({"model": "abc-mini", "image_limits": {"max_bytes": 0}})
    with pytest.raises(ValidationError, match="workers must be an int of at least 1"):
        ABCEmbeddings.model_validate({"model": "abc-mini", "engine": {"workers": 0}})
    made = ABCEmbeddings(model="abc-mini", engine=EngineSettings(cache_folder=Path("cache")))
    assert ABCEmbeddings.model_validate_json(made.model_dump_json()).engine == EngineSettings(cache_folder="cache")
    for settings in (
        {"batch_size": 0},
        {"batch_size": "large"},
        {"dtype": "float8"},
        {"attention": "flash"},
        {"weights": "int2"},
    ):
        with pytest.raises(ValidationError, match=next(iter(settings))):
            ABCEmbeddings(model="abc-mini", **settings)  # type: ignore[arg-type]
    embeddings = ABCEmbeddings(model="abc-mini")
    with pytest.raises(ValidationError, match="max_tokens"):
        embeddings.max_tokens = 0


def test_settings_read_back_make_the_same_vectors(embeddings: ABCEmbeddings) -> None:
    wanted = embeddings.embed_query("a dog")
    again = pickle.loads(pickle.dumps(embeddings))
    assert again.embedder is not embeddings.embedder
    assert np.allclose(again.embed_query("a dog"), wanted)
    assert again.embedder.fingerprint == embeddings.embedder.fingerprint


def test_copies_share_the_weights_as_long_as_their_settings_are_the_same(embeddings: ABCEmbeddings) -> None:
    embedder = embeddings.embedder
    assert embeddings.model_copy(update={"show_progress": True}).embedder is embedder
    assert copy.deepcopy(embeddings).embedder is embedder
    finer = embeddings.model_copy(update={"max_tokens": 16})
    assert finer.embedder is not embedder
    assert finer.embedder.fingerprint.max_tokens == 16
    assert embeddings.embedder is embedder
    finer.max_tokens = 12
    assert finer.embedder.fingerprint.max_tokens == 12


@pytest.mark.parametrize("kind", [ABCEmbeddings, ABCVectorStore, InstructionRetriever])
def test_docstrings_have_langchain_s_sections(kind: type) -> None:
    own = {
        ABCEmbeddings: ["Embed single text:", "Embed multiple texts:", "Async:"],
        ABCVectorStore: ["Add Documents:", "Delete Documents:", "Search:", "Async:", "Use as Retriever:"],
        InstructionRetriever: ["Usage:"],
    }[kind]
    lines = inspect.getdoc(kind).splitlines()  # type: ignore[union-attr]
    for section in ("Setup:", "Key init args:", "Instantiate:", *own):
        assert section in lines
