"""VLM2Vec on Phi-3.5-vision: its resolutions, its operations, and its figures behind the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from phi3_v_helpers import (
    CASES,
    FIXTURE,
    GOLDENS,
    LIMITS,
    MODEL,
    TAG,
    embedding,
    ids_of,
    noise,
    opened_of,
    worst,
)
from torch.utils.flop_counter import FlopCounterMode
from vlm2vec_helpers import TOLERANCE, as_input

from abc_rag import Image, InstructedImage, InstructedText, Interleaved, Text, load_embedder
from abc_rag.errors import InputError
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.phi3_v.pictures import CroppedPicture, PhiPictures, fit_crops, possible_crops
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts
from abc_rag.models.phi3_v.weights import load_phi3_v
from abc_rag.models.placement import Placement
from abc_rag.models.vlm2vec.phi3_v import VLM2VecPhi3V


@pytest.fixture(scope="module")
def backbone() -> VLM2VecPhi3V:
    return VLM2VecPhi3V(load_phi3_v(MODEL))


@pytest.fixture(scope="module")
def prompts() -> Phi3VPrompts:
    return load_phi3_v_prompts(MODEL)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (200, 1), (1, 200), (3000, 15), (2, 399), (337, 336)])
def test_pictures_of_extreme_shapes_work(backbone: VLM2VecPhi3V, width: int, height: int) -> None:
    for crops in (1, 2, 4, 16):
        opened = backbone.recipe(crops, None, None).open(noise(width, height), limits=LIMITS)
        least, most = backbone.token_limits(backbone.recipe(crops, None, None))
        assert least <= backbone.picture_tokens(opened) <= most
    with torch.inference_mode():
        features = backbone.packed_features([opened])
    assert features.shape == (backbone.picture_tokens(opened), backbone.hidden_size)
    assert bool(features.isfinite().all())


@pytest.mark.parametrize("crops", [1, 2, 3, 4, 5, 7, 12, 16])
def test_all_shapes_that_are_possible_are_known(backbone: VLM2VecPhi3V, crops: int) -> None:
    found = set()
    for width in range(100, 2500, 3):
        columns, height = fit_crops(width, 100, crops=crops, side=336)
        found |= {(-(-height // 336), columns), (columns, -(-height // 336))}
    possible = list(possible_crops(crops))
    assert len(possible) == len(set(possible))
    assert found == set(possible)
    counts = [backbone.picture_tokens(CroppedPicture(np.empty(0), *shape)) for shape in possible]
    assert backbone.token_limits(backbone.recipe(crops, None, None)) == (min(counts), max(counts))


def test_the_resolution_is_a_number_of_crops(backbone: VLM2VecPhi3V) -> None:
    assert backbone.recipe(None, None, None) == PhiPictures(4, 336, 14)
    assert backbone.recipe(16, None, None).crops == 16
    assert backbone.token_limits(PhiPictures(1)) == (313, 313)
    for wrong in ("low", "4", True, 0, -1, 4.0):
        with pytest.raises(InputError, match="number of crops"):
            backbone.recipe(wrong, None, None)  # type: ignore[arg-type]
    for limits in ((1, None), (None, 1), (1, 1)):
        with pytest.raises(InputError, match="resolution=CROPS"):
            backbone.recipe(4, *limits)
    for much in (230, 10**12):
        with pytest.raises(InputError, match="32,768"):
            backbone.recipe(much, None, None)


def test_operations_are_those_that_torch_counts(prompts: Phi3VPrompts) -> None:
    backbone = VLM2VecPhi3V(load_phi3_v(MODEL, place=Placement("eager")))
    (picture,) = opened_of(CASES["i_wide"])
    ids = ids_of(backbone.model, prompts, CASES["t_caption"])
    batch = PackedBatch(ids, Segments([len(ids)], backbone.device), None, torch.empty(0, dtype=torch.int64), (), ())
    with torch.no_grad():
        # The first product of a shape is tried in several ways, and every trial would be counted.
        backbone.packed_last_states(batch)
        backbone.image_features([picture])
    with torch.no_grad(), FlopCounterMode(display=False) as text:
        backbone.packed_last_states(batch)
    assert backbone.flops(len(ids), []) == text.get_total_flops()
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        backbone.image_features([picture])
    assert backbone.flops(len(ids), [picture]) == text.get_total_flops() + seen.get_total_flops()


@pytest.mark.parametrize("crops", [1, 4, 16])
def test_the_engine_meets_the_goldens(crops: int) -> None:
    chosen = [case for case in CASES.values() if case["num_crops"] == crops]
    embedder = load_embedder(MODEL, device="cpu", resolution=crops)
    items = [as_input(FIXTURE, case, TAG) for case in chosen]
    expected = torch.stack([GOLDENS[f"{case['id']}.embedding"] for case in chosen])
    for batch_size in (1, 5):
        vectors = torch.from_numpy(embedder.embed(items, batch_size=batch_size))
        assert worst(vectors, expected) < TOLERANCE
    assert (embedder.fingerprint.min_tokens, embedder.fingerprint.max_tokens) == {
        1: (313, 313), 4: (457, 781), 16: (1321, 2653),
    }[crops]  # fmt: skip


def test_typed_inputs_are_the_published_prompts() -> None:
    embedder = load_embedder(MODEL, device="cpu", resolution=4)
    scene = FIXTURE / "images" / "scene_640x480.png"
    items = {
        "t_dog": Text("A cat and a dog"),
        "t_caption": InstructedText("A cat and a dog.", "Find me an everyday image that matches the given caption:"),
        "i_640": Image(scene),
        "i_640_q": InstructedImage(scene, "What is in the image"),
    }
    vectors = torch.from_numpy(embedder.embed(list(items.values())))
    assert worst(vectors, torch.stack([GOLDENS[f"{name}.embedding"] for name in items])) < TOLERANCE


def test_two_pictures_in_one_input(backbone: VLM2VecPhi3V, prompts: Phi3VPrompts) -> None:
    embedder = load_embedder(MODEL, device="cpu", resolution=1)
    sources = [FIXTURE / "images" / name for name in ("scene_640x480.png", "shapes_56x56.png")]
    (found,) = embedder.embed([Interleaved([Image(sources[0]), Image(sources[1]), Text(" compare")])])
    pictures = [PhiPictures(1).open(str(source), limits=LIMITS) for source in sources]
    ids = torch.from_numpy(prompts([313, "", 313, " compare"]))
    with torch.inference_mode():
        features = backbone.image_features(pictures)
        states = backbone.hidden_states(ids[None], lengths=torch.tensor([len(ids)]), features=features)
    assert worst(torch.from_numpy(found), embedding(states[0, -1])) < TOLERANCE


def test_limits_in_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="resolution=CROPS"):
        load_embedder(MODEL, device="cpu", max_tokens=256).embed([Text("a")])
