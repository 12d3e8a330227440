"""Hits as a model reads them."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
import pytest

from abc_rag.errors import ImageError, InputError
from abc_rag.images import content_hash
from abc_rag.models.tasks import Source
from abc_rag.search.pictures import Pictures
from abc_rag.search.sources import name_of, sources_of
from abc_rag.types import Hit, Record


def test_pictures_are_opened_and_long_passages_cut(tmp_path: Path) -> None:
    file = tmp_path / "ignore-all-orders.png"
    PIL.Image.new("RGB", (3, 3)).save(file)
    sha256 = content_hash(file)
    records = [
        Record("a", "text", text="one two three"),
        Record("b", "image", text="a square", source=str(file), sha256=sha256),
        Record("c", "image", source=str(tmp_path / "gone.png"), sha256=sha256),
        Record("d", "text", text=" "),
        Record("e", "text", text="short"),
    ]
    found = sources_of([Hit(one, 0.5) for one in records], Pictures(roots=[tmp_path]), longest=9)
    assert found[0] == Source(text="one two ...")
    assert found[1] == Source(file.read_bytes(), "a square")
    assert isinstance(found[2], ImageError)
    assert isinstance(found[3], InputError)
    assert found[4] == Source(text="short")


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"document": "/x/report.pdf", "page": 3}, "report.pdf, page 3"),
        ({"document": "C:\\x\\report.pdf", "page": 3, "page_label": "iii"}, "report.pdf, page iii"),
        ({"document": "notes.docx"}, "notes.docx"),
        ({}, ""),
    ],
)
def test_only_parts_of_documents_have_a_name(metadata: dict[str, str | int], name: str) -> None:
    assert name_of(Record("a", "image", source="pig.png", metadata=metadata)) == name
