"""Words that abc-mini is asked with: synonyms of each aspect, many of them WordNet 3.0's.

A fixed quarter of the synonyms of each aspect, chosen by a hash, is never trained on; the first of a list always is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

__all__ = ["LEXICON", "NOUNS", "OPPOSITE", "PICTURES", "choose", "is_unseen"]

OPPOSITE: Mapping[str, str] = {
    "left": "right", "right": "left", "top": "bottom", "bottom": "top", "big": "small", "small": "big",
}  # fmt: skip

NOUNS: Sequence[str] = ("object", "thing", "item", "one", "element", "figure", "subject", "article", "piece", "motif")
PICTURES: Sequence[str] = (
    "picture", "image", "photo", "photograph", "pic", "drawing", "shot", "scene", "frame", "illustration", "snapshot",
)  # fmt: skip

_SIDES = {
    "left": {
        "adj": ("left", "left-hand", "leftmost", "lefthand", "far left", "left-side", "western", "port-side",
                "furthest left", "outer left", "leftward", "west", "left-most"),
        "loc": ("on the left", "on the left side", "on the left-hand side", "at the left", "to the left",
                "in the left half", "left", "at left", "over on the left", "on the far left", "in the left part",
                "at the left edge", "at the left border", "near the left margin", "on the west side", "to the west",
                "on the port side", "in the left-hand corner", "at the left end", "left of centre", "left of center",
                "leftwards", "in the left section", "off to the left", "towards the left", "on your left", "on my left",
                "in the western half", "at the left-hand edge", "in the left area", "at the very left", "leftmost",
                "in the left portion", "where the left is", "on the left flank", "in the left third"),
        "rel": ("left of", "to the left of", "on the left of", "on the left side of", "just left of", "west of",
                "at the left of", "on the left-hand side of", "immediately left of"),
        "order": ("first from the left", "first in reading order", "last from the right", "first, from left to right",
                  "closest to the left edge", "nearest to the left border", "farthest from the right edge"),
        "cmp": ("further left", "more to the left", "farther to the left", "more on the left", "closer to the left"),
        "side": ("left", "left-hand side", "left side", "left half"),
    },
    "right": {
        "adj": ("right", "right-hand", "rightmost", "righthand", "far right", "right-side", "eastern", "starboard-side",
                "furthest right", "outer right", "rightward", "east", "right-most"),
        "loc": ("on the right", "on the right side", "on the right-hand side", "at the right", "to the right",
                "in the right half", "right", "at right", "over on the right", "on the far right", "in the right part",
                "at the right edge", "at the right border", "near the right margin", "on the east side", "to the east",
                "on the starboard side", "in the right-hand corner", "at the right end", "right of centre",
                "right of center", "rightwards", "in the right section", "off to the right", "towards the right",
                "on your right", "on my right", "in the eastern half", "at the right-hand edge", "in the right area",
                "at the very right", "rightmost", "in the right portion", "where the right is", "on the right flank",
                "in the right third"),
        "rel": ("right of", "to the right of", "on the right of", "on the right side of", "just right of", "east of",
                "at the right of", "on the right-hand side of", "immediately right of"),
        "order": ("first from the right", "last in reading order", "last from the left", "last, from left to right",
                  "closest to the right edge", "nearest to the right border", "farthest from the left edge"),
        "cmp": ("further right", "more to the right", "farther to the right", "more on the right",
                "closer to the right"),
        "side": ("right", "right-hand side", "right side", "right half"),
    },
    "top": {
        "adj": ("top", "upper", "uppermost", "topmost", "highest", "higher", "upmost", "northern", "overhead",
                "upper-most", "raised", "elevated"),
        "loc": ("at the top", "on top", "in the upper half", "above", "up there", "in the upper part", "up at the top",
                "at the upper end", "up high", "in the top half", "on the top side", "at the top edge", "high up",
                "near the top border", "overhead", "at the very top", "in the upper area", "to the north", "up above",
                "in the top section", "towards the top", "at the upper edge", "upstairs", "in the top part", "up top",
                "on the upper side", "over everything else", "at the head", "in the northern half", "up",
                "in the upper portion", "under the ceiling", "in the upper third", "at the peak"),
        "rel": ("above", "over", "on top of", "higher than", "up above", "north of", "atop", "just over", "upward of"),
        "order": ("first from the top", "first, from top to bottom", "last from below", "closest to the top edge",
                  "nearest to the top border", "farthest from the bottom edge", "first on the way down"),
        "cmp": ("higher", "higher up", "further up", "more at the top", "closer to the top"),
        "side": ("top", "upper side", "top side", "upper half"),
    },
    "bottom": {
        "adj": ("bottom", "lower", "lowermost", "bottommost", "lowest", "lowest-lying", "nethermost", "southern",
                "underneath", "nether", "sunken", "bottom-most"),
        "loc": ("at the bottom", "at the foot", "in the lower half", "below", "down there", "in the lower part",
                "down at the bottom", "at the lower end", "low down", "in the bottom half", "on the bottom side",
                "at the bottom edge", "down below", "near the bottom border", "underneath", "at the very bottom",
                "in the lower area", "to the south", "beneath", "in the bottom section", "towards the bottom",
                "at the lower edge", "downstairs", "in the bottom part", "down low", "on the lower side",
                "on the underside",
                "under everything else", "at the base", "in the southern half", "down", "in the lower portion",
                "on the floor", "in the lower third"),
        "rel": ("below", "under", "beneath", "underneath", "lower than", "down below", "south of", "just under",
                "at the foot of"),
        "order": ("first from the bottom", "last, from top to bottom", "last from above", "closest to the bottom edge",
                  "nearest to the bottom border", "farthest from the top edge", "last on the way down"),
        "cmp": ("lower", "lower down", "further down", "more at the bottom", "closer to the bottom"),
        "side": ("bottom", "lower side", "bottom side", "lower half"),
    },
}  # fmt: skip
_SIZES = {
    "big": {
        "adj": ("big", "large", "huge", "giant", "great", "enormous", "massive", "gigantic", "immense", "vast",
                "sizeable", "sizable", "bulky", "colossal", "mammoth", "jumbo", "oversized", "tremendous", "hefty",
                "grand", "substantial", "extensive", "king-size", "hulking", "whopping", "humongous", "gargantuan",
                "elephantine", "full-size", "outsize", "stupendous", "monstrous", "broad", "tall", "big-sized", "macro",
                "ample", "considerable", "titanic", "dominant"),
        "cmp": ("bigger", "larger", "greater", "huger", "more massive", "more sizeable", "of greater size",
                "the bigger of the two", "the larger of both", "bulkier", "heftier", "of larger dimensions", "grander",
                "taller and wider", "more extended"),
        "sup": ("biggest", "largest", "greatest", "hugest", "most massive", "bulkiest", "most sizeable", "heftiest",
                "most enormous", "most extensive", "grandest", "most gigantic"),
        "verb": ("takes up more room", "covers more space", "fills more of the {pic}", "is drawn larger",
                 "occupies more area", "dominates the {pic}", "uses more of the {pic}", "is bigger in size",
                 "needs more space", "has the greater size", "takes the most space", "stands out by its size",
                 "covers the larger area", "towers over the rest"),
        "side": ("big", "large", "bigger", "larger"),
    },
    "small": {
        "adj": ("small", "little", "tiny", "mini", "miniature", "minute", "minuscule", "petite", "wee", "teeny",
                "diminutive", "compact", "undersized", "microscopic", "puny", "dinky", "pocket-sized", "slight",
                "itty-bitty", "teensy", "bantam", "dwarfish", "lesser", "smallish", "half-size", "toy-sized", "short",
                "micro", "modest", "infinitesimal", "elfin", "reduced", "small-scale", "lilliputian", "weeny",
                "shrunken",
                "small-sized", "limited", "slim", "minor"),
        "cmp": ("smaller", "littler", "tinier", "lesser", "less big", "less large", "of lesser size",
                "the smaller of the two", "the littler of both", "slighter", "more compact", "of smaller dimensions",
                "punier", "less wide and tall", "more modest"),
        "sup": ("smallest", "littlest", "tiniest", "least", "least big", "slightest", "most minute", "most compact",
                "most minuscule", "most diminutive", "puniest", "most microscopic"),
        "verb": ("takes up less room", "covers less space", "fills less of the {pic}", "is drawn smaller",
                 "occupies less area", "is dwarfed in the {pic}", "uses less of the {pic}", "is smaller in size",
                 "needs less space", "has the lesser size", "takes the least space", "is easily missed for its size",
                 "covers the smaller area", "is towered over by the rest"),
        "side": ("small", "little", "smaller", "littler"),
    },
}  # fmt: skip
_REST: Mapping[str, Mapping[str, Sequence[str]]] = {
    "background": {
        "np": ("background", "backdrop", "backcloth", "setting", "ground", "wall", "surface behind", "canvas",
               "surroundings", "back", "space behind", "area behind", "scenery", "environment", "far side",
               "part behind", "field behind", "plane behind", "rear", "base", "sheet behind", "screen behind",
               "space around", "empty area", "rest of the {pic}"),
        "hue": ("colour", "color", "hue", "shade", "tint", "tone", "paint", "coloring", "colouring", "tinge",
                "coloration", "pigment"),
        "behind": ("behind", "in back of", "at the back of", "in the rear of", "around", "all around", "beyond",
                   "in the background of", "to the rear of", "surrounding", "farther back than", "past"),
        "them": ("the objects", "them", "it", "the things", "everything", "the items", "the motif", "the rest",
                 "the {other}",
                 "the {one}"),
    },
    "count": {"np": ("objects", "things", "items", "elements", "figures", "pieces", "subjects", "articles")},
    "kind": {
        "np": ("kind", "sort", "type", "class", "category", "group", "family", "variety", "form", "genre"),
    },
    "animal": {"np": ("animal", "creature", "beast", "critter", "living being", "fauna", "living creature", "brute")},
    "food": {"np": ("food", "thing to eat", "edible thing", "snack", "meal", "dish", "foodstuff", "nourishment",
                    "eatable", "bite to eat", "treat")},
    "vehicle": {"np": ("vehicle", "means of transport", "thing to travel in", "conveyance", "transport", "ride",
                       "mode of transportation", "means of travel")},
    "plant": {"np": ("plant", "growing thing", "flora", "piece of vegetation", "greenery", "botanical thing")},
    "instrument": {"np": ("musical instrument", "instrument", "thing to make music with", "music maker",
                          "sound maker")},
    "clothing": {"np": ("piece of clothing", "thing to wear", "garment", "article of clothing", "wearable", "apparel",
                        "item of dress", "attire", "accessory")},
    "household object": {"np": ("household object", "tool", "everyday object", "utensil", "gadget", "implement",
                                "household item", "appliance", "device", "article of daily use")},
    "building": {"np": ("building", "structure", "piece of architecture", "edifice", "construction", "house or hall")},
    "sports item": {"np": ("sports item", "piece of sports equipment", "sports gear", "thing for sport",
                           "sporting good",
                           "thing to play sport with")},
    "sight in the sky": {"np": ("sight in the sky", "thing in the sky", "heavenly thing", "weather sign",
                                "celestial thing")},
}  # fmt: skip

LEXICON: Mapping[str, Mapping[str, Sequence[str]]] = {**_SIDES, **_SIZES, **_REST}
"""Aspect or category -> part of speech -> words, the commonest first."""


def is_unseen(*parts: str) -> bool:
    """Whether a wording is one of the quarter that training never uses."""
    return hashlib.sha256("|".join(parts).encode()).digest()[0] < 64


_UNSEEN = {
    (aspect, part, word)
    for aspect, parts in LEXICON.items()
    for part, words in parts.items()
    for word in words[1:]
    if part != "them" and is_unseen("synonym", aspect, part, word)
}


def choose(aspect: str, part: str, rng: random.Random, *, unseen: bool) -> str:
    """A word for an aspect; of the unseen ones where ``unseen``, and there are any."""
    return rng.choice(_words(aspect, part, unseen))


@lru_cache(maxsize=1000)
def _words(aspect: str, part: str, unseen: bool) -> Sequence[str]:
    words = LEXICON[aspect][part]
    return [word for word in words if ((aspect, part, word) in _UNSEEN) == unseen] or words
