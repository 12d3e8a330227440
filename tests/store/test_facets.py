"""Facets, against a real embedded Chroma and a real Chroma server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import MakeStore

from abc_rag.errors import FingerprintMismatchError, InputError
from abc_rag.store.base import Store
from abc_rag.store.chroma.store import ChromaStore
from abc_rag.types import Fingerprint, Record

ONE, TWO = (Fingerprint("abc", name, 4, 64) for name in ("one", "two"))
LEFT, RIGHT = "what is on the left?", "what is on the right?"


def unit_rows(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def picture(name: str, **metadata: int) -> Record:
    return Record(name, "image", "a caption", f"/photos/{name}.png", metadata, sha256="0" * 64, mime_type="image/png")


def found(hits: list) -> list[tuple[str, str | None]]:
    return [(hit.id, hit.facet) for hit in hits]


AXES = np.eye(8)


@pytest.fixture
def store(make: MakeStore) -> Store:
    """Three pictures and a passage on four axes; two facets of a and one of b on three others."""
    opened = make()
    fill(opened)
    return opened


def fill(store: Store) -> None:
    store.add([picture("a", page=1), picture("b", page=2), picture("c", page=3)], AXES[:3])
    store.add([Record("t", "text", "words", metadata={"page": 1})], AXES[3:4])
    store.add_facets(["a", "b"], LEFT, AXES[4:6])
    store.add_facets(["a"], RIGHT, AXES[6:7])


# -- what is there ---------------------------------------------------------------------------------


def test_facets_are_told_by_picture(make: MakeStore) -> None:
    store = make()
    fill(store)
    assert store.facet_names(["a", "b", "c", "t", "missing"]) == {"a": {LEFT, RIGHT}, "b": {LEFT}}
    vectors = store.facet_vectors(["c", "b", "a", "missing"], LEFT)
    assert vectors.keys() == {"a", "b"}
    np.testing.assert_allclose(vectors["a"], AXES[4], atol=1e-6)
    np.testing.assert_allclose(vectors["b"], AXES[5], atol=1e-6)
    assert store.facet_vectors(["a"], LEFT.upper()) == {}
    assert (store.facet_names([]), store.facet_vectors([], LEFT)) == ({}, {})


def test_facets_are_no_records(make: MakeStore) -> None:
    store = make()
    fill(store)
    assert store.count() == 4
    assert sorted(store.ids()) == ["a", "b", "c", "t"]
    assert sorted(record.id for record in store.records()) == ["a", "b", "c", "t"]
    assert store.get(["a"]) == [picture("a", page=1)]
    assert store.vectors(["a"])["a"] == pytest.approx(AXES[0])
    assert len(store.search(AXES[0], 100)) == 4


def test_a_picture_has_the_best_of_its_vectors_and_occurs_once(make: MakeStore) -> None:
    store = make()
    fill(store)
    hits = store.search(AXES[4], 10)
    assert [hit.id for hit in hits].count("a") == 1
    assert found(hits)[0] == ("a", LEFT)
    assert hits[0].score == pytest.approx(1)
    assert hits[0].record == picture("a", page=1)
    assert len(hits) == 4
    assert found(store.search(AXES[6], 1)) == [("a", RIGHT)]
    assert found(store.search(AXES[0], 1)) == [("a", None)]
    assert found(store.search(AXES[3], 1)) == [("t", None)]
    many = store.search_many(AXES[[0, 5, 6, 3]], 1)
    assert [found(hits)[0] for hits in many] == [("a", None), ("b", LEFT), ("a", RIGHT), ("t", None)]


def test_a_facet_beats_a_picture_only_where_it_is_nearer(store: Store) -> None:
    query = AXES[0] + 0.9 * AXES[4]
    assert found(store.search(query, 1)) == [("a", None)]
    query = 0.9 * AXES[0] + AXES[4]
    assert found(store.search(query, 1)) == [("a", LEFT)]


def test_filters_hold_for_facets(make: MakeStore) -> None:
    store = make()
    fill(store)
    for where in ({"page": 2}, {"page": {"$gt": 1}}, {"abc:source": "/photos/b.png"}):
        hits = store.search(AXES[4], 10, where)
        assert "a" not in [hit.id for hit in hits], where
        assert ("b", LEFT) in found(store.search(AXES[5], 10, where)), where
    assert found(store.search(AXES[4], 10, {"page": 77})) == []
    assert {hit.id for hit in store.search(AXES[4], 10, {"abc:mime_type": "image/png"})} == {"a", "b", "c"}


def test_one_modality_holds_for_facets(make: MakeStore) -> None:
    store = make()
    fill(store)
    assert found(store.search(AXES[4], 10, modality="text")) == [("t", None)]
    assert found(store.search(AXES[4], 10, {"abc:modality": "text"})) == [("t", None)]
    hits = store.search(AXES[4], 10, modality="image")
    assert found(hits)[0] == ("a", LEFT)
    assert {hit.id for hit in hits} == {"a", "b", "c"}


def test_an_id_that_looks_like_a_facets(store: Store) -> None:
    store.add([picture("a#b")], AXES[7:])
    store.add_facets(["a#b"], LEFT, [AXES[7] + AXES[3]])
    assert found(store.search(AXES[7] + AXES[3], 1)) == [("a#b", LEFT)]
    store.delete(["a#b"])
    assert store.facet_names(["a", "a#b"]) == {"a": {LEFT, RIGHT}}


# -- exactness -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ChromaStore, dict[str, np.ndarray]]]:
    """60 pictures with 30 facets each, and 20 passages; also all vectors of each."""
    dim = 12
    own, words = unit_rows(60, dim, 1), unit_rows(20, dim, 2)
    facets = unit_rows(60 * 30, dim, 3).reshape(60, 30, dim)
    # The first three pictures have hundreds of times their share of what is near some places.
    facets[:3] = facets[:3, :1] + 0.01 * facets[:3]
    facets /= np.linalg.norm(facets, axis=2, keepdims=True)
    with ChromaStore(tmp_path_factory.mktemp("crowded")) as store:
        names = [f"p{i:02}" for i in range(60)]
        store.add([picture(name, half=i % 2) for i, name in enumerate(names)], own)
        store.add([Record(f"t{i:02}", "text", str(i), metadata={"half": i % 2}) for i in range(20)], words)
        for j in range(30):
            store.add_facets(names, f"instruction {j}", facets[:, j])
        vectors = {name: np.vstack([own[i][None], facets[i]]) for i, name in enumerate(names)}
        vectors |= {f"t{i:02}": words[i][None] for i in range(20)}
        yield store, vectors


def brute_force(vectors: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[str, str | None, float]]:
    best = []
    for name, rows in vectors.items():
        scores = (1 + rows @ query) / 2
        at = int(scores.argmax())
        best.append((name, f"instruction {at - 1}" if at else None, float(scores[at])))
    return sorted(best, key=lambda hit: -hit[2])[:k]


QUERIES = np.vstack([unit_rows(12, 12, 4), unit_rows(1800, 12, 3).reshape(60, 30, 12)[:3, 0]])


@pytest.mark.parametrize("k", [1, 2, 7, 30, 80, 500])
@pytest.mark.parametrize("where", [None, {"half": 1}])
def test_the_nearest_are_those_of_brute_force(
    crowded: tuple[ChromaStore, dict[str, np.ndarray]], k: int, where: dict[str, int] | None
) -> None:
    store, vectors = crowded
    chosen = {name: rows for name, rows in vectors.items() if where is None or int(name[1:]) % 2 == 1}
    many = store.search_many(QUERIES, k, where)
    for query, hits in zip(QUERIES, many, strict=True):
        expected = brute_force(chosen, query, k)
        assert found(hits) == [hit[:2] for hit in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [hit[2] for hit in expected], atol=1e-5)
    assert found(store.search(QUERIES[-1], k, where)) == found(many[-1])


def test_the_nearest_pictures_are_those_of_brute_force(crowded: tuple[ChromaStore, dict[str, np.ndarray]]) -> None:
    store, vectors = crowded
    pictures = {name: rows for name, rows in vectors.items() if name.startswith("p")}
    for query, hits in zip(QUERIES, store.search_many(QUERIES, 9, modality="image"), strict=True):
        assert found(hits) == [hit[:2] for hit in brute_force(pictures, query, 9)]


def test_more_facets_than_a_page_follow_their_picture(tmp_path: Path) -> None:
    names, own, facets = [f"p{i:02}" for i in range(40)], unit_rows(40), unit_rows(30 * 40, seed=1).reshape(30, 40, 8)
    with ChromaStore(tmp_path) as store:
        store.add([picture(name, page=1) for name in names], own)
        for j in range(30):
            store.add_facets(names, f"instruction {j}", facets[j])
        store.add([picture(name, page=5) for name in names], own)
        everything = {f"instruction {j}" for j in range(30)}
        assert store.facet_names(names) == dict.fromkeys(names, everything)
        for j, i in ((0, 0), (13, 7), (29, 39)):
            assert found(store.search(facets[j, i], 1, {"page": 5})) == [(names[i], f"instruction {j}")]
            assert store.search(facets[j, i], 1, {"page": 1}) == []
            assert store.facet_vectors(names, f"instruction {j}")[names[i]] == pytest.approx(facets[j, i], abs=1e-6)
        assert store.delete(names[:39]) == 39
        assert store.facet_names(names) == {"p39": everything}


# -- what becomes of them --------------------------------------------------------------------------


def test_storing_a_facet_again_replaces_it(store: Store) -> None:
    store.add_facets(["a"], LEFT, AXES[7:])
    np.testing.assert_allclose(store.facet_vectors(["a"], LEFT)["a"], AXES[7], atol=1e-6)
    assert store.facet_names(["a"]) == {"a": {LEFT, RIGHT}}
    assert store.search(AXES[4], 1)[0].score < 0.9


def test_of_equal_ids_the_last_facet_counts(store: Store) -> None:
    store.add_facets(["c", "c"], LEFT, AXES[[4, 7]])
    np.testing.assert_allclose(store.facet_vectors(["c"], LEFT)["c"], AXES[7], atol=1e-6)


def test_a_picture_stored_again_with_its_vector_keeps_its_facets(make: MakeStore) -> None:
    store = make()
    fill(store)
    moved = Record("a", "image", "other", "/moved/a.png", {"year": 7}, mime_type="image/jpeg")
    store.add([moved], AXES[:1] * 3)
    assert store.facet_names(["a"]) == {"a": {LEFT, RIGHT}}
    np.testing.assert_allclose(store.facet_vectors(["a"], LEFT)["a"], AXES[4], atol=1e-6)
    assert store.search(AXES[4], 1)[0].record == moved
    assert found(store.search(AXES[4], 1, {"year": 7})) == [("a", LEFT)]
    assert found(store.search(AXES[4], 1, {"abc:source": "/moved/a.png"})) == [("a", LEFT)]
    for gone in ({"page": 1}, {"abc:source": "/photos/a.png"}, {"abc:mime_type": "image/png"}):
        assert "a" not in [hit.id for hit in store.search(AXES[4], 10, gone)], gone


def test_a_picture_stored_again_with_another_vector_loses_its_facets(make: MakeStore) -> None:
    store = make()
    fill(store)
    store.add([picture("a"), picture("b")], AXES[[7, 1]])
    assert store.facet_names(["a", "b"]) == {"b": {LEFT}}
    assert ("a", LEFT) not in found(store.search(AXES[4], 10))
    assert store.search(AXES[4], 10)[0].score < 0.6


def test_what_becomes_a_passage_loses_its_facets(store: Store) -> None:
    store.add([Record("a", "text", "now a passage")], AXES[:1])
    assert store.facet_names(["a"]) == {}
    assert all(hit.facet is None for hit in store.search(AXES[4], 10) if hit.id == "a")


@pytest.mark.parametrize("last", ["image", "text"])
def test_of_equal_ids_in_one_call_the_last_decides_about_facets(store: Store, last: str) -> None:
    both = [Record("a", "text", "x"), picture("a", page=9)]
    store.add(both if last == "image" else both[::-1], np.tile(AXES[0], (2, 1)))
    assert store.facet_names(["a"]) == ({"a": {LEFT, RIGHT}} if last == "image" else {})


def test_what_is_refused_costs_no_facet(store: Store) -> None:
    for records, rows in (
        ([picture("a")], np.eye(1, 3)),
        ([picture("a"), picture("")], AXES[[7, 7]]),
        ([picture("a"), picture("x")], [AXES[7], 0 * AXES[7]]),
    ):
        with pytest.raises(InputError):
            store.add(records, rows)
        assert store.facet_names(["a"]) == {"a": {LEFT, RIGHT}}


def test_deleting_a_picture_deletes_its_facets(make: MakeStore) -> None:
    store = make()
    fill(store)
    assert store.delete(["a", "t"]) == 2
    assert store.facet_names(["a", "b"]) == {"b": {LEFT}}
    store.add([picture("a")], AXES[:1])
    assert store.facet_names(["a"]) == {}
    assert store.search(AXES[4], 1)[0].score < 0.6


def test_facets_survive_reopening(make: MakeStore) -> None:
    with make(fingerprint=ONE) as store:
        fill(store)
    with make(fingerprint=ONE) as again:
        assert again.facet_names(["a"]) == {"a": {LEFT, RIGHT}}
        assert found(again.search(AXES[4], 1)) == [("a", LEFT)]
    with pytest.raises(FingerprintMismatchError):
        make(fingerprint=TWO)


def test_facets_without_their_picture_are_left_out(tmp_path: Path) -> None:
    import chromadb
    from chromadb.config import Settings

    with ChromaStore(tmp_path) as store:
        fill(store)
        store.add([picture(f"x{i:02}") for i in range(40)], np.tile(-AXES[4], (40, 1)))
        for j in range(3):
            store.add_facets([f"x{i:02}" for i in range(40)], f"{j}", np.tile(AXES[4] + 0.1 * AXES[j], (40, 1)))
        store.add_facets(["c"], LEFT, [AXES[4] + AXES[5]])
    client = chromadb.PersistentClient(str(tmp_path), settings=Settings(anonymized_telemetry=False))
    client.get_collection("abc", embedding_function=None).delete(ids=["a", *(f"x{i:02}" for i in range(40))])
    client.close()
    with ChromaStore(tmp_path) as store:
        # However many there are, and near, they hide no other.
        assert found(store.search(AXES[4], 1)) == [("c", LEFT)]
        assert found(store.search(AXES[4] + AXES[5], 1)) == [("c", LEFT)]
        assert found(store.search(AXES[4] + AXES[5], 2)) == [("c", LEFT), ("b", LEFT)]
        assert {hit.id for hit in store.search(AXES[4], 10)} == {"b", "c", "t"}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "instruction", "rows", "message"),
    [
        (["a"], "", AXES[:1], "a facet is an instruction"),
        (["a"], " \n", AXES[:1], "a facet is an instruction"),
        (["a"], None, AXES[:1], "a facet is an instruction"),
        (["a"], "\ud800", AXES[:1], "Unicode"),
        (["a", "zzz"], LEFT, AXES[:2], "'zzz' is not stored"),
        (["a", "t"], LEFT, AXES[:2], "'t' is a passage"),
        ("a", LEFT, AXES[:1], "list"),
        (["a", ""], LEFT, AXES[:2], "non-empty"),
        (["a", "b"], LEFT, AXES[:1], "2 records but 1 vectors"),
        (["a"], LEFT, [AXES[0] * np.nan], "NaN"),
        (["a"], LEFT, np.eye(1, 3), "3 dimensions.* 8"),
    ],
)
def test_what_is_no_facet(store: Store, ids: object, instruction: object, rows: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.add_facets(ids, instruction, rows)
    assert store.facet_names(["a", "b", "c", "t"]) == {"a": {LEFT, RIGHT}, "b": {LEFT}}
    assert store.facet_vectors(["a"], LEFT)["a"] == pytest.approx(AXES[4])


def test_the_first_facet_has_the_length_of_the_pictures(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add([picture("a")], AXES[:1])
        with pytest.raises(InputError, match=r"3 dimensions.* 8"):
            store.add_facets(["a"], LEFT, np.eye(1, 3))
        assert found(store.search(AXES[0])) == [("a", None)]


def test_facets_of_nothing(tmp_path: Path) -> None:
    with ChromaStore(tmp_path) as store:
        store.add_facets([], LEFT, [])
        assert (store.facet_names(["a"]), store.facet_vectors(["a"], LEFT)) == ({}, {})
        with pytest.raises(InputError, match="'a' is not stored"):
            store.add_facets(["a"], LEFT, AXES[:1])
        assert list(tmp_path.glob("*.facets")) == []


def test_names_of_facet_collections_are_reserved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reserved"):
        ChromaStore(tmp_path, collection="photos.facets")


def test_the_longest_name_leaves_room_for_facets(tmp_path: Path) -> None:
    with ChromaStore(tmp_path, collection="c" * 505) as store:
        fill(store)
        assert found(store.search(AXES[4], 1)) == [("a", LEFT)]
    with pytest.raises(InputError, match="505"):
        ChromaStore(tmp_path, collection="c" * 506)


def test_without_facets_there_is_no_second_collection(tmp_path: Path) -> None:
    import chromadb
    from chromadb.config import Settings

    with ChromaStore(tmp_path) as store:
        store.add([picture("a"), Record("t", "text", "x")], AXES[:2])
        assert found(store.search(AXES[0], 5)) == [("a", None), ("t", None)]
        assert store.delete(["a"]) == 1
        assert store.facet_names(["t"]) == {}
    client = chromadb.PersistentClient(str(tmp_path), settings=Settings(anonymized_telemetry=False))
    assert [collection.name for collection in client.list_collections()] == ["abc"]
    client.close()
