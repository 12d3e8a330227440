"""Opening the pictures of records again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import PIL.Image
import pytest

from abc_rag import Record
from abc_rag.errors import ImageError, ImageFetchError
from abc_rag.search import Pictures


def record(path: Path, colour: str) -> Record:
    PIL.Image.new("RGB", (5, 5), colour).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Record(path.stem, "image", source=str(path), sha256=sha256)


def test_pictures_come_in_batches_in_order(tmp_path: Path) -> None:
    records = [record(tmp_path / f"{colour}.png", colour) for colour in ("red", "green", "blue", "pink")]
    (tmp_path / "green.png").unlink()
    pictures = Pictures(roots=[tmp_path])
    size = len((tmp_path / "red.png").read_bytes())
    for most, lengths in ((1, [1, 2, 1]), (2 * size, [3, 1]), (10**9, [4])):
        batches = list(pictures.batches(records, most_bytes=most))
        assert [len(batch) for batch in batches] == lengths
        found = [result for batch in batches for result in batch]
        assert isinstance(found.pop(1), ImageFetchError)
        assert found == [(tmp_path / f"{colour}.png").read_bytes() for colour in ("red", "blue", "pink")]
    assert list(pictures.batches([])) == []


def test_a_picture_is_read_or_refused(tmp_path: Path) -> None:
    red = record(tmp_path / "red.png", "red")
    assert Pictures(roots=[tmp_path]).read(red) == (tmp_path / "red.png").read_bytes()
    data, mime_type = Pictures(roots=[tmp_path]).share(red, max_side=3)
    assert (data[:4], mime_type) == (b"\x89PNG", "image/png")
    with pytest.raises(ImageFetchError, match="not in a folder that was indexed"):
        Pictures().read(red)
    (tmp_path / "red.png").write_bytes(b"another")
    with pytest.raises(ImageError, match="holds another picture"):
        Pictures(roots=[tmp_path]).read(red)
