"""Hundreds of kinds of things, each drawn in several styles: the archive that ``scripts/draw_kinds.py`` writes.

The archive is no part of the package. Without one, the kinds are the world's own (`abc_rag.scenes.world`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image

from abc_rag.errors import InputError
from abc_rag.scenes.world import CATEGORY_OF, KINDS

__all__ = ["BUNDLED", "UNSEEN_STYLE", "Kinds", "load_kinds"]

BUNDLED = ""
"""The style of the world's own sprites."""
UNSEEN_STYLE = "openmoji"
"""The style that is never trained on."""


class Kinds:
    """Kinds with their categories, and their drawings.

    Args:
        categories: Kind -> category.
        drawings: (style, kind) -> RGBA picture; those of `BUNDLED` are left out.
    """

    def __init__(self, categories: Mapping[str, str], drawings: Mapping[tuple[str, str], PIL.Image.Image]) -> None:
        self.categories = dict(categories)
        self._drawings = dict(drawings)
        self.unseen = tuple(k for k in self.categories if k not in CATEGORY_OF and _draw(k) < 26)
        self.seen = tuple(k for k in self.categories if k not in set(self.unseen))
        self._styles: dict[str, list[str]] = {k: [BUNDLED] if k in CATEGORY_OF else [] for k in self.categories}
        for style, kind in self._drawings:
            if kind in self._styles:
                self._styles[kind].append(style)

    def __len__(self) -> int:
        return len(self.categories)

    def styles(self, kind: str) -> list[str]:
        """The styles that a kind is trained in."""
        return [style for style in self._styles[kind] if style != UNSEEN_STYLE]

    def has(self, kind: str, style: str) -> bool:
        """Whether a kind is drawn in a style."""
        return style in self._styles.get(kind, ())

    @lru_cache(maxsize=8192)  # noqa: B019  (lives as long as the process)
    def sprite(self, kind: str, style: str, extent: int) -> PIL.Image.Image:
        """A drawing whose longer side is ``extent`` pixels; not of the style `BUNDLED`."""
        sprite = self._drawings[style, kind]
        scale = extent / max(sprite.size)
        size = (max(1, round(sprite.width * scale)), max(1, round(sprite.height * scale)))
        return sprite.resize(size, PIL.Image.Resampling.BICUBIC)


def _draw(kind: str) -> int:
    return hashlib.sha256(f"kind|{kind}".encode()).digest()[0]


@lru_cache(maxsize=4)
def load_kinds(archive: str = "", most: int = 340) -> Kinds:
    """Read an archive.

    Args:
        archive: Its path; empty for the world's own kinds.
        most: Number of kinds: the world's own first, the others in an order that a hash gives.

    Raises:
        InputError: It cannot be read, or is no such archive.
    """
    if not archive:
        return Kinds({kind: CATEGORY_OF[kind] for kind in KINDS}, {})
    try:
        with np.load(Path(archive).expanduser(), allow_pickle=False) as stored:
            about = json.loads(bytes(stored["about"]))
            others = sorted(
                (k for k in about if k not in CATEGORY_OF), key=lambda k: hashlib.sha256(k.encode()).digest()
            )
            kept = {kind: CATEGORY_OF[kind] for kind in KINDS} | {
                k: about[k]["category"] for k in others[: max(0, most - len(KINDS))]
            }
            drawings = {}
            for name in stored.files:
                style, _, kind = name.partition("|")
                if kind in kept:
                    drawings[style, kind] = PIL.Image.fromarray(stored[name], "RGBA")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{archive}: no archive of kinds ({error}); write one with scripts/draw_kinds.py") from error
    return Kinds(kept, drawings)
