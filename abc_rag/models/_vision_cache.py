"""Vision features by content: however many instructions are asked of a picture, the vision tower sees it once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch

from abc_rag.models._qwen2_vl import Patches

__all__ = ["SeenPicture", "VisionCache"]


@dataclass(frozen=True)
class SeenPicture:
    """What is known of a picture: its patches until the vision tower has seen them, its features from then on.

    Attributes:
        key: Hash of its content.
        tokens: How many image tokens it has.
        patches: Input of the vision tower, or None.
        features: Output of the vision tower, ``(tokens, hidden)``, or None.
    """

    key: str
    tokens: int
    patches: Patches | None = None
    features: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        held = 0 if self.patches is None else self.patches.pixels.nbytes
        return held + (0 if self.features is None else self.features.nbytes)


class VisionCache:
    """The pictures used last, as many as fit into so many bytes. One for each network and resolution.

    Safe to use from many threads.

    Args:
        most_bytes: Memory for patches and features together; 0 remembers nothing.
    """

    def __init__(self, most_bytes: int = 512 * 2**20) -> None:
        self.most_bytes = most_bytes
        self._held = 0
        self._pictures: OrderedDict[str, SeenPicture] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> SeenPicture | None:
        """The picture, if it is remembered."""
        with self._lock:
            found = self._pictures.get(key)
            if found is not None:
                self._pictures.move_to_end(key)
            return found

    def put(self, picture: SeenPicture) -> None:
        """Remember a picture; features are never replaced by patches."""
        with self._lock:
            known = self._pictures.pop(picture.key, None)
            if known is not None:
                self._held -= known.bytes
                if picture.features is None and known.features is not None:
                    picture = known
            if picture.bytes > self.most_bytes:
                return  # it would push out all others and then go as well
            self._pictures[picture.key] = picture
            self._held += picture.bytes
            while self._held > self.most_bytes:
                self._held -= self._pictures.popitem(last=False)[1].bytes
