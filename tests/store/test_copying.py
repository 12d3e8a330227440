"""Stores copied into others, of each kind, and what a check finds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_helpers import ONE, TWO, texts, vectors

from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.store import ChromaStore, LanceStore, Store, copy_store
from abc_rag.store import copying as module
from abc_rag.types import Record

LEFT, RIGHT = "what is on the left?", "what is on the right?"
PICTURE = b"\x89PNG and so on"


def fill(store: Store) -> None:
    rows = vectors(50, 16)
    store.add(texts(40), rows[:40])
    kept = store.keep_picture(PICTURE, "image/png")
    pictures = [Record(f"p{i}", "image", f"caption {i}", f"/x/{i}.png", {"n": i, "tags": ["a"]}) for i in range(9)]
    store.add([*pictures, Record("kept", "image", "", kept, mime_type="image/png")], rows[40:])
    store.add_facets(["p0", "p1"], LEFT, rows[:2])
    store.add_facets(["p1"], RIGHT, rows[2:3])


def opened(kind: type[Store], place: Path, **settings: object) -> Store:
    return kind(place, fingerprint=ONE, **settings)


@pytest.mark.parametrize(("one", "other"), [(ChromaStore, LanceStore), (LanceStore, ChromaStore)])
def test_everything_arrives_and_a_second_copy_writes_nothing(
    one: type[Store], other: type[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BYTES", 20 * 64)  # several parts
    with opened(one, tmp_path / "a") as source, opened(other, tmp_path / "b") as target:
        fill(source)
        source.roots.add([tmp_path / "pictures"])
        target.add([Record("own", "text", "of the target")], vectors(1, 16))
        steps: list[int] = []
        report = copy_store(source, target, progress=steps.append)
        assert (report.copied, report.unchanged, report.facets, report.problems) == (50, 0, 3, [])
        assert steps[-1] == 50
        assert target.count() == 51
        names = list(source.ids())
        for id_ in names:
            (before,), (after,) = source.get([id_]), target.get([id_])
            if id_ == "kept":
                assert Path(after.source).read_bytes() == PICTURE
                assert (tmp_path / "b") in Path(after.source).parents
                after = replace(after, source=before.source)
            assert after == before
        was, is_ = source.vectors(names), target.vectors(names)
        assert max(float(np.abs(was[id_] - is_[id_]).max()) for id_ in names) < 1e-6
        assert target.facet_names(names) == {"p0": {LEFT}, "p1": {LEFT, RIGHT}}
        assert target.search_words('"caption 3"', 5)[0].id == "p3"
        assert target.roots.outside([str(tmp_path / "pictures" / "x.png")]) == set()
        assert target.check() == []
        again = copy_store(source, target)
        assert (again.copied, again.unchanged, again.facets) == (0, 50, 0)


def test_a_copy_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES", 20 * 64)

    def stop(done: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with opened(LanceStore, tmp_path / "a") as source, opened(LanceStore, tmp_path / "b", dtype="float16") as target:
        fill(source)
        with pytest.raises(KeyboardInterrupt):
            copy_store(source, target, progress=stop)
        there = target.count()
        assert 0 < there < 50
        report = copy_store(source, target)  # compares in half precision
        assert (report.copied, report.unchanged, report.problems) == (50 - there, there, [])


def test_stores_of_other_models_are_refused(tmp_path: Path) -> None:
    with opened(LanceStore, tmp_path / "a") as source:
        fill(source)
        with (
            LanceStore(tmp_path / "b", fingerprint=TWO) as target,
            pytest.raises(FingerprintMismatchError, match="two"),
        ):
            copy_store(source, target)
        with (
            LanceStore(tmp_path / "c") as target,
            pytest.raises(FingerprintMismatchError, match="source's fingerprint"),
        ):
            copy_store(source, target)


def test_kept_pictures_need_a_folder(tmp_path: Path, server_url: str) -> None:
    with opened(LanceStore, tmp_path / "a") as source:
        fill(source)
        with ChromaStore(url=server_url, collection="copied", fingerprint=ONE) as target:
            with pytest.raises(InputError, match="pictures=FOLDER"):
                copy_store(source, target)


def test_a_check_finds_what_something_else_did(tmp_path: Path) -> None:
    """Vectors without unit length, rows that are there twice, facets without pictures, copies that are not right."""
    import lance

    with opened(LanceStore, tmp_path / "a") as store:
        fill(store)
        (kept,) = store.get(["kept"])
        Path(kept.source).write_bytes(b"other")
        stray = Path(kept.source).with_name(f"{hashlib.sha256(b'x').hexdigest()}.png")
        stray = stray.parent.parent / stray.name[:2] / stray.name
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"x")
        data = lance.dataset(str(tmp_path / "a" / "abc.lance"))
        row = data.to_table(filter="id = 't00003'")
        long = row.set_column(row.schema.get_field_index("id"), row.schema.field("id"), [["long"]])
        lengthy = long.column("vector").combine_chunks()
        doubled = type(lengthy).from_arrays(lengthy.flatten().to_numpy() * np.float32(2), 16)
        long = long.set_column(long.schema.get_field_index("vector"), row.schema.field("vector"), doubled)
        data = lance.write_dataset(row, data, mode="append")
        data = lance.write_dataset(long, data, mode="append")
        broken = row.set_column(row.schema.get_field_index("id"), row.schema.field("id"), [["broken"]])
        broken = broken.set_column(broken.schema.get_field_index("metadata"), row.schema.field("metadata"), [["no"]])
        lance.write_dataset(broken, data, mode="append")
        lance.dataset(str(tmp_path / "a" / "abc.lance")).delete("id = 'p0'")
        found = store.check()
    for part in (
        "record 't00003' is there twice",
        "record 'broken' is damaged",
        "record 'long': its vector has length 2 instead of 1",
        "has no picture",
        "its copy",
        "belongs to no record",
    ):
        assert any(part in line for line in found), part
