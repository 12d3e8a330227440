"""VLM2Vec (arXiv 2410.05160)."""

from __future__ import annotations

from abc_rag.models.vlm2vec.prompts import TASK_INSTRUCTIONS

__all__ = ["TASK_INSTRUCTIONS"]
