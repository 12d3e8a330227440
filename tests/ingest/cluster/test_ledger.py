"""Who embeds what: every id once, and the same answers when a task is run again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from abc_rag.errors import FingerprintMismatchError, StoreError
from abc_rag.ingest.cluster.lake import Lake, Made, Written, lake_of
from abc_rag.ingest.cluster.ledger import Ledger
from abc_rag.store import LanceStore
from abc_rag.store.records import image_id
from abc_rag.types import Record

PICTURE = Record(image_id("ab" * 32), "image", source="/a.png", sha256="ab" * 32, mime_type="image/png")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    with LanceStore(tmp_path / "lake", fingerprint="m") as store:
        store.add([PICTURE], np.eye(1, 4))
        store.add_facets([PICTURE.id], "left?", np.eye(1, 4))
    return lake_of(f"lance://{tmp_path / 'lake'}", "abc")


def test_the_first_place_gets_an_id_also_when_asked_again(lake: Lake) -> None:
    ledger = Ledger(lake)
    left = f"{PICTURE.id}#{'0' * 16}"
    for _ in range(2):
        assert ledger.claim([("a", ["x", "x#1"]), ("b", ["x", "x#1"]), ("b", ["y"])]) == [
            [True, True],
            [False, False],
            [True],
        ]
        assert ledger.claim([("c", [PICTURE.id, left])]) == [[False, True]]
        assert ledger.result()[0] == 1
    assert ledger.done(["x", "y"]) == []
    assert ledger.claim([("a", ["x"]), ("d", ["x"])]) == [[True], [False]]
    assert ledger.done(["y"]) == ["y"]


def test_failures_are_told_for_every_place_and_forgotten_when_mended(lake: Lake) -> None:
    ledger = Ledger(lake)
    ledger.claim([("a", ["x"]), ("b", ["x"])])
    for _ in range(2):
        ledger.fail([("a", "x", "too large"), ("c", "", "broken")])
    unchanged, failures, passed = ledger.result()
    assert (unchanged, passed) == (0, [])
    assert failures == [("a", "x", "too large"), ("b", "x", "too large"), ("c", "", "broken")]
    lake.put_failed(failures, passed)
    again = Ledger(lake)
    again.claim([("a", ["z"])])
    assert again.result()[1:] == ([], ["a"])
    lake.put_failed([], ["a"])
    assert lake.failed() == {"b", "c"}


def test_fragments_are_no_records_until_they_are_committed(lake: Lake) -> None:
    lake.prepare(4, "float32", "m", facets=True)
    with pytest.raises(FingerprintMismatchError):
        lake.prepare(4, "float32", "other", facets=False)
    since = lake.versions()
    new = Record("text-1", "text", text="A pig.")
    # The picture is stored already: its facet is as the store has it, wherever it was found now.
    found = Record(PICTURE.id, "image", source="/b.png", sha256=PICTURE.sha256, mime_type="image/png")
    made = [
        Made(new, np.eye(1, 4, dtype=np.float32), True, ()),
        Made(found, np.eye(2, 4, 1, np.float32)[:1], False, ["right?"]),
    ]
    records, facets = lake.write(made)
    with LanceStore(lake.place, fingerprint="m") as store:
        assert store.count() == 1
        lake.commit(records, since[False], facets=False)
        lake.commit(facets, since[True], facets=True)
        assert store.count() == 2
        assert store.facet_names([PICTURE.id]) == {PICTURE.id: {"left?", "right?"}}
        assert store.check() == []
        assert store.search(np.eye(4)[1], 1)[0].record == PICTURE
    with pytest.raises(StoreError, match="somebody else stores the same items"):
        lake.commit(Written(*lake.write(made[:1])[0]), since[False], facets=False)
    assert lake.opened().count_rows() == 2  # type: ignore[union-attr]
