"""The seam of a model family: prompts, preprocessing, network, pooling.

An engine (`abc_rag.engine`) reads pictures, opens them in workers, caches, schedules and recovers; a family knows its
model. Adding one means one file that implements `Family`, and one fixture that proves it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from abc_rag.images import ImageLimits
from abc_rag.types import Fingerprint, ImageSource, Input

__all__ = ["Family", "Opened", "Picture", "PictureRecipe", "Prepared"]


class Opened(Protocol):
    """A picture as a vision tower takes it: a dataclass of whole numbers and NumPy arrays, such as uint8 patches."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""

    @property
    def patches(self) -> int:
        """How much work it is for the vision tower, in patches."""


class PictureRecipe(Protocol):
    """How a family's pictures are opened, resized and cut.

    A frozen dataclass of plain numbers and strings, in a module that imports no torch: other processes import it
    and make it anew.
    """

    opens: ClassVar[type[Any]]
    """The dataclass that `open` returns."""

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> Any:  # noqa: ANN401
        """Open a picture; an `Opened`. ``name`` is for messages.

        Raises:
            InputError: It cannot be used.
        """


@dataclass(eq=False)
class Picture:
    """What is known of a picture: how it was opened until the vision tower has seen it, its features from then on.

    Attributes:
        key: Hash of its content.
        tokens: How many image tokens it has.
        opened: Input of the vision tower (`Opened`), or None.
        features: Output of the vision tower, ``(tokens, hidden)``, or None.
    """

    key: str
    tokens: int
    opened: Any = None
    features: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """One input, ready for the network.

    Attributes:
        kind: Inputs of one kind may share a batch; a family names its kinds as it likes.
        input_ids: int64 ``(length,)``, image tokens already repeated.
        picture: The picture, if there is one.
    """

    kind: str
    input_ids: npt.NDArray[np.int64]
    picture: Picture | None = None

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

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the network computes in."""

    @property
    @abstractmethod
    def image_limits(self) -> ImageLimits:
        """Which pictures are accepted."""

    @property
    @abstractmethod
    def recipe(self) -> PictureRecipe:
        """How pictures are opened."""

    @abstractmethod
    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """How many image tokens an opened picture has in the language model."""

    @abstractmethod
    def prepare(self, item: Input, picture: Picture | None = None) -> Prepared:
        """Prompt and tokenise one input on the CPU. Safe to call from many threads.

        Args:
            item: The input.
            picture: Its picture, if the caller has opened it; otherwise it is opened here.

        Raises:
            InputError: This input cannot be embedded; the message says why.
        """

    @abstractmethod
    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """Vision features of some opened pictures, each ``(tokens, hidden)``, that nothing else keeps in memory.

        They do not depend on the instruction, nor on the other pictures. Called by one thread at a time.
        """

    @abstractmethod
    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed prepared inputs of one kind: float32 unit rows ``(n, dim)``.

        Pictures without features are seen first. A row does not depend on the rest of its batch. Called by one thread
        at a time.
        """
