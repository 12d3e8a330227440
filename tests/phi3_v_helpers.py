"""Phi-3-vision's fixture, and the two ways to compute its cases: padded and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn
from vlm2vec_helpers import FIXTURES, change_tensors, read_cases, read_goldens

from abc_rag.images.limits import ImageLimits
from abc_rag.models.kernels.attention import Segments
from abc_rag.models.phi3_v.network import Phi3VBackbone
from abc_rag.models.phi3_v.packed import PackedPhi3V
from abc_rag.models.phi3_v.pictures import CroppedPicture, PhiPictures
from abc_rag.models.phi3_v.prompts import Phi3VPrompts

FIXTURE = FIXTURES / "vlm2vec_phi3v"
MODEL = FIXTURE / "model"
ATTENTIONS = ("sdpa", "eager")
LIMITS = ImageLimits()
RECORDS = read_cases(FIXTURE)
CASES = RECORDS["single"]
GOLDENS = {name: torch.from_numpy(array) for name, array in read_goldens(FIXTURE).items()}
TAG = "<|image_1|>"
TOWER = "model.vision_embed_tokens.img_processor.vision_model."


def opened_of(case: dict[str, Any]) -> list[CroppedPicture]:
    if not case["image"]:
        return []
    return [PhiPictures(case["num_crops"]).open(str(FIXTURE / case["image"]), limits=LIMITS)]


def ids_of(backbone: Phi3VBackbone, prompts: Phi3VPrompts, case: dict[str, Any]) -> torch.Tensor:
    before, tag, after = case["text"].partition(TAG)
    tokens = [backbone.picture_tokens(one) for one in opened_of(case)]
    assert bool(tag) == bool(tokens)
    return torch.from_numpy(prompts([before, *tokens, after] if tokens else [before]))


def run_padded(backbone: Phi3VBackbone, prompts: Phi3VPrompts, cases: list[dict[str, Any]], fill: int = 7) -> Any:
    """(last states, features) of some cases by the way that training takes."""
    ids = [ids_of(backbone, prompts, case) for case in cases]
    pictures = [one for case in cases for one in opened_of(case)]
    lengths = torch.tensor([len(one) for one in ids])
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=fill)
    features = backbone.image_features(pictures) if pictures else None
    states = backbone.hidden_states(padded, lengths=lengths, features=features)
    return states[torch.arange(len(ids)), lengths - 1], features


def run_packed(backbone: Phi3VBackbone, prompts: Phi3VPrompts, cases: list[dict[str, Any]]) -> Any:
    """(last states, features) of some cases by the way that inference takes."""
    ids = [ids_of(backbone, prompts, case) for case in cases]
    pictures = [one for case in cases for one in opened_of(case)]
    with torch.inference_mode():
        features = PackedPhi3V(backbone).image_features(pictures) if pictures else None
        flat = torch.cat(ids)
        segments = Segments([len(one) for one in ids], backbone.device)
        at = (flat == backbone.image_token_id).nonzero().flatten()
        return PackedPhi3V(backbone).last_states(flat, segments, features=features, image_positions=at), features


RUNS: dict[str, Callable[..., Any]] = {"padded": run_padded, "packed": run_packed}


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


def embedding(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(states, dim=-1)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], stem: str = "model") -> None:
    change_tensors(folder / f"{stem}.safetensors", change)


def noise(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 200, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def fill(parameters: Iterator[tuple[str, nn.Parameter]]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in parameters:
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
