"""Regular expressions without backtracking: what ``re`` says, in bounded time."""

from __future__ import annotations

import random
import re

import pytest

from abc_rag.models.patterns import PatternError, full_matches

NAMES = ["model.layers.0.self_attn.q_proj", "visual.blocks.1.attn.qkv", "model.layers.12.mlp.gate_proj", "a" * 60, ""]
PIECES = [*"ab.()|*+?^$", "[ab]", "[^a]", "[a-b]", r"\.", r"\w", "(?:", "(?!", "(?=", "{1,2}", "{2}", "{,2}"]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|k_proj)",
        r"^(?!.*visual).*(?:q_proj|v_proj|gate_proj).*$",
        r"model\.layers\.\d+\.mlp\.gate_proj",
        r"[a-z_]+\.[^.]*\.[0-9]{1,2}\..*?",
        r"a{60}|.*qkv",
        r"(?=model).*",
        r"[]a]+",
        r"(a|b)*",
        "",
    ],
)
def test_it_matches_what_re_matches(pattern: str) -> None:
    assert full_matches(pattern, NAMES) == [name for name in NAMES if re.fullmatch(pattern, name)]


def test_patterns_of_any_form_match_what_re_matches() -> None:
    rng = random.Random(0)
    compared = 0
    for _ in range(20_000):
        pattern = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 8)))
        texts = ["".join(rng.choice("ab.") for _ in range(rng.randint(0, 5))) for _ in range(4)]
        try:
            expected = [text for text in texts if re.fullmatch(pattern, text)]
            found = full_matches(pattern, texts)
        except (re.error, PatternError):
            continue
        compared += 1
        assert found == expected, (pattern, texts)
    assert compared > 1000


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(((a*)*)*)*b", "(a|a)*b", "(.|.)" * 30 + "x", ".*" * 40 + "x", "(a{1000}){1000}b"]
)
def test_what_keeps_re_busy_for_years_ends(pattern: str) -> None:
    try:
        found = full_matches(pattern, NAMES * 100)
    except PatternError:
        found = []
    assert found == []


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a)", "*", "a**", "a{2}{2}", "a{3,2}", "a{2000}", "[a", "[b-a]", "\\", r"(a)\1", "(?<=a)b", "(?i)a",
        "(?P<n>a)", r"\Z", "a" * 3000, "(" * 30 + ")" * 30,
    ],
)  # fmt: skip
def test_what_is_malformed_or_not_known_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        full_matches(pattern, NAMES)
