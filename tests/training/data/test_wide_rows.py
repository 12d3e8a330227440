"""The wider world as data sets of the two adapters."""

from __future__ import annotations

import random

from abc_rag.scenes.kinds import load_kinds
from abc_rag.training.data.wide_rows import WideCaptions, WidePairs


def test_captions_exclude_what_is_true_of_another_picture() -> None:
    source = WideCaptions(load_kinds(), own=1, seed=1)
    rows = [source.row(i) for i in range(40)]
    assert WideCaptions(load_kinds(), own=1, seed=1).row(5).caption == rows[5].caption
    negatives = [n for i in range(40) for n in source.negatives_of(i, 3, random.Random(0))]
    excluded = source.excluded(rows, [*(row.caption for row in rows), *negatives])
    assert excluded.diagonal().all()
    assert 40 < excluded[:, :40].sum() < 40 * 10
    place = 40
    for i, row in enumerate(rows):
        assert not excluded[i, place : place + len(row.negatives)].any()
        place += len(row.negatives)


def test_pairs_exclude_other_texts_that_say_the_same() -> None:
    source = WidePairs(load_kinds(), own=1, seed=1)
    rows = [source.row(i) for i in range(20)]
    assert all(len(row.pairs) >= 5 for row in rows)
    pairs = [(row, pair) for row in rows for pair in row.pairs]
    excluded = source.excluded(pairs, [pair.phrase for _, pair in pairs])
    assert excluded.diagonal().all()
    assert excluded.mean() < 0.2
