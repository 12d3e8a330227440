"""The files of an ABC checkpoint, copied as they are or written from a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from abc_rag.errors import CheckpointError
from abc_rag.files import new_file, write
from abc_rag.models.abc.network import ABCNetwork, ABCSettings
from abc_rag.models.checkpoint import weight_files
from abc_rag.models.lora_layers import LoraConfig
from abc_rag.models.qwen2_vl.network import base_state_dict

__all__ = ["PARTS", "copy_parts", "small_files", "write_checkpoint"]

PARTS = ("base", "pretrain", "instruct")

_SUFFIXES = (".json", ".txt", ".jinja")
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE")
_PREFIX = "base_model.model."
_INSTRUCT = ".instruct."


def _files(folder: Path, *, weights: bool) -> Iterator[Path]:
    """What belongs to a part of a checkpoint; never pickles or code."""
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        if file.name.endswith(_WEIGHTS):
            if weights:
                yield file
        elif file.suffix in _SUFFIXES or file.name.upper().startswith(_LICENCES):
            yield file


def copy_parts(parts: Mapping[str, Path], out: Path) -> None:
    """Copy the parts of a checkpoint, byte by byte, so that even its fingerprint stays.

    Raises:
        CheckpointError: One has no weights.
        OSError: There is no room, or no permission.
    """
    for name, folder in parts.items():
        weight_files(folder, "model" if name == "base" else "adapter_model")
    for name, folder in parts.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in _files(folder, weights=True):
            # Follows links: the hub's cache is made of them.
            shutil.copyfile(file, out / name / file.name)


def small_files(folder: Path) -> dict[str, bytes]:
    """A part's configuration, tokenizer and licence, by name; no weights."""
    return {file.name: file.read_bytes() for file in _files(folder, weights=False)}


def write_checkpoint(
    out: Path, network: ABCNetwork, settings: ABCSettings, *, base: Mapping[str, bytes], instruct: Mapping[str, bytes]
) -> None:
    """Write what a network holds now as a checkpoint that `abc_rag.load_embedder` reads.

    The pretrain adapter was merged when the network was loaded, so the base is written with it, and the pretrain
    folder has the head, the temperature and an adapter that does nothing.

    Args:
        out: Receives ``base/``, ``pretrain/``, ``instruct/`` and ``abc.json``.
        network: With its instruct adapter.
        settings: Go into ``abc.json``.
        base: `small_files` of the base.
        instruct: `small_files` of the instruct adapter.

    Raises:
        CheckpointError: There is no room, or no permission.
    """
    backbone = network.backbone
    merged = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base_state_dict(backbone).items()
        if _INSTRUCT not in name
    }
    target = "layers.0.self_attn.q_proj"
    width_out, width_in = merged[f"model.{target}.weight"].shape
    head = {f"{_PREFIX}mlp_head.{name}": p for name, p in network.head.named_parameters()}
    nothing = {
        f"{_PREFIX}model.{target}.lora_A.weight": torch.zeros(1, width_in),
        f"{_PREFIX}model.{target}.lora_B.weight": torch.zeros(width_out, 1),
        f"{_PREFIX}temperature.temp": network.temperature.stored,
    }
    adapter = {
        _PREFIX + name.replace(_INSTRUCT, ".").replace("language_model.", "model.", 1): p
        for name, p in backbone.named_parameters()
        if _INSTRUCT in name
    }
    try:
        for part, files in (("base", base), ("pretrain", {}), ("instruct", instruct)):
            (out / part).mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                write(out / part / name, data)
        LoraConfig(r=1, lora_alpha=1, target_modules=[target], inference_mode=True).save_pretrained(
            str(out / "pretrain")
        )
        settings.write(out)
        _save(out / "base" / "model.safetensors", merged)
        _save(out / "pretrain" / "adapter_model.safetensors", head | nothing)
        _save(out / "instruct" / "adapter_model.safetensors", adapter)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: cannot be written ({error}); make room and save again") from error


def _save(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Each tensor in the precision that it has, so that what is loaded is what was saved."""
    with new_file(path) as draft:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, draft, metadata={"format": "pt"})
