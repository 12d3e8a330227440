"""What config.json and clip_dimensions.json may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from phi3_v_helpers import (
    CASES,
    GOLDENS,
    MODEL,
    embedding,
    run_packed,
    worst,
)
from vlm2vec_helpers import TOLERANCE

from abc_rag.errors import CheckpointError
from abc_rag.models.phi3_v.config import Phi3VConfig
from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.phi3_v.prompts import Phi3VPrompts
from abc_rag.models.phi3_v.weights import load_phi3_v


def changed_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads((MODEL / "config.json").read_text()), **changes}))
    return folder


def test_the_published_sizes_of_the_vision_tower_are_the_default(folder: Path) -> None:
    processor = json.loads((MODEL / "config.json").read_text())["img_processor"]
    (folder / "clip_dimensions.json").unlink()
    with pytest.raises(CheckpointError, match="image_dim_out is 64"):
        Phi3VConfig.read(folder)
    changed_config(folder, img_processor={**processor, "image_dim_out": 1024})
    vision: Any = Phi3VConfig.read(folder).vision
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (4096, 336, 14)
    assert (vision.hidden_act, vision.layer_norm_eps) == ("quick_gelu", 1e-5)
    with torch.device("meta"):
        made = Phi3VBackbone(Phi3VConfig.read(folder))
    layer = 12_596_224
    # What all of CLIP ViT-L/14-336 has, less the last layer and the norm after it.
    assert sum(p.numel() for p in made.vision_embed_tokens.tower.parameters()) == 303_507_456 - layer - 2048
    assert made.vision_embed_tokens.img_projection[0].in_features == 4096
    with pytest.raises(CheckpointError, match="of another shape"):
        load_phi3_v(folder)


def test_config_json_may_have_the_sizes_of_the_vision_tower(folder: Path, prompts: Phi3VPrompts) -> None:
    sizes = json.loads((folder / "clip_dimensions.json").read_text())
    processor = json.loads((MODEL / "config.json").read_text())["img_processor"]
    (folder / "clip_dimensions.json").unlink()
    changed_config(folder, img_processor={**processor, **sizes, "model_name": "mine"})
    rows, _ = run_packed(load_phi3_v(folder), prompts, [CASES["c1_640"]])
    assert worst(embedding(rows[0]), GOLDENS["c1_640.embedding"]) < TOLERANCE
    changed_config(folder, img_processor={**processor, "model_name": "mine", "image_dim_out": 1024})
    with pytest.raises(CheckpointError, match="'mine' are not known"):
        load_phi3_v(folder)
    (folder / "clip_dimensions.json").write_text('{"depth": 3}')
    with pytest.raises(CheckpointError, match="depth is no size"):
        load_phi3_v(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "phi3"}, "expected 'phi3_v'"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"sliding_window": 512}, "sliding_window"),
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "hd_transform_order"),
        ({"img_processor": {"layer_idx": -1}}, "layer_idx"),
        ({"img_processor": {"type_feature": "cls_patch"}}, "type_feature"),
        ({"rope_scaling": {"type": "yarn"}}, "yarn"),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}},
            r"short_factor is \[1\.0\]; expected 16 positive numbers",
        ),
        ({"rope_scaling": {"type": "su"}}, "short_factor"),
    ],
)
def test_configurations_that_would_be_computed_otherwise_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_phi3_v(changed_config(folder, **changes))


@pytest.mark.parametrize("sizes", [{"patch_size": 16}, {"image_size": 322}, {"num_hidden_layers": 1}])
def test_vision_towers_of_other_kinds_are_refused(folder: Path, sizes: dict[str, int]) -> None:
    file = folder / "clip_dimensions.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **sizes}))
    with pytest.raises(CheckpointError, match="even number of patches"):
        load_phi3_v(folder)


def test_without_scaling_there_is_one_set_of_frequencies(folder: Path) -> None:
    made = load_phi3_v(changed_config(folder, rope_scaling=None))
    cos, sin = made.rotary(torch.tensor([3, 3]), torch.tensor([4, 4000]))
    angles = 3 / 10000 ** (torch.arange(0, 32, 2) / 32)
    assert worst(cos, torch.cat([angles, angles]).cos().expand(2, -1)) < 1e-6
    assert worst(sin, torch.cat([angles, angles]).sin().expand(2, -1)) < 1e-6
