"""However many instructions are asked of a picture, the vision tower sees it once."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from abc_rag.models._vision_cache import SeenPicture, VisionCache

from abc_rag import DataURI, Image, ImageSource, Input, InstructedImage, Text, load_embedder
from abc_rag.embedder import Embedder
from abc_rag.models._pictures import Patches
from abc_rag.models._qwen2_vl import Qwen2VLBackbone
from abc_rag.models.abc import ABCFamily
from abc_rag.scenes import Placed, Scene, render


class Counting(Qwen2VLBackbone):
    """Counts the pictures that its vision tower computes."""

    computed: int

    def image_features(self, pictures: Sequence[Patches]) -> torch.Tensor:
        self.computed += len(pictures)
        return super().image_features(pictures)


class Counted:
    """abc-mini with an empty cache; ``computed()`` tells how many pictures it has seen since it was last asked."""

    def __init__(self) -> None:
        self.embedder: Embedder = load_embedder("abc-mini", device="cpu")
        self.family: ABCFamily = self.embedder.family  # type: ignore[attr-defined]
        self.backbone = self.family.network.backbone
        self.backbone.__class__ = Counting
        self.backbone.computed = 0  # type: ignore[assignment]

    def computed(self) -> int:
        count, self.backbone.computed = self.backbone.computed, 0  # type: ignore[assignment]
        return int(count)


@pytest.fixture(scope="module")
def loaded() -> Counted:
    return Counted()


@pytest.fixture
def counted(loaded: Counted) -> Counted:
    loaded.family.vision_cache = VisionCache()
    loaded.computed()
    return loaded


@pytest.fixture(scope="module")
def uncached() -> Embedder:
    embedder = load_embedder("abc-mini", device="cpu")
    embedder.family.vision_cache = VisionCache(0)  # type: ignore[attr-defined]
    return embedder


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
    counted.family.vision_cache = VisionCache()
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
        counted.family.vision_cache = VisionCache(most)
        counted.computed()

        def shuffled(seed: int) -> float:
            order = random.Random(seed).sample(range(len(mixed)), len(mixed))
            vectors = counted.embedder.embed([mixed[i] for i in order], batch_size=4)
            return float(np.abs(vectors - expected[order]).max())

        with ThreadPoolExecutor(16) as pool:
            assert max(pool.map(shuffled, range(16))) < 1e-6
        assert 3 <= counted.computed() <= at_most


# -- bounded memory --------------------------------------------------------------------------------


def _bytes_of(counted: Counted, photo: Path) -> int:
    """What is held of a picture once it has been seen."""
    counted.embedder.embed([Image(photo)])
    seen = counted.family.prepare(Image(photo)).picture
    assert seen is not None
    assert seen.features is not None
    assert seen.patches is None
    return seen.bytes


def test_the_picture_used_longest_ago_is_forgotten(counted: Counted, photos: list[Path]) -> None:
    a, b, c = (Image(photo) for photo in photos[:3])
    room = 2 * _bytes_of(counted, photos[0])
    patches = counted.family.prepare(Image(photos[3])).picture
    assert patches is not None
    # Patches are larger than features, so that room for them is left beside two that have been seen.
    counted.family.vision_cache = VisionCache(room + patches.bytes)
    counted.computed()

    def seen_anew(one: Image) -> bool:
        counted.embedder.embed([one])
        return counted.computed() == 1

    assert [seen_anew(one) for one in (a, b, a)] == [True, True, False]
    counted.family.vision_cache.most_bytes = room
    assert [seen_anew(one) for one in (a, b)] == [False, False]
    assert [seen_anew(one) for one in (c, b)] == [True, False]
    assert seen_anew(a)


def test_nothing_need_be_remembered(counted: Counted, uncached: Embedder, photos: list[Path]) -> None:
    counted.family.vision_cache = VisionCache(0)
    asked = [InstructedImage(photos[0], instruction) for instruction in INSTRUCTIONS[:4]]
    expected = uncached.embed(asked)
    for batch_size, passes in (("auto", 1), (1, 4)):
        np.testing.assert_allclose(counted.embedder.embed(asked, batch_size=batch_size), expected, atol=1e-6)
        assert counted.computed() == passes


def picture(key: str, numbers: int) -> SeenPicture:
    return SeenPicture(key, 1, features=torch.zeros(1, numbers))


def held(cache: VisionCache, keys: str = "abcdef") -> str:
    return "".join(key for key in keys if cache.get(key) is not None)


def test_as_many_as_fit() -> None:
    cache = VisionCache(4 * 10)
    for key, numbers in zip("abcd", (4, 4, 2, 1), strict=True):
        cache.put(picture(key, numbers))
    assert held(cache) == "bcd"
    assert cache.get("b") is not None
    cache.put(picture("e", 5))  # c was used longest ago
    assert held(cache) == "bde"
    cache.put(picture("b", 1))
    cache.put(picture("f", 4))
    assert held(cache) == "bef"


def test_one_that_does_not_fit_pushes_out_no_other() -> None:
    cache = VisionCache(4 * 10)
    cache.put(picture("a", 4))
    cache.put(picture("b", 11))
    assert held(cache) == "a"
    cache.put(picture("a", 11))
    assert held(cache) == ""
    cache.put(picture("c", 10))
    assert held(cache) == "c"


def test_features_are_not_replaced_by_patches() -> None:
    cache = VisionCache()
    seen = picture("a", 3)
    cache.put(seen)
    cache.put(SeenPicture("a", 1, patches=Patches(np.zeros((4, 6), dtype=np.uint8), 2, 2)))
    assert cache.get("a") is seen
    unseen = SeenPicture("b", 1, patches=Patches(np.zeros((4, 6), dtype=np.uint8), 2, 2))
    cache.put(unseen)
    assert cache.get("b") is unseen
    assert unseen.bytes == 24
    cache.put(picture("b", 3))
    assert cache.get("b").patches is None  # type: ignore[union-attr]
