"""The parts of a forward that ``qwen2_vl`` and ``phi3_v`` share, padded and packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from abc_rag.models.family import Prepared
from abc_rag.models.kernels.attention import Attend, Segments, choose_attention
from abc_rag.models.kernels.layers import onednn_is_faster, rounded_rows

__all__ = [
    "Layer",
    "PackedBatch",
    "PackedForward",
    "split_features",
    "with_features",
]

Layer = Callable[..., torch.Tensor]


class PackedForward:
    """The forward of a backbone over sequences that lie end to end, without gradients.

    A subclass calls the modules of transformers one by one, so weights, adapters and their names do not change.

    Args:
        backbone: The module whose current weights each call uses.
        vision: Computes a layer of the vision tower.
        text: Computes a layer of the language model.
        compiled: Run both through ``torch.compile``.
        widest_head: The largest width of an attention head, where it is more than 256.
    """

    def __init__(
        self,
        backbone: Any,  # noqa: ANN401
        *,
        vision: Layer,
        text: Layer,
        compiled: bool,
        widest_head: int = 0,
    ) -> None:
        self.backbone = backbone
        # In half precision torch itself uses oneDNN.
        self._rounds = backbone.device.type == "cpu" and (backbone.dtype != torch.float32 or onednn_is_faster())
        attend = choose_attention(
            backbone.attention, device=backbone.device, dtype=backbone.dtype, widest_head=widest_head
        )
        # The kernels gain nothing from compiling, which would be repeated for every mix of lengths.
        self.attend: Attend = torch.compiler.disable(attend) if compiled else attend  # type: ignore[no-untyped-call]
        self.vision_layer, self.text_layer = (_compiled(layer) if compiled else layer for layer in (vision, text))

    def rounded(self, rows: torch.Tensor) -> torch.Tensor:
        """Add rows of zeros where matrix products need rounded sizes; see `abc_rag.models.kernels.layers`."""
        if not self._rounds:
            return rows
        more = rounded_rows(len(rows)) - len(rows)
        return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


@lru_cache(maxsize=8)
def _compiled(layer: Layer) -> Layer:
    return torch.compile(layer, dynamic=True)


def with_features(embeds: torch.Tensor, features: torch.Tensor, at_image: torch.Tensor) -> torch.Tensor:
    """Token embeddings with vision features in place of the image tokens, in order; with gradients.

    Args:
        embeds: ``(batch, length, hidden)``.
        features: ``(image tokens, hidden)``.
        at_image: bool ``(batch, length)``: True at image tokens.
    """
    at_image = at_image.flatten()
    rows = torch.arange(len(at_image), device=embeds.device)
    rows[at_image] = len(at_image) + torch.arange(len(features), device=embeds.device)
    # A gather, because its backward is far cheaper than that of a masked copy.
    return torch.cat([embeds.flatten(0, 1), features.to(embeds.dtype)])[rows].view(embeds.shape)


@dataclass(frozen=True)
class PackedBatch:
    """Prepared inputs end to end, the longest first, so that inputs of one length are neighbours.

    Attributes:
        input_ids: int64 ``(total,)``.
        segments: The bounds of the inputs.
        features: The vision features of all pictures in order, or None.
        image_positions: int64 ``(image tokens,)``: the positions of the features in ``input_ids``.
        inputs: The inputs in this order; the first is the longest.
        position_ids: int64 ``(total,)``: positions, where tokens are left out of some input; None for 0, 1, 2, ... in
            each.
    """

    input_ids: torch.Tensor
    segments: Segments
    features: torch.Tensor | None
    image_positions: torch.Tensor
    inputs: Sequence[Prepared]
    _order: Sequence[int]
    position_ids: torch.Tensor | None = None

    @classmethod
    def of(cls, batch: Sequence[Prepared], *, image_token_id: int, device: torch.device) -> PackedBatch:
        """Pack inputs whose vision features are computed."""
        order = sorted(range(len(batch)), key=lambda i: -len(batch[i].input_ids))
        chosen = [batch[i] for i in order]
        ids = np.concatenate([one.input_ids for one in chosen])
        seen = [features for one in chosen for features in _features_of(one)]
        positions = None
        if any(one.kept is not None for one in chosen):
            rows = [np.arange(len(one.input_ids)) if one.kept is None else one.kept.positions for one in chosen]
            positions = torch.from_numpy(np.concatenate(rows)).to(device)
        return cls(
            torch.from_numpy(ids).to(device),
            Segments([len(one.input_ids) for one in chosen], device),
            torch.cat([features.to(device) for features in seen]) if seen else None,
            torch.from_numpy(np.flatnonzero(ids == image_token_id)).to(device),
            chosen,
            order,
            positions,
        )

    @property
    def sequence(self) -> dict[str, Any]:
        """What a forward over sequences that lie end to end is given of it, as keywords."""
        return {
            "input_ids": self.input_ids,
            "segments": self.segments,
            "features": self.features,
            "image_positions": self.image_positions,
        }

    def in_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Put rows back into the order of the inputs."""
        return rows[torch.from_numpy(np.argsort(self._order)).to(rows.device)]


def _features_of(one: Prepared) -> list[torch.Tensor]:
    """The features that go into an input, end to end those of its pictures."""
    found = [picture.features for picture in one.pictures if picture.features is not None]
    if one.kept is None or not found:
        return found
    whole = torch.cat(found) if len(found) > 1 else found[0]
    return [whole[torch.from_numpy(one.kept.image_tokens).to(whole.device)]]


def split_features(features: torch.Tensor, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Features of each picture; copies, because a slice would keep all others in memory."""
    return [part.clone() for part in torch.split(features, list(tokens))]
