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
from abc_rag.models.checkpoint import read_json

__all__ = ["Phi3VConfig", "PhiRotary"]

# CLIP ViT-L/14 at 336 pixels, which config.json only names.
_PUBLISHED_CLIP = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_channels": 3, "image_size": 336, "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0, "projection_dim": 768,
}  # fmt: skip
_PUBLISHED_CLIP_NAME = "openai/clip-vit-large-patch14-336"
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps",
    "hidden_act", "attention_dropout", "resid_pdrop",
)  # fmt: skip
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
        vision: The whole vision tower, of which the last layer is never computed.
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
        file = folder / "config.json"
        raw = read_json(file)
        if raw.get("model_type") != "phi3_v":
            raise CheckpointError(f"{folder}: model_type is {raw.get('model_type')!r}; expected 'phi3_v'")
        for part, computed in _COMPUTED.items():
            stated = raw.get(part) or {}
            for name, value in computed.items():
                if stated.get(name, value) != value:
                    raise CheckpointError(f"{file}: {part}.{name} is {stated[name]!r}; only {value!r} is supported")
        sizes = {name: raw[name] for name in _TEXT if raw.get(name) is not None}
        try:
            # Its special tokens are those of another vocabulary unless it is told otherwise.
            text: Any = Phi3Config(**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
            vision: Any = CLIPVisionConfig(**_vision_sizes(folder, raw.get("img_processor") or {}))
            found = cls(text, vision, _rotary(raw, text))
        except (ArithmeticError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: not the configuration of a Phi-3-vision ({error})") from error
        window = raw.get("sliding_window")
        if window is not None and window < text.max_position_embeddings:
            raise CheckpointError(f"{file}: sliding-window attention is not supported; set sliding_window to null")
        grid, left = divmod(vision.image_size, vision.patch_size)
        if left or grid % 2 or vision.num_channels != 3 or vision.num_hidden_layers < 2:
            raise CheckpointError(
                f"{folder}: the vision tower must have two layers or more, three channels, and pictures that are an "
                "even number of patches wide"
            )
        return found


def _vision_sizes(folder: Path, stated: dict[str, Any]) -> dict[str, Any]:
    file = folder / "clip_dimensions.json"
    sizes = {name: value for name, value in stated.items() if name in _PUBLISHED_CLIP}
    if file.is_file():
        given = read_json(file)
        unknown = sorted(set(given) - set(_PUBLISHED_CLIP))
        if unknown:
            raise CheckpointError(f"{file}: {', '.join(unknown)} is no size of a CLIP vision tower")
        sizes |= given
    elif not sizes and stated.get("model_name", _PUBLISHED_CLIP_NAME) != _PUBLISHED_CLIP_NAME:
        raise CheckpointError(
            f"{folder}: the sizes of the vision tower {stated['model_name']!r} are not known; write them into "
            "clip_dimensions.json"
        )
    sizes = {**_PUBLISHED_CLIP, **sizes}
    width = stated.get("image_dim_out", sizes["hidden_size"])
    if width != sizes["hidden_size"]:
        raise CheckpointError(
            f"{folder}: img_processor.image_dim_out is {width}, but the vision tower is {sizes['hidden_size']} wide"
        )
    return sizes


def _rotary(raw: dict[str, Any], text: Any) -> PhiRotary:  # noqa: ANN401
    longest, original = text.max_position_embeddings, text.original_max_position_embeddings
    theta = float(raw.get("rope_theta", 10000.0))
    half = text.hidden_size // text.num_attention_heads // 2
    scaling = raw.get("rope_scaling")
    if scaling is None:
        return PhiRotary(theta, (1.0,) * half, (1.0,) * half, original, 1.0)
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("su", "longrope"):
        raise ValueError(f"rope_scaling is of type {kind!r}; only 'su' and 'longrope' are supported")
    short, long = (tuple(float(factor) for factor in scaling[name]) for name in ("short_factor", "long_factor"))
    if not len(short) == len(long) == half:
        raise ValueError(f"rope_scaling must have {half} short and {half} long factors")
    ratio = longest / original
    scale = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    return PhiRotary(theta, short, long, original, scale)
