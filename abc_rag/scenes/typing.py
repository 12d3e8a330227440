"""How people type: capitals, punctuation and slips of the keyboard."""

from __future__ import annotations

import random

__all__ = ["typed"]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEAR = {
    key: "".join({row[j] for j in (i - 1, i + 1) if 0 <= j < len(row)})
    for row in _ROWS
    for i, key in enumerate(row)
}  # fmt: skip


def _slip(word: str, rng: random.Random) -> str:
    """One mistake: two letters swapped, one dropped, one doubled, or a neighbour's key."""
    at = rng.randrange(len(word) - 1)
    kind = rng.choice(("swap", "drop", "double", "near"))
    if kind == "swap":
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == "drop":
        at = rng.randrange(1, len(word))
        return word[:at] + word[at + 1 :]
    if kind == "double":
        return word[: at + 1] + word[at:]
    near = _NEAR.get(word[at].lower(), "")
    return word[:at] + rng.choice(near) + word[at + 1 :] if near else word


def typed(text: str, rng: random.Random, *, slips: float = 0.15, plain: float = 0.5) -> str:
    """A text as somebody might type it.

    Args:
        text: The text.
        rng: Random generator.
        slips: Share of texts with a mistake; seldom two.
        plain: Share of texts whose capitals and final punctuation stay as they are.
    """
    if rng.random() < slips:
        words = text.split(" ")
        for _ in range(1 if rng.random() < 0.85 else 2):
            long = [i for i, word in enumerate(words) if len(word) > 3]
            if long:
                at = rng.choice(long)
                words[at] = _slip(words[at], rng)
        text = " ".join(words)
    if rng.random() < plain:
        return text
    draw = rng.random()
    if draw < 0.35:
        text = text[:1].upper() + text[1:]
    elif draw < 0.45:
        text = text.upper()
    elif draw < 0.55:
        text = text.title()
    draw = rng.random()
    if draw < 0.25:
        text = text.rstrip("?!. ")
    elif draw < 0.4:
        text = text.rstrip("?!. ") + rng.choice(("??", "?!", "...", "!", " ?", ".", "? ", "!!"))
    elif draw < 0.5:
        text = text.replace("'", "").replace(",", "")
    return text
