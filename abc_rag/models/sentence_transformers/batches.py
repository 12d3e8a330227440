"""Which preprocessed inputs may share a batch, and how they are stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["alike", "groups_of", "is_padded_safely", "length_of", "stacked"]

# One row for each input; shorter rows are padded.
_ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
# For these, a processor's output for two inputs is the concatenation of its outputs for each. Inputs with other tensors
# are computed one by one.
_STACKED = frozenset(
    {
        *_ROWS,
        "pixel_values",
        "pixel_attention_mask",
        "image_grid_thw",
        "image_position_ids",
        "num_images_per_sample",
        "num_soft_tokens_per_image",
        "spatial_shapes",
    }
)
_LEAST_FULL = 0.75  # of a padded batch's longest text, so that little of it is padding


def groups_of(all_features: Sequence[Mapping[str, Any]], *, any_length: bool) -> list[list[int]]:
    """Positions of the inputs that can be computed together; with ``any_length``, texts whatever their length."""
    same: dict[object, list[int]] = {}
    for position, features in enumerate(all_features):
        same.setdefault(alike(features, any_length=any_length), []).append(position)
    groups: list[list[int]] = []
    for positions in same.values():
        positions.sort(key=lambda i: -length_of(all_features[i]))
        longest = 0.0
        for position in positions:
            length = length_of(all_features[position])
            if length < _LEAST_FULL * longest or not longest:
                groups.append([])
                longest = length
            groups[-1].append(position)
    return groups


def stacked(group: Sequence[Mapping[str, Any]], *, pads: Mapping[str, int], left: bool) -> dict[str, Any]:
    """Inputs of one group as one batch.

    Args:
        group: Inputs as ``preprocess`` gives them.
        pads: What shorter rows are filled up with, by name; 0 if nothing is said.
        left: Fill up in front.
    """
    found = dict(group[0])
    longest = max(length_of(features) for features in group)
    for name, value in group[0].items():
        if not isinstance(value, torch.Tensor):
            continue
        values = [features[name] for features in group]
        if name in _ROWS:
            fill = pads.get(name, 0)
            short = [longest - one.shape[1] for one in values]
            sides = [(by, 0) if left else (0, by) for by in short]
            values = [nn.functional.pad(v, side, value=fill) for v, side in zip(values, sides, strict=True)]
        found[name] = torch.cat(values)
    return found


def length_of(features: Mapping[str, Any]) -> int:
    """Tokens of an input, or 1 where it has none."""
    ids = features.get("input_ids")
    return int(ids.shape[-1]) if isinstance(ids, torch.Tensor) else 1


def alike(features: Mapping[str, Any], *, any_length: bool) -> object:
    """Equal for inputs that may be stacked; with ``any_length``, those of words alone whatever their length."""
    words = any_length and all(name in _ROWS for name, value in features.items() if isinstance(value, torch.Tensor))
    known: list[object] = []
    for name, value in sorted(features.items()):
        if not isinstance(value, torch.Tensor):
            known.append((name, repr(value)))
        elif name not in _STACKED or not value.ndim or (name in _ROWS and (value.ndim != 2 or len(value) != 1)):
            return object()
        else:
            known.append((name, value.dtype, None if words else tuple(value.shape[1:])))
    return tuple(known)


def is_padded_safely(short: Mapping[str, Any], long: Mapping[str, Any]) -> bool:
    """Whether two texts differ in length, and say which of a batch's tokens would be padding."""
    kinds = {alike(features, any_length=True) for features in (short, long)}
    return len(kinds) == 1 and "attention_mask" in short and length_of(short) != length_of(long)
