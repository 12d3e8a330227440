"""Pictures as Chroma hands them over: numpy arrays, from files by a loader of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from chromadb.api.types import DataLoader

from abc_rag.embedding.settings import EngineSettings
from abc_rag.errors import InputError
from abc_rag.images.limits import DEFAULT_LIMITS, ImageLimits
from abc_rag.images.open import open_pixels
from abc_rag.images.pixels import Depth, Rendering

__all__ = ["REMEDY", "ABCImageLoader", "picture_of"]

REMEDY = "numpy.asarray(picture.convert('RGB'))"
"""How a PIL image becomes an array that is taken."""


class ABCImageLoader(DataLoader[list[Any]]):
    """Chroma's ``data_loader`` for `ABCEmbeddingFunction`: pictures by path, upright and in RGB.

    ::

        collection = client.get_collection("photos", data_loader=ABCImageLoader())
        collection.add(ids=["1"], uris=["photos/pig.jpg"])
        collection.query(query_uris=["photos/cow.jpg"])

    A URI is a path, whatever it looks like; nothing is fetched. Chroma stores neither the loader nor its settings with
    a collection: pictures that are added or asked with another background or depth have other vectors.

    Args:
        background: As for `abc_rag.load_embedder`.
        depth: As for `abc_rag.load_embedder`.
        image_limits: Which pictures are accepted.
        workers: How many pictures are opened at once. If not given: one for each core, at most 8.

    Raises:
        InputError: A setting is unusable.
    """

    def __init__(
        self,
        *,
        background: str | None = None,
        depth: Depth = "published",
        image_limits: ImageLimits = DEFAULT_LIMITS,
        workers: int | None = None,
    ) -> None:
        self._rendering = Rendering(background, depth)
        self._limits = image_limits
        self._workers = EngineSettings(workers=workers).workers or min(8, os.cpu_count() or 1)

    def __call__(self, uris: Sequence[str | None]) -> list[npt.NDArray[np.uint8] | None]:
        """Open pictures.

        Args:
            uris: Paths; None has no picture.

        Returns:
            For each, an array of shape ``(height, width, 3)``, or None.

        Raises:
            ImageError: A picture cannot be used; the message names its path.
        """
        with ThreadPoolExecutor(self._workers) as threads:
            return list(threads.map(self._opened, uris))

    def _opened(self, uri: str | None) -> npt.NDArray[np.uint8] | None:
        if uri is None:
            return None
        return np.asarray(open_pixels(uri, limits=self._limits, rendering=self._rendering), dtype=np.uint8)


def picture_of(position: int, array: np.ndarray[Any, Any]) -> PIL.Image.Image:
    """The picture that an array shows.

    Raises:
        InputError: It is not uint8 of shape ``(height, width, 3)``; the message names its position.
    """
    shape = array.shape
    what = f"input {position} is an array of {array.dtype} and shape {shape}"
    if array.dtype != np.uint8:
        raise InputError(f"{what}; a picture is uint8: scale it to 0..255 and pass array.astype(numpy.uint8)")
    if len(shape) != 3 or shape[2] != 3:
        remedy = f"pass {REMEDY}, or give the collection data_loader=ABCImageLoader() and add uris"
        if len(shape) == 3 and shape[0] == 3:  # PyTorch's order
            remedy = "array.transpose(1, 2, 0) makes it one"
        raise InputError(f"{what}; a picture is height x width x 3, in RGB: {remedy}")
    if not array.size:
        raise InputError(f"{what}, without pixels; pass a picture that has some")
    return PIL.Image.fromarray(array)
