"""Boxes drawn on pages and cut out of them: at the right pixels."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from abc_rag.search.places import crop_of, marked
from abc_rag.types import MetadataValue, Record

PAGE = Record("page", "image", metadata={"document": "a.pdf", "page": 1, "box": [0.0, 0.0, 200.0, 300.0]})


def on_page(*box: float) -> Record:
    sides: MetadataValue = list(box)
    return Record("part", "text", metadata={"document": "a.pdf", "page": 1, "box": sides})


def test_a_box_is_drawn_where_it_is_whatever_the_size_of_the_picture() -> None:
    for scale in (1, 2, 3):
        plain = PIL.Image.new("RGB", (200 * scale, 300 * scale), "white")
        drawn = np.asarray(marked(plain, PAGE, on_page(50, 100, 150, 120)))
        changed = np.argwhere((drawn != 255).any(axis=2))
        assert (changed.min(axis=0) == (100 * scale, 50 * scale)).all()
        assert (changed.max(axis=0) == (120 * scale - 1, 150 * scale - 1)).all()
        assert drawn[110 * scale, 100 * scale, 2] < 255  # tinted inside
        assert plain.getpixel((100 * scale, 110 * scale)) == (255, 255, 255)  # not the caller's picture


def test_a_box_that_is_partly_off_the_page_is_drawn_to_the_edge() -> None:
    drawn = np.asarray(marked(PIL.Image.new("RGB", (200, 300), "white"), PAGE, on_page(-10, 290, 500, 310)))
    changed = np.argwhere((drawn != 255).any(axis=2))
    assert (changed.min(axis=0) == (290, 0)).all()
    assert (changed.max(axis=0) == (299, 199)).all()


@pytest.mark.parametrize(
    "part",
    [
        on_page(),
        on_page(50, 100, 50, 120),
        on_page(150, 100, 50, 120),
        on_page(210, 10, 220, 20),
        on_page(10, float("nan"), 20, 30),
        PAGE,
    ],
)
def test_what_has_no_place_on_the_page_is_not_drawn(part: Record) -> None:
    plain = PIL.Image.new("RGB", (200, 300), "white")
    assert (np.asarray(marked(plain, PAGE, part)) == 255).all()
    assert part is PAGE or crop_of(plain, PAGE, part) is None


def test_a_page_of_unknown_size_is_left_as_it_is() -> None:
    unknown = Record("page", "image", metadata={"document": "a.pdf", "page": 1})
    assert (np.asarray(marked(PIL.Image.new("RGB", (9, 9), "white"), unknown, on_page(1, 1, 5, 5))) == 255).all()


def test_a_place_is_cut_out_with_a_little_around_it() -> None:
    page = PIL.Image.new("RGB", (400, 600), "white")
    page.paste("red", (100, 200, 300, 240))
    crop = crop_of(page, PAGE, on_page(50, 100, 150, 120))
    assert crop is not None
    assert crop.size == (224, 64)  # 6 points, 12 pixels, on each side
    inside = np.asarray(crop)
    assert (inside[12:52, 12:212] == (255, 0, 0)).all()
    assert (inside[:12] == 255).all()
    edge = crop_of(page, PAGE, on_page(0, 0, 10, 10))
    assert edge is not None
    assert edge.size == (32, 32)
