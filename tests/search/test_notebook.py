from __future__ import annotations

import ast
import base64
import io

import numpy as np
import PIL.Image
import pytest

from abc_rag.errors import ImageError, InputError
from abc_rag.search.notebook import contact_sheet, show, table

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int]) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (8, 4), colour)


def displayed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What IPython displays, which it prints where there is no notebook."""
    return ast.literal_eval(capsys.readouterr().out)


def test_pictures_stand_in_rows_of_six_above_their_captions() -> None:
    sheet = contact_sheet([(plain(RED), "a")] * 6 + [(plain(BLUE), "two\nlines")], side=20)
    assert sheet.size == (6 * 30 - 10, 2 * (20 + 10 + 2 * 16))
    pixels = np.asarray(sheet)
    assert (pixels[:20, 150:170] == RED).all()
    assert (pixels[62:82, :20] == BLUE).all()
    assert (pixels[:20, 20:30] == 255).all()
    below = pixels[82:, :30]
    assert (below < 128).any(), "the caption is written below its picture"
    assert (pixels[62:, 30:] == 255).all()


def test_pictures_are_shown_as_one_jpeg_with_their_captions(capsys: pytest.CaptureFixture[str]) -> None:
    show([(plain(RED), "a\nred one"), (plain(BLUE), "a blue one")], side=20)
    data = displayed(capsys)
    assert data["text/plain"] == "a, red one | a blue one"
    with PIL.Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (50, 62))


def test_a_table_is_markdown_and_a_bar_does_not_end_a_cell(capsys: pytest.CaptureFixture[str]) -> None:
    table(["score", "found"], [(0.5, "a|b"), (1, "two\nlines")])
    assert displayed(capsys)["text/markdown"].splitlines() == [
        "| score | found |",
        "| --- | --- |",
        "| 0.5 | a\\|b |",
        "| 1 | two lines |",
    ]


def test_what_cannot_be_shown_is_named() -> None:
    with pytest.raises(InputError, match="no pictures to show"):
        show([])
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        show([("missing.jpg", "gone")])
    with pytest.raises(InputError, match="row 1 has 1 values, but there are 2 columns"):
        table(["a", "b"], [(1, 2), (3,)])
    with pytest.raises(InputError, match="got a single str"):
        table("a|b", [])
