"""A score by code is as near to the cosine as it says."""

import numpy as np
import numpy.typing as npt
import pytest

from abc_rag.store.codes import Codes, Recent

COUNT, DIM = 1300, 24


def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    made: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return made


def table(kind: str) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(1).standard_normal((COUNT, DIM))
    if kind == "spikes":
        rows[:, 3] = 40.0
    if kind == "alike":
        rows = 1.0 + 0.001 * rows
    if kind == "axes":
        rows = np.eye(COUNT, DIM) + np.eye(COUNT, DIM, k=-7) + 1e-9
    made = unit(rows)
    if kind == "zeros":  # which another program has written
        made[::3] = 0.0
    return made


@pytest.mark.parametrize("kind", ["random", "spikes", "alike", "axes", "zeros"])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_score_is_as_near_to_the_cosine_as_it_says(kind: str, queries: int) -> None:
    rows, asked = table(kind), unit(np.random.default_rng(2).standard_normal((queries, DIM)))
    codes = Codes(COUNT + 10, DIM)
    codes.put(slice(0, 700), rows[:700])
    codes.put(slice(700, COUNT), rows[700:])
    some = (np.arange(COUNT), np.arange(40, 900), np.arange(1, COUNT, 2), np.arange(3, COUNT, 9), np.array([COUNT - 1]))
    for places in (*some, np.zeros(0, np.int64)):
        scores, off = codes.scores(asked, places)
        exact = asked.astype(np.float64) @ rows[places].astype(np.float64).T
        assert scores.shape == off.shape == exact.shape
        assert (np.abs(scores - exact) <= off + 1e-6).all()
        assert kind != "random" or not len(places) or 0.001 < off.max() < 0.03


def test_a_copy_does_not_change_with_the_original() -> None:
    rows = table("random")
    codes = Codes(COUNT, DIM)
    codes.put(slice(0, COUNT), rows)
    copied, places = codes.copy(), np.array([3, 5, 800])
    before = codes.scores(rows[:1], places)[0]
    copied.put(places, rows[places] * np.float32(-1))
    np.testing.assert_array_equal(codes.scores(rows[:1], places)[0], before)
    np.testing.assert_allclose(copied.scores(rows[:1], places)[0], -before, rtol=1e-6)


def test_long_vectors_of_the_largest_numbers_do_not_overflow() -> None:
    rows = unit(np.ones((3, 3584)))
    codes = Codes(3, 3584)
    codes.put(slice(0, 3), rows)
    np.testing.assert_allclose(codes.scores(rows[:1], np.arange(3))[0], 1.0, atol=1e-5)


def test_what_was_asked_for_last_is_kept() -> None:
    first, second, third = [1], [1], [1]  # equal, and three
    recent = Recent[int](2)
    recent.put(first, 1)
    recent.put(second, 2)
    assert recent.get(first) == 1
    recent.put(third, 3)
    assert [recent.get(one) for one in (first, second, third)] == [1, None, 3]
    recent.put(first, 4)
    assert [recent.get(one) for one in (first, third)] == [4, 3]
