"""The seam of a model family: prompts, preprocessing, network, pooling.

An engine (`abc_rag.engine`) schedules; a family knows its model. Adding one means one file that
implements `Family`, and one fixture that proves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from abc_rag.models._vision_cache import SeenPicture
from abc_rag.types import Fingerprint, Input

__all__ = ["Family", "Prepared"]


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the network.

    Attributes:
        kind: Inputs of one kind may share a batch; a family names its kinds as it likes.
        input_ids: int64 ``(length,)``, image tokens already repeated.
        picture: The picture, if there is one.
    """

    kind: str
    input_ids: npt.NDArray[np.int64]
    picture: SeenPicture | None = None

    @property
    def tokens(self) -> int:
        """Length of the sequence that the language model sees."""
        return len(self.input_ids)


class Family(ABC):
    """What makes a network an embedder."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Model, revision and resolution."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the network is."""

    @abstractmethod
    def prepare(self, item: Input) -> Prepared:
        """Prompt, tokenise and preprocess one input on the CPU. Safe to call from many threads.

        Raises:
            InputError: This input cannot be embedded; the message says why.
        """

    @abstractmethod
    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed prepared inputs of one kind: float32 unit rows ``(n, dim)``.

        A row does not depend on the rest of its batch. Called by one thread at a time.
        """
