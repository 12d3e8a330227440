"""How abc-mini's tower learns to see: image tokens that say what covers their cell, as words say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from abc_rag.models.kernels.layers import rotated, rotation_of
from abc_rag.models.qwen2_vl.network import normalise
from abc_rag.models.qwen2_vl.packed import grid_positions
from abc_rag.models.qwen2_vl.pictures import Patches
from abc_rag.training.data.wide import SIDES, SIZES, WideBatch

__all__ = ["WORD_LENGTH", "Named", "NamedKinds", "place_heads", "seen_loss", "square_features", "vision_block"]

WORD_LENGTH = 2.0
"""Of the vectors of words, where a teacher gives them."""
_SHARPNESS = 20.0  # of likeness to a name, at first
_PLACED = 8.0  # of likeness to a side's name or a size's


def vision_block(block: Any, states: torch.Tensor, rotation: Any, pictures: int) -> torch.Tensor:  # noqa: ANN401
    """One layer of the tower over patches ``(pictures * patches, width)`` of pictures of one size."""
    attention = block.attn
    mixed = attention.qkv(block.norm1(states)).view(pictures, len(states) // pictures, 3, attention.num_heads, -1)
    q, k, v = mixed.unbind(2)
    q, k = (rotated(part.float(), rotation).to(v.dtype).transpose(1, 2) for part in (q, k))
    weights = (q @ k.transpose(2, 3) * attention.scaling).softmax(-1, dtype=torch.float32).to(v.dtype)
    states = states + attention.proj((weights @ v.transpose(1, 2)).transpose(1, 2).reshape(len(states), -1))
    found: torch.Tensor = states + block.mlp(block.norm2(states))
    return found


def square_features(
    visual: Any,  # noqa: ANN401
    pictures: Sequence[Patches],
    layer: Callable[..., torch.Tensor] = vision_block,
) -> torch.Tensor:
    """Vision features ``(pictures, tokens, hidden)`` of pictures of one size, whose attention is one product.

    What ``image_features`` computes picture by picture; training spends a third of its time there.

    Args:
        visual: The tower.
        pictures: Pictures of one size.
        layer: `vision_block`, or the same compiled.
    """
    first, merger = pictures[0], visual.merger
    states = visual.patch_embed(normalise(torch.from_numpy(np.concatenate([p.pixels for p in pictures]))))
    at = torch.from_numpy(grid_positions(first.rows, first.columns, 2))
    rotation = rotation_of(*(part[:, None] for part in visual.rotary_pos_emb(states, at)))
    for block in visual.blocks:
        states = layer(block, states, rotation, len(pictures))
    merged: torch.Tensor = merger.mlp(merger.ln_q(states).view(-1, merger.hidden_size))
    return merged.view(len(pictures), -1, merged.shape[-1])


class Named(nn.Module):
    """Logits of kinds, sides or sizes from image tokens by likeness to the words that name them.

    So what is seen reaches the language model as what it reads.

    Args:
        names: ``(names, hidden)``.
        scale: Of likeness; learnt if None. The lower it is, the more of a token must be like the name.
    """

    def __init__(self, names: torch.Tensor, scale: float | None = None) -> None:
        super().__init__()
        self.register_buffer("names", nn.functional.normalize(names, dim=-1), persistent=False)
        self.scale: float | nn.Parameter = nn.Parameter(torch.tensor(_SHARPNESS)) if scale is None else scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(..., hidden)`` -> ``(..., names)``."""
        found: torch.Tensor = self.scale * (nn.functional.normalize(features.float(), dim=-1) @ self.names.T)  # type: ignore[operator]
        return found


class NamedKinds(Named):
    """The same for kinds; the first one is none.

    Args:
        names: ``(kinds, hidden)``.
    """

    def __init__(self, names: torch.Tensor) -> None:
        super().__init__(names)
        self.nothing = nn.Linear(names.shape[1], 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(..., hidden)`` -> ``(..., 1 + kinds)``."""
        return torch.cat([self.nothing(features).float(), super().forward(features)], dim=-1)


def place_heads(width: int, names: torch.Tensor | None) -> list[nn.Module]:
    """What tells the side and the size of a thing from its tokens.

    Args:
        width: Of a token.
        names: Vectors of the names of `SIDES` and then `SIZES`; None to learn them.
    """
    if names is None:
        return [nn.Linear(width, len(known)) for known in (SIDES, SIZES)]
    return [Named(one, _PLACED) for one in torch.split(names, [len(SIDES), len(SIZES)])]


def seen_loss(found: dict[str, torch.Tensor], wide: WideBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Kinds and boxes of cells, and the background."""
    cells = torch.from_numpy(wide.cells)
    # Most cells show nothing, which is soon learnt.
    weights = torch.ones(found["kinds"].shape[-1])
    weights[0] = 0.2
    seen = nn.functional.cross_entropy(found["kinds"].flatten(0, 1), cells.flatten(), weight=weights)
    covered = cells > 0
    off = (found["boxes"] - torch.from_numpy(wide.boxes))[covered].abs().mean()
    ground = nn.functional.cross_entropy(found["grounds"], torch.from_numpy(wide.grounds))
    sides, sizes = torch.from_numpy(wide.sides)[covered], torch.from_numpy(wide.sizes)[covered]
    placed = nn.functional.cross_entropy(found["sides"][covered], sides)
    sized = nn.functional.cross_entropy(found["sizes"][covered], sizes)
    right = (found["kinds"].argmax(-1) == cells)[covered].float().mean()
    on_side = (found["sides"][covered].argmax(-1) == sides).float().mean()
    of_size = (found["sizes"][covered].argmax(-1) == sizes).float().mean()
    # Image tokens as long as words: what the layers add to longer ones makes little difference.
    long = (found["lengths"] / WORD_LENGTH - 1).square().mean()
    return seen + 0.3 * (ground + placed + sized) + 4 * off + 0.1 * long, {
        "seen": seen.item(),
        "cells": right.item(),
        "off": off.item(),
        "sides": on_side.item(),
        "sizes": of_size.item(),
    }
