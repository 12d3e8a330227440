"""The network of abc-mini's base, before it has learnt anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import Qwen2VLConfig

from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone
from abc_rag.scenes.words import SPECIAL_TOKENS

__all__ = ["backbone_config", "initialise", "names_of_kinds"]


def names_of_kinds(kinds: Iterable[str], tokenizer: Tokenizer, vectors: npt.NDArray[np.float32]) -> torch.Tensor:
    """``(kinds, width)``: the vectors of the words that name them; words of many names, such as "of", count less."""
    tokens = [tokenizer.encode(kind).ids for kind in kinds]
    named = Counter(token for one in tokens for token in set(one))
    weights = [np.array([1 / named[token] for token in one], dtype=np.float32) for one in tokens]
    found = np.stack([weight @ vectors[one] / weight.sum() for weight, one in zip(weights, tokens, strict=True)])
    return torch.from_numpy(found - found.mean(axis=0))


def backbone_config(
    tokenizer: Tokenizer, *, width: int, text_depth: int, text_hidden: int, vision_width: int, vision_depth: int
) -> Qwen2VLConfig:
    """The sizes of the base."""
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    built: Any = Qwen2VLConfig.from_dict(
        {
            "model_type": "qwen2_vl",
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "hidden_size": width,
            "intermediate_size": text_hidden,
            "num_hidden_layers": text_depth,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "max_window_layers": text_depth,
            "rms_norm_eps": 1e-6,
            # Sequences have tens of tokens: the frequencies of a 32,000-token model would all be near zero.
            "rope_theta": 1000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": tokenizer.get_vocab_size(),
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_config": {
                "depth": vision_depth,
                "embed_dim": vision_width,
                "hidden_size": width,
                "mlp_ratio": 3,
                "num_heads": vision_width // 32,
                "in_chans": 3,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        }
    )
    return built  # type: ignore[no-any-return]


def initialise(backbone: Qwen2VLBackbone) -> None:
    """Draw random weights."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim >= 2:
            std = 0.02 if "embed_tokens" in name else 1 / math.sqrt(parameter.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                std *= 0.3  # contributions to the residual stream start small
            nn.init.normal_(parameter, std=std)
        elif "norm" in name or "ln_q" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.zeros_(parameter)
