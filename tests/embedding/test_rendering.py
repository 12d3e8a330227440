"""Pictures that differ only in what RGB cannot hold: one vector as published, two where that is asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import ImageDraw

from abc_rag import EngineSettings, Image, InstructedImage, load_embedder
from abc_rag.embedding.load import local_revision
from abc_rag.errors import InputError
from abc_rag.evaluation.resolution import resolutions


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def logo(shape: str, mode: str = "RGBA") -> PIL.Image.Image:
    image = PIL.Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    getattr(ImageDraw.Draw(image), shape)((40, 40, 160, 160), fill=(0, 0, 0, 255))
    return image.convert(mode)


def halves(scale: float, dtype: type) -> tuple[bytes, bytes]:
    upper, left = np.zeros((100, 100)), np.zeros((100, 100))
    upper[:50], left[:, :50] = 0.9, 0.9
    one, two = (encoded(PIL.Image.fromarray((half * scale).astype(dtype)), "TIFF") for half in (upper, left))
    return one, two


PAIRS: dict[str, tuple[bytes, bytes]] = {
    "transparent PNG": (encoded(logo("ellipse")), encoded(logo("rectangle"))),
    "transparent WebP": tuple(encoded(logo(shape), "WEBP", lossless=True) for shape in ("ellipse", "rectangle")),
    "transparent grey": (encoded(logo("ellipse", "LA")), encoded(logo("rectangle", "LA"))),
    "floats in 0..1": halves(1.0, np.float32),
    "12 bits in 16": halves(4095, np.uint16),
}


@pytest.fixture(scope="module")
def embedders() -> Any:
    made = {
        "published": load_embedder("abc-mini", device="cpu"),
        "rendered": load_embedder("abc-mini", device="cpu", background="white", depth="scaled"),
        "processes": load_embedder(
            "abc-mini",
            device="cpu",
            background="white",
            depth="scaled",
            engine=EngineSettings(workers=1, worker_kind="process"),
        ),
    }
    yield made
    for embedder in made.values():
        embedder.close()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_rendering_tells_them_apart(pair: str, embedders: Any) -> None:
    inputs = [Image(data) for data in PAIRS[pair]] + [InstructedImage(PAIRS[pair][0], "what is it?")]
    published = embedders["published"].embed(inputs)
    rendered = embedders["rendered"].embed(inputs)
    assert published[0] @ published[1] > 0.99
    assert rendered[0] @ rendered[1] < 0.99
    np.testing.assert_allclose(embedders["processes"].embed(inputs), rendered, atol=1e-5)
    at = resolutions(embedders["rendered"])(9)
    np.testing.assert_allclose(at.embed(inputs), rendered, atol=1e-5)


def test_an_ordinary_picture_is_the_same(embedders: Any) -> None:
    inputs = [Image(PIL.Image.radial_gradient("L").convert("RGB"))]
    np.testing.assert_allclose(embedders["published"].embed(inputs), embedders["rendered"].embed(inputs), atol=1e-6)


def test_the_fingerprint_says_which(embedders: Any) -> None:
    published, rendered = embedders["published"].fingerprint, embedders["rendered"].fingerprint
    assert rendered.revision == f"{published.revision}+background=white,depth=scaled"
    assert local_revision("abc-mini") == published.revision
    assert local_revision("abc-mini", background="white", depth="scaled") == rendered.revision


def test_an_unusable_rendering_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="background"):
        load_embedder("abc-mini", background="no colour")
    with pytest.raises(InputError, match="depth"):
        load_embedder("abc-mini", depth="deep")  # type: ignore[arg-type]
