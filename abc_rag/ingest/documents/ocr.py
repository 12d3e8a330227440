"""Reading what is drawn: pages without text, and figures, by rapidocr, whose models come with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image

from abc_rag.errors import ImageError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import open_image
from abc_rag.ingest.documents.layout import Block, Line, blocks_of
from abc_rag.ingest.documents.parts import Box, Figure, Part, Passage, Scan

__all__ = ["ocr_engine", "recognised"]

_LEAST_SIDE = 32  # pixels; smaller figures are icons


def recognised(parts: Iterator[Part | int], max_pixels: int) -> Iterator[Part | int]:
    """The parts of a document, with the text of `Scan` values in their place, and that of figures after them.

    Args:
        parts: As a reader yields them.
        max_pixels: Maximum of width times height of a figure that is read.

    Yields:
        Parts without `Scan`; a page's number once more before its picture is read, which takes a time of its own.
    """
    for part in parts:
        if not isinstance(part, (Scan, Figure)):
            yield part
            continue
        if part.page is not None:
            yield part.page
        if isinstance(part, Scan):
            yield from _paragraphs(part)
            continue
        yield part
        with suppress(ImageError):  # what is wrong with it is said when it is indexed
            picture = open_image(part.data, limits=ImageLimits(max_pixels=max_pixels)).image
            found = _read(picture, (0.0, 0.0, float(picture.width), float(picture.height)))
            if found:
                blocks = blocks_of([line for line, _ in found])
                yield Passage(
                    page=part.page,
                    label=part.label,
                    box=part.box,
                    heading=part.heading,
                    time=part.time,
                    text="\n\n".join(block.text for block in blocks),
                    confidence=_mean([score for _, score in found]),
                )


def _paragraphs(scan: Scan) -> Iterator[Passage]:
    found = _read(scan.picture, scan.box or (0.0, 0.0, float(scan.picture.width), float(scan.picture.height)))
    for block in blocks_of([line for line, _ in found]):
        left, top, right, bottom = (round(side, 1) for side in block.box)
        yield Passage(
            page=scan.page,
            label=scan.label,
            box=(left, top, right, bottom),
            heading=scan.heading,
            text=block.text,
            confidence=_mean([score for line, score in found if _within(line, block)]),
        )


def _within(line: Line, block: Block) -> bool:
    middle = (line.box[0] + line.box[2]) / 2
    return block.box[0] <= middle <= block.box[2] and block.box[1] <= line.middle <= block.box[3]


def _mean(scores: Sequence[float]) -> float:
    return round(sum(scores) / max(1, len(scores)), 3)


def _read(picture: PIL.Image.Image, box: Box) -> list[tuple[Line, float]]:
    """The lines in a picture with their confidences; places in the units of ``box``, which it fills."""
    if min(picture.size) < _LEAST_SIDE:
        return []
    # It wants blue, green, red.
    found = ocr_engine()(np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1]))
    if found.txts is None:
        return []
    across, down = (box[2] - box[0]) / picture.width, (box[3] - box[1]) / picture.height
    lines = []
    for text, score, corners in zip(found.txts, found.scores, np.asarray(found.boxes, float), strict=True):
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        place = (box[0] + left * across, box[1] + top * down, box[0] + right * across, box[1] + bottom * down)
        # About a fifth of the height is air.
        lines.append((Line(text, place, max(0.8 * (place[3] - place[1]), 0.1)), float(score)))
    return lines


@lru_cache(maxsize=1)
def ocr_engine() -> Any:  # noqa: ANN401
    """What reads pictures; loaded once."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical"})
