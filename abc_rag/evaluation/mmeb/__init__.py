"""MMEB: reading its data sets, and evaluating models on them."""

from __future__ import annotations

from abc_rag.evaluation.mmeb.run import DatasetScore, download_mmeb, evaluate_mmeb
from abc_rag.evaluation.mmeb.tasks import Prompts

__all__ = ["DatasetScore", "Prompts", "download_mmeb", "evaluate_mmeb"]
