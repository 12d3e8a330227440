"""Questions as people type them: a grammar of hundreds of forms an aspect, of which a quarter is never trained on.

A form is a core (``what is {loc}``, ``the {adj} {noun}``) in a frame (``could you tell me {}``, ``look at {}``). Cores
and frames are held out by a hash of their text, words by `abc_rag.scenes.lexicon`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from abc_rag.scenes.forms import read_forms
from abc_rag.scenes.lexicon import LEXICON, NOUNS, OPPOSITE, PICTURES, choose, is_unseen
from abc_rag.scenes.wide import WideScene
from abc_rag.scenes.world import background_phrase, phrase

__all__ = ["NOTHING", "Asked", "asked", "count_phrase", "forms", "wordings"]

NOTHING = "nothing"

# {loc}, {adj}, {rel}, {order}, {cmp}, {sup}, {verb}: words of the aspect; {opp...}: of its opposite; {noun}, {pic}.
_FORMS = read_forms("asking.txt")


def _split(forms: Sequence[str], name: str) -> tuple[list[str], list[str]]:
    seen = [f for i, f in enumerate(forms) if i == 0 or not is_unseen(name, f)]
    return seen, [f for f in forms if f not in seen] or list(forms)


_CORES = {name: _split(listed, name) for name, listed in _FORMS.items()}


@dataclass(frozen=True)
class Asked:
    """A question about a scene.

    Attributes:
        aspect: What it asks about: a side, a size, ``"background"``, ``"category"``, ``"only"``, ``"other"``,
            ``"where"``, ``"count"``, ``"kind"``, ``"both"`` or ``"nothing"``.
        instruction: Its wording, without capitals and mistakes; see `abc_rag.scenes.typing`.
        answer: The phrase that answers it, or `NOTHING`.
    """

    aspect: str
    instruction: str
    answer: str


def count_phrase(count: int) -> str:
    """``2`` to ``"two things"``."""
    return f"{('no', 'one', 'two', 'three', 'four')[count]} thing{'' if count == 1 else 's'}"


def wordings() -> list[str]:
    """Every core, frame and sentence around a question, to take words from."""
    return [form for listed in _FORMS.values() for form in listed]


def forms(aspect: str) -> int:
    """How many cores times frames an aspect has, words not counted."""
    name = {
        "where": "",
        "left": "where",
        "right": "where",
        "top": "where",
        "bottom": "where",
        "big": "size",
        "small": "size",
        "background": "back",
    }.get(aspect, aspect)
    total = 0
    for kind in ("np", "q"):
        if f"{name} {kind}" in _CORES:
            total += sum(map(len, _CORES[f"{name} {kind}"])) * sum(map(len, _CORES[f"frame {kind}"]))
    short = {"where": "side of", "kind": "kind of"}.get(aspect, aspect)
    return total or sum(map(len, _CORES[short])) * len(_FORMS["frame q"])


class _Wording:
    def __init__(self, rng: random.Random, *, form: bool, synonym: bool, plain: bool) -> None:
        self.rng, self._form, self._synonym, self._plain = rng, form, synonym, plain

    def pick(self, name: str, *, frame: bool = False) -> str:
        seen, unseen = _CORES[name]
        if frame and (not self._form or self.rng.random() < 0.5):
            return self.rng.choice(seen)
        return self.rng.choice(unseen if self._form else seen)

    def fill(self, core: str, aspect: str, **known: str) -> str:
        opposite = OPPOSITE.get(aspect, aspect)
        words = dict(known)
        for part in LEXICON.get(aspect, {}):
            if "{" + part + "}" in core:
                words[part] = choose(aspect, part, self.rng, unseen=self._synonym)
            if "{opp" + part + "}" in core:
                words[f"opp{part}"] = choose(opposite, part, self.rng, unseen=self._synonym)
        noun, pic = self.rng.choice(NOUNS), self.rng.choice(PICTURES)
        return core.format(noun=noun, pic=pic, **words).format(noun=noun, pic=pic, **words)

    def frame(self, text: str, kind: str) -> str:
        framed = self.pick(f"frame {kind}", frame=True)
        return framed.format(text, pic=self.rng.choice(PICTURES))

    def core(self, name: str, aspect: str, **known: str) -> tuple[str, str]:
        """A core and whether it is a question (``"q"``) or a noun phrase (``"np"``)."""
        kind = self.rng.choice(("np", "q"))
        return self.fill(self.pick(f"{name} {kind}"), aspect, **known), kind

    def whole(self, text: str, kind: str, opposite: str | None = None) -> str:
        said = self.frame(text, kind)
        if self._plain:
            return said
        draw = self.rng.random()
        if opposite is not None and draw < 0.06:
            no = self.rng.choice(_FORMS["not the"]).format(opp=choose(opposite, "side", self.rng, unseen=False))
            return f"{no} {said}" if self.rng.random() < 0.5 else f"{said} {no}"
        pic = self.rng.choice(PICTURES)
        if draw < 0.16:
            said = self.rng.choice(_FORMS["before"]).format(pic=pic) + f" {said}"
        if 0.12 < draw < 0.22:
            said = f"{said} " + self.rng.choice(_FORMS["after"])
        return said


def asked(
    scene: WideScene,
    rng: random.Random,
    *,
    form: bool = False,
    synonym: bool = False,
    plain: bool = False,
    extra: bool = True,
) -> list[Asked]:
    """One question for each aspect of a scene, worded at random.

    Args:
        scene: The scene.
        rng: Random generator of the wording.
        form: Use cores (and half of the time frames) that training never sees.
        synonym: Use words that training never sees, where a core has a place for one.
        plain: No sentences around the question.
        extra: Also ask what a side's name, a number, a category or `NOTHING` answers, and about two aspects at once.
    """
    asker = _Asker(scene, _Wording(rng, form=form, synonym=synonym, plain=plain))
    asker.main()
    if extra:
        asker.relations()
        asker.numbers()
        asker.absent()
    return asker.found


class _Asker:
    def __init__(self, scene: WideScene, say: _Wording) -> None:
        self.found: list[Asked] = []
        self._scene, self._say, self._rng = scene, say, say.rng
        self._kinds = [o.kind for o in scene.objects]
        self._cores: list[tuple[str, str]] = []

    def _add(self, aspect: str, name: str, word: str, answer: str, **known: str) -> None:
        text, kind = self._say.core(name, word, **known)
        if answer != NOTHING:
            self._cores.append((text, answer))
        self.found.append(Asked(aspect, self._say.whole(text, kind, OPPOSITE.get(word)), answer))

    def _short(self, aspect: str, name: str, word: str, answer: str, kind: str, **known: str) -> None:
        said = self._say.fill(self._say.pick(name), word, **known)
        self.found.append(Asked(aspect, self._say.whole(said, kind), answer))

    def _other(self, kind: str) -> str:
        return self._rng.choice([k for k in self._kinds if k != kind] or ["other one"])

    def main(self) -> None:
        """The background, each side, each size and each category that only one object has."""
        scene, kinds, objects = self._scene, self._kinds, self._scene.objects
        one = self._rng.choice(kinds)
        answer = background_phrase(scene.background)
        self._add("background", "back", "background", answer, other=self._other(one), one=one)
        for side in ("left", "right", "top", "bottom"):
            for placed in objects:
                if placed.side == side:
                    self._add(side, "where", side, phrase(placed.kind), other=self._other(placed.kind))
        if len(objects) == 1:
            self._add("only", "only", "only", phrase(kinds[0]))
        sizes = [o.size for o in objects]
        categories = [scene.category_of(k) for k in kinds]
        for placed, category in zip(objects, categories, strict=True):
            if len(objects) > 1 and sizes.count(placed.size) == 1:
                self._add(placed.size, "size", placed.size, phrase(placed.kind), other=self._other(placed.kind))
            if categories.count(category) == 1:
                self._add("category", "category", category, phrase(placed.kind))

    def relations(self) -> None:
        """The other of two, on which side something is, and two aspects at once."""
        rng, kinds, objects = self._rng, self._kinds, self._scene.objects
        if len(kinds) == 2:
            placed = rng.choice(objects)
            self._short("other", "other", "other", phrase(placed.kind), "np", other=self._other(placed.kind))
        if len(kinds) > 1:
            placed = rng.choice([o for o in objects if o.side != "middle"])
            self._short("where", "side of", "where", f"the {placed.side}", "q", one=placed.kind)
        if len(self._cores) > 1:
            (first, a), (second, b) = rng.sample(self._cores, 2)
            if a != b:
                both = rng.choice(_FORMS["both"]).format(first=first, second=second)
                self.found.append(Asked("both", self._say.whole(both, "np"), f"{a} and {b}"))

    def numbers(self) -> None:
        """How many things there are, and what kind of thing one is."""
        kind = self._rng.choice(self._kinds)
        self._short("count", "count", "count", count_phrase(len(self._kinds)), "q")
        self._short("kind", "kind of", "kind", phrase(self._scene.category_of(kind)), "q", one=kind)

    def absent(self) -> None:
        """Questions that assume what is not so."""
        rng, objects = self._rng, self._scene.objects
        sides, one = {o.side for o in objects}, rng.choice(self._kinds)
        side = rng.choice([s for s in ("left", "right", "top", "bottom") if s not in sides])
        self._add("nothing", "where", side, NOTHING, other=one)
        if len(objects) == 1 or len({o.size for o in objects}) == 1:
            self._add("nothing", "size", rng.choice(("big", "small")), NOTHING, other=one)
        there = {self._scene.category_of(k) for k in self._kinds}
        missing = [c for c in ("animal", "food", "vehicle", "plant", "clothing") if c not in there]
        self._add("nothing", "category", rng.choice(missing), NOTHING)
