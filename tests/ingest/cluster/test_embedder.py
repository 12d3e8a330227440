"""An embedder whose engines are on the cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from abc_rag import Image, Text
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import ABCRagError, ImageError, InputError
from abc_rag.ingest.cluster import ClusterEmbedder, Engines

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
BROKEN = b"\x89PNG\r\n\x1a\nbroken"


def test_vectors_in_order_and_errors_at_their_places(nodes: Any) -> None:
    own = FakeEmbedder()
    texts = [Text(f"passage {number}") for number in range(30)]
    with ClusterEmbedder(own, engines=Engines(most=2, batch=4, cpus=0.5)) as spread:
        assert (spread.dim, spread.fingerprint, spread.accepts) == (own.dim, own.fingerprint, own.accepts)
        np.testing.assert_array_equal(spread.embed(texts), own.embed(texts))
        results = list(spread.embed_iter([*texts[:9], Image(BROKEN), *texts[9:]], return_errors=True))
        assert [n for n, one in enumerate(results) if isinstance(one, ABCRagError)] == [9]
        assert isinstance(results[9], ImageError)
        np.testing.assert_array_equal(np.stack(results[:9] + results[10:]), own.embed(texts))
        with pytest.raises(InputError):
            spread.embed([Image(BROKEN)])
    with pytest.raises(ABCRagError, match="has been closed"):
        spread.embed(texts)
