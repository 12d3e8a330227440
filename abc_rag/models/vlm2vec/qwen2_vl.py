"""Qwen2-VL as VLM2Vec uses it: causal, plain positions, plain prompts.

The published code finds no picture in its sequences when it computes positions, as its prompts lack the token that
announces one; so the positions that the weights know are 0, 1, 2, ... for image tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from abc_rag.errors import InputError
from abc_rag.models.config import Config
from abc_rag.models.flops import count_flops
from abc_rag.models.kernels.packed import PackedBatch
from abc_rag.models.loader import token_limits
from abc_rag.models.lora import put_adapter, put_adapters_beside
from abc_rag.models.placement import CPU, Placement
from abc_rag.models.qwen2_vl.network import (
    Qwen2VLBackbone,
    SpeakingBase,
    backbone_name,
    load_backbone,
    load_speaking,
)
from abc_rag.models.qwen2_vl.packed import PackedQwen2VL
from abc_rag.models.qwen2_vl.pictures import Patches, QwenPictures
from abc_rag.models.tokenizer import PlainTokenizer, check_vocabulary, load_tokenizer
from abc_rag.models.vlm2vec.backbone import VLM2VecBackbone

__all__ = ["VLM2VecQwen2VL", "VLM2VecQwen2VLPrompts", "load_vlm2vec_beside", "load_vlm2vec_qwen2_vl"]

_SQUARES = {"low": 128, "mid": 672, "high": 1344}
# Of Qwen2-VL's published preprocessor_config.json.
_MIN_PIXELS, _MAX_PIXELS = 3136, 12845056


class VLM2VecQwen2VL(VLM2VecBackbone):
    """A `Qwen2VLBackbone`.

    Args:
        backbone: With its adapter merged, or beside it.
        min_pixels: Fewest pixels of a picture, the checkpoint's own.
        max_pixels: Most pixels of a picture, the checkpoint's own.
    """

    def __init__(
        self, backbone: Qwen2VLBackbone, *, min_pixels: int = _MIN_PIXELS, max_pixels: int = _MAX_PIXELS
    ) -> None:
        super().__init__(backbone)
        area = (backbone.patch * backbone.merge) ** 2
        self._limits = (max(1, min_pixels // area), max(1, max_pixels // area))

    def recipe(self, resolution: int | str | None, min_tokens: int | None, max_tokens: int | None) -> QwenPictures:
        """How pictures are opened: as they are, within the limits, or stretched to a square first.

        Args:
            resolution: None; or ``"low"``, ``"mid"`` or ``"high"``: squares of 128, 672 and 1344 pixels.
            min_tokens: Fewest image tokens; the checkpoint's own if None.
            max_tokens: Most image tokens; the checkpoint's own if None.

        Raises:
            InputError: There is no such resolution.
        """
        if resolution is not None and not (isinstance(resolution, str) and resolution in _SQUARES):
            raise InputError(f"resolution must be one of {', '.join(map(repr, _SQUARES))}, not {resolution!r}")
        square = 0 if resolution is None else _SQUARES[str(resolution)]
        limits = token_limits(min_tokens, max_tokens, defaults=self._limits)
        return QwenPictures(self.model.patch, self.model.merge, (limits,), square)

    def token_limits(self, recipe: QwenPictures) -> tuple[int, int]:
        """Fewest and most image tokens."""
        return recipe.resizes[-1]

    def flops(self, tokens: int, pictures: Sequence[Patches]) -> float:
        """See `VLM2VecBackbone`."""
        patches = [picture.patches for picture in pictures]
        return count_flops(self.model.config, tokens=tokens, patches=patches, head_hidden=0)

    def published_name(self, name: str) -> str:
        """See `VLM2VecBackbone`."""
        short = name.removeprefix("model.")
        return short.replace("language_model.", "model.", 1) if short.startswith("language_model.") else short

    def use_library(self) -> None:
        """See `Qwen2VLBackbone.use_library`."""
        self.model.use_library()

    def hidden_states(
        self, input_ids: torch.Tensor, *, lengths: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        states: torch.Tensor = self.model.hidden_states(input_ids, lengths=lengths, features=features, causal=True)
        return states

    def packed_features(self, opened: Sequence[Patches]) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        return self._packed.image_features(opened)

    def packed_last_states(self, packed: PackedBatch) -> torch.Tensor:
        """See `VLM2VecBackbone`."""
        states = self._packed.hidden_states(**packed.sequence, causal=True)
        return states[packed.segments.bounds[1:].long() - 1]

    @property
    def _packed(self) -> PackedQwen2VL:
        return PackedQwen2VL(self.model, compiled=self.compiled)


class VLM2VecQwen2VLPrompts:
    """Plain prompts: no template, no token at either end.

    Args:
        tokenizer: Of the base.
        image_token_id: What stands for a picture's tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, image_token_id: int) -> None:
        self._tokenizer = PlainTokenizer(tokenizer)
        self._image_token_id = image_token_id

    def __call__(self, parts: Sequence[str | int], /) -> npt.NDArray[np.int64]:
        """Token ids; see `VLM2VecPrompts`."""
        ids: list[int] = []
        for part in parts:
            ids += [self._image_token_id] * part if isinstance(part, int) else self._tokenizer(part)
        return np.array(ids, dtype=np.int64)


def load_vlm2vec_qwen2_vl(
    base: Path, adapter: Path | None, place: Placement = CPU
) -> tuple[VLM2VecQwen2VL, VLM2VecQwen2VLPrompts]:
    """Read a Qwen2-VL folder, and an adapter that is merged into it.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    backbone = load_backbone(base, place)
    if adapter is not None:
        put_adapter(backbone, adapter, "merged", backbone_name, merge=True)
    return _with_prompts(backbone, base)


def load_vlm2vec_beside(
    base: Path, adapter: Path, place: Placement = CPU
) -> tuple[VLM2VecQwen2VL, VLM2VecQwen2VLPrompts, SpeakingBase]:
    """`load_vlm2vec_qwen2_vl` with the adapter beside the base, and the base without it.

    Raises:
        CheckpointError: As there; or the base has no output layer.
    """
    backbone, speaking = load_speaking(base, place)
    put_adapters_beside(backbone, {"vlm2vec": adapter}, backbone_name)
    return *_with_prompts(backbone, base), speaking


def _with_prompts(backbone: Qwen2VLBackbone, base: Path) -> tuple[VLM2VecQwen2VL, VLM2VecQwen2VLPrompts]:
    least, most = _pixel_limits(base)
    tokenizer = load_tokenizer(base)
    check_vocabulary(tokenizer, backbone.language_model.embed_tokens.num_embeddings, base)
    network = VLM2VecQwen2VL(backbone, min_pixels=least, max_pixels=most)
    prompts = VLM2VecQwen2VLPrompts(tokenizer, image_token_id=backbone.image_token_id)
    return network.eval().requires_grad_(False), prompts


def _pixel_limits(base: Path) -> tuple[int, int]:
    file = base / "preprocessor_config.json"
    raw = Config.read(file) if file.is_file() else Config({}, file)
    least = raw.whole("min_pixels", _MIN_PIXELS, most=_MAX_PIXELS)
    return least, raw.whole("max_pixels", _MAX_PIXELS, least=least, most=_MAX_PIXELS)
