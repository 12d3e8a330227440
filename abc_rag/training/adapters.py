"""LoRA adapters: adding them to a network, and saving them in the layout of the loader and the hub."""

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
from abc_rag.files import new_file
from abc_rag.models.hub import is_folder
from abc_rag.models.lora_layers import LoraConfig, inject_adapter_in_model

__all__ = ["TEXT_TARGETS", "VISION_TARGETS", "add_lora", "as_seen_from", "save_adapter", "save_tensors"]

_MAGNITUDE = ".lora_magnitude_vector"  # DoRA's, as files name it
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
    """Add a new adapter to a frozen backbone; its weights are float32, whatever the backbone's are.

    Args:
        backbone: Receives the adapter.
        name: Name of the adapter.
        targets: Layers whose names end in one of these get LoRA matrices.
        rank: Rank of the matrices.
        alpha: Scale of the matrices; ``2 * rank`` if None.
        dropout: Dropout in front of the matrices.
        dora: Learn the length of each weight row apart from its direction (DoRA, arXiv 2402.09353).
        gaussian: Initialise the first matrix from a normal distribution rather than a uniform one.

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
        raise InputError(f"the base has no layers named {', '.join(targets)}; choose other targets")
    inject_adapter_in_model(config, backbone, name)
    for parameter_name, parameter in backbone.named_parameters():
        if f".{name}." in parameter_name:
            parameter.data = parameter.data.float()
    return config


def _abc_name(name: str) -> str:
    """A parameter's name in ABC's published adapters."""
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
        folder: Receives the files.
        tensors: The network's trained parameters, by name.
        name: Name of the adapter.
        config: The adapter's configuration.
        base: The base model, for the configuration.
        dtype: Precision of the file.
        with_head: Save head and temperature too, as ABC's pretrain adapter does.
        published_name: Maps a backbone parameter to its name in the hub's checkpoints.

    Raises:
        CheckpointError: The files cannot be written.
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
    # Last: the weights mark the adapter as complete.
    save_tensors(folder / "adapter_model.safetensors", state, dtype)


def as_seen_from(folder: Path, part: str) -> str:
    """A part's hub id, or its path relative to ``folder``, so that both can be moved together."""
    if not is_folder(part):
        return part
    relative = os.path.relpath(Path(part).expanduser().resolve(), folder.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def save_tensors(path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Write safetensors, whole or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    whole = {name: tensor.detach().to(dtype).contiguous() for name, tensor in state.items()}
    try:
        with new_file(path) as draft:
            save_file(whole, draft, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); free some space and run again") from error
