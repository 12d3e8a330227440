"""Synonyms: a fixed quarter of each aspect's is kept from training, never the commonest."""

from __future__ import annotations

import random

import pytest

from abc_rag.scenes.lexicon import LEXICON, OPPOSITE, choose

PARTS = [(aspect, part) for aspect, parts in LEXICON.items() for part in parts if len(parts[part]) >= 10]


@pytest.mark.parametrize(("aspect", "part"), PARTS)
def test_seen_and_unseen_words_share_out_the_list(aspect: str, part: str) -> None:
    rng = random.Random(0)
    seen = {choose(aspect, part, rng, unseen=False) for _ in range(1500)}
    unseen = {choose(aspect, part, rng, unseen=True) for _ in range(1500)}
    words = LEXICON[aspect][part]
    assert seen | unseen == set(words)
    assert not seen & unseen or unseen == set(words)
    assert words[0] in seen


def test_about_a_quarter_of_all_words_is_unseen() -> None:
    rng = random.Random(0)
    total = unseen = 0
    for aspect, part in PARTS:
        total += len(LEXICON[aspect][part])
        unseen += len({choose(aspect, part, rng, unseen=True) for _ in range(1500)})
    assert 0.15 < unseen / total < 0.35


def test_opposites_are_mutual_and_have_the_same_parts() -> None:
    for one, other in OPPOSITE.items():
        assert OPPOSITE[other] == one
        assert LEXICON[one].keys() == LEXICON[other].keys()


def test_no_word_means_an_aspect_and_its_opposite() -> None:
    for one, other in OPPOSITE.items():
        for part in LEXICON[one]:
            assert not set(LEXICON[one][part]) & set(LEXICON[other][part]), (one, part)
