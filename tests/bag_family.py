"""A family in one file, as CONTRIBUTING describes it: words and colours in a bag. No weights; `bag.json` is all it has.

A vector is the sum of a direction for each word and of each picture's mean colour, as seen under the question's words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from abc_rag import Fingerprint, ImageLimits, Input, InstructedImage, Interleaved, Text
from abc_rag.errors import CheckpointError, InputError
from abc_rag.images.open import open_pixels
from abc_rag.models import Checkpoint, LoadOptions, ModelLoader
from abc_rag.models.family import Family, FamilyFacts, Picture, Prepared
from abc_rag.types import BASIC_TYPES, ImageSource

if TYPE_CHECKING:
    import torch

FILE = "bag.json"


class BagLoader(ModelLoader):
    name = "bag"

    def refusal(self, folder: Path) -> str | None:
        return None if (folder / FILE).is_file() else f"holds no {FILE}"

    def checkpoint(self, model: Any) -> Checkpoint:
        folder = Path(model)
        if refusal := self.refusal(folder):
            raise InputError(f"{folder} {refusal}")
        return BagCheckpoint(folder)


@dataclass(frozen=True)
class BagCheckpoint(Checkpoint):
    folder: Path

    def local_revision(self, weights: str, resolution: int | str | None = None) -> str:
        return hashlib.sha256((self.folder / FILE).read_bytes()).hexdigest()[:12]

    def fetch(self, device: str) -> None:
        """All is here."""

    def build(self, options: LoadOptions) -> Family:
        options.refuse("bag", weights="it has none", min_tokens="it has one token", max_tokens="it has one token")
        dim = json.loads((self.folder / FILE).read_text()).get("dim")
        if not isinstance(dim, int):
            raise CheckpointError(f"{self.folder / FILE}: dim must be a number")
        fingerprint = Fingerprint(self.folder.name, self.local_revision("full"), 1, 1)
        return BagFamily(dim, fingerprint, options.image_limits, options.device)


@dataclass(frozen=True)
class MeanColour:
    colour: Any  # uint8 (1, 3)

    @property
    def nbytes(self) -> int:
        return int(self.colour.nbytes)

    @property
    def patches(self) -> int:
        return 1


@dataclass(frozen=True)
class MeanColours:
    opens: ClassVar[type[MeanColour]] = MeanColour

    def open(self, source: ImageSource, *, limits: ImageLimits, name: str | None = None) -> MeanColour:
        pixels = np.asarray(open_pixels(source, limits=limits, name=name))
        return MeanColour(pixels.reshape(-1, 3).mean(axis=0, keepdims=True).astype(np.uint8))


def words_of(item: Input) -> str:
    if isinstance(item, Interleaved):
        return " ".join(part.text for part in item.parts if isinstance(part, Text))
    return item.text if isinstance(item, Text) else getattr(item, "instruction", "")


class BagFamily(Family):
    image_token = 0

    def __init__(self, dim: int, fingerprint: Fingerprint, limits: ImageLimits, device: torch.device) -> None:
        import torch

        super().__init__(
            FamilyFacts(
                dim=dim,
                fingerprint=fingerprint,
                device=device,
                dtype=torch.float32,
                image_limits=limits,
                recipe=MeanColours(),
                accepts=(*BASIC_TYPES, Interleaved),
            )
        )

    def picture_tokens(self, opened: MeanColour) -> int:
        return 1

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> Prepared:
        opened = self.opened(item, pictures)
        said = [1 + int.from_bytes(word.encode()[:4].lower(), "big") for word in words_of(item).split()]
        if isinstance(item, (Text, InstructedImage)) and not said:
            said = [1]
        return Prepared("any", np.array([self.image_token] * len(opened) + said, dtype=np.int64), opened)

    def see(self, opened: Sequence[MeanColour]) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(one.colour.astype(np.float32) / 255) for one in opened]

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        import torch

        self.see_all(batch)
        rows = torch.zeros(len(batch), self.facts.dim)
        for row, prepared in zip(rows, batch, strict=True):
            for word in prepared.input_ids[prepared.input_ids != self.image_token]:
                row += torch.randn(self.facts.dim, generator=torch.Generator().manual_seed(int(word)))
            for place, picture in enumerate(prepared.pictures, 1):
                assert picture.features is not None
                row[:3] += place * 4 * picture.features[0]
        return torch.nn.functional.normalize(rows, dim=-1)
