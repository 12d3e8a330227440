"""How pictures are resized and cut for Qwen2-VL."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from abc_helpers import family_of
from helpers import FIXTURE

from abc_rag import load_embedder
from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import InputError
from abc_rag.models.qwen2_vl.network import normalise
from abc_rag.models.qwen2_vl.pictures import fit_size, patchify, resize_as_pillow_12


def test_pixels_are_bit_identical_to_the_published_processor(tiny: Embedder) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(do_resize=False)
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (56, 84, 3), dtype=np.uint8))
    theirs = processor(images=[image], return_tensors="np")["pixel_values"].reshape(24, 3, 2, 14, 14)
    ours = normalise(torch.from_numpy(patchify(image, patch=14, merge=2).pixels)).numpy().reshape(24, 3, 14, 14)
    for frame in range(2):
        assert (theirs[:, :, frame] == ours).all()


def test_pixel_statistics_are_the_recorded_ones(tiny: Embedder, cases: Any) -> None:
    for case in cases:
        if not case["image"]:
            continue
        recorded = case.get("pixel_values_pillow12", case["pixel_values"])
        patches = family_of(tiny).facts.open(str(FIXTURE / case["image"]))
        values = normalise(torch.from_numpy(patches.pixels)).double()
        assert [[1, patches.rows, patches.columns]] == case["image_grid_thw"], case["id"]
        assert float(values.mean()) == pytest.approx(recorded["mean"], abs=1e-6), case["id"]


def test_resizing_does_not_depend_on_the_order_of_pillows_passes() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (257, 333, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(noise)
    one_axis_at_a_time = image.resize((448, 257), PIL.Image.Resampling.BICUBIC).resize(
        (448, 308), PIL.Image.Resampling.BICUBIC
    )
    assert np.array_equal(np.asarray(resize_as_pillow_12(image, 308, 448)), np.asarray(one_axis_at_a_time))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((224, 224), (448, 448)), ((480, 640), (476, 644)), ((1200, 1600), (756, 1008)), ((20, 20), (448, 448))],
)
def test_fit_size(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit_size(*size, factor=28, min_pixels=256 * 784, max_pixels=1024 * 784) == fitted


def test_fit_size_refuses_a_line() -> None:
    with pytest.raises(InputError, match="201x1"):
        fit_size(1, 201, factor=28, min_pixels=1, max_pixels=10**6)


def test_limits_are_the_callers(tiny: Embedder) -> None:
    picture = str(FIXTURE / "images" / "shapes_224x224.png")
    small = load_embedder(FIXTURE, device="cpu", min_tokens=16, max_tokens=64)
    assert family_of(small).facts.open(picture).pixels.shape[0] == 64 * 4
    assert (small.fingerprint.min_tokens, small.fingerprint.max_tokens) == (16, 64)
    assert small.fingerprint != tiny.fingerprint
    assert np.abs(small.embed_images([picture]) - tiny.embed_images([picture])).max() > 1e-3
