"""Video that the tests make: a frame of each scene, with its time; damaged files; no other file is opened."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from document_helpers import ReadParts
from ingest_helpers import Index, counts

from abc_rag import ChromaStore
from abc_rag.errors import InputError
from abc_rag.ingest.documents import DocumentLimits, DocumentOptions, Figure, Part, Unread
from abc_rag.ingest.documents.video import VideoReader

av = pytest.importorskip("av", reason="the extra video is not installed")

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
SECONDS = 4


def film(kind: str = "mp4", codec: str = "mpeg4", blank: bool = False) -> bytes:
    """Three scenes of four seconds, 10 frames a second."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as made:
        stream = made.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for colour in COLOURS.values():
            for number in range(10 * SECONDS):
                pixels = np.full((96, 160, 3), 0 if blank else colour, np.uint8)
                if not blank:
                    pixels[:, number % 100 : number % 100 + 20] = 255
                made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
    return out.getvalue()


def read(data: bytes, start: int = 1, **options: object) -> list[Part]:
    parts = VideoReader().parts(data, DocumentOptions(**options), start)  # type: ignore[arg-type]
    return [part for part in parts if not isinstance(part, int)]


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_a_frame_of_each_scene_with_its_time(kind: str) -> None:
    data = film(kind)
    assert VideoReader().recognises(data[:4096], data, "")
    parts = read(data)
    assert [part.time for part in parts] == pytest.approx([0, SECONDS, 2 * SECONDS], abs=0.6)
    for part, colour in zip(parts, COLOURS.values(), strict=True):
        assert isinstance(part, Figure)
        picture = np.asarray(PIL.Image.open(io.BytesIO(part.data)).convert("RGB")).astype(int)
        assert picture.shape == (96, 160, 3)
        assert np.abs(picture[40, 150] - colour).max() < 30


def test_frames_are_records_with_a_time(folder: Path, store: ChromaStore, index: Index) -> None:
    (folder / "film").write_bytes(film())
    assert counts(index()[0]) == (3, 0, 0, 0)
    assert counts(index()[0]) == (0, 3, 0, 0)
    told = sorted((record.metadata["time"], record.metadata["part"], record.modality) for record in store.records())
    assert [(part, modality) for _, part, modality in told] == [("frame", "image")] * 3
    assert told[2][0] == pytest.approx(2 * SECONDS, abs=0.6)


def test_blank_films_and_limits() -> None:
    assert len(read(film(blank=True))) == 1
    assert read(film(), figures=False) == []
    first, last = read(film(), limits=DocumentLimits(max_pages=1))
    assert isinstance(last, Unread)
    assert isinstance(first, Figure)
    assert read(film(), start=2) == []  # it has one minute


def test_damaged_and_deceiving_films_are_named(tmp_path: Path, read_parts: ReadParts) -> None:
    generator = random.Random(3)
    sound = film()
    for _ in range(20):
        data = bytearray(sound)
        if generator.random() < 0.4:
            del data[generator.randrange(100, len(data)) :]
        else:
            for _ in range(generator.choice([1, 10, 100])):
                data[generator.randrange(64, len(data))] = generator.randrange(256)
        with suppress(InputError):
            assert all(part.time is not None for part in read(bytes(data)))
    # A playlist that names another file is no film, whatever it is called, nor behind a film's first bytes.
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    assert not VideoReader().recognises(playlist, playlist, ".mp4")
    with pytest.raises(InputError, match="cannot be read as video"):
        read(sound[:16] + playlist)
