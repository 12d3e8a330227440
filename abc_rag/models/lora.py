"""LoRA and DoRA adapters of peft, read so that every tensor is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from abc_rag.errors import CheckpointError
from abc_rag.models.checkpoint import TORCH_ADAPTER, assign_tensors, iter_tensors, read_json, weight_files
from abc_rag.models.lora_layers import LoraConfig, LoraModel
from abc_rag.models.torch_file import iter_torch_file

__all__ = ["adapter_tensors", "load_adapter", "lora_config", "merge_adapter"]

_MAGNITUDE = ".lora_magnitude_vector"


def lora_config(folder: Path) -> LoraConfig:
    """The configuration of an adapter, ready to be injected by peft.

    Raises:
        CheckpointError: It is missing, or no LoRA.
    """
    raw = read_json(folder / "adapter_config.json")
    if raw.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: peft_type is {raw.get('peft_type')!r}; expected 'LORA'")
    known = {k: v for k, v in raw.items() if k in LoraConfig.__dataclass_fields__}
    # Heads and temperatures are read by name; the published auto_mapping names research code.
    known.update(modules_to_save=None, auto_mapping=None, task_type=None, inference_mode=True)
    known.pop("megatron_config", None)
    return LoraConfig(**known)


def load_adapter(
    module: nn.Module,
    folder: Path,
    adapter: str,
    rename: Callable[[str], str | None],
    others: Mapping[str, torch.Tensor] | None = None,
    *,
    tensors: Iterator[tuple[str, torch.Tensor]] | None = None,
) -> None:
    """Fill the injected tensors of ``adapter``, and ``others``, from a folder; all of them, and nothing else.

    Args:
        module: Holds the injected layers.
        folder: Where the adapter is.
        adapter: Its name in peft.
        rename: The checkpoint's names of the base's tensors -> those of ``module``.
        others: More tensors that the adapter's file holds, by name.
        tensors: The adapter's, where they do not come from its safetensors.

    Raises:
        CheckpointError: A tensor is missing, left over or of another shape.
    """
    infix = f".{adapter}"
    # DoRA's magnitudes are a parameter of a module in newer versions of peft, and were one of the layer before.
    wanted: dict[str, torch.Tensor] = {
        name.replace(f"{infix}.", ".").replace(f"{_MAGNITUDE}.weight", _MAGNITUDE).removesuffix(infix): parameter
        for name, parameter in module.named_parameters()
        if f"{infix}." in name or name.endswith(infix)
    }
    wanted.update(others or {})

    def renamed(name: str) -> str | None:
        found = rename(name.removeprefix("base_model.model."))
        return found if found is None else found.replace(f"{_MAGNITUDE}.weight", _MAGNITUDE)

    def put(name: str, tensor: torch.Tensor) -> None:
        with torch.no_grad():
            wanted[name].copy_(tensor)

    found = iter_tensors(weight_files(folder, "adapter_model")) if tensors is None else tensors
    assign_tensors(wanted, found, renamed, where=str(folder), put=put)


def adapter_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The (name, tensor) pairs of an adapter: of its safetensors, or where there are none of what ``torch.save`` wrote.

    Raises:
        CheckpointError: There are neither, or they cannot be read.
    """
    saved = folder / TORCH_ADAPTER
    only = saved.is_file() and not any(folder.glob("adapter_model.safetensors*"))
    return iter_torch_file(saved) if only else iter_tensors(weight_files(folder, "adapter_model"))


def merge_adapter(module: nn.Module, folder: Path, rename: Callable[[str], str | None]) -> None:
    """Read an adapter and merge it into ``module`` for good, LoRA or DoRA.

    From safetensors, or where there are none from what ``torch.save`` wrote, as most published VLM2Vec adapters are.

    Raises:
        CheckpointError: It does not fit.
    """
    try:
        lora = LoraModel(module, lora_config(folder), "merged")
    except (AttributeError, TypeError, ValueError) as error:  # it names layers that are not there, or other methods
        raise CheckpointError(f"{folder}: does not fit this base ({error})") from error
    load_adapter(module, folder, "merged", rename, tensors=adapter_tensors(folder))
    lora.merge_and_unload()
