"""Which model ``load_embedder("auto")`` takes, by what this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from abc_rag.models.catalog import KnownModel, known_model

if TYPE_CHECKING:
    import torch

__all__ = ["Choice", "choose_model"]

_GB = 1e9


@dataclass(frozen=True)
class Choice:
    """A model for this machine.

    Attributes:
        model: Its name.
        here: Whether its files are on this machine; if not, they are fetched on first use.
        reason: Why it, and why none of the better ones.
    """

    model: str
    here: bool
    reason: str

    def __str__(self) -> str:
        """One line."""
        fetched = "" if self.here else f" (fetches {known_model(self.model).download / _GB:.1f} GB on first use)"
        return f"auto: {self.model}{fetched}: {self.reason}"


def choose_model(device: torch.device, *, download: bool = False, free: int | None = None) -> Choice:
    """ABC on a GPU with room, else EmbeddingGemma 2, else abc-mini.

    Args:
        device: Where it will compute. Its free memory is asked for.
        download: Whether a model may be chosen that has to be fetched.
        free: Bytes that are free there, if they need not be asked for.

    Returns:
        The choice. Nothing is loaded or fetched, and no hub is asked.
    """
    from abc_rag.models.memory import free_memory

    free = free_memory(device) if free is None else free
    passed: list[str] = []
    for name in ("abc", "google/embeddinggemma-2"):
        model = known_model(name)
        against = _against(model, device, download=download, free=free)
        if against is None:
            has = "memory unknown" if free is None else f"{free / _GB:.1f} GB free"
            needs = f"{device} has {has}, and it needs {model.memory(device.type) / _GB:.1f} GB"
            return Choice(name, model.here, "; ".join([needs, *passed]))
        passed.append(f"not {name}, {against}")
    mini = "it is in this package; it knows drawings of emoji, and its answers mean nothing on photographs"
    return Choice("abc-mini", True, "; ".join([mini, *passed]))


def _against(model: KnownModel, device: torch.device, *, download: bool, free: int | None) -> str | None:
    if model.name == "abc" and device.type != "cuda":
        return f"which wants a CUDA GPU, and this is {device}"
    needed = model.memory(device.type)
    if free is not None and free < needed:
        return f"which needs {needed / _GB:.1f} GB, and {device} has {free / _GB:.1f} GB free"
    if not download and not model.here:
        return f"which is not on this machine: download=True fetches it ({model.download / _GB:.1f} GB)"
    return None
