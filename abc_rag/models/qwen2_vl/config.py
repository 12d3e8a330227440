"""What config.json of a Qwen2-VL may say."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError
from abc_rag.models.config import ACTIVATIONS, MAX_LAYERS, MAX_LENGTH, MAX_SIZE, Config

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

__all__ = ["QwenConfig", "TextConfig", "VisionConfig", "library_config", "read_config", "ties_embeddings"]


@dataclass(frozen=True)
class TextConfig:
    """The language model; the names are transformers'."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_dropout: float
    rope_parameters: dict[str, Any]


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower; the names are transformers'."""

    depth: int
    embed_dim: int
    hidden_size: int
    hidden_act: str
    mlp_ratio: int
    num_heads: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    in_channels: int = 3


@dataclass(frozen=True)
class QwenConfig:
    """What the network is built from; read without transformers, which takes seconds to import."""

    text_config: TextConfig
    vision_config: VisionConfig
    image_token_id: int


def library_config(config: QwenConfig | Qwen2VLConfig) -> Qwen2VLConfig:
    """The same as transformers' own configuration."""
    from transformers import Qwen2VLConfig

    if not isinstance(config, QwenConfig):
        return config
    text = {"use_sliding_window": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return Qwen2VLConfig(
        text_config=asdict(config.text_config) | text,
        vision_config=asdict(config.vision_config),
        image_token_id=config.image_token_id,
    )


def read_config(folder: Path) -> QwenConfig:
    """Read ``config.json``, in either layout that it has had: flat, or with ``text_config``.

    Only what the network needs is taken, and each value is checked: transformers would build whatever it is told.

    Raises:
        CheckpointError: It is no Qwen2-VL, or one that would have to be computed otherwise.
    """
    raw = Config.read(folder / "config.json")
    if raw.values.get("model_type") != "qwen2_vl":
        raw.refuse("model_type", "'qwen2_vl'")
    text = _text(raw.part("text_config") if "text_config" in raw else raw)
    return QwenConfig(
        text_config=text,
        vision_config=_vision(raw.part("vision_config"), text.hidden_size),
        image_token_id=raw.whole("image_token_id", 151655, least=0, most=text.vocab_size - 1),
    )


def ties_embeddings(folder: Path) -> bool:
    """Whether the output layer is the embeddings, as in the 2B model; the 7B model has one of its own.

    Raises:
        CheckpointError: ``config.json`` cannot be read.
    """
    raw = Config.read(folder / "config.json")
    return (raw if "tie_word_embeddings" in raw else raw.part("text_config")).flag("tie_word_embeddings")


def _text(raw: Config) -> TextConfig:
    hidden = raw.whole("hidden_size", most=MAX_SIZE)
    heads = raw.whole("num_attention_heads", most=hidden)
    groups = raw.whole("num_key_value_heads", heads, most=heads)
    if hidden % heads or hidden // heads % 2:
        raw.refuse("num_attention_heads", f"a number that divides hidden_size ({hidden}) into even parts")
    if heads % groups:
        raw.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if raw.whole("head_dim", hidden // heads, most=hidden) != hidden // heads:
        raw.refuse("head_dim", f"hidden_size / num_attention_heads ({hidden // heads})")
    raw.text("hidden_act", "silu", among=("silu",))
    layers = raw.whole("num_hidden_layers", most=MAX_LAYERS)
    if raw.flag("use_sliding_window") or any(one != "full_attention" for one in _layer_types(raw, layers)):
        raise CheckpointError(
            f"{raw.where}: sliding-window attention is not supported; set use_sliding_window to false"
        )
    return TextConfig(
        vocab_size=raw.whole("vocab_size", most=MAX_SIZE),
        hidden_size=hidden,
        intermediate_size=raw.whole("intermediate_size", most=MAX_SIZE),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=raw.whole("max_position_embeddings", 32768, most=MAX_LENGTH),
        rms_norm_eps=raw.number("rms_norm_eps", 1e-5, least=0, most=1),
        attention_dropout=raw.number("attention_dropout", 0.0, least=0, most=0.99),
        rope_parameters=_rope(raw, hidden // heads // 2),
    )


def _layer_types(raw: Config, layers: int) -> list[Any]:
    found = raw.values.get("layer_types")
    if not (found is None or (isinstance(found, list) and len(found) == layers)):
        raw.refuse("layer_types", f"one for each of {layers} layers")
    return found or []


def _rope(raw: Config, half: int) -> dict[str, Any]:
    rope = raw.part("rope_parameters" if "rope_parameters" in raw else "rope_scaling")
    for name in ("type", "rope_type"):
        rope.text(name, "default", among=("mrope", "default"))
    theta = (rope if "rope_theta" in rope else raw).number("rope_theta", 1e6, least=1, most=1e12)
    section = rope.values.get("mrope_section")
    if section is None:
        return {"rope_type": "default", "rope_theta": theta, "mrope_section": [half, 0, 0]}
    if (
        not (isinstance(section, list) and all(type(one) is int and one >= 0 for one in section))
        or sum(section) != half
    ):
        rope.refuse("mrope_section", f"whole numbers that add up to half of a head's width ({half})")
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": section}


def _vision(raw: Config, hidden: int) -> VisionConfig:
    width = raw.whole("embed_dim", 1280, most=MAX_SIZE)
    heads = raw.whole("num_heads", 16, most=width)
    if width % heads or width // heads % 4:
        raw.refuse("num_heads", f"a number that divides embed_dim ({width}) into parts that four divides")
    if raw.whole("hidden_size", hidden, most=MAX_SIZE) != hidden:
        raw.refuse("hidden_size", f"that of the language model ({hidden})")
    for name in ("in_channels", "in_chans"):
        if raw.whole(name, 3, most=3) != 3:
            raw.refuse(name, "3")
    return VisionConfig(
        depth=raw.whole("depth", 32, most=MAX_LAYERS),
        embed_dim=width,
        hidden_size=hidden,
        hidden_act=raw.text("hidden_act", "quick_gelu", among=ACTIVATIONS),
        mlp_ratio=raw.whole("mlp_ratio", 4, most=64),
        num_heads=heads,
        patch_size=raw.whole("patch_size", 14, most=256),
        spatial_merge_size=raw.whole("spatial_merge_size", 2, most=16),
        temporal_patch_size=raw.whole("temporal_patch_size", 2, most=16),
    )
