"""A family without a network: it notes what it is asked for, and does as badly as a test wants."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from toy_pictures import ToyOpened, ToyPictures

from abc_rag import Image, ImageLimits, Input, InstructedImage, Interleaved, Text
from abc_rag.models.family import Family, FamilyFacts, Picture, Prepared
from abc_rag.types import BASIC_TYPES, Fingerprint, Vectors

LONG = 300.0
"""Seconds after which what a test waits for will not come any more."""


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what nobody tells."""
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.002)


def png(width: int, height: int = 1, colour: tuple[int, int, int] | None = None) -> bytes:
    """A picture of so many patches (width) and tokens (height)."""
    out = io.BytesIO()
    colour = colour or (width % 256, height % 256, 77)
    PIL.Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True, eq=False)
class ToyPrepared(Prepared):
    item: Input | None = None


class Toy(Family):
    """A text has as many tokens as words; a vector is a hash of all that its input holds."""

    def __init__(self, *, dangerous: bool = False, limits: ImageLimits | None = None) -> None:
        super().__init__(
            FamilyFacts(
                dim=8,
                fingerprint=Fingerprint("toy", "1", 1, 1),
                device=torch.device("cpu"),
                dtype=torch.float32,
                image_limits=limits or ImageLimits(max_aspect_ratio=1000),
                recipe=ToyPictures(dangerous),
                accepts=(*BASIC_TYPES, Interleaved),
            )
        )
        self.batches: list[list[ToyPrepared]] = []
        self.seen: list[list[ToyOpened]] = []
        self.threads: set[int] = set()
        self.cores: list[int] = []  # threads of torch, batch by batch
        self.busy = threading.Event()  # a batch is being computed, or waits for `gate`
        self.gate = threading.Event()
        self.gate.set()
        self.max_batch_tokens = self.max_batch_patches = 10**9  # what its memory holds
        self.no_memory: Callable[[], BaseException] = lambda: torch.OutOfMemoryError("no memory")
        self.failing: dict[str, BaseException] = {}  # in the network
        self.unprepared: dict[str, BaseException] = {}  # in preparation
        self.blind: set[int] = set()  # widths of pictures that its vision tower cannot see

    def picture_tokens(self, opened: ToyOpened) -> int:
        return opened.tokens

    def prepare(self, item: Input, pictures: Sequence[Picture] | None = None) -> ToyPrepared:
        said = item.text if isinstance(item, Text) else getattr(item, "instruction", "")
        if said in self.unprepared:
            raise self.unprepared[said]
        if said == "":
            said = "-"
        ids = [zlib.crc32(word.encode()) for word in said.split()]
        if isinstance(item, Text):
            return ToyPrepared("text", np.array(ids), (), item)
        opened = self.opened(item, pictures)
        if isinstance(item, Interleaved):
            shown = [0] * sum(picture.tokens for picture in opened)
            return ToyPrepared("interleaved", np.array([*shown, zlib.crc32(item.words.encode())]), opened, item)
        kind = "image+instruction" if isinstance(item, InstructedImage) else "image"
        return ToyPrepared(kind, np.array([0] * opened[0].tokens + ids[: kind != "image" and len(ids)]), opened, item)

    def see(self, opened: Sequence[ToyOpened]) -> list[torch.Tensor]:
        self.seen.append(list(opened))
        self.threads.add(threading.get_ident())
        if sum(one.patches for one in opened) > self.max_batch_patches:
            raise self.no_memory()
        if any(one.patches in self.blind for one in opened):
            raise ValueError("cannot be seen")
        return [features_of(one) for one in opened]

    def forward(self, batch: Sequence[Prepared]) -> torch.Tensor:
        items = [one for one in batch if isinstance(one, ToyPrepared)]
        self.batches.append(items)
        self.cores.append(torch.get_num_threads())
        self.threads.add(threading.get_ident())
        self.busy.set()
        assert self.gate.wait(LONG)
        if sum(one.tokens for one in batch) > self.max_batch_tokens:
            raise self.no_memory()
        for one in items:
            if said_by(one) in self.failing:
                raise self.failing[said_by(one)]
        return torch.stack([self._vector(one) for one in batch])

    def _vector(self, one: Prepared) -> torch.Tensor:
        content = one.kind.encode() + one.input_ids.tobytes()
        for picture in one.pictures:
            assert picture.features is not None
            content += picture.features.numpy().tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
        vector = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        return vector / vector.norm()

    def expected(self, inputs: Sequence[Input]) -> Vectors:
        """What the engine should give, by another way."""
        rows = []
        for item in inputs:
            prepared = self.prepare(item)
            for picture in prepared.pictures:
                picture.features = features_of(picture.opened)
            rows.append(self._vector(prepared).numpy())
        return np.stack(rows)

    def said(self) -> list[list[str]]:
        """What the texts and instructions of each batch were."""
        return [[said_by(one) for one in batch] for batch in self.batches]


def features_of(opened: ToyOpened) -> torch.Tensor:
    """All pixels, for each token."""
    pixels = torch.from_numpy(opened.pixels.astype(np.float32)).reshape(1, -1)
    return pixels.repeat(opened.tokens, 1)


def said_by(one: ToyPrepared) -> str:
    """The text, or the instruction."""
    return one.item.text if isinstance(one.item, Text) else getattr(one.item, "instruction", "")


def words(count: int, first: str = "w") -> str:
    """A text of so many tokens."""
    return " ".join([first, *["w"] * (count - 1)])


def pictures(*widths: int) -> list[Any]:
    return [Image(png(width)) for width in widths]
