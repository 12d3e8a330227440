"""LoRA adapters: put on, and saved in the layout that the loader and the hub have."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.hub import is_folder
from abc_rag.models.lora_layers import LoraConfig, inject_adapter_in_model

__all__ = ["TEXT_TARGETS", "VISION_TARGETS", "add_lora", "as_seen_from", "save_adapter", "save_tensors"]

_MAGNITUDE = ".lora_magnitude_vector"  # of DoRA, in files
TEXT_TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
VISION_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def add_lora(
    backbone: nn.Module,
    name: str,
    targets: Sequence[str],
    *,
    rank: int,
    alpha: int | None,
    dropout: float,
    dora: bool = False,
    gaussian: bool = False,
) -> LoraConfig:
    """Put a new adapter on a frozen backbone; its weights are float32 whatever the backbone's are.

    Args:
        backbone: What it goes on.
        name: The adapter's, in peft.
        targets: How the names of the layers end that get matrices.
        rank: Of the matrices.
        alpha: Scale of the matrices; ``2 * rank`` if None.
        dropout: In front of the matrices.
        dora: Learn the length of each row of a layer's weights apart from its direction (DoRA, arXiv 2402.09353).
        gaussian: Start the first matrix from a normal distribution, rather than a uniform one.

    Raises:
        InputError: The backbone has no such layers.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        use_dora=dora,
        init_lora_weights="gaussian" if gaussian else True,
    )
    if not any(name.endswith(tuple(f".{target}" for target in targets)) for name, _ in backbone.named_modules()):
        raise InputError(f"the base has no layers that are named {', '.join(targets)}; choose others")
    inject_adapter_in_model(config, backbone, name)
    for parameter_name, parameter in backbone.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = parameter.data.float()
    return config


def _abc_name(name: str) -> str:
    """The names that ABC's published adapters have."""
    return name.replace("language_model.", "model.", 1)


def save_adapter(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    name: str,
    config: LoraConfig,
    *,
    base: str,
    dtype: torch.dtype,
    with_head: bool = False,
    published_name: Callable[[str], str] = _abc_name,
) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``.

    Args:
        folder: Where to.
        tensors: Of a network with a backbone, by parameter name.
        name: The adapter's.
        config: The adapter's.
        base: What the adapter goes on, for the configuration.
        dtype: Precision of the file.
        with_head: Whether head and temperature belong to it, as in ABC's pretrain adapter.
        published_name: The name that the hub's checkpoints have for a parameter of the backbone.
    """
    prefix = "base_model.model."
    state = {}
    for full, tensor in tensors.items():
        if full.startswith("backbone.") and f".{name}." in full:
            short = full.removeprefix("backbone.").replace(f".{name}.", ".")
            # Magnitudes are a module's weight here, and the layer's own in files.
            state[prefix + published_name(short.replace(f"{_MAGNITUDE}.weight", _MAGNITUDE))] = tensor
        elif with_head and full.startswith("head."):
            state[f"{prefix}mlp_head.{full.removeprefix('head.')}"] = tensor
        elif with_head and full == "temperature.temp":
            state[f"{prefix}temperature.temp"] = tensor.reshape(())
    folder.mkdir(parents=True, exist_ok=True)
    saved = replace(
        config,
        inference_mode=True,
        base_model_name_or_path=base,
        modules_to_save=["temperature", "mlp_head"] if with_head else None,
    )
    saved.save_pretrained(str(folder))
    # Last, as the weights are what says that the adapter is there.
    save_tensors(folder / "adapter_model.safetensors", state, dtype)


def as_seen_from(folder: Path, part: str) -> str:
    """A part's hub id, or the way to its folder from another one: both may be moved together."""
    if not is_folder(part):
        return part
    relative = os.path.relpath(Path(part).expanduser().resolve(), folder.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def save_tensors(path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Write safetensors whole or not at all.

    Raises:
        CheckpointError: There is no room, or no permission.
    """
    temporary = path.with_suffix(".part")
    try:
        whole = {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
        save_file(whole, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error}); make room and run again") from error
