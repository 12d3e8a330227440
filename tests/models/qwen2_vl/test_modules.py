"""The tree of weights, against transformers' own modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import FIXTURE
from transformers import Qwen2VLModel
from transformers.activations import ACT2FN

from abc_rag.models.config import ACTIVATIONS
from abc_rag.models.kernels.layers import activated
from abc_rag.models.qwen2_vl.config import library_config, read_config
from abc_rag.models.qwen2_vl.modules import VisionTower
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone, load_backbone


def test_names_and_shapes_are_those_of_transformers() -> None:
    config = read_config(FIXTURE / "base")
    ours = Qwen2VLBackbone(config)
    library = Qwen2VLModel(library_config(config))
    expected = {name: tuple(p.shape) for name, p in library.named_parameters()}
    found = {name: tuple(p.shape) for name, p in ours.named_parameters()}
    plane = "visual.patch_embed.proj.weight"
    channels, frames, *patch = expected.pop(plane)[1:]
    assert found.pop(plane) == (config.vision_config.embed_dim, channels * patch[0] * patch[1])
    assert frames == config.vision_config.temporal_patch_size
    assert found == expected


def test_the_librarys_modules_take_over_the_same_parameters() -> None:
    backbone = load_backbone(FIXTURE / "base").requires_grad_(False)
    before = dict(backbone.named_parameters())
    assert type(backbone.language_model).__module__.startswith("abc_rag.")
    backbone.use_library()
    after = dict(backbone.named_parameters())
    assert type(backbone.language_model).__module__.startswith("transformers.")
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert not backbone.language_model.training
    model = backbone.language_model
    backbone.use_library()
    assert backbone.language_model is model


def test_positions_turn_as_those_of_transformers_do() -> None:
    backbone = load_backbone(FIXTURE / "base")
    states = torch.randn(7, backbone.hidden_size)
    steps, grid = torch.arange(7).expand(3, 1, -1), torch.randint(0, 9, (7, 2))
    text, vision = backbone.language_model.rotary_emb(states, steps), backbone.visual.rotary_pos_emb(states, grid)
    backbone.use_library()
    library = backbone.language_model.rotary_emb(states, steps), backbone.visual.rotary_pos_emb(states, grid)
    for found, expected in zip((*text, *vision), (*library[0], *library[1]), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name: str) -> None:
    config = replace(read_config(FIXTURE / "base").vision_config, hidden_act=name)
    (block, *_) = VisionTower(config).blocks
    x = torch.linspace(-6, 6, 1001)
    expected = ACT2FN[name](x)
    activation = block.mlp.act  # type: ignore[union-attr]
    torch.testing.assert_close(activation(x), expected, rtol=0, atol=1e-6)  # type: ignore[operator]
    torch.testing.assert_close(activated(activation, x.clone()), expected, rtol=0, atol=1e-6)
