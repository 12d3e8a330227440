"""What config.json of a Qwen3-VL may say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Qwen3VLConfig

from abc_rag.errors import CheckpointError
from abc_rag.models.config import ACTIVATIONS, MAX_LAYERS, MAX_LENGTH, MAX_SIZE, Config

__all__ = ["read_config"]


def read_config(folder: Path) -> Qwen3VLConfig:
    """Read ``config.json``. Only what the network needs is taken, and each value is checked.

    Raises:
        CheckpointError: It is no Qwen3-VL, or one that would have to be computed otherwise.
    """
    raw = Config.read(folder / "config.json")
    if raw.values.get("model_type") != "qwen3_vl":
        raw.refuse("model_type", "'qwen3_vl'")
    text = _text(raw.part("text_config"))
    try:
        return Qwen3VLConfig(
            text_config=text,
            vision_config=_vision(raw.part("vision_config"), text["hidden_size"]),
            image_token_id=raw.whole("image_token_id", 151655, least=0, most=text["vocab_size"] - 1),
        )
    except (ArithmeticError, AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{raw.where}: not the configuration of a Qwen3-VL ({error})") from error


def _text(raw: Config) -> dict[str, Any]:
    hidden = raw.whole("hidden_size", most=MAX_SIZE)
    heads = raw.whole("num_attention_heads", most=MAX_SIZE)
    groups = raw.whole("num_key_value_heads", heads, most=heads)
    if heads % groups:
        raw.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    width = raw.whole("head_dim", 128, most=MAX_SIZE)
    if width % 2:
        raw.refuse("head_dim", "an even number")
    raw.text("hidden_act", "silu", among=("silu",))
    if raw.flag("attention_bias"):
        raw.refuse("attention_bias", "false")
    return {
        "vocab_size": raw.whole("vocab_size", most=MAX_SIZE),
        "hidden_size": hidden,
        "intermediate_size": raw.whole("intermediate_size", most=MAX_SIZE),
        "num_hidden_layers": raw.whole("num_hidden_layers", most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": width,
        "max_position_embeddings": raw.whole("max_position_embeddings", 128000, most=MAX_LENGTH),
        "rms_norm_eps": raw.number("rms_norm_eps", 1e-6, least=0, most=1),
        "rope_parameters": _rope(raw, width // 2),
        "pad_token_id": None,
    }


def _rope(raw: Config, half: int) -> dict[str, Any]:
    rope = raw.part("rope_parameters" if "rope_parameters" in raw else "rope_scaling")
    for name in ("type", "rope_type"):
        rope.text(name, "default", among=("mrope", "default"))
    theta = (rope if "rope_theta" in rope else raw).number("rope_theta", 5e6, least=1, most=1e12)
    section = rope.values.get("mrope_section", [24, 20, 20])
    whole = isinstance(section, list) and len(section) == 3 and all(type(one) is int and one >= 0 for one in section)
    if not whole or sum(section) != half:
        rope.refuse("mrope_section", f"three whole numbers that add up to half of a head's width ({half})")
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": section, "mrope_interleaved": True}


def _vision(raw: Config, hidden: int) -> dict[str, Any]:
    width = raw.whole("hidden_size", 1152, most=MAX_SIZE)
    heads = raw.whole("num_heads", 16, most=width)
    if width % heads or width // heads % 4:
        raw.refuse("num_heads", f"a number that divides hidden_size ({width}) into parts that four divides")
    if raw.whole("out_hidden_size", hidden, most=MAX_SIZE) != hidden:
        raw.refuse("out_hidden_size", f"that of the language model ({hidden})")
    if raw.whole("in_channels", 3, most=3) != 3:
        raw.refuse("in_channels", "3")
    table = raw.whole("num_position_embeddings", 2304, most=MAX_SIZE)
    if math.isqrt(table) ** 2 != table:
        raw.refuse("num_position_embeddings", "a square")
    depth = raw.whole("depth", 27, most=MAX_LAYERS)
    deep = raw.values.get("deepstack_visual_indexes", [8, 16, 24])
    if not (isinstance(deep, list) and all(type(one) is int and 0 <= one < depth for one in deep)) or (
        deep != sorted(set(deep))
    ):
        raw.refuse("deepstack_visual_indexes", f"layers of the vision tower in order, below {depth}")
    return {
        "depth": depth,
        "hidden_size": width,
        "hidden_act": raw.text("hidden_act", "gelu_pytorch_tanh", among=ACTIVATIONS),
        "intermediate_size": raw.whole("intermediate_size", 4304, most=MAX_SIZE),
        "num_heads": heads,
        "out_hidden_size": hidden,
        "num_position_embeddings": table,
        "deepstack_visual_indexes": deep,
        "patch_size": raw.whole("patch_size", 16, most=256),
        "spatial_merge_size": raw.whole("spatial_merge_size", 2, most=16),
        "temporal_patch_size": raw.whole("temporal_patch_size", 2, most=16),
    }
