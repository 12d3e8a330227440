"""One Chroma collection."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from chromadb.api.collection_configuration import CreateHNSWConfiguration

T = TypeVar("T")
# A Chroma server refuses requests of 40 MB.
_REQUEST_BYTES = 30_000_000
_QUERIES = 256
# With Chroma's 16 neighbours, records beside a few dozen equal vectors cannot be found.
_INDEX: CreateHNSWConfiguration = {"space": "cosine", "max_neighbors": 64, "ef_search": 200}
