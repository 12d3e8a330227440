"""Mining hard negatives."""

from __future__ import annotations

from abc_rag.training.negatives.mine import MiningReport, mine_negatives

__all__ = ["MiningReport", "mine_negatives"]
