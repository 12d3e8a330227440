"""A store in several collections of a server gives what one in a single collection gives."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from store_helpers import ONE, TWO, Elsewhere, finish, texts, vectors

from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.store import ChromaStore, copy_store, open_store
from abc_rag.types import Hit, Record


def rounded(hits: list[Hit]) -> list[tuple[Record, float, str | None]]:
    return [(hit.record, round(hit.score, 5), hit.facet) for hit in hits]


def test_results_are_those_of_one_collection(server_url: str, tmp_path: Path) -> None:
    name = f"s-{uuid.uuid4().hex}"
    pictures = [Record(f"p{i}", "image", f"a caption {i}", f"{i}.png", {"n": i % 4}) for i in range(60)]
    rows = vectors(120, 16)
    rows[40:60] = rows[40]  # equal scores, in several shards
    with (
        ChromaStore(url=server_url, collection=name, fingerprint=ONE, keywords=tmp_path / "w", shards=3) as shards,
        ChromaStore(url=server_url, collection=f"{name}-one", fingerprint=ONE, keywords=tmp_path / "w") as one,
    ):
        for store in (shards, one):
            store.add([*texts(60), *pictures], rows)
            store.add_facets([f"p{i}" for i in range(0, 60, 3)], "left?", -rows[60::3])
            assert store.delete(["t00001", "p2", "missing"]) == 2
            assert store.check() == []
        for where in (None, {"n": 1}, {"n": {"$gte": 2}}, {"page": 7}):
            for query in (*vectors(4, 16, seed=5), rows[40], -rows[63]):
                for k in (1, 7, 200):
                    assert rounded(shards.search(query, k, where)) == rounded(one.search(query, k, where))
        assert rounded(shards.search_words("caption 17 33", 9)) == rounded(one.search_words("caption 17 33", 9))
        assert (shards.count(), shards.dim) == (one.count(), one.dim)
        assert sorted(shards.ids()) == sorted(one.ids())
        assert shards.facet_names(["p3"]) == one.facet_names(["p3"])
        report = copy_store(shards, one)
        assert (report.copied, report.unchanged, report.problems) == (0, 118, [])
    # How many there are is found in the first one.
    with open_store(server_url, collection=name) as again:
        assert (again.count(), again.fingerprint) == (118, str(ONE))
        assert again.search(rows[5], 1)[0].id == "t00005"
    for wrong in (1, 4):
        with pytest.raises(InputError, match=r"has shards=3, not .; open it with shards=3"):
            ChromaStore(url=server_url, collection=name, shards=wrong)
    with pytest.raises(FingerprintMismatchError):
        ChromaStore(url=server_url, collection=name, fingerprint=TWO)


def test_processes_write_at_once(server_url: str, elsewhere: Elsewhere) -> None:
    name = f"s-{uuid.uuid4().hex}"
    code = (
        "from store_helpers import ONE\n"
        "with ChromaStore(url=sys.argv[1], collection=sys.argv[2], fingerprint=ONE, shards=2) as store:\n"
        "    first = int(sys.argv[3])\n"
        "    for at in range(first, first + 300, 100): put(store, at, at + 100)\n"
    )
    code = f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n" + code
    for process in [elsewhere(code, server_url, name, first) for first in (0, 200)]:  # 100 records are written by both
        finish(process)
    with open_store(server_url, collection=name) as store:
        assert sorted(store.ids()) == sorted(f"i{n}" for n in range(500))
        assert store.check() == []
        rows = np.random.default_rng(400).standard_normal((100, 8))
        assert [store.search(row, 1)[0].id for row in rows[:3]] == ["i400", "i401", "i402"]


@pytest.mark.parametrize("shards", [0, 65, True, "2"])
def test_what_is_no_number_of_shards(shards: object) -> None:
    with pytest.raises(InputError, match="shards must be an int from 1 to 64"):
        ChromaStore(url="http://127.0.0.1:1", shards=shards)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shards is for a server"):
        ChromaStore("store", shards=2)
