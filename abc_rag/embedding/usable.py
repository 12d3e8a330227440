"""Embed untrusted inputs: one that cannot be embedded does not affect the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from abc_rag.embedding.embedder import Embedder
from abc_rag.errors import ABCRagError, InputError
from abc_rag.types import Input, Vectors

__all__ = ["embed_usable"]


def embed_usable(embedder: Embedder, inputs: Sequence[Input]) -> tuple[Vectors, dict[int, InputError]]:
    """Embed every input that can be embedded.

    Args:
        embedder: The model.
        inputs: Any mix of inputs.

    Returns:
        float32 ``(n, dim)``, zero where an input cannot be embedded, and the error of each such input by position.

    Raises:
        ABCRagError: The model itself failed.
    """
    vectors = np.zeros((len(inputs), embedder.dim), dtype=np.float32)
    errors: dict[int, InputError] = {}
    for position, result in enumerate(embedder.embed_iter(inputs, return_errors=True)):
        if isinstance(result, InputError):
            errors[position] = result.at(None)  # the caller names the input in its own terms
        elif isinstance(result, ABCRagError):
            raise result
        else:
            vectors[position] = result
    return vectors, errors
