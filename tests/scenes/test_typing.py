"""Slips of the keyboard."""

from __future__ import annotations

import random

from abc_rag.scenes.typing import typed

TEXT = "could you tell me what stands on the left?"


def test_nothing_changes_without_slips_and_with_plain_texts() -> None:
    assert all(typed(TEXT, random.Random(i), slips=0, plain=1) == TEXT for i in range(50))


def test_one_slip_changes_one_word_by_one_letter_or_swaps_two() -> None:
    words = TEXT.split()
    for seed in range(200):
        found = typed(TEXT, random.Random(seed), slips=1, plain=1).split()
        changed = [(a, b) for a, b in zip(words, found, strict=True) if a != b]
        assert len(changed) <= 2
        for before, after in changed:
            assert abs(len(before) - len(after)) <= 2
            assert len(before) > 3


def test_capitals_and_marks_leave_the_words() -> None:
    plain = TEXT.rstrip("?").lower()
    seen = set()
    for seed in range(200):
        found = typed(TEXT, random.Random(seed), slips=0, plain=0)
        assert found.lower().rstrip("?!. ") == plain
        seen.add(found)
    assert {TEXT.upper(), plain} <= seen


def test_the_same_seed_types_the_same() -> None:
    assert typed(TEXT, random.Random(4)) == typed(TEXT, random.Random(4))
