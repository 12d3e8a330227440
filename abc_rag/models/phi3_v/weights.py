"""Reading and writing Phi-3.5-vision's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from abc_rag.models.checkpoint import fill, match_tensors, stored_tensors
from abc_rag.models.lora import adapter_tensors, put_adapter
from abc_rag.models.phi3_v.config import Phi3VConfig
from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.placement import CPU, Placement

__all__ = ["base_state_dict", "load_phi3_v"]


# One and the same tensor, which files may hold under either name, or under both.
_EMBEDDINGS = ("model.embed_tokens.weight", "model.vision_embed_tokens.wte.weight")


class _Published(nn.Module):
    """A backbone one level lower, where all names are the published ones; adapters may name layers in full."""

    def __init__(self, backbone: Phi3VBackbone) -> None:
        super().__init__()
        self.model = backbone


def _rename() -> Callable[[str], str | None]:
    """From names in files to those in `_Published`; None for what nobody needs."""
    seen: list[str] = []

    def rename(name: str) -> str | None:
        # No logits are computed; older versions stored positions, which are 0, 1, 2, ...
        if name.startswith("lm_head.") or name.endswith(".vision_model.embeddings.position_ids"):
            return None
        if name in _EMBEDDINGS:
            seen.append(name)
            return _EMBEDDINGS[0] if len(seen) == 1 else None
        return name

    return rename


@contextmanager
def _complete(backbone: Phi3VBackbone) -> Iterator[None]:
    """With the vision tower's unused parts, which files hold and adapters change: shapes without memory."""
    tower = backbone.vision_embed_tokens.tower
    with torch.device("meta"):
        tower.layers.append(CLIPEncoderLayer(tower.config))
        tower.post_layernorm = nn.LayerNorm(tower.config.hidden_size)
    try:
        yield
    finally:
        del tower.layers[-1]
        del tower.post_layernorm


def _allocated(backbone: Phi3VBackbone, place: Placement) -> Phi3VBackbone:
    backbone.to(place.dtype)
    backbone.to_empty(device=place.device)
    positions: torch.Tensor = backbone.vision_embed_tokens.tower.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[1])[None])  # not stored: on the meta device it came out empty
    return backbone


def load_phi3_v(folder: Path, adapter: Path | None = None, place: Placement = CPU) -> Phi3VBackbone:
    """Read a Phi-3-vision folder (config.json and safetensors), and an adapter that is merged into it.

    Args:
        folder: The base, or a model that was trained as a whole.
        adapter: A LoRA or DoRA of peft's, on any of its layers.
        place: Where and how it computes.

    Raises:
        CheckpointError: It is no Phi-3-vision, or a tensor is missing, left over or of another shape.
        InputError: There is no such attention.
        MissingExtraError: flash-attention was asked for and is not installed.
    """
    place.check()
    config = Phi3VConfig.read(folder)
    stored = stored_tensors(folder, "model")
    for part in (config.text, config.vision):
        layers: Any = part.num_hidden_layers
        stored.check_layers(folder, "num_hidden_layers", layers)
    with torch.device("meta"):
        outline = Phi3VBackbone(config, attention=place.attention)
    with _complete(outline):
        names = match_tensors(dict(_Published(outline).named_parameters()), stored, _rename())
    backbone = _allocated(outline, place)
    published = _Published(backbone)
    with _complete(backbone):
        fill(dict(published.named_parameters()), stored, names)
    if adapter is not None:
        # One that was made on all of the published modules has tensors for the unused ones, all or none of them.
        end = f".vision_model.encoder.layers.{len(backbone.vision_embed_tokens.tower.layers)}."
        whole = any(end in name for name in adapter_tensors(adapter).shapes)
        with _complete(backbone) if whole else nullcontext():
            put_adapter(published, adapter, "merged", _rename(), merge=True)
    return backbone.eval().requires_grad_(False)


def base_state_dict(backbone: Phi3VBackbone, source: Path | None = None) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names that the hub's checkpoints have.

    Args:
        backbone: Its adapters merged.
        source: The folder that it was read from. The tensors that are not needed here, but that such a checkpoint
            has, are taken from it: the output layer and the end of the vision tower.
    """
    state = {name: parameter.detach().cpu().contiguous() for name, parameter in _Published(backbone).named_parameters()}
    if source is not None:
        for name, tensor in stored_tensors(source, "model").read():
            if name not in _EMBEDDINGS:
                state.setdefault(name, tensor)
    return state
