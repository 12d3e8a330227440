"""Comparing codes first finds what comparing with every vector finds, ties included."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from abc_rag.store.codes import Codes
from abc_rag.store.lance.exact import Block, ranked, ranked_by_codes


@pytest.mark.parametrize("k", [1, 7, 400])
def test_codes_first_or_not(k: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 24)).astype(np.float32)
    rows[::5] = rows[0]  # equal ones
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    block = Block(rng.permutation(300), pa.array([f"r{i}" for i in rng.permutation(300)]), rows)
    codes = Codes(*rows.shape)
    codes.put(slice(0, 300), rows)
    queries = np.concatenate([rows[:1], rows[7:9], -rows[3:4]])
    assert ranked_by_codes(queries, k, block, codes) == ranked(queries, k, [block])
