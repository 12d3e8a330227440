from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_helpers import Running, serving

from abc_rag import Embedder, load_embedder
from abc_rag.server import ServerSettings


@pytest.fixture(scope="package")
def local() -> Embedder:
    """abc-mini in this process."""
    return load_embedder("abc-mini", device="cpu", image_limits=ServerSettings().image_limits)


@pytest.fixture(scope="package")
def running(local: Embedder) -> Iterator[Running]:
    """A server on loopback that computes with ``local``."""
    with serving(local) as server:
        yield server
