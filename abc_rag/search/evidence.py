"""Where in a picture the answer lies: parts of it are left out, and what that costs in similarity is drawn on it.

What is explained is the similarity of a second look: of the picture under the question's instruction with the vector
that is searched for. That vector is the question's target in words (``"a pig on the left"``), the given answer, or,
where a picture came with the question, that picture under the same instruction.

The vision tower sees the whole picture, once; parts are left out of the language model's pass, and what stays keeps its
position. How much the whole picture counts is how much similarity is lost without any of it. A picture that counts is
halved, across its longer side, and what it counts for goes to its halves by what is lost without each; then the halves
are halved, the heaviest first, down to single image tokens. Halves that barely count are not halved any more, so most
passes go to where the answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import open_image
from abc_rag.types import Image, ImageSource, InstructedImage, MaskedImage, Vectors

__all__ = ["PASSES", "Evidence", "explain_picture"]

PASSES = 32
"""Most passes of the language model for one picture, if not given."""
# A part with less than this share of the heaviest is not halved any more.
_LIGHT = 0.1
# Where leaving out either half costs less than this share of what the whole counts for, each stands in for the other:
# the halves do not say more than the whole.
_SAME = 0.1
_LEAST_GAIN = 0.05
_LEAST_CONCENTRATION = 0.25

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Where in a picture the answer lies.

    Attributes:
        map: float32 ``(rows, columns)``, of image tokens: the share of each in what the picture counts for. It sums to
            1, or is zero where the picture brings nothing nearer to the answer.
        similarity: Cosine of the picture, under the instruction, with the answer's vector.
        without: The same where the language model is shown the instruction and nothing of the picture.
        passes: Passes of the language model that it took; the vision tower saw the picture once, or not at all where
            its features were still in memory.
        instruction: The instruction; None for the picture by itself.
        source: The picture.
        limits: Which pictures are opened.
    """

    map: npt.NDArray[np.float32]
    similarity: float
    without: float
    passes: int
    instruction: str | None
    source: ImageSource = field(repr=False)
    limits: ImageLimits = field(default=DEFAULT_LIMITS, repr=False)

    @property
    def gain(self) -> float:
        """How much similarity is owed to the picture: ``similarity - without``."""
        return self.similarity - self.without

    @property
    def concentration(self) -> float:
        """How far the map is from a uniform one, in [0, 1]: total variation distance, 0 for a uniform map."""
        return 0.5 * float(np.abs(self.map - 1.0 / self.map.size).sum()) if self.map.any() else 0.0

    @property
    def evidence(self) -> bool:
        """Whether the map is evidence: the picture counts, and some places of it count more than others.

        It counts where `gain` is at least 0.05; places differ where `concentration` is at least 0.25, which is where a
        quarter of the weight would have to move to make the map uniform. `reason` says which of them fails. Both
        numbers were chosen on abc-mini's scenes (``abc-rag evaluate evidence``).
        """
        return not self.reason

    @property
    def reason(self) -> str:
        """Why this is no evidence; empty where it is."""
        if self.gain < _LEAST_GAIN:
            return (
                f"the picture adds {self.gain:+.2f} to the similarity, less than {_LEAST_GAIN}: nothing in it speaks "
                "for the answer"
            )
        if self.concentration < _LEAST_CONCENTRATION:
            return (
                f"no place counts much more than others (concentration {self.concentration:.2f}, below "
                f"{_LEAST_CONCENTRATION}): the answer lies in the picture as a whole, or nowhere in particular"
            )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the picture."""
        return {
            "evidence": self.evidence,
            "reason": self.reason,
            "similarity": round(self.similarity, 6),
            "without": round(self.without, 6),
            "passes": self.passes,
            "instruction": self.instruction,
            "map": [[round(float(one), 6) for one in row] for row in self.map],
        }

    def picture(self, *, side: int = 480) -> PIL.Image.Image:
        """The picture with its heat map: what counts keeps its colours under an orange tint, the rest turns grey.

        Args:
            side: Longer side in pixels, at most; smaller pictures stay as they are.

        Returns:
            An RGB picture.

        Raises:
            ImageError: The picture cannot be opened any more.
        """
        shown = open_image(self.source, limits=self.limits).image.convert("RGB")
        shown.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        heat = self.map / self.map.max() if self.map.any() else self.map
        mask = PIL.Image.fromarray((255 * heat).astype(np.uint8)).resize(shown.size, PIL.Image.Resampling.BILINEAR)
        grey = PIL.Image.blend(shown.convert("L").convert("RGB"), PIL.Image.new("RGB", shown.size, "white"), 0.35)
        hot = PIL.Image.blend(shown, PIL.Image.new("RGB", shown.size, (255, 120, 0)), 0.25)
        return PIL.Image.composite(hot, grey, mask)


def explain_picture(
    embedder: Embedder,
    source: ImageSource,
    vector: Vectors,
    instruction: str | None,
    *,
    passes: int = PASSES,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Evidence:
    """Find out which parts of a picture its similarity with a vector comes from.

    Args:
        embedder: One that takes a `MaskedImage`.
        source: The picture.
        vector: What it is compared with, shape ``(dim,)`` and unit length.
        instruction: What to look at; None for the picture by itself.
        passes: Most passes of the language model; at least 4.
        limits: Which pictures are opened when the map is drawn.

    Raises:
        InputError: ``passes`` is too small, or the embedder cannot leave out parts of pictures; the message names those
            that can.
        ImageError: The picture cannot be opened.
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 4:
        raise InputError(f"passes must be an int of at least 4, not {passes!r}")
    rows, columns = embedder.grid(source)
    numbers = np.arange(rows * columns).reshape(rows, columns)

    def similarities(boxes: Sequence[Box]) -> list[float]:
        """With each of some parts left out."""
        masked = [MaskedImage(source, instruction, numbers[a:b, c:d].ravel().tolist()) for a, b, c, d in boxes]
        return [float(row @ vector) for row in embedder.embed(masked)]

    whole = Image(source) if instruction is None else InstructedImage(source, instruction)
    similarity = float(embedder.embed([whole])[0] @ vector)
    everything = (0, rows, 0, columns)
    (without,) = similarities([everything])
    weights = {everything: max(0.0, similarity - without)}
    done: set[Box] = set()
    taken = 2
    while (heaviest := max(weights.values())) > 0:
        divisible = [box for box, weight in weights.items() if box not in done and weight >= _LIGHT * heaviest]
        divisible = [box for box in sorted(divisible, key=lambda box: -weights[box]) if len(_halves(box)) == 2]
        chosen = divisible[: (passes - taken) // 2]
        if not chosen:
            break
        parts = [half for box in chosen for half in _halves(box)]
        lost = iter(similarity - one for one in similarities(parts))
        taken += len(parts)
        for box in chosen:
            losses = [max(0.0, next(lost)) for _ in range(2)]
            done.add(box)
            if sum(losses) > _SAME * weights[box]:
                weight = weights.pop(box)
                weights |= {half: weight * one / sum(losses) for half, one in zip(_halves(box), losses, strict=True)}
    drawn = np.zeros((rows, columns), dtype=np.float32)
    for (top, bottom, left, right), weight in weights.items():
        drawn[top:bottom, left:right] = weight / ((bottom - top) * (right - left))
    total = float(drawn.sum())
    return Evidence(drawn / total if total else drawn, similarity, without, taken, instruction, source, limits)


def _halves(box: Box) -> list[Box]:
    """Both halves of a part, across its longer side; none of a single token."""
    top, bottom, left, right = box
    if max(bottom - top, right - left) < 2:
        return []
    if bottom - top >= right - left:
        middle = (top + bottom) // 2
        return [(top, middle, left, right), (middle, bottom, left, right)]
    middle = (left + right) // 2
    return [(top, bottom, left, middle), (top, bottom, middle, right)]
