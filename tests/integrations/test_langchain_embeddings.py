"""ABCEmbeddings in LangChain: its standard suites, langchain_chroma, and an event loop that never waits."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from langchain_abc import ABCEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from abc_rag.errors import ImageError, InputError
from abc_rag.scenes import Placed, Scene, render


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


async def test_async_gives_the_same_and_never_blocks_the_loop(
    embeddings: ABCEmbeddings, pictures: dict[str, str]
) -> None:
    texts = [f"a dog and {i} cats" for i in range(200)]
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    documents, query, images = await asyncio.gather(
        embeddings.aembed_documents(texts),
        embeddings.aembed_query("a dog"),
        embeddings.aembed_image(uris=list(pictures.values()), instruction="the animal"),
    )
    ticking.cancel()
    assert len(ticks) > 5
    assert np.allclose(documents, embeddings.embed_documents(texts), atol=1e-5)
    assert np.allclose(query, embeddings.embed_query("a dog"), atol=1e-5)
    assert np.allclose(
        images, embeddings.embed_image(uris=list(pictures.values()), instruction="the animal"), atol=1e-5
    )


async def test_async_runs_in_a_thread_of_its_own_while_the_shared_pool_is_full(embeddings: ABCEmbeddings) -> None:
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


def test_settings_can_be_written_down_and_read_back() -> None:
    settings = ABCEmbeddings(model="abc-mini", device="cpu", max_tokens=16).model_dump()
    again = ABCEmbeddings(**settings)
    assert again.model_dump() == settings
    assert again.embedder.fingerprint.max_tokens == 16
