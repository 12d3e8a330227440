"""Phi-3.5-vision as VLM2Vec uses it, which is as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.phi3_v.prompts import Phi3VPrompts, load_phi3_v_prompts
from abc_rag.models.phi3_v.weights import load_phi3_v

__all__ = ["load_vlm2vec_phi3_v"]


def load_vlm2vec_phi3_v(
    base: Path,
    adapter: Path | None,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Phi3VBackbone, Phi3VPrompts]:
    """Read a Phi-3-vision folder, and an adapter that is merged into it; see `load_phi3_v`.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    prompts = load_phi3_v_prompts(base)
    return load_phi3_v(base, adapter, attention=attention, dtype=dtype, device=device), prompts
