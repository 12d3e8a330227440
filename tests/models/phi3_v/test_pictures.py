"""How Phi-3-vision's pictures are resized, padded and cut."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from phi3_v_helpers import (
    LIMITS,
    noise,
)

from abc_rag.embedding.engine.worker import _made, limits_as_json, recipe_as_json
from abc_rag.errors import ImageError, InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.phi3_v.pictures import PhiPictures


@pytest.mark.parametrize("size", [(500, 300), (90, 89), (1000, 40)])
@pytest.mark.parametrize("crops", [1, 4, 16])
def test_a_standing_picture_is_a_lying_one_mirrored(size: tuple[int, int], crops: int) -> None:
    lying = PhiPictures(crops).open(noise(*size), limits=LIMITS)
    standing = PhiPictures(crops).open(noise(*size).transpose(PIL.Image.Transpose.TRANSPOSE), limits=LIMITS)
    assert (standing.rows, standing.columns) == (lying.columns, lying.rows)
    assert standing.pixels.flags.c_contiguous
    assert np.array_equal(standing.pixels, lying.pixels.transpose(1, 0, 2))
    assert lying.pixels.shape == (336 * lying.rows, 336 * lying.columns, 3)
    assert lying.rows * lying.columns <= crops
    assert lying.patches == (lying.rows * lying.columns + 1) * 576
    assert lying.nbytes == lying.pixels.size


def test_padding_is_white_and_in_equal_parts() -> None:
    opened = PhiPictures(4).open(noise(900, 101), limits=LIMITS)
    assert (opened.rows, opened.columns) == (1, 4)
    dark = (opened.pixels < 250).any(axis=(1, 2))
    height = int(1344 / (900 / 101))
    above = (336 - height) // 2
    assert dark.nonzero()[0].tolist() == list(range(above, above + height))
    assert (opened.pixels[~dark] == 255).all()


def test_a_picture_of_which_nothing_would_be_left_is_refused() -> None:
    generous = ImageLimits(max_aspect_ratio=100_000)
    for size in ((5000, 1), (1, 5000)):
        with pytest.raises(InputError, match="too narrow"):
            PhiPictures(4).open(noise(*size), limits=generous)
        assert PhiPictures(16).open(noise(*size), limits=generous).rows in (1, 16)
        with pytest.raises(ImageError, match="max_aspect_ratio"):
            PhiPictures(4).open(noise(*size), limits=LIMITS)


def test_recipes_can_be_told_to_processes_that_need_no_torch() -> None:
    recipe = PhiPictures(16, 336, 14)
    made, limits = _made(json.dumps([recipe_as_json(recipe), limits_as_json(LIMITS)]))
    assert (made, limits) == (recipe, LIMITS)
    assert [field.name for field in dataclasses.fields(PhiPictures.opens)] == ["pixels", "rows", "columns", "patch"]
    program = "import sys, abc_rag.models.phi3_v.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
