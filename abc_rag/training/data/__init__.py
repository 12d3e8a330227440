"""Training data: files, folders and published data sets, read row by row."""

from __future__ import annotations

from abc_rag.training.data.mmeb import MMEBRows, PairRow, Side, open_mmeb_rows
from abc_rag.training.data.open import open_captions, open_pairs
from abc_rag.training.data.rows import BadRow, BadRows
from abc_rag.training.data.sources import Candidate, CaptionRow, CaptionSource, Pair, PairsRow, PairsSource

__all__ = [
    "BadRow",
    "BadRows",
    "Candidate",
    "CaptionRow",
    "CaptionSource",
    "MMEBRows",
    "Pair",
    "PairRow",
    "PairsRow",
    "PairsSource",
    "Side",
    "open_captions",
    "open_mmeb_rows",
    "open_pairs",
]
