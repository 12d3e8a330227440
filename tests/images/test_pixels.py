"""What pixels that RGB cannot hold become: by default as published, with a word; otherwise as it is asked for."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw

from abc_rag.errors import InputError
from abc_rag.images import pixels
from abc_rag.images.open import open_image
from abc_rag.images.pixels import Rendering

WHITE = Rendering(background="white")
SCALED = Rendering(depth="scaled")


@pytest.fixture(autouse=True)
def _unwarned() -> Iterator[None]:
    before = set(pixels._WARNED)
    pixels._WARNED.clear()
    yield
    pixels._WARNED.clear()
    pixels._WARNED.update(before)


def logo(mode: str = "RGBA") -> PIL.Image.Image:
    """A black disc on clear ground, whose clear pixels are black, too."""
    image = PIL.Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((4, 4, 16, 16), fill=(0, 0, 0, 255))
    return image.convert(mode)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "abc_rag.images.pixels"]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "pil"])
def test_a_background_shows_what_transparency_hides(mode: str, kind: str) -> None:
    source = (
        logo(mode) if kind == "pil" else encoded(logo(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    )
    dropped = open_image(source).image
    assert dropped.getextrema() == ((0, 0),) * 3
    shown = open_image(source, rendering=WHITE).image
    assert shown.getpixel((0, 0)) == (255, 255, 255)
    assert shown.getpixel((10, 10)) == (0, 0, 0)
    assert open_image(source, rendering=Rendering(background="#f80")).image.getpixel((0, 0)) == (255, 136, 0)


def test_a_palette_with_a_clear_colour() -> None:
    image = PIL.Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    for transparency in (1, b"\xff\x00"):
        data = encoded(image, transparency=transparency)
        shown = open_image(data, rendering=WHITE).image
        assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_dropped_transparency_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_image(PIL.Image.new("RGBA", (4, 4), (1, 2, 3, 255)))
        assert warnings_of(caplog) == []  # nothing is lost
        open_image(logo(), rendering=WHITE)
        assert warnings_of(caplog) == []
        open_image(encoded(logo()))
        open_image(encoded(logo()))
    (said,) = warnings_of(caplog)
    assert said.startswith("bytes (")
    assert "transparency is dropped" in said
    assert "load_embedder(..., background='white')" in said


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 1024, 4095], np.uint16, [0, 64, 255]),  # 12 bits
        ([0, 512, 1023], np.uint16, [0, 128, 255]),  # 10 bits
        ([0, 32768, 65535], np.uint16, [0, 128, 255]),
        ([0, 100, 255], np.uint16, [0, 100, 255]),
        ([0, 100, 200], np.int32, [0, 100, 200]),
        ([-5, 70_000, 131_071], np.int32, [0, 136, 255]),
        ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
        ([0.0, 100.0, 255.0], np.float32, [0, 100, 255]),
        ([0.0, 0.0, 0.0], np.float32, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("how", ["pil", "TIFF"])
def test_scaled_depth(values: list[float], dtype: type, expected: list[int], how: str) -> None:
    image = PIL.Image.fromarray(np.array([values], dtype=dtype))
    source = image if how == "pil" else encoded(image, how)
    assert list(open_image(source, rendering=SCALED).image.tobytes()[::3]) == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_lost_depth_is_said_once(dtype: type, caplog: pytest.LogCaptureFixture) -> None:
    low = {np.uint16: 4095, np.int32: 70_000, np.float32: 1}[dtype]
    image = PIL.Image.fromarray(np.array([[0, low]], dtype=dtype))
    with caplog.at_level(logging.WARNING):
        open_image(image, rendering=SCALED)
        assert warnings_of(caplog) == []
        open_image(image)
        open_image(image)
    (said,) = warnings_of(caplog)
    assert "more than 8 bits" in said
    assert "depth='scaled'" in said


def test_eight_bits_are_the_same_either_way() -> None:
    for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"):
        image = PIL.Image.radial_gradient("L").convert("RGB").convert("L" if mode == "1" else "RGB")
        image = image.convert(mode) if mode != "LAB" else image
        plain = open_image(image).image.tobytes()
        assert open_image(image, rendering=Rendering(background="red", depth="scaled")).image.tobytes() == plain


@pytest.mark.parametrize("wrong", ["no colour", "", "rgba(0,0,0,0)", 3, (1, 2, 3)])
def test_a_background_is_an_opaque_colour(wrong: object) -> None:
    with pytest.raises(InputError, match="background"):
        Rendering(background=wrong)  # type: ignore[arg-type]


def test_a_depth_is_one_of_two() -> None:
    with pytest.raises(InputError, match="depth"):
        Rendering(depth="deep")  # type: ignore[arg-type]


def test_a_rendering_says_what_it_changes() -> None:
    assert str(Rendering()) == ""
    assert str(WHITE) == "background=white"
    assert str(Rendering("white", "scaled")) == "background=white,depth=scaled"
