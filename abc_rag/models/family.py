"""The seam of a model family: prompts, preprocessing, network, pooling.

An engine (`abc_rag.embedding.engine`) reads pictures, opens them in workers, caches, schedules and recovers; a family
knows its model. `abc_rag.models.ModelLoader` says which checkpoints are a family's, and loads them.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from abc_rag.errors import InputError
from abc_rag.images.limits import ImageLimits
from abc_rag.images.open import rendered
from abc_rag.images.pixels import PUBLISHED, Rendering
from abc_rag.types import BASIC_TYPES, ROLES, Fingerprint, ImageSource, Input

__all__ = [
    "Family",
    "FamilyFacts",
    "HasPictures",
    "Kept",
    "Opened",
    "Picture",
    "PictureRecipe",
    "Prepared",
    "VisionModel",
    "check_length",
]

F = TypeVar("F", bound="Family")


class Opened(Protocol):
    """A picture as a vision tower takes it: a dataclass of whole numbers and NumPy arrays, such as uint8 patches."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""

    @property
    def patches(self) -> int:
        """Its size for the vision tower, in patches."""


class HasPictures(Protocol):
    """What holds pictures: an `Input`, or a conversation."""

    @property
    def pictures(self) -> tuple[ImageSource, ...]:
        """Its pictures, in order."""


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
    """A picture: as it was opened until the vision tower has seen it, its features from then on.

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
class Kept:
    """What is left of an input where image tokens are left out.

    Attributes:
        positions: int64 ``(length,)``: where the remaining tokens stand in the whole input.
        image_tokens: int64: which image tokens remain, of all its pictures in turn.
    """

    positions: npt.NDArray[np.int64]
    image_tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One input, ready for the network.

    Attributes:
        kind: Inputs of one kind may share a batch; a family names its kinds as it likes.
        input_ids: int64 ``(length,)``, image tokens already repeated.
        pictures: Its pictures, in order.
        kept: Where image tokens are left out, what is left; None for a whole input.
    """

    kind: str
    input_ids: npt.NDArray[np.int64]
    pictures: tuple[Picture, ...] = ()
    kept: Kept | None = field(default=None, kw_only=True)

    def without(self, left_out: Sequence[int], image_token_id: int) -> Prepared:
        """The same input without some of its image tokens; the others keep their positions.

        Args:
            left_out: Their numbers among the image tokens.
            image_token_id: What stands for them in ``input_ids``.

        Raises:
            InputError: There are not as many.
        """
        at = np.flatnonzero(self.input_ids == image_token_id)
        if len(left_out) and max(left_out) >= len(at):
            raise InputError(
                f"a picture of {len(at)} image tokens has no token {max(left_out)} to leave out; count from 0, as "
                "Embedder.grid has them"
            )
        image_tokens = np.delete(np.arange(len(at)), np.array(left_out, dtype=np.int64))
        positions = np.delete(np.arange(len(self.input_ids)), at[np.array(left_out, dtype=np.int64)])
        return replace(self, input_ids=self.input_ids[positions], kept=Kept(positions, image_tokens))

    @property
    def tokens(self) -> int:
        """Length of the sequence that the language model sees."""
        return len(self.input_ids)


def check_length(prepared: Prepared, item: Input, most: int) -> None:
    """Refuse an input that is longer than a model can read.

    Raises:
        InputError: It has more than ``most`` tokens.
    """
    if prepared.tokens > most:
        raise InputError(
            f"an input of {prepared.tokens} tokens is longer than the model's {most}; "
            f"split the text: {item.words[:60]!r} ..."
        )


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """What is fixed once a family has been loaded; an engine reads it once.

    Attributes:
        dim: Length of a vector.
        fingerprint: Model, revision and resolution; it changes whenever a vector may.
        device: Where the network is.
        dtype: What the network computes in.
        image_limits: Which pictures are accepted.
        recipe: How pictures are opened.
        accepts: The input types that `Family.prepare` takes; the engine refuses all others.
        roles: What an input may be for: a document, a query, and names of further prompts of the model.
        query_instruction: The prompt of a query, or None where a query is an input like any other.
        document_instruction: The prompt of a document, or None.
        rendering: What becomes of transparency and of more than eight bits before the recipe sees a picture.
        cuts: Whether the model was trained for vectors that are cut to fewer numbers (Matryoshka).
    """

    dim: int
    fingerprint: Fingerprint
    device: torch.device
    dtype: torch.dtype
    image_limits: ImageLimits
    recipe: PictureRecipe
    accepts: tuple[type, ...] = BASIC_TYPES
    roles: tuple[str, ...] = ROLES
    query_instruction: str | None = None
    document_instruction: str | None = None
    rendering: Rendering = PUBLISHED
    cuts: bool = False

    def told(self, role: str) -> str | None:
        """The instruction of a query or a document."""
        return self.query_instruction if role == "query" else self.document_instruction

    def open(self, source: ImageSource, *, name: str | None = None) -> Any:  # noqa: ANN401  (what the recipe says)
        """Open a picture; an `Opened`. ``name`` is for messages.

        Raises:
            InputError: It cannot be used.
        """
        source = rendered(source, limits=self.image_limits, rendering=self.rendering, name=name)
        return self.recipe.open(source, limits=self.image_limits, name=name)


class VisionModel(ABC):
    """A vision tower and the prompts of a language model: what a `Family` and an `abc_rag.models.chat.ChatModel` share.

    Args:
        facts: What is fixed once it has been loaded.
    """

    def __init__(self, facts: FamilyFacts) -> None:
        self.facts = facts

    @abstractmethod
    def picture_tokens(self, opened: Any) -> int:  # noqa: ANN401
        """Number of image tokens of an opened picture in the language model."""

    @abstractmethod
    def prepare(self, item: Any, pictures: Sequence[Picture] | None = None) -> Prepared:  # noqa: ANN401
        """Prompt and tokenise one item on the CPU. Safe to call from many threads.

        Raises:
            InputError: This item cannot be used; the message says why.
        """

    def opened(self, item: HasPictures, pictures: Sequence[Picture] | None = None) -> tuple[Picture, ...]:
        """``pictures``, or where they are not given those of ``item``, opened here.

        Raises:
            ImageError: One cannot be used.
        """
        if pictures is not None:
            return tuple(pictures)
        found = []
        for source in item.pictures:
            opened = self.facts.open(source)
            found.append(Picture("", self.picture_tokens(opened), opened))
        return tuple(found)

    @abstractmethod
    def see(self, opened: Sequence[Any]) -> list[torch.Tensor]:
        """Vision features of some pictures, each ``(tokens, hidden)``, that nothing else keeps in memory.

        They do not depend on the instruction, nor on the other pictures. Called by one thread at a time, unless the
        family is `concurrent`.
        """

    def see_all(self, batch: Sequence[Prepared]) -> None:
        """Give every picture of a batch its features."""
        unseen = {id(p): p for prepared in batch for p in prepared.pictures if p.features is None}
        if unseen:
            for picture, features in zip(unseen.values(), self.see([p.opened for p in unseen.values()]), strict=True):
                picture.features = features


class Family(VisionModel):
    """What makes a network an embedder.

    Args:
        facts: What is fixed once it has been loaded.

    Attributes:
        chat: Its base as a model that generates (`abc_rag.models.chat.ChatModel`), where the adapters lie beside it.
        concurrent: Whether several threads may call `see` at once, and one `forward` meanwhile.
    """

    concurrent: ClassVar[bool] = False

    def __init__(self, facts: FamilyFacts) -> None:
        super().__init__(facts)
        self.chat: VisionModel | None = None

    @abstractmethod
    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        """Prompt and tokenise one input on the CPU. Safe to call from many threads.

        Args:
            item: The input.
            pictures: Its pictures in order, if the caller has opened them; otherwise they are opened here (`opened`).

        Raises:
            InputError: This input cannot be embedded; the message says why.
        """

    def at(self: F, *, min_tokens: int, max_tokens: int) -> F:
        """The same network at another resolution, in image tokens.

        Raises:
            InputError: This family's resolution cannot be set so.
        """
        other, facts = copy.copy(self), self.facts
        fingerprint = replace(facts.fingerprint, min_tokens=min_tokens, max_tokens=max_tokens)
        other.facts = replace(facts, fingerprint=fingerprint, recipe=self._recipe_at(min_tokens, max_tokens))
        other.chat = None
        return other

    def _recipe_at(self, min_tokens: int, max_tokens: int) -> PictureRecipe:
        raise InputError(f"the resolution of {self.facts.fingerprint.model} cannot be set in image tokens")

    def grid(self, opened: Any) -> tuple[int, int]:  # noqa: ANN401
        """Rows and columns of an opened picture's image tokens; only of a family that accepts a `MaskedImage`."""
        raise NotImplementedError(f"{type(self).__name__} leaves out no parts of pictures")

    def count_flops(self, item: Input) -> tuple[int, float]:
        """Length of an input in tokens, and the operations that it needs where its pictures have not been seen before.

        NaN operations where they are not known for this family. Only matrix products count; a multiplication and an
        addition are two operations.
        """
        return self.prepare(item).tokens, math.nan

    @abstractmethod
    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Embed prepared inputs of one kind: float32 unit rows ``(n, dim)``.

        Pictures without features are seen first. A row does not depend on the rest of its batch. Called by one thread
        at a time.
        """
