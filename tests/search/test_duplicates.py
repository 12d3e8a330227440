"""Duplicates in one respect: all pairs, as a comparison of everything with everything finds them; and the gap."""

from __future__ import annotations

import numpy as np
import pytest

from abc_rag.search.duplicates import Duplicates, duplicates_in, gap
from abc_rag.search.sights import Rows, Sights
from abc_rag.types import Vectors

THING, GROUND = "which thing?", "which background?"


def unit(rows: np.ndarray) -> Vectors:
    found: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


def sights_of(**vectors: Vectors) -> Sights:
    rows = {}
    for name, given in vectors.items():
        rows[{"thing": THING, "ground": GROUND}[name]] = made = Rows()
        made.append(given)
    return Sights(rows, [f"{number:05}" for number in range(len(given))], facets=len(given))


def planted(kinds: np.ndarray, seed: int, noise: float = 0.1, dim: int = 12) -> Vectors:
    rng = np.random.default_rng(seed)
    means = unit(rng.normal(size=(int(kinds.max()) + 1, dim)))
    return unit(means[kinds] + noise / np.sqrt(dim) * rng.normal(size=(len(kinds), dim)))


def scores(vectors: Vectors) -> np.ndarray:
    return (1.0 + np.clip(vectors @ vectors.T, -1, 1)) / 2.0


def ids_of(fits: np.ndarray) -> set[tuple[str, str]]:
    return {(f"{a:05}", f"{b:05}") for a, b in np.argwhere(np.triu(fits, 1)).tolist()}


def test_all_pairs_are_found_and_the_best_are_returned() -> None:
    rng = np.random.default_rng(1)
    thing, ground = (planted(rng.integers(700, size=2100), seed) for seed in (2, 3))
    sights = sights_of(thing=thing, ground=ground)
    found = duplicates_in(sights, [THING], [GROUND], {THING: 0.97, GROUND: 0.9}, most=10_000)
    expected = ids_of((scores(thing) >= 0.97) & (scores(ground) < 0.9))
    assert len(expected) > 2100
    assert ({(pair.first, pair.second) for pair in found.pairs}, found.count) == (expected, len(expected))
    pair = found[len(found) // 2]
    assert pair.score == pytest.approx(scores(thing)[int(pair.first), int(pair.second)], abs=1e-6)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    few = duplicates_in(sights, [THING], [GROUND], {THING: 0.97, GROUND: 0.9}, most=7)
    assert (few.pairs, few.count, few.groups) == (found.pairs[:7], found.count, found.groups)
    # The groups are what pairs connect.
    groups = {id_: {id_} for pair in expected for id_ in pair}
    for first, second in expected:
        joined = groups[first] | groups[second]
        groups.update(dict.fromkeys(joined, joined))
    assert {frozenset(group) for group in found.groups} == {frozenset(group) for group in groups.values()}
    assert [len(group) for group in found.groups] == sorted((len(group) for group in found.groups), reverse=True)
    degrees = {id_: sum(id_ in pair for pair in expected) for id_ in found.groups[0]}
    assert [degrees[id_] for id_ in found.groups[0]] == sorted(degrees.values(), reverse=True)


def test_the_same_in_two_respects_counts_both_alike() -> None:
    thing = unit(np.array([[1, 0], [1, 0.1], [0, 1]]))
    ground = unit(np.array([[1, 0], [1, 0.3], [1, 0]]))
    given = {THING: 0.9, GROUND: 0.9}
    found = duplicates_in(sights_of(thing=thing, ground=ground), [THING, GROUND], [], given, most=9)
    assert [(pair.first, pair.second) for pair in found.pairs] == [("00000", "00001")]
    assert found[0].score == pytest.approx((scores(thing)[0, 1] + scores(ground)[0, 1]) / 2, abs=1e-6)
    assert found.groups == (("00000", "00001"),)


@pytest.mark.parametrize(("kinds", "each"), [(9, 40), (60, 6), (300, 2), (2, 50)])
def test_the_threshold_lies_in_the_gap(kinds: int, each: int) -> None:
    of = np.repeat(np.arange(kinds), each)
    thing = planted(of, 4, dim=48)
    found = duplicates_in(sights_of(thing=thing), [THING], [], {}, most=1)
    same = of[:, None] == of[None]
    np.fill_diagonal(same, val=False)
    inner, outer = scores(thing)[same], scores(thing)[of[:, None] != of[None]]
    assert outer.max() < found.thresholds[THING] < inner.min()
    assert found.count == kinds * each * (each - 1) // 2
    assert {len(group) for group in found.groups} == {each}
    assert found.notes == ()


def test_without_a_gap_nothing_is_called_the_same() -> None:
    noise = unit(np.random.default_rng(5).normal(size=(400, 48)))
    for vectors in (noise, np.repeat(noise[:1], 50, axis=0)):
        found = duplicates_in(sights_of(thing=vectors), [THING], [], {}, most=9)
        assert (found.count, found.pairs, found.groups, found.thresholds) == (0, (), (), {})
        (note,) = found.notes
        assert "no gap tells pictures that are the same from others" in note
    assert "99 in 100 below" in note
    # One that is known need not be found; the other one is still missing.
    both = sights_of(thing=noise, ground=planted(np.repeat(np.arange(8), 50), 6, dim=48))
    assert duplicates_in(both, [GROUND], [THING], {}, most=9).thresholds.keys() == {GROUND}
    assert duplicates_in(both, [GROUND], [THING], {THING: 0.7}, most=9).count > 9


def test_a_gap_is_deep_and_has_something_below_it() -> None:
    counts = np.zeros(400)
    assert gap(counts) is None
    counts[100:140] = 50
    assert gap(counts) is None
    counts[300:310] = 2
    assert gap(counts) == pytest.approx((140 + 300) / 2 / 400, abs=0.02)
    counts[140:300] = 1  # half as many are no gap
    assert gap(counts) is None
    lonely = np.zeros(400)
    lonely[30], lonely[300:340] = 9, 50  # few pairs below it: all but these would be the same
    assert gap(lonely) is None


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures_have_no_pairs(count: int) -> None:
    found = duplicates_in(sights_of(thing=np.eye(3, dtype=np.float32)[:count]), [THING], [], {}, most=9)
    assert isinstance(found, Duplicates)
    assert (found.count, found.notes) == (0, ())
