from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_helpers import Running, serving

from abc_rag import load_embedder
from abc_rag.server import ServerSettings


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """abc-mini, served; without collections and keys."""
    limits = ServerSettings().image_limits
    with serving(load_embedder("abc-mini", device="cpu", image_limits=limits)) as running:
        yield running
