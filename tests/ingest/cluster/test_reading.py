"""What tasks read, without a cluster: every kind of source gives the same picture the same record."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_helpers import id_of, passage, picture

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.ingest.cluster.options import Columns, Reading
from abc_rag.ingest.cluster.reading import Failure, Item, items_of
from abc_rag.ingest.cluster.sources import units_of
from abc_rag.ingest.report import IndexReport
from abc_rag.store.records import image_id, text_id


def found(*sources: Path | str, reading: Reading | None = None) -> tuple[list[Item], list[Failure]]:
    report = IndexReport()
    both = [one for unit in units_of(sources, report) for one in items_of(unit, reading or Reading())]
    return [one for one in both if isinstance(one, Item)], [one for one in both if isinstance(one, Failure)]


@pytest.fixture
def red(folder: Path) -> Path:
    return picture(folder / "red.png", "red")


def test_folders_and_object_stores_read_alike(red: Path, folder: Path) -> None:
    passage(folder / "words.txt", "A pig.\n\nA car.\n")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    there, failed = found(folder)
    assert {item.record.id for item in there} == {id_of(red), text_id("A pig."), text_id("A car.")}
    assert [one.place for one in failed] == [str(folder / "bad.png")]
    assert len({item.place for item in there}) == 3
    elsewhere, also = found(f"file://{folder}")
    assert sorted((i.record for i in elsewhere), key=lambda r: r.id) == sorted(
        (i.record for i in there), key=lambda r: r.id
    )
    assert [one.reason for one in also] == [one.reason for one in failed]


def test_what_is_left_out_is_counted(red: Path, folder: Path) -> None:
    (folder / "notes.xyz").write_text("?")
    (folder / ".hidden.png").write_bytes(red.read_bytes())
    report = IndexReport()
    units = list(units_of([f"file://{folder}"], report))
    assert [unit["files"] for unit in units] == [[[f"file://{red}", "image"]]]
    assert sorted(report.left_out.values()) == [1, 1]


def test_archives(red: Path, folder: Path, tmp_path: Path) -> None:
    members = {
        "a.png": red.read_bytes(),
        "a.txt": b"A red square. ",
        "a.json": json.dumps({"page": 3, "other": [1, 2], "none": None}).encode(),
        "b.png": b"\x89PNG\r\n\x1a\nbroken",
        "c.json": b"[]",
        "d.png": red.read_bytes(),
        "d.cls": b"7",
    }
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    items, failed = found(tmp_path / "shard.tar", reading=Reading(columns=Columns(metadata=["page", "none"])))
    first, second = (item.record for item in items)
    assert (first.text, dict(first.metadata), first.source) == ("A red square.", {"page": 3}, "")
    assert first.id == image_id(first.sha256, "A red square.", {"page": 3})
    assert (second.id, second.text) == (id_of(red), "")
    assert [one.place.rpartition("#")[2] for one in failed] == ["b.png", "c.json"]
    # Cut short, within a header or within a picture: what came before is there.
    data = (tmp_path / "shard.tar").read_bytes()
    for length in (1500, 1024, 600):
        (tmp_path / "cut.tar").write_bytes(data[:length])
        items, failed = found(tmp_path / "cut.tar")
        assert [item.record.id for item in items] == ([] if length == 600 else [id_of(red)])
        assert "cannot be read to its end" in failed[-1].reason


@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_tables(red: Path, tmp_path: Path, kind: str) -> None:
    rows = pa.table(
        {
            "image": [{"bytes": red.read_bytes(), "path": "x"}, {"bytes": b"no picture", "path": ""}, None],
            "caption": ["red", None, "?"],
            "page": [1, 2, 3],
        }
    )
    place = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(rows, place, row_group_size=2)
    else:
        lance.write_dataset(rows, place, max_rows_per_file=2)
    items, failed = found(place, reading=Reading(columns=Columns(text="caption", metadata=["page"])))
    (record,) = (item.record for item in items)
    assert (record.text, dict(record.metadata)) == ("red", {"page": 1})
    assert len({one.place for one in failed}) == 2
    assert "no picture in column 'image', but NoneType" in failed[1].reason
    with pytest.raises(InputError, match="it has no column 'picture'; it has image, caption, page"):
        found(place, reading=Reading(columns=Columns(image="picture")))


def test_urls_of_tables_pass_the_guard_or_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["http://127.0.0.1/a.png"]}), tmp_path / "urls.parquet")
    ((one,), (two,)) = (
        found(tmp_path / "urls.parquet", reading=Reading(limits=ImageLimits(allow_urls=allowed)))[1]
        for allowed in (False, True)
    )
    assert "fetching pictures from URLs is off" in one.reason
    assert "public" in two.reason


def test_documents_are_read_into_their_parts(folder: Path, tmp_path: Path) -> None:
    (folder / "page.html").write_text("<html><body><h1>Pigs</h1><p>A pig rolls in mud.</p></body></html>")
    items, failed = found(folder)
    assert [item.record.text for item in items][-1].endswith("A pig rolls in mud.")
    assert failed == []
    assert items[-1].record.metadata["document_parts"] == len(items)


def test_sources_that_cannot_be_listed(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "nothing", "no such file or folder"),
        (tmp_path / "nothing.parquet", "there is nothing of that name"),
        ("nowhere://bucket/x", "cannot be read .*nowhere"),
        ("https://example.org/a.png", "web pages are not indexed on a cluster"),
    ):
        with pytest.raises(InputError, match=message):
            found(source)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        found(tmp_path / "bad.parquet")
    with pytest.raises(InputError, match=r"pass \[source\]"):
        next(units_of(str(tmp_path), IndexReport()))
