"""Questions to a small store whose nearest neighbours are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from abc_rag import ChromaStore, Image, InstructedImage, Record, Text
from abc_rag.embedder import Embedder
from abc_rag.errors import ImageError, InputError
from abc_rag.retriever import Answer, Retriever
from abc_rag.store import text_id
from abc_rag.testing import FakeEmbedder

PASSAGES = {"the red bicycle": 1, "a blue boat": 2, "a blue bicycle": 3}


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for colour in ("red", "green"):
        made[colour] = tmp_path / f"{colour}.png"
        PIL.Image.new("RGB", (5, 5), colour).save(made[colour])
    return made


@pytest.fixture
def retriever(tmp_path: Path, pictures: dict[str, Path]) -> Iterator[Retriever]:
    embedder = FakeEmbedder(dim=256)
    with ChromaStore(path=tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        records = [Record(text_id(t), "text", text=t, metadata={"page": page}) for t, page in PASSAGES.items()]
        store.add(records, embedder.embed_texts(PASSAGES))
        records = [Record(f"picture-{c}", "image", source=str(p), metadata={"page": 9}) for c, p in pictures.items()]
        store.add(records, embedder.embed_images(pictures.values()))
        yield Retriever(embedder, store)


def found(answer: Answer) -> list[str]:
    return [hit.record.text or hit.record.id for hit in answer.hits]


def test_a_question(retriever: Retriever) -> None:
    answer = retriever.search("red bicycle", k=2)
    assert (answer.question, answer.instruction) == ("red bicycle", None)
    assert found(answer) == ["the red bicycle", "a blue bicycle"]
    assert answer.hits[0].score > answer.hits[1].score
    assert answer.hits[0].record == Record(
        text_id("the red bicycle"), "text", text="the red bicycle", metadata={"page": 1}
    )


def test_a_picture_alone(retriever: Retriever, pictures: dict[str, Path]) -> None:
    answer = retriever.search(image=pictures["green"], k=1)
    assert (answer.question, answer.instruction) == (None, None)
    assert found(answer) == ["picture-green"]
    assert answer.hits[0].score == pytest.approx(1)


def test_a_picture_under_a_question(retriever: Retriever, pictures: dict[str, Path]) -> None:
    answer = retriever.search("a boat", image=str(pictures["red"]), k=5)
    assert (answer.question, answer.instruction) == ("a boat", "a boat")
    assert set(found(answer)[:2]) == {"picture-red", "a blue boat"}
    # The vector is that of the picture with the instruction, and neither that of the one nor of the other.
    (vector,) = retriever.embedder.embed([InstructedImage(pictures["red"], "a boat")])
    assert answer.hits == retriever.store.search(vector, k=5)
    for other in (Image(pictures["red"]), Text("a boat")):
        assert answer.hits != retriever.store.search(retriever.embedder.embed([other])[0], k=5)


@pytest.mark.parametrize("k", [1, 3, 5, 50])
def test_k_is_the_most(retriever: Retriever, k: int) -> None:
    assert len(retriever.search("bicycle", k=k).hits) == min(k, 5)


def test_four_are_found_unless_asked(retriever: Retriever) -> None:
    assert len(retriever.search("bicycle").hits) == 4


@pytest.mark.parametrize(
    ("modality", "expected"),
    [("text", set(PASSAGES)), ("image", {"picture-red", "picture-green"})],
)
def test_one_modality(retriever: Retriever, modality: Any, expected: set[str]) -> None:
    assert set(found(retriever.search("bicycle", k=9, modality=modality))) == expected


def test_a_filter(retriever: Retriever) -> None:
    assert found(retriever.search("bicycle", where={"page": 2})) == ["a blue boat"]
    assert set(found(retriever.search("bicycle", where={"page": {"$gte": 3}}, k=9))) == {
        "a blue bicycle",
        "picture-red",
        "picture-green",
    }
    assert found(retriever.search("bicycle", where={"page": {"$gte": 3}}, modality="text")) == ["a blue bicycle"]
    assert found(retriever.search("bicycle", where={"page": 77})) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to search for"),
        ({"question": ""}, "question is empty"),
        ({"question": " \n\t"}, "question is empty"),
        ({"question": 5}, "question must be a str, not int"),
        ({"question": b"bicycle"}, "question must be a str, not bytes"),
        ({"question": "caf\udce9"}, "not valid Unicode"),
        ({"question": "x", "k": 0}, "k must be a positive int"),
        ({"question": "x", "modality": "film"}, "modality"),
        ({"question": "x", "where": {"page": {"$near": 3}}}, "filter"),
        ({"image": 5}, "must be a path"),
        ({"image": "nowhere.png"}, r"nowhere\.png"),
    ],
)
def test_what_cannot_be_searched_for(retriever: Retriever, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        retriever.search(**arguments)


def test_a_blank_question_is_refused_beside_a_picture(retriever: Retriever, pictures: dict[str, Path]) -> None:
    # An empty instruction has a vector of its own: taken for none, it would quietly find something else.
    with pytest.raises(InputError, match="question is empty"):
        retriever.search(" ", image=pictures["red"])


def test_an_empty_store_has_no_answer(tmp_path: Path) -> None:
    with ChromaStore(path=tmp_path / "empty") as store:
        assert Retriever(FakeEmbedder(), store).search("anything") == Answer("anything", None, [])


def test_the_instruction_steers_abc_mini(mini: Embedder, tmp_path: Path) -> None:
    from abc_rag.demo import demo_folder

    texts = ["a burger", "a rabbit"]
    with demo_folder() as folder, ChromaStore(path=tmp_path / "store", fingerprint=mini.fingerprint) as store:
        picture = folder / "burger-rabbit.jpg"
        store.add([Record(text_id(t), "text", text=t) for t in texts], mini.embed_texts(texts))
        retriever = Retriever(mini, store)
        left = retriever.search("what is on the left?", image=picture)
        right = retriever.search("what is on the right?", image=picture)
        assert found(left)[0] == "a burger"
        assert found(right)[0] == "a rabbit"
        with pytest.raises(ImageError, match="passages"):
            retriever.search("what is on the left?", image=folder / "passages.json")
