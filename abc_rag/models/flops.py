"""How much arithmetic an input costs, counted from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

    from abc_rag.models.qwen2_vl.config import QwenConfig

__all__ = ["count_flops"]


def count_flops(
    config: Qwen2VLConfig | QwenConfig,
    *,
    tokens: int,
    patches: int | Sequence[int] = 0,
    instructed: bool = False,
    rank: int = 16,
    head_hidden: int = 4096,
) -> float:
    """Floating-point operations of the matrix products that one input needs; a multiplication and an addition are two.

    Whatever is multiplied for padding is not counted, nor what is not a matrix product (norms, activations, softmax).
    With ``t`` tokens, ``p`` patches, ``h`` the width of the language model, ``k`` that of its keys, ``i`` that of its
    MLP, ``L`` its layers; ``e`` the width of the vision tower, ``m`` that of its MLP, ``V`` its blocks; ``g`` patches
    to an image token, and pictures of 14 x 14 x 3 values a patch:

    * language model: ``L (2 t (2 h h + 2 h k + 3 h i) + 4 t t h)``; the last term is attention, over all tokens
    * instruct adapter of rank ``r``: ``L 2 t r (sum of inputs and outputs of the seven matrices)``
    * vision tower: ``2 p 588 e + V (2 p (4 e e + 2 e m) + 4 p p e)``
    * merger: ``2 (p / g) (g e g e + g e h)``
    * head of width ``w``: ``4 h w``

    Args:
        config: A Qwen2-VL configuration.
        tokens: Length of the sequence in the language model, image tokens included.
        patches: Of the picture, or of each of several; 0 where there is none, or where the vision tower's result is
            known already.
        instructed: Whether the instruct adapter runs.
        rank: Of the instruct adapter.
        head_hidden: Width inside the head.

    Returns:
        Operations of the whole input.
    """
    parts: Any = config
    text, vision = parts.text_config, parts.vision_config
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    keys = hidden // text.num_attention_heads * text.num_key_value_heads
    total = layers * (2 * tokens * (2 * hidden**2 + 2 * hidden * keys + 3 * hidden * inner) + 4 * tokens**2 * hidden)
    if instructed:
        # q and o, k and v, then gate, up and down.
        sides = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + inner)
        total += layers * 2 * tokens * rank * sides
    for picture in [patches] if isinstance(patches, int) else patches:
        width = vision.embed_dim
        mlp = int(width * vision.mlp_ratio)
        merged = vision.spatial_merge_size**2
        total += 2 * picture * vision.in_channels * vision.patch_size**2 * width
        total += vision.depth * (2 * picture * (4 * width**2 + 2 * width * mlp) + 4 * picture**2 * width)
        total += 2 * (picture // merged) * ((merged * width) ** 2 + merged * width * hidden)
    return float(total + 4 * hidden * head_hidden)
