"""Pictures that are like another in some respects, and unlike it in others."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from embedders import Given

from abc_rag import ChromaStore
from abc_rag.errors import InputError
from abc_rag.ingest.pictures import index_images
from abc_rag.search.query import Query
from abc_rag.search.retriever import Retriever

THING, GROUND = "which thing?", "which background?"
VECTORS: dict[Any, list[float]] = {
    # As a whole, what is like the picture in both respects is nearest to it.
    ("asked", None): [1, 0, 0], ("twin", None): [1, 0.1, 0], ("wanted", None): [1, 1, 0], ("other", None): [0, 0, 1],
    ("asked", THING): [1, 0, 0], ("twin", THING): [1, 0, 0], ("wanted", THING): [1, 0, 0], ("other", THING): [0, 1, 0],
    ("asked", GROUND): [0, 0, 1], ("twin", GROUND): [0, 0, 1], ("wanted", GROUND): [0, 1, 0],
    ("other", GROUND): [0, 1, 0],
}  # fmt: skip


@pytest.fixture
def retriever(tmp_path: Path) -> Iterator[Retriever]:
    for shade, name in enumerate(("asked", "twin", "wanted", "other")):
        PIL.Image.new("RGB", (4, 4), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    embedder = _ByContent(VECTORS)
    with ChromaStore(tmp_path / "store", fingerprint=embedder.fingerprint) as store:
        files = [tmp_path / f"{name}.png" for name in ("twin", "wanted", "other")]
        index_images(files, embedder, store, ids=[file.stem for file in files])
        yield Retriever(embedder, store)


class _ByContent(Given):
    """Knows a picture by its bytes too, as a second look hands them on."""

    @staticmethod
    def _key(one: Any) -> Any:
        if not isinstance(one.source, bytes):
            return Given._key(one)
        with PIL.Image.open(BytesIO(one.source)) as opened:
            name = ("asked", "twin", "wanted", "other")[opened.getpixel((0, 0))[0]]  # type: ignore[index]
        return name, getattr(one, "instruction", None)


def test_the_same_thing_on_another_background(retriever: Retriever, tmp_path: Path) -> None:
    asked = tmp_path / "asked.png"
    assert retriever.search(image=asked)[0].id == "twin"
    answer = retriever.search(image=asked, same=[THING], different=[GROUND])
    # Near and far count alike: (1 + (1 - 0.5)) / 2, (1 + 0) / 2 and (0.5 + (1 - 0.5)) / 2.
    assert {hit.id: hit.score for hit in answer} == pytest.approx({"wanted": 0.75, "twin": 0.5, "other": 0.5})
    assert [hit.id for hit in answer] == ["wanted", "other", "twin"]
    assert [hit.id for hit in retriever.search(image=asked, same=[THING], k=2)] == ["twin", "wanted"]
    assert [hit.id for hit in retriever.search(image=asked, different=[GROUND], k=2)] == ["other", "wanted"]
    assert [hit.id for hit in retriever.search(image=asked, same=[THING, GROUND], k=1)] == ["twin"]
    assert len(retriever.search(image=asked, same=[THING], different=[GROUND], min_score=0.6)) == 1


def test_a_prepared_picture_is_compared_too(retriever: Retriever, tmp_path: Path) -> None:
    query = retriever.prepare(image=tmp_path / "asked.png")
    found = retriever.search(query, same=[THING], different=[GROUND])
    assert found.hits == retriever.search(image=tmp_path / "asked.png", same=[THING], different=[GROUND]).hits
    for wrong in ({"image": tmp_path / "asked.png"}, {"question": Query("a pig", query.image)}, {"question": Query()}):
        with pytest.raises(InputError, match=r"pass image=\.\.\., and no question"):
            retriever.search(**{"question": query, **wrong}, same=[THING])


def test_stored_facets_are_read_and_lost_pictures_come_last(retriever: Retriever, tmp_path: Path) -> None:
    embedder = retriever.embedder
    assert isinstance(embedder, Given)
    retriever.store.add_facets(["twin", "other"], THING, np.array([[0, 1, 0], [1, 0, 0]], dtype=np.float32))
    (tmp_path / "wanted.png").unlink()
    embedder.embedded.clear()
    answer = retriever.search(image=tmp_path / "asked.png", same=[THING])
    assert [(hit.id, hit.score) for hit in answer] == [("other", 1.0), ("twin", 0.5), ("wanted", 0.0)]
    assert embedder.embedded == [("asked", None), ("asked", THING)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same": THING}, "same must be a list of instructions"),
        ({"different": [" "]}, "different must be a list of instructions"),
        ({"same": [1]}, "same must be a list"),
        ({"same": [THING], "different": [THING]}, "is in same and in different"),
        ({"same": [THING], "image": None}, "pass image=..., and no question"),
        ({"same": [THING], "question": "a pig"}, "pass image=..., and no question"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    retriever: Retriever, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        retriever.search(**{"image": tmp_path / "asked.png", **options})
