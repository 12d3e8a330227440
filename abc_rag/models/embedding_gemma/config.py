"""What config.json of an EmbeddingGemma 2 may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import EmbeddingGemma2Config

from abc_rag.errors import CheckpointError
from abc_rag.models.config import ACTIVATIONS, MAX_LAYERS, MAX_LENGTH, MAX_SIZE, Config

__all__ = ["read_config"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_config(folder: Path) -> EmbeddingGemma2Config:
    """Read ``config.json``. Only what the network needs is taken, and each value is checked.

    The audio tower is left out: nothing here hears.

    Raises:
        CheckpointError: It is no EmbeddingGemma 2, or one that would have to be computed otherwise.
    """
    raw = Config.read(folder / "config.json")
    if raw.values.get("model_type") != "embedding_gemma2":
        raw.refuse("model_type", "'embedding_gemma2'")
    if "vision_config" not in raw:
        raw.refuse("vision_config", "a vision tower; read a text-only checkpoint as 'st:FOLDER'")
    text = _text(raw.part("text_config"))
    last = text["vocab_size"] - 1
    try:
        return EmbeddingGemma2Config(
            text_config=text,
            vision_config=_vision(raw.part("vision_config")),
            image_token_id=raw.whole("image_token_id", 258880, least=0, most=last),
            boi_token_id=raw.whole("boi_token_id", 255999, least=0, most=last),
            eoi_token_id=raw.whole("eoi_token_id", 258882, least=0, most=last),
        )
    except (ArithmeticError, AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{raw.where}: not the configuration of an EmbeddingGemma 2 ({error})") from error


def _text(raw: Config) -> dict[str, Any]:
    layers = raw.whole("num_hidden_layers", most=MAX_LAYERS)
    heads = raw.whole("num_attention_heads", most=MAX_SIZE)
    kinds = raw.values.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers or not {*kinds} <= {_FULL, _SLIDING} or kinds[-1] != _FULL:
        raw.refuse("layer_types", f"{layers} of {_SLIDING!r} and {_FULL!r}, the last one {_FULL!r}")
    if raw.flag("attention_bias"):
        raw.refuse("attention_bias", "false")
    shape = _heads(raw, heads)
    own = raw.part("per_layer_config")
    # transformers writes numbers of one length, such as "05".
    if not all(name.isascii() and name.isdigit() and len(name) < 5 and int(name) < layers for name in own.values):
        raw.refuse("per_layer_config", f"numbers of layers, below {layers}")
    return {
        "vocab_size": raw.whole("vocab_size", most=MAX_SIZE),
        "hidden_size": raw.whole("hidden_size", most=MAX_SIZE),
        "intermediate_size": raw.whole("intermediate_size", most=MAX_SIZE),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **shape,
        "hidden_activation": raw.text("hidden_activation", "gelu_pytorch_tanh", among=ACTIVATIONS),
        "max_position_embeddings": raw.whole("max_position_embeddings", 262_144, most=MAX_LENGTH),
        "rms_norm_eps": raw.number("rms_norm_eps", 1e-6, least=0, most=1),
        "rope_parameters": _rope(raw.part("rope_parameters")),
        "sliding_window": raw.whole("sliding_window", 512, most=MAX_LENGTH),
        "layer_types": list(kinds),
        "hidden_size_per_layer_input": raw.whole("hidden_size_per_layer_input", 512, most=MAX_SIZE),
        "embedding_dim": raw.whole("embedding_dim", 768, most=MAX_SIZE),
        "pad_token_id": None,
        "bos_token_id": raw.whole("bos_token_id", 2, least=0, most=MAX_SIZE),
        "eos_token_id": raw.whole("eos_token_id", 1, least=0, most=MAX_SIZE),
        "per_layer_config": {int(name): _heads(own.part(name), heads, **shape) for name in own.values},
    }


def _heads(raw: Config, heads: int, *, num_key_value_heads: int = 2, head_dim: int = 256) -> dict[str, int]:
    groups = raw.whole("num_key_value_heads", num_key_value_heads, most=heads)
    if heads % groups:
        raw.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    width = raw.whole("head_dim", head_dim, most=MAX_SIZE)
    if width % 2:
        raw.refuse("head_dim", "an even number")
    return {"num_key_value_heads": groups, "head_dim": width}


def _rope(raw: Config) -> dict[str, Any]:
    found = {}
    for kind, theta in ((_SLIDING, 1e4), (_FULL, 1e6)):
        part = raw.part(kind)
        part.text("rope_type", "default", among=("default",))
        found[kind] = {"rope_type": "default", "rope_theta": part.number("rope_theta", theta, least=1, most=1e12)}
    return found


def _vision(raw: Config) -> dict[str, Any]:
    raw.text("model_type", "gemma4_vision", among=("gemma4_vision",))
    for name in ("attention_bias", "use_clipped_linears", "standardize"):
        if raw.flag(name):
            raw.refuse(name, "false")
    heads = raw.whole("num_attention_heads", 12, most=MAX_SIZE)
    shape = _heads(raw, heads, num_key_value_heads=heads, head_dim=64)
    if shape["head_dim"] % 4:
        raw.refuse("head_dim", "a number that four divides")
    rope = raw.part("rope_parameters")
    rope.text("rope_type", "axial", among=("axial", "default"))
    return {
        "model_type": "gemma4_vision",
        "hidden_size": raw.whole("hidden_size", 768, most=MAX_SIZE),
        "intermediate_size": raw.whole("intermediate_size", 3072, most=MAX_SIZE),
        "num_hidden_layers": raw.whole("num_hidden_layers", 16, most=MAX_LAYERS),
        "num_attention_heads": heads,
        **shape,
        "hidden_activation": raw.text("hidden_activation", "gelu_pytorch_tanh", among=ACTIVATIONS),
        "rms_norm_eps": raw.number("rms_norm_eps", 1e-6, least=0, most=1),
        "rope_parameters": {
            "rope_type": "axial",
            "rope_theta": rope.number("rope_theta", 100.0, least=1, most=1e12),
        },
        "pooling_kernel_size": raw.whole("pooling_kernel_size", 3, most=16),
        "patch_size": raw.whole("patch_size", 16, most=256),
        "position_embedding_size": raw.whole("position_embedding_size", 10240, most=MAX_SIZE),
    }
