"""Sizes of pictures as Gemma 4's own processor chooses them."""

from __future__ import annotations

import pytest
from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

from abc_rag.errors import InputError
from abc_rag.models.embedding_gemma.pictures import BUDGETS, fill_size


@pytest.mark.parametrize("most", BUDGETS)
def test_sizes_are_those_of_the_published_processor(most: int) -> None:
    sides = (1, 2, 7, 48, 90, 333, 480, 1000, 4032)
    for height in sides:
        for width in sides:
            try:
                expected = get_aspect_ratio_preserving_size(height, width, 16, most * 9, 3)
            except ValueError:
                with pytest.raises(InputError, match="raise max_tokens"):
                    fill_size(height, width, factor=48, most=most)
                continue
            assert fill_size(height, width, factor=48, most=most) == expected
