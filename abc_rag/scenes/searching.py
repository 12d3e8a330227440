"""What people type to find a picture: statements about one aspect of a scene, in a search's wording, and captions."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from abc_rag.scenes.asking import count_phrase
from abc_rag.scenes.forms import read_forms
from abc_rag.scenes.lexicon import OPPOSITE, PICTURES, choose
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import BACKGROUNDS, Placed, background_phrase, phrase

__all__ = ["Search", "edits", "said_of", "searched"]

_FORMS = read_forms("searching.txt")
"""Cores, and frames for noun phrases and for sentences that say what is in the picture."""


@dataclass(frozen=True)
class Search:
    """A statement about a scene.

    Attributes:
        text: As somebody searches for it.
        plain: The same in plain words.
        aspect: A side, a size, ``"background"``, ``"category"`` or ``"shown"``.
        objects: The objects that it names.
        exact: The first of them is where, or as big as, the aspect says.
        background: The background that it names.
        count: The number of objects that it names.
        category: The category word that it names.
        pictured: It says that a picture is searched for.
    """

    text: str
    plain: str
    aspect: str
    objects: tuple[Placed, ...] = ()
    exact: bool = False
    background: str | None = None
    count: int | None = None
    category: str = ""
    pictured: bool = False

    def fits(self, scene: WideScene) -> bool:
        """Whether it is true of a scene."""
        if self.background not in (None, scene.background) or self.count not in (None, len(scene.objects)):
            return False
        return all(self._has(wanted, scene) for wanted in self.objects)

    def _has(self, wanted: Placed, scene: WideScene) -> bool:
        for placed in scene.objects:
            if placed.kind != wanted.kind:
                continue
            if not self.exact or wanted is not self.objects[0]:
                return True
            if self.aspect in OPPOSITE and self.aspect in ("big", "small"):
                return placed.size == self.aspect and [o.size for o in scene.objects].count(self.aspect) == 1
            return placed.side == self.aspect
        return False


def searched(
    scene: WideScene, rng: random.Random, *, edited: bool = False, aspect: str | None = None, synonym: bool = False
) -> Search:
    """A search for a scene, by one aspect.

    Args:
        scene: The scene.
        rng: Random generator.
        edited: Of another scene: one that differs in one respect.
        aspect: The aspect; one at random if None or if the scene does not have it.
        synonym: Use words that training never sees.
    """
    if edited:
        scene = rng.choice(edits(scene, rng))
    objects = scene.objects
    possible = ["background", "shown"]
    sizes = [o.size for o in objects]
    categories = [scene.category_of(o.kind) for o in objects]
    if len(objects) > 1:
        possible += [o.side for o in objects if o.side != "middle"]
        possible += [s for s in ("big", "small") if sizes.count(s) == 1]
        possible += ["category"] * any(categories.count(c) == 1 for c in categories)
    about = aspect if aspect in possible else rng.choice(possible)
    if about in ("big", "small"):
        placed = next(o for o in objects if o.size == about)
    elif about in OPPOSITE:
        placed = next(o for o in objects if o.side == about)
    elif about == "category":
        placed = rng.choice([o for o, c in zip(objects, categories, strict=True) if categories.count(c) == 1])
    else:
        placed = rng.choice(objects)
    others = [o for o in objects if o.kind != placed.kind]
    other = rng.choice(others) if others else None
    words: dict[str, str] = {
        "a": phrase(placed.kind),
        "kind": placed.kind,
        "c": scene.background,
        "bg": background_phrase(scene.background),
    }
    words["count"] = count_phrase(len(objects))
    words["b"], words["other"] = (phrase(other.kind), other.kind) if other else ("something", "something")
    group = {"big": "size", "small": "size"}.get(about, "side" if about in OPPOSITE else about)
    pool = _FORMS[group]
    core = rng.choice([c for c in pool if other or ("{b}" not in c and "{other}" not in c)])
    lexical = scene.category_of(placed.kind) if about == "category" else about
    pic = rng.choice(PICTURES)
    for part in ("adj", "loc", "rel", "cmp", "sup", "verb", "side", "np", "hue", "behind"):
        if "{" + part + "}" in core:
            words[part] = choose(lexical, part, rng, unseen=synonym).format(pic=pic)
    said = core.format(**words)
    clause = " is " in core
    framed = rng.choice(_FORMS["frame clause" if clause else "frame np"])
    named = [placed] if "{a}" in core or "{kind}" in core else []
    named += [other] if other and ("{b}" in core or "{other}" in core) else []
    return Search(
        framed.format(said, pic=pic),
        _plain(about, placed, lexical, scene, said),
        about,
        tuple(named),
        exact=about in OPPOSITE,
        background=scene.background if about == "background" else None,
        category=lexical if about == "category" else "",
        pictured="{pic}" in framed,
    )


def _plain(about: str, placed: Placed, lexical: str, scene: WideScene, said: str) -> str:
    a = phrase(placed.kind)
    if about in ("left", "right"):
        return f"{a} on the {about}"
    if about in ("top", "bottom"):
        return f"{a} at the {about}"
    if about in ("big", "small"):
        return f"a {about} {placed.kind}"
    if about == "background":
        return (
            f"{a} on {background_phrase(scene.background)}"
            if placed.kind in said
            else background_phrase(scene.background)
        )
    return a if about == "category" else said


def edits(scene: WideScene, rng: random.Random) -> list[WideScene]:
    """Scenes that differ in one respect, in random order: sides, a size, a kind, the background."""
    objects = scene.objects
    found = [replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background]))]
    if len(objects) > 1:
        first, last = objects[0], objects[-1]
        swapped = (replace(first, kind=last.kind), *objects[1:-1], replace(last, kind=first.kind))
        found += [replace(scene, objects=swapped, styles=scene.styles[::-1], categories=_swapped(scene.categories))] * 2
        for sizes in (("big", "small"), ("small", "big")):
            changed = (replace(first, size=sizes[0]), *objects[1:-1], replace(last, size=sizes[1]))
            if changed != objects:
                found.append(replace(scene, objects=changed))
    rng.shuffle(found)
    return found


def _swapped(values: tuple[str, ...]) -> tuple[str, ...]:
    return (values[-1], *values[1:-1], values[0])


def said_of(scene: WideScene, rng: random.Random) -> str:
    """A complete caption: kinds, sizes, sides and background."""
    named = []
    for placed in scene.objects:
        size = choose(placed.size, "adj", rng, unseen=False) if rng.random() < 0.3 else placed.size
        where = (
            f" {choose(placed.side, 'loc', rng, unseen=False)}"
            if placed.side != "middle" and rng.random() < 0.7
            else ""
        )
        named.append(f"a {size} {placed.kind}{where}")
    if len(named) > 1 and rng.random() < 0.4:
        relation = choose(scene.objects[0].side, "rel", rng, unseen=False)
        words = [f"a {o.size} {o.kind}" for o in scene.objects]
        content = f" {relation} ".join(words)
    else:
        order = named if rng.random() < 0.6 else named[::-1]
        content = rng.choice((", ", " and ")).join(order)
    behind = rng.choice(
        ("{} on {bg}", "{} in front of {bg}", "{}, {bg}", "on {bg}, {}", "{} with {bg}", "{}. The background is {c}.")
    )
    return behind.format(content, bg=background_phrase(scene.background), c=scene.background)
