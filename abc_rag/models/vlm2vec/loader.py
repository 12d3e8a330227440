"""VLM2Vec checkpoints: an adapter and its base, or full weights, on Qwen2-VL or on Phi-3.5-vision."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from abc_rag.errors import CheckpointError, InputError
from abc_rag.models.config import read_json, shown
from abc_rag.models.folder_model import FolderLoader, FolderModel, model_type_of, read_or_empty
from abc_rag.models.hub import fetch, is_folder
from abc_rag.models.loader import GENERATING, LoadOptions, Weights

if TYPE_CHECKING:
    from abc_rag.models.family import Family
    from abc_rag.models.placement import Placement
    from abc_rag.models.vlm2vec.backbone import VLM2VecBackbone, VLM2VecPrompts

__all__ = ["LOADER", "VLM2VecLoader", "load_parts"]

_BASES = MappingProxyType(
    {
        "TIGER-Lab/VLM2Vec-Qwen2VL-2B": "Qwen/Qwen2-VL-2B-Instruct",
        "TIGER-Lab/VLM2Vec-Qwen2VL-7B": "Qwen/Qwen2-VL-7B-Instruct",
        "TIGER-Lab/VLM2Vec-Full": None,
        "TIGER-Lab/VLM2Vec-LoRA": "microsoft/Phi-3.5-vision-instruct",
    }
)
"""The published models -> the base of their adapters; None where the weights are complete."""

_BACKBONES = ("qwen2_vl", "phi3_v")
_LAYOUTS = (
    "a VLM2Vec checkpoint has base/ and adapter/, or adapter_config.json and its weights, or the full "
    "weights of a Phi-3.5-vision"
)
# Three of the four published models are an adapter in this form; see `abc_rag.models.torch_file`.
_TORCH_ADAPTER = "adapter_model.bin"
_HEAD = "mlp_head"  # an ABC adapter has this file


@dataclass(frozen=True)
class _Parts:
    base: Path
    adapter: Path | None
    revision: str | None = None  # the hub's commits, where they are known


def _adapter_config(folder: Path) -> dict[str, Any]:
    """The model that an adapter says it was made for: ``class``, ``base``, ``task``."""
    told = read_or_empty(folder / "adapter_config.json")
    mapping = told.get("auto_mapping")
    return {
        "class": mapping.get("base_model_class") if isinstance(mapping, dict) else None,
        "base": told.get("base_model_name_or_path"),
        "task": told.get("task_type"),
    }


def _unsure(folder: Path) -> str | None:
    """Why an adapter without its base could belong to any model; checked before anything is fetched."""
    told = _adapter_config(folder)
    base = told["base"]
    known = isinstance(base, str) and base in _BASES.values()
    if isinstance(base, str) and not known:
        known = any(place.is_dir() and model_type_of(place) in _BACKBONES for place in _places(folder, base))
    if (known and told["task"] in (None, "FEATURE_EXTRACTION")) or (folder / "base").is_dir():
        return None
    return (
        f"holds an adapter of {str(base)[:80]!r}, which could be any model's; if it is VLM2Vec's, write "
        f"'vlm2vec:{folder}'"
    )


def _places(folder: Path, base: str) -> list[Path]:
    """Folders in which a base that is named as a folder may be."""
    return [folder / base, Path(base)] if is_folder(base) else []


class _VLM2VecModel(FolderModel):
    generates = True

    def __init__(self, name: str, folder: Path | None) -> None:
        super().__init__(name, folder)
        self._parts: _Parts | None = None

    def local_revision(self, weights: Weights, resolution: int | str | None = None) -> str | None:
        if self._local is None:
            return None
        base = _base_of(self._local)
        if isinstance(base, str):  # a hub id
            return None
        return _revision(_local_parts(self._local, base), weights, resolution)

    def fetch(self, device: str) -> None:
        if self._local is None:
            folder = fetch(self.name, more=[_TORCH_ADAPTER])
            base: Path | str | None = _BASES.get(self.name)
            if not (folder / "adapter_config.json").is_file():
                base = None  # complete weights, whatever the table of names says
            elif base is None:
                base = _base_of(folder)
                if not isinstance(base, str):  # a file from the hub must not choose folders on this machine
                    raise CheckpointError(
                        f"{self.name}: its adapter names a folder as its base; put both on the disk, as base/ and "
                        "adapter/, and load that folder"
                    )
            commits = [folder.name[:12]]
        else:
            folder, base, commits = self._local, _base_of(self._local), []
        if isinstance(base, str):
            base = fetch(base)
            commits.append(base.name[:12])
        parts = _local_parts(folder, base)
        revision = "+".join(commits) if commits and self._local is None else None
        self._parts = _Parts(parts.base, parts.adapter, revision)

    def build(self, options: LoadOptions) -> Family:
        from abc_rag.models.placement import Placement

        options.refuse("vlm2vec", dims="its models were trained for vectors of one length")
        if self._parts is None:
            self.fetch(str(options.device))
        parts = self._parts
        assert parts is not None
        if options.adapters == "beside":
            return self._beside(parts, options)
        place = Placement.of(options)
        backbone, prompts = load_parts(parts.base, parts.adapter, place.before(options.weights))
        place.bring(backbone, backbone.language_layers, options.weights)
        return self._family(parts, backbone, prompts, options)

    def _beside(self, parts: _Parts, options: LoadOptions) -> Family:
        from abc_rag.models.chat import refuse_options
        from abc_rag.models.placement import Placement
        from abc_rag.models.qwen2_vl.chat import load_chat
        from abc_rag.models.vlm2vec.qwen2_vl import load_vlm2vec_beside

        refuse_options(options)
        if (found := model_type_of(parts.base)) != "qwen2_vl":
            raise InputError(f"{self.name} cannot generate: its base is a {found!r}; {GENERATING}")
        if parts.adapter is None:
            raise InputError(
                f"{self.name} cannot generate: its adapter is merged into its weights, so the base that was published "
                f"is not there; {GENERATING}"
            )
        network, prompts, speaking = load_vlm2vec_beside(parts.base, parts.adapter, Placement.of(options))
        family = self._family(parts, network, prompts, options)
        family.chat = load_chat(parts.base, speaking, family.facts)
        return family

    def _family(
        self, parts: _Parts, backbone: VLM2VecBackbone, prompts: VLM2VecPrompts, options: LoadOptions
    ) -> Family:
        from abc_rag.models.vlm2vec.family import VLM2VecFamily, VLM2VecNetwork
        from abc_rag.types import Fingerprint

        backbone.compiled = options.compiled
        recipe = backbone.recipe(options.resolution, options.min_tokens, options.max_tokens)
        least, most = backbone.token_limits(recipe)
        return VLM2VecFamily(
            VLM2VecNetwork(backbone),
            prompts,
            recipe=recipe,
            fingerprint=Fingerprint(self.name, _revision(parts, options.weights, options.resolution), least, most),
            image_limits=options.image_limits,
            resolution=options.resolution,
            query_instruction=options.query_instruction,
            document_instruction=options.document_instruction,
        )


class VLM2VecLoader(FolderLoader):
    """VLM2Vec's part of `abc_rag.load_embedder`."""

    name = "vlm2vec"
    model = _VLM2VecModel
    models = tuple(_BASES)

    def refusal(self, folder: Path) -> str | None:
        """See `ModelLoader.refusal`."""
        if (folder / "adapter" / "adapter_config.json").is_file() and (folder / "base").is_dir():
            return self._foreign(folder / "adapter") or _backbone_refusal(folder / "base")
        if (folder / "parts.json").is_file():
            return "holds parts.json, which is ABC's"
        if (folder / "adapter_config.json").is_file():
            return self._foreign(folder) or _unsure(folder)
        if not (folder / "config.json").is_file():
            return f"holds no adapter/ or config.json; {_LAYOUTS}"
        if model_type_of(folder) == "qwen2_vl":
            return (
                "is a Qwen2-VL, which could be the base of many models; if a VLM2Vec adapter has been merged into it, "
                f"write 'vlm2vec:{folder}'"
            )
        return _backbone_refusal(folder)

    def _foreign(self, folder: Path) -> str | None:
        """Why an adapter belongs to another family; None if it may be VLM2Vec's."""
        file = folder / "adapter_model.safetensors"
        if file.is_file() and any(_HEAD in name for name in _tensor_names(file)):
            return "holds an adapter with an MLP head, which is ABC's"
        if str(_adapter_config(folder)["class"]).startswith("ABC"):
            return "holds an adapter that says it is ABC's"
        return None


def load_parts(base: Path, adapter: Path | None, place: Placement) -> tuple[VLM2VecBackbone, VLM2VecPrompts]:
    """Load a base on either backbone, and merge an adapter into it.

    Args:
        base: The folder of the base.
        adapter: The folder of the adapter.
        place: Where and how it computes.

    Returns:
        A `VLM2VecBackbone` in inference mode, and its prompts.

    Raises:
        CheckpointError: A file is missing, or a tensor is missing, left over or of another shape.
    """
    if refusal := _backbone_refusal(base):
        raise CheckpointError(f"{base}: {refusal}")
    if model_type_of(base) == "phi3_v":
        from abc_rag.models.vlm2vec.phi3_v import load_vlm2vec_phi3_v

        return load_vlm2vec_phi3_v(base, adapter, place)
    from abc_rag.models.vlm2vec.qwen2_vl import load_vlm2vec_qwen2_vl

    return load_vlm2vec_qwen2_vl(base, adapter, place)


def _backbone_refusal(base: Path) -> str | None:
    found = model_type_of(base)
    if found in _BACKBONES:
        return None
    return f"model_type is {shown(found)}; VLM2Vec models are read on {' and '.join(map(repr, _BACKBONES))}"


def _base_of(folder: Path) -> Path | str | None:
    """The base of a checkpoint in a folder: a folder, a hub id, or None where the weights are complete.

    Raises:
        CheckpointError: The adapter does not name its base.
    """
    if (folder / "base").is_dir() and any(
        (place / "adapter_config.json").is_file() for place in (folder, folder / "adapter")
    ):
        return folder / "base"
    if not (folder / "adapter_config.json").is_file():
        return None
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{folder}: the adapter names no base; put the base beside it, as base/ and adapter/")
    for place in _places(folder, named):
        if place.is_dir():
            return place
    if is_folder(named) or named.count("/") != 1:
        raise CheckpointError(
            f"{folder}: the adapter's base is {shown(named)}, which is not here; put it there as base/, beside adapter/"
        )
    return named


def _local_parts(folder: Path, base: Path | None) -> _Parts:
    if base is None:
        return _Parts(folder, None)
    adapter = folder / "adapter"
    return _Parts(base, adapter if adapter.is_dir() else folder)


def _revision(parts: _Parts, weights: Weights, resolution: int | str | None) -> str:
    from abc_rag.models.checkpoint import folder_revision

    folders = [parts.base] if parts.adapter is None else [parts.base, parts.adapter]
    files = parts.revision or folder_revision(*folders)
    # A named resolution is not described by its numbers of image tokens alone.
    named: list[str] = [weights] if weights != "full" else []
    named += [resolution] if isinstance(resolution, str) else []
    return "+".join([files, *named])


def _tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file, from its header alone."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(min(length, 2**25)))
            return list(header) if isinstance(header, dict) else []
    except (OSError, RecursionError, ValueError, struct.error):  # loading the file raises the error
        return []


LOADER = VLM2VecLoader()
