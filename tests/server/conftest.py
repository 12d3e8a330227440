from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_helpers import Running, serving

from abc_rag import load_embedder


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """abc-mini, served; without collections and keys."""
    with serving(load_embedder("abc-mini", device="cpu")) as running:
        yield running
