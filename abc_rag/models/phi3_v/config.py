"""What a Phi-3-vision folder says of its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, Phi3Config

from abc_rag.errors import CheckpointError
from abc_rag.models.config import ACTIVATIONS, MAX_LAYERS, MAX_LENGTH, MAX_SIZE, Config, read_json, shown

__all__ = ["Phi3VConfig", "PhiRotary"]

# CLIP ViT-L/14 at 336 pixels, which config.json only names.
_PUBLISHED_CLIP = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_channels": 3, "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0, "projection_dim": 768,
}  # fmt: skip
_PUBLISHED_CLIP_NAME = "openai/clip-vit-large-patch14-336"
# What else a configuration could ask for, and what is computed here.
_COMPUTED = {
    "embd_layer": {
        "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"},
}  # fmt: skip


@dataclass(frozen=True)
class PhiRotary:
    """How positions turn queries and keys.

    Attributes:
        theta: The base of the frequencies.
        short: What frequencies are divided by in a sequence of up to `original` tokens, one for each.
        long: The same in a longer one.
        original: Longest sequence of the first training.
        scale: What cosines and sines are multiplied by.
    """

    theta: float
    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    scale: float

    def frequencies(self) -> torch.Tensor:
        """float32 ``(2, frequencies)`` in the computer's own memory: of short sequences, and of long ones."""
        factors = torch.tensor([self.short, self.long], device="cpu")
        exponents = torch.arange(0, 2 * len(self.short), 2, device="cpu").float() / (2 * len(self.short))
        return 1.0 / (factors * self.theta**exponents)


@dataclass(frozen=True)
class Phi3VConfig:
    """Sizes of the parts.

    Attributes:
        text: The language model.
        vision: The whole vision tower; its last layer is never computed.
        rotary: Positions of the language model.
    """

    text: Phi3Config
    vision: CLIPVisionConfig
    rotary: PhiRotary

    @classmethod
    def read(cls, folder: Path) -> Phi3VConfig:
        """Read ``config.json``, and ``clip_dimensions.json`` where there is one.

        The vision tower has the published sizes unless the latter, or ``img_processor`` in the former, has others.

        Raises:
            CheckpointError: It is no Phi-3-vision, or one that would have to be computed otherwise.
        """
        raw = Config.read(folder / "config.json")
        if raw.values.get("model_type") != "phi3_v":
            raw.refuse("model_type", "'phi3_v'")
        for part, computed in _COMPUTED.items():
            stated = raw.part(part)
            for name, value in computed.items():
                if stated.values.get(name, value) != value:
                    stated.refuse(name, f"{value!r}; nothing else is supported")
        text = _text(raw)
        window = raw.whole("sliding_window", MAX_LENGTH, most=MAX_LENGTH)
        if window < text["max_position_embeddings"]:
            raise CheckpointError(f"{raw.where}: sliding-window attention is not supported; set sliding_window to null")
        try:
            # Its special tokens are those of another vocabulary unless it is told otherwise.
            return cls(
                Phi3Config(**text, bos_token_id=None, eos_token_id=None, pad_token_id=None),
                CLIPVisionConfig(**_vision(folder, raw.part("img_processor"))),
                _rotary(raw, text),
            )
        except (ArithmeticError, AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
            raise CheckpointError(f"{raw.where}: not the configuration of a Phi-3-vision ({error})") from error


def _text(raw: Config) -> dict[str, Any]:
    hidden = raw.whole("hidden_size", 3072, most=MAX_SIZE)
    heads = raw.whole("num_attention_heads", 32, most=hidden)
    groups = raw.whole("num_key_value_heads", heads, most=heads)
    if hidden % heads or hidden // heads % 2:
        raw.refuse("num_attention_heads", f"a number that divides hidden_size ({hidden}) into even parts")
    if heads % groups:
        raw.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    return {
        "vocab_size": raw.whole("vocab_size", 32064, most=MAX_SIZE),
        "hidden_size": hidden,
        "intermediate_size": raw.whole("intermediate_size", 8192, most=MAX_SIZE),
        "num_hidden_layers": raw.whole("num_hidden_layers", 32, most=MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": raw.whole("max_position_embeddings", 4096, most=MAX_LENGTH),
        "original_max_position_embeddings": raw.whole(
            "original_max_position_embeddings", 4096, least=2, most=MAX_LENGTH
        ),
        "rms_norm_eps": raw.number("rms_norm_eps", 1e-5, least=0, most=1),
        "hidden_act": raw.text("hidden_act", "silu", among=ACTIVATIONS),
        "attention_dropout": raw.number("attention_dropout", 0.0, least=0, most=0.99),
        "resid_pdrop": raw.number("resid_pdrop", 0.0, least=0, most=0.99),
    }


def _vision(folder: Path, stated: Config) -> dict[str, Any]:
    file = folder / "clip_dimensions.json"
    sizes = {name: value for name, value in stated.values.items() if name in _PUBLISHED_CLIP}
    where = stated.where
    if file.is_file():
        given, where = read_json(file), file
        unknown = sorted(set(given) - set(_PUBLISHED_CLIP))
        if unknown:
            raise CheckpointError(f"{file}: {', '.join(unknown)[:200]} is no size of a CLIP vision tower")
        sizes |= given
    elif not sizes and stated.text("model_name", _PUBLISHED_CLIP_NAME) != _PUBLISHED_CLIP_NAME:
        raise CheckpointError(
            f"{folder}: the sizes of the vision tower {shown(stated.values['model_name'])} are not known; write them "
            "into clip_dimensions.json"
        )
    raw = Config({**_PUBLISHED_CLIP, **sizes}, where)
    width = raw.whole("hidden_size", most=MAX_SIZE)
    heads = raw.whole("num_attention_heads", most=width)
    if width % heads:
        raw.refuse("num_attention_heads", f"a divisor of hidden_size ({width})")
    found: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": raw.whole("num_hidden_layers", most=MAX_LAYERS),
        "num_channels": raw.whole("num_channels", most=16),
        "image_size": raw.whole("image_size", most=4096),
        "patch_size": raw.whole("patch_size", most=256),
        "intermediate_size": raw.whole("intermediate_size", most=MAX_SIZE),
        "projection_dim": raw.whole("projection_dim", most=MAX_SIZE),
        "hidden_act": raw.text("hidden_act", among=ACTIVATIONS),
        "layer_norm_eps": raw.number("layer_norm_eps", least=0, most=1),
        "attention_dropout": raw.number("attention_dropout", least=0, most=0.99),
    }
    out = stated.whole("image_dim_out", width, most=MAX_SIZE)
    if out != width:
        raise CheckpointError(f"{folder}: img_processor.image_dim_out is {out}, but the vision tower is {width} wide")
    grid, left = divmod(found["image_size"], found["patch_size"])
    if left or grid % 2 or found["num_channels"] != 3 or found["num_hidden_layers"] < 2:
        raise CheckpointError(
            f"{folder}: the vision tower must have two layers or more, three channels, and pictures that are an "
            "even number of patches wide"
        )
    return found


def _rotary(raw: Config, text: dict[str, Any]) -> PhiRotary:
    longest, original = text["max_position_embeddings"], text["original_max_position_embeddings"]
    theta = raw.number("rope_theta", 10000.0, least=1, most=1e12)
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    if "rope_scaling" not in raw:
        return PhiRotary(theta, (1.0,) * half, (1.0,) * half, original, 1.0)
    scaling = raw.part("rope_scaling")
    scaling.text("type" if "type" in scaling else "rope_type", among=("su", "longrope"))
    short, long = (scaling.numbers(name, count=half) for name in ("short_factor", "long_factor"))
    ratio = longest / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return PhiRotary(theta, short, long, original, scale)
