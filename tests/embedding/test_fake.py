"""The fake embedder that users' tests stand on."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import abc_rag.embedding.fake
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ImageFetchError, ImageFormatError, InputError
from abc_rag.types import URL, DataURI, Image, InstructedImage, Text

ROOT = str(Path(abc_rag.embedding.fake.__file__).parents[2])


def png(colour: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "png")
    return buffer.getvalue()


def test_vectors_are_unit_float32_in_order() -> None:
    embedder = FakeEmbedder(dim=16)
    inputs = [Text("a"), Text(""), Text("?!"), Text("\ud800"), Image(png()), InstructedImage(png(), "the colour")]
    rows = embedder.embed(inputs)
    assert (rows.shape, rows.dtype, embedder.dim) == ((6, 16), np.float32, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert len({row.tobytes() for row in rows}) == 6
    for item, row in zip(inputs, rows, strict=True):
        np.testing.assert_array_equal(embedder.embed([item])[0], row)
    assert embedder.embed([]).shape == (0, 16)


def test_texts_that_share_words_are_near() -> None:
    a, b, c = FakeEmbedder(dim=256).embed_texts(["the red bicycle", "a red, red BICYCLE", "ocean currents"])
    assert a @ b > 0.5 > a @ c + 0.2


def test_one_picture_has_one_vector_however_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    rows = FakeEmbedder().embed_images([path, str(path), png(), DataURI(uri), PIL.Image.open(path)])
    assert len({row.tobytes() for row in rows}) == 1
    others = FakeEmbedder().embed_images([png("blue"), png(size=(3, 4)), b"no picture", URL("http://x/a.png")])
    assert len({row.tobytes() for row in [rows[0], *others]}) == 5


def test_an_instruction_pulls_the_picture_towards_its_words() -> None:
    embedder = FakeEmbedder(dim=256)
    bare, empty, instructed = embedder.embed(
        [Image(png()), InstructedImage(png(), ""), InstructedImage(png(), "the bicycle")]
    )
    (words,) = embedder.embed_texts(["bicycle"])
    assert bare @ empty < 0.99
    assert bare @ instructed > 0.5
    assert words @ instructed > words @ bare + 0.2


def test_names_and_sizes_tell_embedders_apart() -> None:
    one, same, name, size = FakeEmbedder(), FakeEmbedder(), FakeEmbedder(model="other"), FakeEmbedder(dim=8)
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, name.fingerprint, size.fingerprint}) == 3
    assert not np.array_equal(one.embed_texts(["a"]), name.embed_texts(["a"]))


def test_what_cannot_be_embedded_is_refused(tmp_path: Path) -> None:
    for dim in (0, -1, 2.0, True):
        with pytest.raises(InputError, match="dim"):
            FakeEmbedder(dim=dim)
    with pytest.raises(InputError, match="wrap it"):
        FakeEmbedder().embed(["a"])
    with pytest.raises(ImageFetchError, match="missing"):
        FakeEmbedder().embed_images([tmp_path / "missing"])
    with pytest.raises(ImageFormatError, match="base64"):
        FakeEmbedder().embed_images([DataURI("data:image/png;base64,a")])
    (tmp_path / "cut.png").write_bytes(png()[:-20])
    with pytest.raises(ImageFormatError, match=r"cut\.png: .*corrupt or truncated"):
        FakeEmbedder().embed_images([tmp_path / "cut.png"])


def test_every_process_makes_the_same_vectors_without_torch() -> None:
    code = (
        "import sys\n"
        "from abc_rag.embedding.fake import FakeEmbedder\n"
        "print(FakeEmbedder(4).embed_texts(['red bicycle']).tobytes().hex())\n"
        "assert not {'torch', 'chromadb'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == FakeEmbedder(4).embed_texts(["red bicycle"]).tobytes().hex()
