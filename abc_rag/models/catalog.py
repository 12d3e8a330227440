"""The published models that `abc_rag.load_embedder` knows by name: what they are, what they need, which are here.

Looks at files only; nothing here uses the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from abc_rag.errors import CheckpointError
from abc_rag.models.hub import cached

__all__ = ["MODELS", "KnownModel", "known_model"]

_ROOM = 1_000_000_000
"""What computing takes beside the weights, in bytes: a batch of texts, or a picture."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A published model.

    Attributes:
        name: As `abc_rag.load_embedder` takes it.
        family: Which family reads it.
        parameters: Of the weights that are loaded, to three digits.
        download: Bytes that are fetched, to two digits; 0 where it is in this package.
        licence: As its model card says; None where that card has to be read.
        dim: Length of a vector.
        dims: Shorter lengths that it was trained for.
        inputs: What it takes.
        about: What it is for.
        source: Where these facts are from.
        repositories: On the hub.
    """

    name: str
    family: str
    parameters: int
    download: int
    licence: str | None
    dim: int
    about: str
    source: str
    dims: tuple[int, ...] = ()
    inputs: str = "texts, pictures, instructions"
    repositories: tuple[str, ...] = ()

    def memory(self, device: str) -> int:
        """Bytes that it needs free: its weights, in bfloat16 on a GPU and float32 elsewhere, and room to compute."""
        return self.parameters * (2 if device == "cuda" else 4) + _ROOM

    @property
    def here(self) -> bool:
        """Whether all its weights are in this package or in the hub's cache on this machine."""
        return all(_has_weights(cached(repository)) for repository in self.repositories)


def _has_weights(folder: Path | None) -> bool:
    from abc_rag.models.checkpoint import TORCH_ADAPTER, weight_files

    if folder is None:
        return False
    if (folder / TORCH_ADAPTER).is_file() or (folder / "adapter_model.safetensors").is_file():
        return True
    try:
        return bool(weight_files(folder, "model"))
    except CheckpointError:
        return False


_QWEN2_7B, _QWEN2_2B = "Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2-VL-2B-Instruct"
_PHI = "microsoft/Phi-3.5-vision-instruct"

MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        name="abc",
        family="abc",
        parameters=7_800_000_000,
        download=17_000_000_000,
        licence=None,
        dim=3584,
        about="photographs under instructions",
        source="arXiv 2503.00329",
        repositories=(_QWEN2_7B, "TIGER-Lab/ABC-Qwen2VL-Pretrain", "TIGER-Lab/ABC-Qwen2VL-Instruct"),
    ),
    KnownModel(
        name="abc-mini",
        family="abc",
        parameters=2_670_000,
        download=0,
        licence="MIT",
        dim=192,
        about="drawings of emoji for trying things out; means nothing on photographs",
        source="abc_rag/models/bundled/abc-mini/README.md",
    ),
    KnownModel(
        name="google/embeddinggemma-2",
        family="embeddinggemma",
        parameters=439_000_000,
        download=1_500_000_000,
        licence="Apache-2.0",
        dim=768,
        dims=(512, 256, 128),
        about="texts and photographs on a CPU",
        source="https://huggingface.co/google/embeddinggemma-2",
        repositories=("google/embeddinggemma-2",),
    ),
    *(
        KnownModel(
            name=f"Qwen/Qwen3-VL-Embedding-{size}",
            family="qwen3-vl",
            parameters=parameters,
            download=download,
            licence="Apache-2.0",
            dim=dim,
            about="texts, photographs and pages under instructions",
            source="arXiv 2601.04720",
            repositories=(f"Qwen/Qwen3-VL-Embedding-{size}",),
        )
        for size, parameters, download, dim in (
            ("2B", 2_130_000_000, 4_300_000_000, 2048),
            ("8B", 8_140_000_000, 16_300_000_000, 4096),
        )
    ),
    *(
        KnownModel(
            name=f"TIGER-Lab/VLM2Vec-{name}",
            family="vlm2vec",
            parameters=parameters,
            download=download,
            licence=licence,
            dim=dim,
            about="photographs under task instructions",
            source="arXiv 2410.05160",
            repositories=(f"TIGER-Lab/VLM2Vec-{name}", *base),
        )
        for name, parameters, download, licence, dim, base in (
            ("Qwen2VL-2B", 2_210_000_000, 4_500_000_000, None, 1536, (_QWEN2_2B,)),
            ("Qwen2VL-7B", 7_750_000_000, 17_000_000_000, "Apache-2.0", 3584, (_QWEN2_7B,)),
            ("Full", 4_150_000_000, 8_300_000_000, None, 3072, ()),
            ("LoRA", 4_150_000_000, 8_400_000_000, None, 3072, (_PHI,)),
        )
    ),
)
"""All published models that need no family before their name."""


def known_model(name: str) -> KnownModel:
    """The model of that name, which is one of `MODELS`."""
    return next(model for model in MODELS if model.name == name)
