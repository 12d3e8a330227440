"""However many instructions are asked of a picture, the vision tower sees it once."""

from __future__ import annotations

import base64
import io
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from abc_rag import DataURI, Image, ImageSource, Input, InstructedImage, Text, load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.engine.caches import TensorCache
from abc_rag.embedding.engine.local import LocalEmbedder
from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import ABCRagError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.family import Picture, Prepared
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import Placed, Scene

ROOM = 512 * 2**20


class Counting(ABCFamily):
    """Counts the pictures that its vision tower computes."""

    computed: int
    before_seeing: Callable[[], object]
    prepared: list[Prepared] | None  # where a test wants to have them; they keep pictures alive

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        prepared = super().prepare(item, pictures)
        if self.prepared is not None:
            self.prepared.append(prepared)
        return prepared

    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        self.before_seeing()
        self.computed += len(opened)
        return super().see(opened)


class Counted:
    """abc-mini with an empty cache; ``computed()`` tells how many pictures it has seen since it was last asked."""

    def __init__(self) -> None:
        embedder = load_embedder("abc-mini", device="cpu")
        assert isinstance(embedder, LocalEmbedder)
        self.embedder = embedder
        self.family: Counting = embedder.family  # type: ignore[assignment]
        self.family.__class__ = Counting
        self.family.computed = 0
        self.family.before_seeing = lambda: None
        self.family.prepared = None

    def computed(self) -> int:
        count, self.family.computed = self.family.computed, 0
        return count

    @property
    def cache(self) -> TensorCache:
        return self.embedder._running().vision

    def remember(self, max_bytes: int) -> None:
        """Begin with an empty cache of so many bytes."""
        self.cache.clear()
        self.cache.max_bytes = max_bytes


@pytest.fixture(scope="module")
def loaded() -> Counted:
    return Counted()


@pytest.fixture
def counted(loaded: Counted) -> Counted:
    loaded.remember(ROOM)
    loaded.computed()
    loaded.family.prepared = None
    return loaded


@pytest.fixture(scope="module")
def uncached() -> Embedder:
    return load_embedder("abc-mini", device="cpu", engine=EngineSettings(vision_cache_bytes=0))


def draw(path: Path, left: str, right: str, background: str = "blue") -> Path:
    scene = Scene((Placed(left, "big", "left"), Placed(right, "small", "right")), background)
    render(scene, 160).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    kinds = ["pig", "car", "rose", "burger", "fox"]
    return [draw(folder / f"{kind}.png", kind, "key") for kind in kinds]


INSTRUCTIONS = [f"what is {where}?" for where in ("on the left", "on the right", "at the top", "at the bottom")]
INSTRUCTIONS += [f"which {kind} is in the picture?" for kind in ("animal", "food", "vehicle", "plant", "instrument")]
INSTRUCTIONS += ["", "the background", "what colour is the background?", "the key", "x", "describe it", "the small one"]
assert len(INSTRUCTIONS) == 16


# -- one pass a picture ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_sixteen_instructions_are_one_picture(counted: Counted, photos: list[Path], batch_size: object) -> None:
    asked = [InstructedImage(photos[0], instruction) for instruction in INSTRUCTIONS]
    first = counted.embedder.embed(asked, batch_size=batch_size)
    assert counted.computed() == 1
    again = counted.embedder.embed(asked, batch_size=batch_size)
    assert counted.computed() == 0
    np.testing.assert_allclose(again, first, atol=1e-6)
    # Nor does it matter whether there is an instruction at all: the adapter leaves the vision tower alone.
    counted.embedder.embed([Image(photos[0])])
    assert counted.computed() == 0


def test_each_picture_is_seen_once(counted: Counted, photos: list[Path]) -> None:
    mixed: list[Input] = [InstructedImage(photo, asked) for asked in INSTRUCTIONS[::5] for photo in photos]
    mixed += [Image(photo) for photo in photos] + [Text("a pig"), Text("what is on the left?")]
    random.Random(0).shuffle(mixed)
    counted.embedder.embed(mixed)
    assert counted.computed() == len(photos)
    counted.embedder.embed(mixed[::-1], batch_size=3)
    assert counted.computed() == 0


def test_remembered_pictures_have_the_same_vectors(counted: Counted, uncached: Embedder, photos: list[Path]) -> None:
    mixed: list[Input] = [InstructedImage(photo, asked) for photo in photos[:2] for asked in INSTRUCTIONS[::5]]
    mixed += [Image(photo) for photo in photos[:3]] + [Text("a pig")]
    expected = np.concatenate([uncached.embed([one]) for one in mixed])
    for batch_size in ("auto", 3):
        np.testing.assert_allclose(counted.embedder.embed(mixed, batch_size=batch_size), expected, atol=1e-6)
    # One that is known, one that is not, and one that is there twice, in one batch.
    counted.remember(ROOM)
    counted.embedder.embed([mixed[0]])
    np.testing.assert_allclose(
        counted.embedder.embed([mixed[-2], mixed[1], mixed[-2], mixed[-3]]), expected[[-2, 1, -2, -3]], atol=1e-6
    )


def test_a_picture_is_known_by_its_content(counted: Counted, photos: list[Path], tmp_path: Path) -> None:
    data = photos[1].read_bytes()
    (tmp_path / "copy.dat").write_bytes(data)
    uri = DataURI("data:image/png;base64," + base64.b64encode(data).decode())
    sources: list[ImageSource] = [photos[1], str(photos[1]), data, uri, tmp_path / "copy.dat"]
    vectors = counted.embedder.embed([Image(source) for source in sources])
    assert counted.computed() == 1
    np.testing.assert_allclose(vectors, np.tile(vectors[0], (5, 1)), atol=1e-6)
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    counted.embedder.embed([InstructedImage(picture, asked) for asked in INSTRUCTIONS[:3]])
    counted.embedder.embed([Image(picture.copy())])
    # Pixels have no encoded bytes to be known by, but are known among themselves.
    assert counted.computed() == 1


def test_a_picture_that_changed_on_disk_is_seen_anew(counted: Counted, uncached: Embedder, tmp_path: Path) -> None:
    path = draw(tmp_path / "photo.png", "pig", "car")
    first = counted.embedder.embed([Image(path)])
    draw(path, "rose", "car")
    second = counted.embedder.embed([Image(path)])
    assert counted.computed() == 2
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(second, uncached.embed([Image(path)]), atol=1e-6)


def test_sixteen_threads_see_what_one_sees(counted: Counted, uncached: Embedder, photos: list[Path]) -> None:
    mixed: list[Input] = [InstructedImage(photo, asked) for photo in photos[:3] for asked in INSTRUCTIONS[:2]]
    expected = uncached.embed(mixed)
    room = _bytes_of(counted, photos[0])
    for most, at_most in ((512 * 2**20, 3), (2 * room, 16 * len(mixed)), (0, 16 * len(mixed))):
        counted.remember(most)
        counted.computed()

        def shuffled(seed: int) -> float:
            order = random.Random(seed).sample(range(len(mixed)), len(mixed))
            vectors = counted.embedder.embed([mixed[i] for i in order], batch_size=4)
            return float(np.abs(vectors - expected[order]).max())

        with ThreadPoolExecutor(16) as pool:
            assert max(pool.map(shuffled, range(16))) < 1e-6
        assert 3 <= counted.computed() <= at_most
        assert counted.cache.held_bytes <= most


# -- bounded memory --------------------------------------------------------------------------------


def _bytes_of(counted: Counted, photo: Path) -> int:
    """What is held of a picture once it has been seen."""
    counted.remember(ROOM)
    counted.embedder.embed([Image(photo)])
    tokens, width = 9, counted.family.network.backbone.hidden_size
    assert counted.cache.held_bytes == 4 * tokens * width
    return counted.cache.held_bytes


def test_the_picture_used_longest_ago_is_forgotten(counted: Counted, photos: list[Path]) -> None:
    a, b, c = (Image(photo) for photo in photos[:3])
    room = 2 * _bytes_of(counted, photos[0])
    counted.remember(room)
    counted.computed()

    def seen_anew(one: Image) -> bool:
        counted.embedder.embed([one])
        return counted.computed() == 1

    assert [seen_anew(one) for one in (a, b, a)] == [True, True, False]
    assert [seen_anew(one) for one in (a, b)] == [False, False]
    assert [seen_anew(one) for one in (c, b)] == [True, False]
    assert seen_anew(a)
    assert counted.cache.held_bytes == room


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_nothing_need_be_remembered(
    counted: Counted, uncached: Embedder, photos: list[Path], batch_size: object
) -> None:
    counted.remember(0)
    asked = [InstructedImage(photos[0], instruction) for instruction in INSTRUCTIONS[:4]]
    expected = uncached.embed(asked)
    np.testing.assert_allclose(counted.embedder.embed(asked, batch_size=batch_size), expected, atol=1e-6)
    assert 1 <= counted.computed() <= 4
    assert counted.cache.held_bytes == 0
    counted.embedder.embed(asked[:1])
    counted.embedder.embed(asked[:1])
    assert counted.computed() == 2


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_those_on_their_way_share_a_picture_though_nothing_is_remembered(
    counted: Counted, photos: list[Path], batch_size: object
) -> None:
    counted.remember(0)
    asked = [InstructedImage(photos[0], instruction) for instruction in INSTRUCTIONS[:4]]
    prepared = counted.family.prepared = []
    given_up = threading.Event()

    def wait_for_the_others() -> None:
        while len(prepared) < 4 and not given_up.wait(0.01):
            pass

    counted.family.before_seeing = wait_for_the_others
    try:
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(counted.embedder.embed, [one], batch_size=batch_size) for one in asked]
            for call in calls:
                call.result(60)
    finally:
        given_up.set()
        counted.family.before_seeing = lambda: None
    assert counted.computed() == 1
    assert len({id(one.pictures[0]) for one in prepared}) == 1


def test_a_picture_that_has_been_seen_holds_no_pixels(counted: Counted, photos: list[Path]) -> None:
    kept = counted.family.prepared = []
    counted.embedder.embed([Image(photos[0])])
    counted.embedder.embed([InstructedImage(photos[0], "x")])
    assert counted.computed() == 1
    first, again = (prepared.pictures[0] for prepared in kept)
    assert first.opened is None
    assert again.opened is None
    assert torch.equal(again.features, first.features)


def test_a_picture_is_let_go_when_its_vector_is_there(counted: Counted, photos: list[Path]) -> None:
    counted.remember(0)
    kept = counted.family.prepared = []
    counted.embedder.embed([Image(photos[0])])
    gone = weakref.ref(kept.pop().pictures[0])
    assert gone() is None


def numbers(count: int) -> torch.Tensor:
    return torch.zeros(1, count)


def held(cache: TensorCache, keys: str = "abcdef") -> str:
    return "".join(key for key in keys if cache.get(key) is not None)


def test_as_many_as_fit() -> None:
    cache = TensorCache(4 * 10)
    for key, count in zip("abcd", (4, 4, 2, 1), strict=True):
        cache.put(key, numbers(count))
    assert held(cache) == "bcd"
    assert cache.get("b") is not None
    cache.put("e", numbers(5))  # c was used longest ago
    assert held(cache) == "bde"
    cache.put("b", numbers(1))
    cache.put("f", numbers(4))
    assert held(cache) == "bef"
    assert cache.held_bytes == 4 * 10


def test_one_that_does_not_fit_pushes_out_no_other() -> None:
    cache = TensorCache(4 * 10)
    cache.put("a", numbers(4))
    cache.put("b", numbers(11))
    assert held(cache) == "a"
    cache.put("a", numbers(11))
    assert held(cache) == ""
    assert cache.held_bytes == 0
    cache.put("c", numbers(10))
    assert held(cache) == "c"


def test_what_was_put_last_is_what_is_remembered() -> None:
    cache = TensorCache(4 * 10)
    first, second = numbers(3), numbers(5)
    cache.put("a", first)
    cache.put("a", second)
    assert cache.get("a") is second
    assert cache.held_bytes == second.nbytes
    cache.clear()
    assert cache.get("a") is None
    assert cache.held_bytes == 0


def test_whoever_closes_waits_for_no_more_pictures_than_are_being_seen(photos: list[Path]) -> None:
    embedder = load_embedder("abc-mini", device="cpu", engine=EngineSettings(max_batch_patches=1))
    assert isinstance(embedder, LocalEmbedder)
    family: Counting = embedder.family  # type: ignore[assignment]
    family.__class__ = Counting
    family.computed, family.prepared = 0, None
    engine = embedder._running()

    def close() -> None:  # while the first picture is seen
        engine.scheduler.fail_all(ABCRagError("closed"))
        engine.scheduler.stop()

    family.before_seeing = close
    with pytest.raises(ABCRagError, match="closed"):
        embedder.embed([Image(photo) for photo in photos])
    assert all(runner.ended.wait(60) for runner in engine._runners)
    assert family.computed == 1
    embedder.close()
