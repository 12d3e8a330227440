"""Networks of published sizes with random weights, to measure speed without a download.

Speed does not depend on the values of the weights. The tokenizer and the chat template are those of abc-mini, which
are in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Qwen2VLConfig

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.abc.loader import checkpoint_folder
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.abc.prompts import load_prompts
from abc_rag.models.abc.save import small_files, write_checkpoint
from abc_rag.models.config import read_json
from abc_rag.models.lora import lora_config
from abc_rag.models.lora_layers import inject_adapter_in_model
from abc_rag.models.memory import free_memory, require_memory
from abc_rag.models.placement import Placement
from abc_rag.models.qwen2_vl.network import Qwen2VLBackbone, build_backbone
from abc_rag.types import Fingerprint

if TYPE_CHECKING:
    from abc_rag.models.loader import Attention, DType

__all__ = ["SHAPES", "random_family", "shape_config", "write_random_checkpoint"]

_STD = 0.02


def _shape(*, text: Mapping[str, Any], vision: Mapping[str, Any]) -> Mapping[str, Any]:
    common = {"model_type": "qwen2_vl", "rms_norm_eps": 1e-6, "use_sliding_window": False}
    patches = {"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return MappingProxyType(
        {**common, **text, "vision_config": {**patches, **vision, "hidden_size": text["hidden_size"]}}
    )


_PUBLISHED_TEXT = {
    "num_hidden_layers": 28, "max_position_embeddings": 32768, "max_window_layers": 28, "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
_PUBLISHED_VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "tiny": _shape(
        text={
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "max_window_layers": 3, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "tie_word_embeddings": False,
            "vocab_size": 1536,
        },
        vision={"depth": 2, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 4},
    ),
    "mini": _shape(
        text={
            "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6,
            "num_key_value_heads": 3, "max_position_embeddings": 2048, "max_window_layers": 3, "rope_theta": 1e3,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "tie_word_embeddings": True,
            "vocab_size": 1536,
        },
        vision={"depth": 3, "embed_dim": 128, "num_heads": 4, "mlp_ratio": 3},
    ),
    "2b": _shape(
        text={
            **_PUBLISHED_TEXT, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
            "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 151936,
        },
        vision=_PUBLISHED_VISION,
    ),
    "7b": _shape(
        text={
            **_PUBLISHED_TEXT, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
            "num_key_value_heads": 4, "tie_word_embeddings": False, "vocab_size": 152064,
        },
        vision=_PUBLISHED_VISION,
    ),
})  # fmt: skip
"""Arguments of ``Qwen2VLConfig`` by name: the tests' fixture, abc-mini, Qwen2-VL-2B and Qwen2-VL-7B."""

_HEAD_HIDDEN = {"mini": 768}  # the others have what was published
_PUBLISHED_HEAD_HIDDEN = 4096


def shape_config(shape: str) -> Qwen2VLConfig:
    """The configuration of a shape, with the special tokens of abc-mini's tokenizer.

    Raises:
        InputError: There is no such shape.
    """
    if shape not in SHAPES:
        raise InputError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    mini = read_json(_mini() / "base" / "config.json")
    ids = {name: value for name, value in mini.items() if name.endswith("_token_id")}
    ids |= {name: mini["text_config"][name] for name in ("bos_token_id", "eos_token_id")}
    config: Qwen2VLConfig = Qwen2VLConfig.from_dict({**SHAPES[shape], **ids})
    return config


def random_family(
    shape: str,
    *,
    device: str = "cpu",
    dtype: DType = "float32",
    min_tokens: int = 256,
    max_tokens: int = 1024,
    attention: Attention = "auto",
    seed: int = 0,
) -> ABCFamily:
    """An ABC model of a shape with random weights, made where it will compute and in the precision that it has there.

    Args:
        shape: One of `SHAPES`.
        device: Any torch device.
        dtype: Of backbone and instruct adapter; ``"auto"`` is bfloat16 on CUDA and float32 elsewhere.
        min_tokens: Fewest image tokens of a picture.
        max_tokens: Most image tokens of a picture.
        attention: As for `abc_rag.load_embedder`.
        seed: Weights follow from it and from the device.

    Returns:
        The family, ready to embed. Its instruct adapter does something.

    Raises:
        InputError: There is no such shape, or too little memory for it.
    """
    config = shape_config(shape)
    if dtype == "auto":
        dtype = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    precision: torch.dtype = getattr(torch, dtype)
    chosen = "sdpa" if attention == "auto" else attention
    with torch.device("meta"):
        needed = sum(p.numel() for p in Qwen2VLBackbone(config).parameters()) * precision.itemsize
    require_memory(shape, needed, free_memory(torch.device(device)))
    backbone = build_backbone(config, Placement(chosen, precision, device))
    network = ABCNetwork(backbone, head_hidden=_head_hidden(shape)).to(device)
    inject_adapter_in_model(lora_config(_mini() / "instruct", backbone), backbone, "instruct")
    for name, parameter in backbone.named_parameters():
        if ".instruct." in name:
            parameter.data = parameter.data.to(device=device, dtype=precision)
    _fill(network, seed)
    network.register_instruct_layers()
    return ABCFamily(
        network.eval().requires_grad_(False),
        load_prompts(_mini() / "base"),
        fingerprint=Fingerprint(f"random-{shape}", f"seed-{seed}", min_tokens, max_tokens),
        image_limits=ImageLimits(),
    )


def write_random_checkpoint(
    shape: str, folder: Path, *, min_tokens: int = 256, max_tokens: int = 1024, seed: int = 0
) -> None:
    """Write the float32 weights of `random_family` as a checkpoint.

    `abc_rag.load_embedder`, the export and plain transformers with peft load the same weights from it.

    Args:
        shape: One of `SHAPES`. ``"7b"`` takes 30 GB of memory, and of the disk.
        folder: Receives ``base/``, ``pretrain/``, ``instruct/`` and ``abc.json``.
        min_tokens: Fewest image tokens of a picture, unless who loads it says otherwise.
        max_tokens: Most image tokens of a picture, unless who loads it says otherwise.
        seed: Of the weights.

    Raises:
        InputError: There is no such shape.
        CheckpointError: It cannot be written.
    """
    family = random_family(shape, min_tokens=min_tokens, max_tokens=max_tokens, seed=seed)
    network = family.network
    base = small_files(_mini() / "base")
    base["config.json"] = (network.backbone.config.to_json_string(use_diff=False) + "\n").encode()
    settings = ABCSettings(family.facts.fingerprint.model, min_tokens, max_tokens, _head_hidden(shape))
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder, network, settings, base=base, instruct=small_files(_mini() / "instruct"))


def _mini() -> Path:
    return checkpoint_folder("abc-mini")


def _head_hidden(shape: str) -> int:
    return _HEAD_HIDDEN.get(shape, _PUBLISHED_HEAD_HIDDEN)


def _fill(network: nn.Module, seed: int) -> None:
    """Matrices and biases small, norms the identity: states stay finite at any depth, in bfloat16 too."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in network.named_parameters():
        if name == "temperature.temp":
            continue
        if "norm" in name or "ln_q" in name:
            nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            continue
        device = parameter.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        nn.init.normal_(parameter, std=_STD, generator=generators[device])
